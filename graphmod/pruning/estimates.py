"""Estimates from data: moments of tensors along one axis, over all others and over samples, summed in float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data
from graphmod.errors import InvalidDataError
from graphmod.model import Model
from graphmod.probe import stream
from graphmod.pruning.groups import Groups
from graphmod.pruning.leftovers import Estimate
from graphmod.pruning.leftovers.estimate import Matrix
from graphmod.pruning.leftovers.known import Known

Place = tuple[str, int]
"""A tensor and one of its axes."""

Values = Mapping[str, NDArray[np.generic]]
"""Tensors of a batch."""


def means(model: Model, data: Data, places: Sequence[Place], batch_size: int = 64) -> dict[Place, Estimate]:
    """Stream the data through a model and return the means of channels.

    Parameters
    ----------
    model : Model
    data : Data
    places : sequence of (str, int)
        Tensors, and the axes that their channels are.
    batch_size : int
    """
    if not places:
        return {}
    sums: dict[Place, Known] = {}
    counts = dict.fromkeys(places, 0)
    for _, values in stream(model, data, list(dict.fromkeys(name for name, _ in places)), batch_size, reuse=1):
        for name, axis in places:
            value = values[name]
            others = tuple(i for i in range(value.ndim) if i != axis)
            sums[name, axis] = sums.get((name, axis), 0.0) + value.sum(others, dtype=np.float64)
            counts[name, axis] += value.size // value.shape[axis]
    return {place: _checked(place, Estimate(total / counts[place])) for place, total in sums.items()}


def moments(
    found: Groups,
    removed: NDArray[np.bool_],
    batches: Iterable[tuple[Values, Values]],
    places: Sequence[Place],
    most: int | None = None,
    n_samples: int | None = None,
) -> dict[Place, Estimate]:
    """Return the moments of channels in a network, and in what is left of it.

    Parameters
    ----------
    found : Groups
        Of the network.
    removed : array of bool, shape (n_units,)
    batches : iterable of pair of dict of str to array
        What the network makes of a batch, and the network without these units.
    places : sequence of (str, int)
        Tensors, and the axes that their channels are.
    most : int, optional
        Scalars of a tensor that count, of a batch: of more, positions are drawn.
    n_samples : int, optional
        That all batches have; None where there are so many that it does not matter.
    """
    is_left = found.left(~removed)
    masks = {name: [is_left(labels) for labels in found.analysis.axes[name]] for name, _ in places}
    sums: dict[Place, _Sums] = {}
    for whole, left in batches:
        for name, axis in places:
            x, y = _rows(_common(whole[name], axis, masks[name]), axis), _rows(left[name], axis)
            some = _some_positions(x.shape[1], None if most is None else max(1, most // len(x)))
            x, y = (np.array(one[:, some], np.float64, order="C") for one in (x, y))
            if (name, axis) not in sums:
                sums[name, axis] = _Sums(x.mean(1), y.mean(1))
            sums[name, axis].add(x, y)
    return {place: _checked(place, own.estimate(n_samples)) for place, own in sums.items()}


def _common(value: NDArray[np.generic], channels: int, masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.generic]:
    """Return a tensor at what is left along the axes other than that of the channels."""
    for axis, mask in enumerate(masks):
        if axis != channels and not mask.all():
            value = np.compress(mask, value, axis)
    return value


def _rows(value: NDArray[np.generic], axis: int) -> NDArray[np.generic]:
    """Return channels as rows, all else as columns."""
    return np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)


def _some_positions(n: int, most: int | None) -> slice | NDArray[np.int64]:
    """Return which positions to look at: all, or as many as are drawn, the same ones every time."""
    if most is None or n <= most:
        return slice(None)
    return np.sort(np.random.default_rng(0).choice(n, most, replace=False))


class _Sums:
    """Sums of products of deviations from roughly the mean, so that large means cost no digits."""

    def __init__(self, x: Known, y: Known):
        self.about, self.n = (x, y), 0
        self.x, self.y = np.zeros_like(x), np.zeros_like(y)
        self.xy, self.yy = np.zeros((len(x), len(y))), np.zeros((len(y), len(y)))

    def add(self, x: Matrix, y: Matrix) -> None:
        """Add columns; the arrays are overwritten."""
        x -= self.about[0][:, None]
        y -= self.about[1][:, None]
        self.n += x.shape[1]
        self.x += x.sum(1)
        self.y += y.sum(1)
        self.xy += x @ y.T
        self.yy += y @ y.T

    def estimate(self, n_samples: int | None) -> Estimate:
        """Return the moments."""
        x, y = self.x / self.n, self.y / self.n
        covariance, across = self.yy / self.n - np.outer(y, y), self.xy / self.n - np.outer(x, y)
        return Estimate(self.about[0] + x, self.about[1] + y, covariance, across, n_samples)


def _checked(place: Place, estimate: Estimate) -> Estimate:
    """Return an estimate of finite numbers.

    Raises
    ------
    InvalidDataError
        There are others.
    """
    held = (estimate.mean, estimate.left_mean, estimate.covariance, estimate.across)
    if not all(np.isfinite(one).all() for one in held if one is not None):
        raise InvalidDataError(
            f"the data makes values of '{place[0]}' that are not finite; is it scaled as the network needs it? "
            "leftovers=False removes without looking at data"
        )
    return estimate
