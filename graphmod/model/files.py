"""Files: writing a model so that no reader ever sees half of it."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from math import prod
from os import PathLike
from pathlib import Path
from typing import IO, NamedTuple

from onnx import ModelProto, TensorProto
from onnx.external_data_helper import uses_external_data

from graphmod.errors import NotWritableError
from graphmod.model import initializers
from graphmod.model.stored import Stored, sample_of

ALIGNMENT = 4096
"""External values start at multiples of this many bytes, so that they can be memory-mapped."""

_NO_COPY = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})
"""Errors that say that the kernel cannot copy here, not that copying failed."""

_Place = tuple[Path, int, int]
"""File, offset and length of external values."""


class _Part(NamedTuple):
    """One tensor's values in a data file: zeros before them, where they start, how long they are, whence they come."""

    padding: int
    start: int
    length: int
    place: _Place | None
    tensor: TensorProto


def save(proto: ModelProto, folder: Path | None, source: bytes | None, path: Path) -> Path:
    """Write a model to ``path``; see :meth:`graphmod.Model.save`."""
    if source is not None:
        return replace_file(path, lambda stream: stream.write(source))
    too_large = initializers.stored_bytes(initializers.tensors(proto)) > initializers.SAFE
    if not too_large and not any(map(uses_external_data, initializers.tensors(proto))):
        return replace_file(path, lambda stream: stream.write(proto.SerializeToString()))
    path = _target(path)
    moved, outside = _taken_apart(proto, folder, too_large)
    with _beside(path) as (stream, temporary):
        parts = _laid_out(outside, folder)
        _write(stream, parts)
        data = _free_name(path, _fingerprint(parts), Path(temporary))
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


def _taken_apart(
    proto: ModelProto, folder: Path | None, too_large: bool
) -> tuple[ModelProto, list[tuple[TensorProto, TensorProto]]]:
    """Return a copy of a model, and which of its tensors go to the data file, each with the one that it is a copy of.

    Those are all that lie outside already and large initializers; large constants of attributes and bodies only where
    the message would be too large with them. Sparse ones are brought inside: onnx looks for them nowhere else.
    """
    moved = initializers.copy_without(proto, "initializer")
    initializers.embed_all(initializers.sparse_parts(moved), folder)
    inner = zip(initializers.inner_dense_tensors(proto), initializers.inner_dense_tensors(moved), strict=True)
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


def _laid_out(outside: Iterable[tuple[TensorProto, TensorProto]], folder: Path | None) -> list[_Part]:
    """Return the parts of a data file, and let every copy point at its values there; a shared place stays shared."""
    external = [tensor for tensor, _ in outside if uses_external_data(tensor)]
    sources = iter(initializers.external_places(external, folder))
    parts: dict[_Place | int, _Part] = {}
    end = 0
    for number, (tensor, copy) in enumerate(outside):
        place = next(sources) if uses_external_data(tensor) else None
        part = parts.get(place or number)
        if part is None:
            start = end + -end % ALIGNMENT
            length = place[2] if place else sum(map(len, initializers.raw_chunks(tensor, folder)))
            part = parts[place or number] = _Part(start - end, start, length, place, tensor)
            end = start + length
        initializers.clear(copy)
        copy.data_location = TensorProto.EXTERNAL
        for key, value in (("location", ""), ("offset", part.start), ("length", part.length)):
            copy.external_data.add(key=key, value=str(value))
    return list(parts.values())


def _write(stream: IO[bytes], parts: Iterable[_Part]) -> None:
    """Write a data file."""
    for part in parts:
        stream.write(bytes(part.padding))
        if part.place is None:
            stream.writelines(initializers.raw_chunks(part.tensor, None))
        else:
            stream.flush()
            _copy(*part.place, stream)
    stream.flush()


def _fingerprint(parts: Iterable[_Part]) -> str:
    """Return a hash of where values lie in a data file and of some of their bytes; reading all would take longer."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(f"{part.start} {part.length};".encode())
        sha.update(Stored(part.tensor).sample() if part.place is None else sample_of(*part.place))
    return sha.hexdigest()


def _free_name(path: Path, fingerprint: str, content: Path) -> Path:
    """Return a name for a data file beside a model, such that no other data are overwritten."""
    names = (f"{path.stem}.{fingerprint[:12]}{f'-{n}' if n else ''}.data" for n in count())
    beside = (path.with_name(name) for name in names)
    return next(one for one in beside if not one.exists() or _equal(one, content))


def _equal(a: Path, b: Path) -> bool:
    size = a.stat().st_size
    if size != b.stat().st_size:
        return False
    pieces = zip(initializers.read_chunks(a, 0, size), initializers.read_chunks(b, 0, size), strict=True)
    return all(one == other for one, other in pieces)


def _copy(path: Path, offset: int, length: int, target: IO[bytes]) -> None:
    """Append a part of a file, within the kernel where the system can."""
    if not hasattr(os, "copy_file_range"):
        target.writelines(initializers.read_chunks(path, offset, length))
        return
    with path.open("rb", buffering=0) as source:
        while length:
            try:
                done = os.copy_file_range(source.fileno(), target.fileno(), length, offset)
            except OSError as error:
                if error.errno not in _NO_COPY:
                    raise
                done = 0
            if not done:  # not between these file systems
                target.writelines(initializers.read_chunks(path, offset, length))
                target.flush()
                return
            offset, length = offset + done, length - done


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
    with _beside(_target(Path(path))):
        pass


def replace_file(path: str | PathLike[str], write: Callable[[IO[bytes]], object]) -> Path:
    """Let ``write`` fill a new file beside ``path``, then rename it to ``path`` in one step.

    Raises
    ------
    NotWritableError
        The folder does not exist or cannot be written; an older file at ``path`` is untouched.
    """
    path = _target(Path(path))
    with _beside(path) as (stream, temporary):
        write(stream)
        _rename(stream, temporary, path)
    return path


def _target(path: Path) -> Path:
    """Return the file to replace: the one that a link leads to."""
    if path.is_dir():
        raise NotWritableError(f"cannot write '{path}': it is a folder")
    if path.exists() and not path.is_file():
        raise NotWritableError(f"cannot write '{path}': it is a device, a pipe or a socket, and no file")
    return path.resolve() if path.is_symlink() else path


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
