"""What a kind of part sees of the place that it is for: the run, and activations before and behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import gcd, prod

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch
from graphmod.graph import channel_axis, subgraph
from graphmod.methods.compress.running import Runner
from graphmod.model import Model
from graphmod.probe import Moments
from graphmod.probe.moments import strides_between

Array = NDArray[np.generic]
Float = NDArray[np.float64]

ROWS = 1 << 15
"""Rows that a fit sees, about, at most: with some thousand channels it is still determined."""

SAMPLES = 256
"""Samples that parts are run on which are not made from statistics alone."""

PERIODS = 3
"""Ways in which a run is seen as blocks in a row, at most."""


@dataclass(frozen=True, eq=False)
class Site:
    """A run of the trunk that a part is made for.

    Parameters
    ----------
    original : Model
    tensors : tuple of str
        The boundaries from the run's entry to its exit, both included.
    x : array
        Activations at the entry as they are by then, behind the parts before it; samples along axis 0.
    y : array
        The original's activations at the exit for the same samples: what a part is to give.
    context : mapping of str to array
        What else the run reads: further inputs of the model.
    rows : int
        Rows that a fit sees, about, at most.
    known : Moments, optional
        The statistics of a linear fit, where they were computed before.
    """

    original: Model
    tensors: tuple[str, ...]
    x: Array = field(repr=False)
    y: Array = field(repr=False)
    context: Mapping[str, Array] = field(default_factory=dict, repr=False)
    rows: int = ROWS
    known: Moments | None = field(default=None, repr=False)

    @property
    def entry(self) -> str:
        """The tensor before the run."""
        return self.tensors[0]

    @property
    def exit(self) -> str:
        """The tensor behind the run."""
        return self.tensors[-1]

    @cached_property
    def axis(self) -> int | None:
        """The axis of the channels at both ends, None if they lie on different ones."""
        axis = channel_axis(self.original, self.entry)
        return axis if channel_axis(self.original, self.exit) == axis else None

    @cached_property
    def moments(self) -> Moments | None:
        """What a linear fit of channels needs, None where shapes are such that there is none."""
        if self.known is not None:
            return self.known
        return None if self.axis is None else sums(self.x, self.y, self.axis, self.rows)

    @cached_property
    def run(self) -> Model:
        """The run as a model of its own."""
        return subgraph(self.original, [self.entry], [self.exit])

    @property
    def periods(self) -> list[int]:
        """The numbers of steps that a block may have if the run is two or more of them in a row, smallest first."""
        steps = len(self.tensors) - 1
        return [length for length in range(1, steps // 2 + 1) if steps % length == 0][:PERIODS]

    def data(self, part: Model) -> Data:
        """Return the samples for a part: what it reads of them."""
        given = {**self.context, self.entry: self.x}
        return Data({name: given[name] for name in part.inputs})

    def few(self, part: Model) -> Data:
        """Return the first :data:`SAMPLES` samples for a part, a multiple of as many as it takes at a time."""
        unit = fixed_batch(part) or 1
        return self.data(part)[: max(unit, SAMPLES // unit * unit)]

    def values(self, part: Model, output: str) -> Array:
        """Return what a part makes of a few samples."""
        return Runner(part, output)(self.few(part).inputs)

    def error_of(self, part: Model) -> float:
        """Return the root of a part's squared error over the variance of what is wanted, on those samples."""
        found = self.values(part, self.exit)
        return relative_error(found, self.y[: len(found)])


def relative_error(found: Array, wanted: Array) -> float:
    """Return the root of the squared error over the variance of what is wanted, over samples.

    >>> relative_error(np.zeros((2, 1)), np.array([[-1.0], [1.0]]))
    1.0
    """
    if found.shape != wanted.shape:
        return float("inf")
    exact: Float = np.asarray(wanted, np.float64)
    squared = float(((np.asarray(found, np.float64) - exact) ** 2).sum())
    variance = float(((exact - exact.mean(axis=0)) ** 2).sum())
    if not np.isfinite(squared):
        return float("inf")
    return float(np.sqrt(squared / variance)) if variance > 0 else float(squared > 0)


def sums(x: Array, y: Array, axis: int, limit: int) -> Moments | None:
    """Return the statistics of at most about ``limit`` rows, None where shapes do not fit or values are not finite."""
    strides = strides_of(x, y, axis)
    if strides is None:
        return None
    return moments_of(rows(x, axis, strides, limit), rows(y, axis, (), limit), strides, x.shape == y.shape)


def strides_of(x: Array, y: Array, axis: int) -> tuple[int, ...] | None:
    """Return the strides at which x has y's positions, None if there are none."""
    return None if min(x.ndim, y.ndim) < 2 else strides_between(x.shape, y.shape, axis)


def rows(value: Array, axis: int, strides: tuple[int, ...], limit: int) -> Float:
    """Return positions as rows and channels as columns: of too many, every so manieth, from all over the positions."""
    every = (slice(None), slice(None), *(slice(None, None, step) for step in strides))
    channels_last = np.moveaxis(value[every] if strides else value, axis, -1)
    positions, n = prod(channels_last.shape[1:-1]), prod(channels_last.shape[:-1])
    step = -(-n // limit)
    while gcd(step, positions) > 1:
        step += 1
    return channels_last.reshape(-1, channels_last.shape[-1])[::step].astype(np.float64)


def moments_of(left: Float, right: Float, strides: tuple[int, ...], same_shape: bool) -> Moments | None:
    """Return the statistics of rows, None where they are not finite."""
    squares = np.einsum("ij,ij->j", right, right)
    found = (left.sum(axis=0), right.sum(axis=0), left.T @ left, left.T @ right, squares)
    if not all(np.isfinite(value).all() for value in found):
        return None
    return Moments(len(left), *found, strides, same_shape)
