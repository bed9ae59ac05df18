"""Similarity of units: what the others predict is redundant, in closed form from covariances of activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpstrf

from graphmod.pruning.groups import Group, Groups, Member
from graphmod.pruning.importance.activation import activations, used
from graphmod.pruning.importance.registry import Evidence, Scores, importance

POSITIONS = 64
"""Positions of a sample that count, drawn at random: neighbours tell the same."""

_BUDGET = 1 << 27
"""Scalars of covariances that are held at a time; where groups have more, the samples run again."""


@importance("similarity")
def similarity(group: Group, evidence: Evidence) -> Scores:
    """Variance of a unit's values that no linear combination of more important units predicts.

    The most important unit is the one that varies most, the next one varies most beyond what the first one predicts,
    and so on: the pivots of a Cholesky factorisation of the covariance. Of two equal units one is worth nothing.
    """
    return evidence.once(_unpredicted)[group.name]


def _unpredicted(evidence: Evidence) -> dict[str, Scores]:
    return {
        group.name: conditional_variances(covariance)
        for part in _parts(evidence.found)
        for group, covariance in zip(part, covariances(part, evidence), strict=True)
    }


def conditional_variances(covariance: NDArray[np.float64]) -> Scores:
    """Return the variance of every variable given those of larger conditional variance.

    Examples
    --------
    >>> conditional_variances(np.array([[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])).tolist()
    [4.0, 0.0, 1.0]
    """
    factor, order, rank, _ = dpstrf(covariance)
    found = np.zeros(len(covariance))
    found[order[:rank] - 1] = np.square(np.diag(factor)[:rank])
    return found


def _parts(found: Groups) -> Iterator[list[Group]]:
    part: list[Group] = []
    for group in found:
        if part and sum(one.n_units**2 for one in (*part, group)) > _BUDGET:
            yield part
            part = []
        part.append(group)
    if part:
        yield part


def covariances(groups: Sequence[Group], evidence: Evidence) -> list[NDArray[np.float64]]:
    """Return the covariance of the units' values, shape (units, units), of every group.

    A row is a position of a sample in one of the tensors where the units are used; where a unit has several indices,
    each is a row. Rows of every tensor have their own mean, and all tensors of a group count alike.
    """
    rng = np.random.default_rng(evidence.seed)
    places = [(number, _Place.of(member)) for number, group in enumerate(groups) for member in used(group, evidence)]
    totals = [np.zeros((group.n_units, group.n_units)) for group in groups]
    shifts: list[Scores] = []
    sums = [np.zeros(len(place.units)) for _, place in places]
    for n_samples, values in activations(evidence, {place.tensor for _, place in places}):
        for i, (number, place) in enumerate(places):
            rows = place.rows(values[place.tensor], n_samples * POSITIONS, rng)
            if len(shifts) == i:
                shifts.append(rows.mean(0))
            rows -= shifts[i]
            weight = n_samples / len(evidence.samples) / len(rows)
            sums[i] += rows.sum(0) * weight
            totals[number][np.ix_(place.units, place.units)] += rows.T @ rows * weight
    for (number, place), mean in zip(places, sums, strict=True):
        totals[number][np.ix_(place.units, place.units)] -= np.outer(mean, mean)
    return totals


@dataclass(frozen=True, eq=False)
class _Place:
    """A tensor, an axis, the units that lie along it and the indices of each, shape (units, indices)."""

    tensor: str
    axis: int
    units: NDArray[np.int64]
    indices: NDArray[np.int64]

    @staticmethod
    def of(member: Member) -> _Place:
        """Return where the units of a member lie; as many indices of each as the smallest has."""
        units, counts = np.unique(member.units[member.units >= 0], return_counts=True)
        order = np.argsort(member.units, kind="stable")[-counts.sum() :]
        starts = np.cumsum(counts) - counts
        return _Place(member.tensor, member.axis, units, order[starts[:, None] + np.arange(counts.min())])

    def rows(self, value: NDArray[np.generic], most: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the units' values as columns, at no more than so many rows."""
        rows = np.moveaxis(value, self.axis, -1).reshape(-1, value.shape[self.axis])
        if len(rows) > most:
            rows = rows[rng.choice(len(rows), most, replace=False)]
        by_unit = rows[:, self.indices]  # rows, units, indices
        return by_unit.transpose(0, 2, 1).reshape(-1, len(self.units)).astype(np.float64)
