"""Known values: what a tensor holds where its values do not depend on data, in an array that broadcasts to it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Known = NDArray[np.float64]
"""Has the tensor's rank; an axis along which nothing changes is 1 long; NaN where a value is not known."""


def unknown(rank: int) -> Known:
    """Return what is known of a tensor of which nothing is.

    >>> unknown(2)
    array([[nan]])
    """
    return np.full((1,) * rank, np.nan)


def spread(values: Known, rank: int, axis: int) -> Known:
    """Return values along one axis of a tensor.

    >>> spread(np.arange(3.0), 3, 1).shape
    (1, 3, 1)
    """
    return values.reshape([-1 if i == axis % rank else 1 for i in range(rank)])


def along(known: Known, axis: int, size: int) -> Known:
    """Return the values along one axis, NaN where they differ along others.

    >>> along(np.array([[1.0, 2.0], [1.0, 3.0]]), 1, 2)
    array([ 1., nan])
    """
    rows = np.moveaxis(known, axis, -1).reshape(-1, known.shape[axis])
    same = (rows == rows[0]).all(0)
    return np.broadcast_to(np.where(same, rows[0], np.nan), (size,))


def zeros_of(known: Known) -> Known:
    """Return the zeros among the values.

    >>> zeros_of(np.array([0.0, 1.0]))
    array([ 0., nan])
    """
    return np.where(known == 0, known, np.nan)


def widened(known: Known, axis: int, size: int) -> Known:
    """Return the same values with an axis in full."""
    return np.broadcast_to(known, [size if i == axis else n for i, n in enumerate(known.shape)])
