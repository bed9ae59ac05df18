"""Files: writing a model so that no reader ever sees half of it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from os import PathLike
from pathlib import Path
from typing import IO

from onnx import ModelProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from graphmod.errors import NotWritableError
from graphmod.model import initializers

ALIGNMENT = 4096
"""External values start at multiples of this many bytes, so that they can be memory-mapped."""


def save(proto: ModelProto, folder: Path | None, source: bytes | None, path: Path) -> Path:
    """Write a model to ``path``; see :meth:`graphmod.Model.save`."""
    if source is not None:
        return replace_file(path, lambda stream: stream.write(source))
    too_large = initializers.stored_bytes(initializers.tensors(proto)) > initializers.SAFE
    if not too_large and not any(map(uses_external_data, initializers.tensors(proto))):
        return replace_file(path, lambda stream: stream.write(proto.SerializeToString()))
    _refuse_folder(path)
    moved, outside = _taken_apart(proto, too_large)
    with _beside(path) as (stream, temporary):
        digest = _write(stream, _laid_out(outside, folder))
        data = path.with_name(f"{path.stem}.{digest[:12]}.data")
        for _, tensor in outside:
            tensor.external_data[0].value = data.name
        fresh = not data.exists()
        _rename(stream, temporary, data)
    try:
        return replace_file(path, lambda stream: stream.write(moved.SerializeToString()))
    except NotWritableError:
        if fresh:
            data.unlink()
        raise


def _taken_apart(proto: ModelProto, too_large: bool) -> tuple[ModelProto, list[tuple[TensorProto, TensorProto]]]:
    """Return a copy of a model, and which of its tensors go to the data file, each with the one that it is a copy of.

    Those are all that lie outside already and large initializers; large constants of attributes and bodies only where
    the message would be too large with them.
    """
    moved = initializers.copy_without(proto, "initializer")
    inner = zip(initializers.inner_tensors(proto), initializers.inner_tensors(moved), strict=True)
    outside = [pair for pair in inner if uses_external_data(pair[0]) or (too_large and _is_large(pair[0]))]
    for tensor in proto.graph.initializer:
        copy = moved.graph.initializer.add()
        if uses_external_data(tensor) or _is_large(tensor):
            copy.MergeFrom(initializers.without_value(tensor))
            outside.append((tensor, copy))
        else:
            copy.CopyFrom(tensor)
    return moved, outside


def _is_large(tensor: TensorProto) -> bool:
    return tensor.data_type != TensorProto.STRING and prod(tensor.dims) > initializers.LARGE


def _laid_out(outside: Iterable[tuple[TensorProto, TensorProto]], folder: Path | None) -> Iterator[bytes]:
    """Yield what a data file holds, and let every copy point at its values there; a shared place stays shared."""
    places: dict[tuple[str, int | None, int | None], tuple[int, int]] = {}
    end = 0
    for tensor, copy in outside:
        info = ExternalDataInfo(tensor) if uses_external_data(tensor) else None
        place = places.get((info.location, info.offset, info.length)) if info else None
        if place is None:
            yield (padding := bytes(-end % ALIGNMENT))
            start = end = end + len(padding)
            for chunk in initializers.raw_chunks(tensor, folder):
                yield chunk
                end += len(chunk)
            place = start, end - start
        if info:
            places[info.location, info.offset, info.length] = place
        initializers.clear(copy)
        copy.data_location = TensorProto.EXTERNAL
        for key, value in (("location", ""), ("offset", place[0]), ("length", place[1])):
            copy.external_data.add(key=key, value=str(value))


def _write(stream: IO[bytes], pieces: Iterable[bytes]) -> str:
    """Write a file and return the SHA-256 of its content, computed beside the writing."""
    sha = hashlib.sha256()
    hashed: Future[None] | None = None
    with ThreadPoolExecutor(1) as beside:
        for chunk in _joined(pieces):
            stream.write(chunk)
            if hashed is not None:
                hashed.result()
            hashed = beside.submit(sha.update, chunk)
    return sha.hexdigest()


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield small pieces joined to larger ones."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= initializers.CHUNK:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join(held)


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
