"""Reading a model from whatever holds it: a path, bytes, a proto."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from google.protobuf.message import DecodeError
from onnx import ModelProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from graphmod.errors import InvalidModelError
from graphmod.model import initializers
from graphmod.model.model import Model


def load(model: str | PathLike[str] | bytes | ModelProto | Model) -> Model:
    """Load a model from a path, from a file's bytes, or from a proto.

    Weights in external files are memory-mapped when they are used, not before.

    Raises
    ------
    InvalidModelError
        There is no such file, it is no whole ONNX model, or the data of an external initializer is missing.

    Examples
    --------
    >>> import graphmod as gm
    >>> len(gm.load(gm.demo.model_path()).operators) > 100
    True
    """
    if isinstance(model, Model):
        return model
    if isinstance(model, ModelProto):
        proto = ModelProto()
        proto.CopyFrom(model)
        return _checked(Model(proto), "the proto")
    if isinstance(model, bytes):
        proto = _parse(model, "the byte string")
        return _checked(Model(proto, None, _unlike(proto, model)), "the byte string")
    if not isinstance(model, str | PathLike):
        raise InvalidModelError(
            f"a {type(model).__name__} is no model; give a path, a file's bytes, or an onnx.ModelProto"
        )
    path = Path(model)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidModelError(f"cannot read '{path}': {error.strerror}") from error
    proto = _parse(content, f"'{path}'")
    folder = path.resolve().parent if any(map(uses_external_data, initializers.tensors(proto))) else None
    if folder is not None and path.is_symlink():
        _follow_links(proto, path.absolute().parent, folder)
    source = _unlike(proto, content) if folder is None else None
    return _checked(Model(proto, folder, source), f"'{path}'")


def _follow_links(proto: ModelProto, links: Path, folder: Path) -> None:
    """Let the constants of a model that was read through a link point to the files that the links beside it lead to.

    The caches of model hubs are made of such links. Files outside of the model's own folder are not followed to.
    """
    for tensor in filter(uses_external_data, initializers.tensors(proto)):
        for entry in tensor.external_data:
            real = (links / entry.value).resolve() if entry.key == "location" else None
            if real is not None and real.is_file() and real.is_relative_to(folder):
                entry.value = str(real.relative_to(folder))


def _unlike(proto: ModelProto, content: bytes) -> bytes | None:
    """Return the bytes that a proto was read from, if writing it would not give the same ones."""
    return None if proto.SerializeToString() == content else content


def external_files(path: Path) -> list[Path]:
    """Return the files beside a model that hold its weights; none where they are inside."""
    proto = _parse(path.read_bytes(), f"'{path}'")
    external = filter(uses_external_data, initializers.tensors(proto))
    return sorted({path.parent / ExternalDataInfo(tensor).location for tensor in external})


def _parse(content: bytes, what: str) -> ModelProto:
    if content.startswith(b"version https://git-lfs"):
        raise InvalidModelError(f"{what} is a Git LFS pointer, not the model itself; fetch it with 'git lfs pull'")
    try:
        proto: ModelProto = ModelProto.FromString(content)
    except DecodeError as error:
        raise InvalidModelError(f"{what} is not an ONNX model, or only a part of one") from error
    return proto


def _checked(model: Model, what: str) -> Model:
    proto = model._proto
    if not proto.ir_version or not proto.opset_import or not proto.graph.node:
        raise InvalidModelError(f"{what} is not an ONNX model: it has no format version, operator set or operators")
    for _ in initializers.external_places(filter(uses_external_data, initializers.tensors(proto)), model.folder):
        pass  # every one is there
    return model
