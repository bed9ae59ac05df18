"""What a constant holds, read a chunk at a time wherever it lies, so that weights of any size take little memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from graphmod.model.initializers import external_place, inner_bytes, read_chunks, tensor_type

CHUNK = 2**20
"""Bytes read at a time: two chunks fit a processor's cache."""

_PIECE = 1024
"""Bytes of each of the four pieces of a sample."""

Numbers = NDArray[np.float64 | np.complex128]


@dataclass(frozen=True)
class Stored:
    """A tensor in a file or in the graph, and what it holds.

    Parameters
    ----------
    tensor : onnx.TensorProto
    folder : pathlib.Path, optional
        Where the files of external values lie.
    """

    tensor: TensorProto
    folder: Path | None = None

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The type of a scalar."""
        return tensor_type(self.tensor)[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return tuple(self.tensor.dims)

    @property
    def is_text(self) -> bool:
        """Whether it holds strings."""
        return bool(self.tensor.data_type == TensorProto.STRING)

    @cached_property
    def _place(self) -> tuple[Path, int, int] | None:
        return external_place(self.tensor, self.folder) if uses_external_data(self.tensor) else None

    @property
    def place(self) -> tuple[int, int, int, int] | None:
        """Device, file, offset and length of external values: equal places hold equal values. None where inside."""
        if self._place is None:
            return None
        path, offset, length = self._place
        found = path.stat()
        return found.st_dev, found.st_ino, offset, length

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """Yield the raw bytes, ``size`` at a time."""
        if self._place is None:
            inside = inner_bytes(self.tensor)
            yield from (inside[start : start + size] for start in range(0, len(inside), size))
        else:
            yield from read_chunks(*self._place, size)

    def equals(self, other: Stored) -> bool:
        """Whether both are the same to the bit. Values at one place of one file are not read."""
        if self.tensor.data_type != other.tensor.data_type or self.shape != other.shape:
            return False
        if self.place is not None and self.place == other.place:
            return True
        return all(one == two for one, two in zip_longest(self.chunks(), other.chunks()))

    def sample(self) -> bytes:
        """Return all bytes of a small tensor, pieces of a large one: samples of equal tensors are equal."""
        if self._place is None:
            inside = inner_bytes(self.tensor)
            return b"".join(inside[start : start + n] for start, n in _pieces(len(inside)))
        return sample_of(*self._place)

    def numbers(self, count: int = CHUNK // 32) -> Iterator[Numbers]:
        """Yield the scalars in the order of rows, ``count`` at a time, as float64 (complex ones as complex128)."""
        kind = np.dtype(np.complex128 if self.dtype.kind == "c" else np.float64)
        if self._is_packed:
            whole = TensorProto(
                data_type=self.tensor.data_type, dims=self.tensor.dims, raw_data=b"".join(self.chunks())
            )
            flat = numpy_helper.to_array(whole).ravel()
            for start in range(0, flat.size, count):
                yield flat[start : start + count].astype(kind)
            return
        for chunk in self.chunks(count * self.dtype.itemsize):
            yield np.frombuffer(chunk, self.dtype).astype(kind)

    @property
    def _is_packed(self) -> bool:
        return self.dtype.name in ("int4", "uint4", "int2", "uint2", "float4_e2m1fn")


def sample_of(path: Path, offset: int, length: int) -> bytes:
    """Return all bytes of a short part of a file, pieces of a long one."""
    found = []
    with path.open("rb", buffering=0) as stream:
        for start, n in _pieces(length):
            stream.seek(offset + start)
            found.append(stream.read(n))
    return b"".join(found)


def _pieces(length: int) -> list[tuple[int, int]]:
    if length <= 4 * _PIECE:
        return [(0, length)]
    return [(part * (length - _PIECE) // 3, _PIECE) for part in range(4)]
