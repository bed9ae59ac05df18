"""Sufficient statistics of pairs of tensors: what a linear fit needs, without the activations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from graphmod.data import Data
from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.probe.stream import stream

Float = NDArray[np.float64]
Pair = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over rows of two tensors, x and y, whose columns are channels.

    A row is a sample's position: channels are axis 1 of images ``[n, c, h, w]`` and sequences stored so, the last axis
    of everything else. Where y has fewer positions by whole factors, x is read at every ``stride``-th position.

    Parameters
    ----------
    n : int
        Rows.
    x_sum, y_sum : float64 array, shape (channels,)
    xx, xy, yy : float64 array
        ``X'X`` (cx, cx), ``X'Y`` (cx, cy), and the diagonal of ``Y'Y`` (cy,).
    strides : tuple of int
        One a spatial axis, 1 where the sizes agree.
    same_shape : bool
        Whether x and y have the same shape.
    """

    n: int
    x_sum: Float
    y_sum: Float
    xx: Float
    xy: Float
    yy: Float
    strides: tuple[int, ...]
    same_shape: bool

    def __add__(self, other: Moments) -> Moments:
        """Return the statistics of both sets of rows."""
        return Moments(
            self.n + other.n,
            self.x_sum + other.x_sum,
            self.y_sum + other.y_sum,
            self.xx + other.xx,
            self.xy + other.xy,
            self.yy + other.yy,
            self.strides,
            self.same_shape,
        )

    @property
    def y_variance(self) -> float:
        """Sum over channels of y's squared deviations from its mean."""
        return float((self.yy - self.y_sum**2 / self.n).sum())


def moments(
    model: Model,
    data: Data,
    pairs: Iterable[Pair],
    *,
    batch_size: int = 64,
    threads: int | None = None,
    progress: bool = False,
) -> dict[Pair, Moments]:
    """Stream the data through the model and sum up the statistics of pairs of tensors, in float64.

    Parameters
    ----------
    model : Model
    data : Data
    pairs : iterable of (str, str)
        Names of tensors x and y. Pairs whose shapes no fit can bridge (see :func:`strides_between`) are left out of
        the result.

    Returns
    -------
    dict of (str, str) to Moments
    """
    wanted = list(dict.fromkeys(pairs))
    names = list(dict.fromkeys(name for pair in wanted for name in pair))
    sums: dict[Pair, Moments] = {}
    batches = stream(model, data, names, batch_size, threads)
    total = -(-len(data) // batch_size)
    for _, values in track(batches, "statistics", total=total, disable=not progress, transient=True):
        for pair in wanted:
            found = batch_moments(values[pair[0]], values[pair[1]])
            if found is not None:
                sums[pair] = sums[pair] + found if pair in sums else found
    return sums


def batch_moments(x: NDArray[np.generic], y: NDArray[np.generic]) -> Moments | None:
    """Return the statistics of one batch, None if no fit can bridge the shapes."""
    strides = strides_between(x.shape, y.shape)
    if strides is None:
        return None
    x_rows = _rows(x[(slice(None), slice(None), *(slice(None, None, step) for step in strides))] if strides else x)
    y_rows = _rows(y)
    return Moments(
        len(x_rows),
        x_rows.sum(axis=0),
        y_rows.sum(axis=0),
        x_rows.T @ x_rows,
        x_rows.T @ y_rows,
        np.einsum("ij,ij->j", y_rows, y_rows),
        strides,
        x.shape == y.shape,
    )


def strides_between(x: tuple[int, ...], y: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the stride of every spatial axis at which x has y's positions, None if there is none.

    Examples
    --------
    >>> strides_between((8, 16, 32, 32), (8, 24, 16, 16))
    (2, 2)
    >>> strides_between((8, 16, 32, 32), (8, 24)) is None
    True
    """
    if len(x) != len(y) or len(x) < 2 or x[0] != y[0]:
        return None
    if len(x) < 4:
        return () if x[:-1] == y[:-1] else None
    steps = tuple(-(-a // b) if b else 0 for a, b in zip(x[2:], y[2:], strict=True))
    fits = all(step and -(-a // step) == b for a, b, step in zip(x[2:], y[2:], steps, strict=True))
    return steps if fits else None


def _rows(value: NDArray[np.generic]) -> Float:
    """Return positions as rows and channels as columns."""
    if value.ndim < 2:
        raise RefusedError("a tensor without a channel axis cannot be fitted")
    channels_last = np.moveaxis(value, 1, -1) if value.ndim >= 4 else value
    return channels_last.reshape(-1, channels_last.shape[-1]).astype(np.float64)
