"""Magnitude: the norm of a unit's weights: those that read it, those that make it, or all.

Li et al., Pruning Filters for Efficient ConvNets (ICLR 2017), section 3.1, rank filters by the weights that make them;
Fang et al., DepGraph (CVPR 2023), section 3.3, by all coupled weights. Those that read a unit say more where a
normalisation follows, behind which the scale of those that make it does not matter. On the demo network and three small
ones (digits, plain and residual, and MNIST), cut to 50 to 95 % of their multiply-accumulates and not retrained, reading
weights kept 73 % accuracy on calibration data on average (local and global ranking), all 67 %, making ones 57 %; on the
plain network, without normalisation, the order was the other way round: 91, 95, 97 %.
"""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_letters

import numpy as np

from graphmod.pruning.groups import Group
from graphmod.pruning.importance.registry import Evidence, Scores, by_unit, importance
from graphmod.pruning.importance.weights import Float, weight

Sums = dict[tuple[str, int], Scores]
"""By tensor and axis, a sum for every index."""


@importance("l1")
def l1(group: Group, evidence: Evidence) -> Scores:
    """Sum of the absolute weights that read a unit; of those that make it, where none reads it."""
    return _total(group, evidence.once(_absolutes), makes=False)


@importance("l2")
def l2(group: Group, evidence: Evidence) -> Scores:
    """Root of the sum of the squared weights that read a unit; of those that make it, where none reads it."""
    return np.sqrt(_total(group, evidence.once(_squares), makes=False))


@importance("l2_making")
def l2_making(group: Group, evidence: Evidence) -> Scores:
    """Root of the sum of the squared weights that make a unit: the norm of its filters."""
    return np.sqrt(_total(group, evidence.once(_squares), makes=True))


@importance("l2_all")
def l2_all(group: Group, evidence: Evidence) -> Scores:
    """Root of the sum of the squared weights that make a unit or read it."""
    return np.sqrt(_total(group, evidence.once(_squares)))


def _total(group: Group, sums: Sums, *, makes: bool | None = None) -> Scores:
    """Sum over the weights that make a unit, those that do not, or all; over all where there are none of a kind."""
    members = [member for member in group.members if (member.tensor, member.axis) in sums]
    wanted = [member for member in members if makes in (None, member.makes)]
    total = np.zeros(group.n_units)
    for member in wanted or members:
        total += by_unit(member.units, sums[member.tensor, member.axis], group.n_units)
    return total


def _squares(evidence: Evidence) -> Sums:
    return _sums(evidence, lambda cells: np.einsum("...i,...i->...", cells, cells))


def _absolutes(evidence: Evidence) -> Sums:
    return _sums(evidence, lambda cells: np.einsum("...i->...", np.abs(cells)))


def _sums(evidence: Evidence, fold: Callable[[Float], Float]) -> Sums:
    """Fold all weights along the axes where no units lie, and sum up the rest for every index of the others.

    Vectors are biases and scales: their size says nothing about how much a unit carries.
    """
    axes: dict[str, set[int]] = {}
    for group in evidence.found:
        for member in group.members:
            axes.setdefault(member.tensor, set()).add(member.axis)
    sums: Sums = {}
    for tensor, own in axes.items():
        value = weight(evidence.found, tensor)
        if value is None or value.ndim < 2:
            continue
        order = sorted(own)
        front = np.moveaxis(value, order, range(len(order)))
        cells = fold(front.reshape(*front.shape[: len(order)], -1))
        letters = ascii_letters[: cells.ndim]
        for place, axis in enumerate(order):
            sums[tensor, axis] = np.einsum(f"{letters}->{letters[place]}", cells).astype(np.float64)
    return sums
