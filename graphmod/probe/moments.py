"""Sufficient statistics of pairs of tensors: what a linear fit needs, without the activations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import lcm

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import channel_axis
from graphmod.model import Model
from graphmod.probe.stream import stream

Float = NDArray[np.float64]
Pair = tuple[str, str]

_BUDGET = 1 << 28
"""Bytes of rows that are held at a time."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over rows of two tensors, x and y, whose columns are channels.

    A row is a sample's position. Channels are axis 1 of images ``[n, c, h, w]`` and of sequences stored so, the last
    axis of tokens ``[n, t, c]``: see :func:`graphmod.graph.channel_axis`. Where they are axis 1 and y has fewer
    positions by whole factors, x is read at every ``stride``-th position.

    Parameters
    ----------
    n : int
        Rows.
    x_sum, y_sum : float64 array, shape (channels,)
    xx, xy, yy : float64 array
        ``X'X`` (cx, cx), ``X'Y`` (cx, cy), and the diagonal of ``Y'Y`` (cy,).
    strides : tuple of int
        One an axis behind that of the channels, 1 where the sizes agree; none where channels are the last axis.
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
    reference: Model | None = None,
    axis: int | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
) -> dict[Pair, Moments]:
    """Stream the data through the model and sum up the statistics of pairs of tensors, in float64.

    Parameters
    ----------
    model : Model
    data : Data
    pairs : iterable of (str, str)
        Names of tensors x and y. Pairs whose shapes no fit can bridge (see :func:`strides_between`), and those whose
        channels lie on different axes, are left out of the result.
    reference : Model, optional
        Where y comes from, if not from the same model: the original of a model that was changed before x.
    axis : int, optional
        That of the channels, of all pairs; each tensor's own if None.
    batch_size : int, optional
        Samples a batch; as many as keep the rows within 256 MB, at most 256, if None.

    Returns
    -------
    dict of (str, str) to Moments
    """
    axes = {pair: axis if axis is not None else _common_axis(model, reference or model, *pair) for pair in pairs}
    wanted = {pair: common for pair, common in axes.items() if common is not None}
    if not wanted:
        return {}
    if batch_size is None:
        scalars = sum(
            model.tensors[name].size for name in {name for pair in wanted for name in pair} if name in model.tensors
        )
        batch_size = max(1, min(256, _BUDGET // max(1, 8 * scalars)))
    sums: dict[Pair, Moments] = {}
    x_names = list(dict.fromkeys(x for x, _ in wanted))
    y_names = list(dict.fromkeys(y for _, y in wanted))
    if reference is None:
        both = list(dict.fromkeys([*x_names, *y_names]))
        batches = ((values, values) for _, values in stream(model, data, both, batch_size, threads))
    else:
        unit = lcm(*(fixed_batch(one) or 1 for one in (model, reference)))
        batches = (
            (xs, ys)
            for (_, xs), (_, ys) in zip(
                stream(model, data, x_names, batch_size, threads, unit=unit),
                stream(reference, data, y_names, batch_size, threads, unit=unit),
                strict=True,
            )
        )
    for xs, ys in batches:
        x_rows: dict[tuple[str, tuple[int, ...]], tuple[Float, Float, Float]] = {}
        y_rows: dict[str, tuple[Float, Float, Float]] = {}
        for (x, y), place in wanted.items():
            strides = strides_between(xs[x].shape, ys[y].shape, place)
            if strides is None:
                continue
            if (x, strides) not in x_rows:
                every = (slice(None), slice(None), *(slice(None, None, step) for step in strides))
                rows = _rows(xs[x][every] if strides else xs[x], place)
                x_rows[x, strides] = rows, rows.sum(axis=0), rows.T @ rows
            if y not in y_rows:
                rows = _rows(ys[y], place)
                y_rows[y] = rows, rows.sum(axis=0), np.einsum("ij,ij->j", rows, rows)
            (left, x_sum, xx), (right, y_sum, yy) = x_rows[x, strides], y_rows[y]
            same_shape = xs[x].shape == ys[y].shape
            found = Moments(len(left), x_sum, y_sum, xx, left.T @ right, yy, strides, same_shape)
            sums[x, y] = sums[x, y] + found if (x, y) in sums else found
    return sums


def strides_between(x: tuple[int, ...], y: tuple[int, ...], axis: int) -> tuple[int, ...] | None:
    """Return the stride of every axis behind that of the channels at which x has y's positions, None if there is none.

    Where channels are the last axis there are no such axes, and positions must agree.

    Examples
    --------
    >>> strides_between((8, 16, 32, 32), (8, 24, 16, 16), 1)
    (2, 2)
    >>> strides_between((8, 32, 16), (8, 32, 24), -1)
    ()
    >>> strides_between((8, 32, 16), (8, 16, 24), -1) is None
    True
    """
    if len(x) != len(y) or len(x) < 2 or x[0] != y[0]:
        return None
    if axis % len(x) == len(x) - 1:
        return () if x[:-1] == y[:-1] else None
    steps = tuple(-(-a // b) if b else 0 for a, b in zip(x[2:], y[2:], strict=True))
    fits = all(step and -(-a // step) == b for a, b, step in zip(x[2:], y[2:], steps, strict=True))
    return steps if fits else None


def _common_axis(model: Model, reference: Model, x: str, y: str) -> int | None:
    """Return the axis of the channels of both of a pair, None if they differ in it."""
    axis = channel_axis(model, x)
    return axis if channel_axis(reference, y) == axis else None


def _rows(value: NDArray[np.generic], axis: int) -> Float:
    """Return positions as rows and channels as columns."""
    if value.ndim < 2:
        raise RefusedError("a tensor without a channel axis cannot be fitted")
    channels_last = np.moveaxis(value, axis, -1)
    return channels_last.reshape(-1, channels_last.shape[-1]).astype(np.float64)
