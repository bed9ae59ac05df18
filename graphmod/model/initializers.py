"""Constant tensors: their values, wherever the file keeps them, without a copy until one is needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, SparseTensorProto, TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from graphmod.errors import InvalidModelError

Array = NDArray[np.generic]

LARGE = 1024
"""Scalars above which shape inference does without an initializer's value."""

SHAPE_LIKE = 64
"""Scalars up to which an external value is read for shape inference: shapes, axes and scales have no more."""

SAFE = 2**30
"""Bytes of values up to which a model surely fits into one protobuf message, which ends at 2 GB."""

CHUNK = 2**23
"""Bytes that are read from an external file at a time."""

_CARRIERS = frozenset(
    {
        AttributeProto.UNDEFINED,  # files of IR version 1 do not name the type
        AttributeProto.TENSOR,
        AttributeProto.TENSORS,
        AttributeProto.SPARSE_TENSOR,
        AttributeProto.SPARSE_TENSORS,
        AttributeProto.GRAPH,
        AttributeProto.GRAPHS,
    }
)
"""Types of attributes that hold tensors or graphs."""

_BITS: dict[int, int] = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}

_VALUE_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "uint64_data",
    "double_data",
    "string_data",
    "external_data",
    "data_location",
)


def tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Yield every constant tensor of a model: initializers, then all of :func:`inner_tensors`."""
    yield from proto.graph.initializer
    yield from inner_tensors(proto)


def inner_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Yield the tensors of attributes, of bodies and functions, then the parts of sparse ones."""
    yield from inner_dense_tensors(proto)
    yield from sparse_parts(proto)


def inner_dense_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Yield the tensors of attributes, and the initializers of bodies."""
    return (constant for constant in _inner_constants(proto) if isinstance(constant, TensorProto))


def sparse_parts(proto: ModelProto) -> Iterator[TensorProto]:
    """Yield values and indices of sparse initializers and attributes, wherever they are."""
    sparse = (constant for constant in _inner_constants(proto) if isinstance(constant, SparseTensorProto))
    return (part for constant in sparse for part in _parts(constant))


def _parts(constant: TensorProto | SparseTensorProto) -> tuple[TensorProto, ...]:
    return (constant,) if isinstance(constant, TensorProto) else (constant.values, constant.indices)


def _inner_constants(proto: ModelProto) -> Iterator[TensorProto | SparseTensorProto]:
    trained = [graph for info in proto.training_info for graph in (info.initialization, info.algorithm)]
    pending: list[GraphProto | FunctionProto | AttributeProto] = [*proto.functions, *trained, proto.graph]
    is_main = True
    while pending:
        part = pending.pop()
        if isinstance(part, AttributeProto):
            yield from ([part.t] if part.HasField("t") else [])
            yield from part.tensors
            yield from ([part.sparse_tensor] if part.HasField("sparse_tensor") else [])
            yield from part.sparse_tensors
            pending += [*([part.g] if part.HasField("g") else []), *part.graphs]
            continue
        if isinstance(part, GraphProto):
            yield from () if is_main else part.initializer
            yield from part.sparse_initializer
            is_main = False
        else:
            pending += part.attribute_proto
        pending += [a for operator in part.node for a in operator.attribute if a.type in _CARRIERS]


def tensor_type(tensor: TensorProto) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    """Return dtype and shape of an initializer without reading its values."""
    return onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)


def is_packed(tensor: TensorProto) -> bool:
    """Whether values have no place of whole bytes each: strings, and types below eight bits."""
    return tensor.data_type == TensorProto.STRING or tensor.data_type in _BITS


def n_stored_bytes(tensor: TensorProto) -> int:
    """Return how many bytes an initializer's values take as raw data; types below eight bits are packed."""
    n_values = int(math.prod(tensor.dims))
    if tensor.data_type in _BITS:
        return -(-n_values * _BITS[tensor.data_type] // 8)
    return n_values * int(tensor_type(tensor)[0].itemsize)


def stored_bytes(some: Iterable[TensorProto]) -> int:
    """Return how many bytes the values of those tensors take that lie in the model's message."""
    return sum(n_stored_bytes(t) for t in some if t.data_type != TensorProto.STRING and not uses_external_data(t))


def values(tensor: TensorProto, folder: Path | None) -> Array:
    """Return a tensor's values, read-only; external ones stay memory-mapped.

    Raises
    ------
    InvalidModelError
        The file with the values is missing or too short.
    """
    if uses_external_data(tensor):
        path, offset, length = external_place(tensor, folder)
        dtype, shape = tensor_type(tensor)
        if length and dtype.itemsize * math.prod(shape) == length:
            return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
        inside = TensorProto()  # empty, or packed: no plain view of the file
        inside.CopyFrom(tensor)
        embed(inside, folder)
        tensor = inside
    array = numpy_helper.to_array(tensor)
    array.flags.writeable = False
    return array


def raw_chunks(tensor: TensorProto, folder: Path | None) -> Iterator[bytes]:
    """Yield a tensor's values as the bytes of ``raw_data``; external ones are read piece by piece, not mapped.

    Raises
    ------
    InvalidModelError
        The file with the values is missing or too short.
    """
    return all_raw_chunks([tensor], folder)


def all_raw_chunks(some: Sequence[TensorProto], folder: Path | None) -> Iterator[bytes]:
    """Yield what :func:`raw_chunks` does, for one tensor after the other."""
    places = external_places(filter(uses_external_data, some), folder)
    for tensor in some:
        if uses_external_data(tensor):
            yield from read_chunks(*next(places))
        else:
            yield inner_bytes(tensor)


def inner_bytes(tensor: TensorProto) -> bytes:
    """Return the values that lie in a tensor itself, as the bytes of ``raw_data``; strings as those of a message."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    if tensor.data_type == TensorProto.STRING:
        return bytes(TensorProto(string_data=tensor.string_data).SerializeToString())
    return bytes(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def read_chunks(path: Path, offset: int, length: int, size: int = CHUNK) -> Iterator[bytes]:
    """Yield a part of a file, ``size`` bytes at a time."""
    with path.open("rb") as stream:
        stream.seek(offset)
        while length:
            data = stream.read(min(length, size))
            if not data:
                raise InvalidModelError(f"external data file '{path}' became shorter while it was read")
            yield data
            length -= len(data)


def external_place(tensor: TensorProto, folder: Path | None) -> tuple[Path, int, int]:
    """Return file, offset and length in bytes of an external tensor, once it is known to be there.

    Raises
    ------
    InvalidModelError
        The file is missing, outside the model's folder, or too short.
    """
    return next(external_places([tensor], folder))


def external_places(some: Iterable[TensorProto], folder: Path | None) -> Iterator[tuple[Path, int, int]]:
    """Yield file, offset and length in bytes of external tensors; every file is looked at once.

    Raises
    ------
    InvalidModelError
        A file is missing, outside the model's folder, or too short, or a tensor has more or less than its shape says.
    """
    sizes: dict[str, tuple[Path, int]] = {}
    for tensor in some:
        try:
            info = ExternalDataInfo(tensor)
        except ValueError as error:
            raise InvalidModelError(f"{_called(tensor)} has no place in an external file: {error}") from error
        if info.location not in sizes:
            sizes[info.location] = _data_file(tensor, info.location, folder)
        path, size = sizes[info.location]
        offset, needed = int(info.offset or 0), n_stored_bytes(tensor)
        length = int(info.length) if info.length else needed
        if length != needed:
            raise InvalidModelError(f"{_called(tensor)} takes {needed} bytes, and {length} are said to lie in '{path}'")
        if size < offset + length:
            raise InvalidModelError(f"external data file '{path}' is too short for {_called(tensor)}")
        yield path, offset, length


def _data_file(tensor: TensorProto, location: str, folder: Path | None) -> tuple[Path, int]:
    if folder is None:
        raise InvalidModelError(
            f"{_called(tensor)} lies in an external file, but the model was not read from a file; load it from its path"
        )
    path = (folder / location).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InvalidModelError(f"{_called(tensor)} points outside the model's folder, at '{location}'")
    if not path.is_file():
        raise InvalidModelError(f"external data file '{path}' of {_called(tensor)} is missing")
    return path, path.stat().st_size


def _called(tensor: TensorProto) -> str:
    return f"initializer '{tensor.name}'" if tensor.name else "a constant without a name"


def external_bytes(tensor: TensorProto) -> int:
    """Return how many bytes of a tensor lie in an external file."""
    if not uses_external_data(tensor):
        return 0
    return int(ExternalDataInfo(tensor).length or n_stored_bytes(tensor))


def embed(tensor: TensorProto, folder: Path | None) -> None:
    """Bring an external tensor's values into the tensor itself."""
    embed_all([tensor], folder)


def embed_all(some: Iterable[TensorProto], folder: Path | None) -> None:
    """Bring the values of those tensors that are external into the tensors themselves."""
    external = list(filter(uses_external_data, some))
    for tensor, place in zip(external, external_places(external, folder), strict=True):
        clear(tensor)
        tensor.raw_data = b"".join(read_chunks(*place))


def copy_without(proto: ModelProto, *fields: str) -> ModelProto:
    """Return a copy of a model without some fields of its graph."""
    bare = ModelProto()
    for field, value in proto.ListFields():
        if field.name != "graph":
            _assign(bare, field.name, value)
    for field, value in proto.graph.ListFields():
        if field.name not in fields:
            _assign(bare.graph, field.name, value)
    return bare


def without_values(proto: ModelProto) -> ModelProto:
    """Return a copy of a model in which no constant tensor has a value."""
    bare = copy_without(proto, "initializer")
    for tensor in proto.graph.initializer:
        bare.graph.initializer.append(without_value(tensor))
    for tensor in inner_tensors(bare):
        clear(tensor)
    return bare


def without_value(tensor: TensorProto) -> TensorProto:
    """Return a copy of a tensor that has its name, type and annotations, and no value."""
    bare = TensorProto()
    for field, value in tensor.ListFields():
        if field.name not in _VALUE_FIELDS:
            _assign(bare, field.name, value)
    return bare


def without_large_values(proto: ModelProto, folder: Path | None = None) -> ModelProto:
    """Return a copy of a model for checks: large initializers become inputs, so that no check asks for their values.

    Those in external files are large, but for the ones that may be shapes where ``folder`` is given.
    """
    bare = copy_without(proto, "initializer")
    declared = {value.name for value in bare.graph.input}
    most_outside = SHAPE_LIKE if folder is not None else -1
    for tensor in proto.graph.initializer:
        if math.prod(tensor.dims) <= (most_outside if uses_external_data(tensor) else LARGE):
            bare.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in declared:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            bare.graph.input.append(value)
    embed_all(bare.graph.initializer, folder)
    return bare


def declare_sparse(proto: ModelProto) -> None:
    """Make inputs of a graph's sparse initializers, of the type that they stand for, in a copy for shape inference.

    onnx would infer the type of a sparse tensor, which no operator reads.
    """
    declared = {value.name for value in proto.graph.input}
    for name, (elem, dims) in sparse_types(proto).items():
        if name not in declared:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, elem, dims))
    del proto.graph.sparse_initializer[:]


def sparse_types(proto: ModelProto) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Return the element type and the shape of what the main graph's sparse initializers stand for, by name."""
    return {t.values.name: (t.values.data_type, tuple(t.dims)) for t in proto.graph.sparse_initializer}


def drop_large_inner_values(proto: ModelProto, *, dims: bool) -> None:
    """Clear all constants beside the main graph's initializers that are large or external, in a copy for checks.

    Without ``dims`` they become empty, and so stay valid.
    """
    for constant in _inner_constants(proto):
        parts = _parts(constant)
        if any(uses_external_data(part) or math.prod(part.dims) > LARGE for part in parts):
            for part in parts:
                clear(part)
                if not dims:
                    part.dims[:] = [0]


def _assign(message: object, name: str, value: object) -> None:
    target = getattr(message, name)
    if hasattr(target, "extend"):
        target.extend(value)
    elif hasattr(target, "CopyFrom"):
        target.CopyFrom(value)
    else:
        setattr(message, name, value)


def clear(tensor: TensorProto) -> None:
    """Drop an initializer's values, or the reference to them."""
    for name in _VALUE_FIELDS:
        tensor.ClearField(name)
