"""Steps for weights that an operator holds as integers: several in a byte, with a scale for each block of them."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from graphmod.pytorch.steps import Dequantize

Array = NDArray[np.generic]

LEVELS: dict[int, np.dtype[np.generic]] = {
    2: np.dtype(ml_dtypes.uint2),
    4: np.dtype(ml_dtypes.uint4),
    8: np.dtype(np.uint8),
}
"""The integers of so many bits."""


@dataclass(frozen=True)
class Unpack:
    """Rows of bytes, one axis or two of blocks and their bytes, into rows of integers; the lowest bits come first.

    Parameters
    ----------
    bits : int
        2, 4 or 8.
    n : int
        How many integers of each row count; what follows is padding, which stays.
    """

    bits: int
    n: int

    def _all(self, array: Array) -> NDArray[np.uint8]:
        data = array.reshape(array.shape[0], -1, 1).astype(np.uint8)
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
        return ((data >> shifts) & np.uint8((1 << self.bits) - 1)).reshape(array.shape[0], -1)

    def there(self, array: Array) -> Array:
        """Return the integers, ``n`` a row."""
        return self._all(array)[:, : self.n].astype(LEVELS[self.bits])

    def back(self, array: Array, old: Array) -> Array:
        """Return the old bytes with the integers replaced."""
        levels = self._all(old)
        levels[:, : self.n] = array.astype(np.uint8)
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
        data: Array = np.bitwise_or.reduce(levels.reshape(len(levels), -1, shifts.size) << shifts, axis=-1)
        return data.reshape(old.shape)

    def shape_there(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return rows of ``n``."""
        return shape[0], self.n


class Scaled(Dequantize):
    """A :class:`~graphmod.pytorch.steps.Dequantize` that equals one of equal values.

    Operators that share a weight bring its scale each; the weight stays one parameter.
    """

    def _key(self) -> tuple[object, ...]:
        zero = None if self.zero is None else np.asarray(self.zero, np.float32)
        return self.scale.tobytes(), None if zero is None else zero.tobytes(), self.scale.shape, self.axis, self.block

    def __eq__(self, other: object) -> bool:
        """Whether the two make the same of every array."""
        return isinstance(other, Scaled) and self._key() == other._key()

    def __hash__(self) -> int:
        """Return a hash that goes with equality."""
        return hash(self._key())
