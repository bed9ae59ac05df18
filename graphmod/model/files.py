"""Files: writing a model so that no reader ever sees half of it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO

import numpy as np
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import set_external_data, uses_external_data

from graphmod.errors import NotWritableError
from graphmod.model import initializers

LIMIT = 2**31 - 1
"""Bytes that one protobuf message can hold."""

ALIGNMENT = 4096
"""External values start at multiples of this many bytes, so that they can be memory-mapped."""


def save(proto: ModelProto, folder: Path | None, source: bytes | None, path: Path) -> Path:
    """Write a model to ``path``; see :meth:`graphmod.Model.save`."""
    if source is not None:
        return replace_file(path, lambda stream: stream.write(source))
    external = [t for t in proto.graph.initializer if uses_external_data(t)]
    if not external and proto.ByteSize() < LIMIT:
        return replace_file(path, lambda stream: stream.write(proto.SerializeToString()))
    moved = ModelProto()
    moved.CopyFrom(proto)
    _refuse_folder(path)
    with _beside(path) as (stream, temporary):
        digest = _write_values(moved, folder, stream)
        data = path.with_name(f"{path.stem}.{digest[:12]}.data")
        for tensor in moved.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = data.name
        fresh = not data.exists()
        _rename(stream, temporary, data)
    try:
        return replace_file(path, lambda stream: stream.write(moved.SerializeToString()))
    except NotWritableError:
        if fresh:
            data.unlink()
        raise


def _write_values(proto: ModelProto, folder: Path | None, stream: IO[bytes]) -> str:
    """Stream every large initializer into one file, point the graph at it, and return the content's SHA-256."""
    sha = hashlib.sha256()
    offset = 0
    for tensor in proto.graph.initializer:
        if not uses_external_data(tensor) and int(np.prod(tensor.dims)) <= initializers.LARGE:
            continue
        if tensor.data_type == TensorProto.STRING:
            continue
        data = _bytes_of(tensor, folder)
        padding = bytes(-offset % ALIGNMENT)
        stream.write(padding)
        stream.write(data)
        sha.update(padding)
        sha.update(data)
        offset += len(padding)
        initializers.clear(tensor)
        tensor.raw_data = b""
        set_external_data(tensor, "", offset, len(data))
        tensor.ClearField("raw_data")
        offset += len(data)
    return sha.hexdigest()


def _bytes_of(tensor: TensorProto, folder: Path | None) -> bytes | memoryview:
    if uses_external_data(tensor):
        path, offset, length = initializers.external_place(tensor, folder)
        if not length:
            return b""
        return np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(length,)).data
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    return initializers.values(tensor, folder).tobytes()


@contextmanager
def _beside(path: Path) -> Iterator[tuple[IO[bytes], str]]:
    """Open a temporary file in the folder of ``path``; it is gone afterwards unless it was renamed."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise NotWritableError(f"cannot write '{path}': {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream, temporary
    except OSError as error:
        raise NotWritableError(f"cannot write '{path}': {error.strerror or error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def check_writable(path: str | PathLike[str]) -> None:
    """Raise NotWritableError unless a file can be written at ``path``; nothing is left there."""
    with _beside(Path(path)):
        pass


def replace_file(path: str | PathLike[str], write: Callable[[IO[bytes]], object]) -> Path:
    """Let ``write`` fill a new file beside ``path``, then rename it to ``path`` in one step.

    Raises
    ------
    NotWritableError
        The folder does not exist or cannot be written; an older file at ``path`` is untouched.
    """
    path = Path(path)
    _refuse_folder(path)
    with _beside(path) as (stream, temporary):
        write(stream)
        _rename(stream, temporary, path)
    return path


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise NotWritableError(f"cannot write '{path}': it is a folder")


def _rename(stream: IO[bytes], temporary: str, path: Path) -> None:
    """Give the finished temporary file its name, and the permissions of the file that it replaces."""
    stream.flush()
    os.fsync(stream.fileno())
    os.chmod(temporary, path.stat().st_mode if path.exists() else 0o666 & ~_umask())
    os.replace(temporary, path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
