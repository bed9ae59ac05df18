"""Magnitude: the norm of the weights that make a unit and read it.

Li et al., Pruning Filters for Efficient ConvNets (ICLR 2017), taken over all coupled weights as in Fang et al., DepGraph
(CVPR 2023), section 3.3.
"""

from __future__ import annotations

import numpy as np

from graphmod.prune.groups import Group, Member
from graphmod.prune.importance.registry import Evidence, Scores, importance


@importance("l1")
def l1(group: Group, evidence: Evidence) -> Scores:
    """Sum of absolute weights."""
    return _total(group, evidence, 1)


@importance("l2")
def l2(group: Group, evidence: Evidence) -> Scores:
    """Root of the sum of squared weights."""
    return np.sqrt(_total(group, evidence, 2))


def _total(group: Group, evidence: Evidence, power: int) -> Scores:
    """Sum powers of all weights of every unit; each weight counts by its mean over the group, so that none dominates."""
    total = np.zeros(group.n_units)
    for member in group.weights:
        total += per_unit(member, evidence, power, group.n_units)
    return total


def per_unit(member: Member, evidence: Evidence, power: int, n_units: int) -> Scores:
    """Sum powers of absolute values of one weight by unit."""
    value = evidence.found.weight(member.tensor)
    if value is None or value.ndim < 2:
        return np.zeros(n_units)
    axes = tuple(axis for axis in range(value.ndim) if axis != member.axis)
    magnitude = np.abs(value.astype(np.float32, copy=False))
    by_index = (magnitude if power == 1 else np.square(magnitude)).sum(axes, dtype=np.float64)
    own = member.units >= 0
    return np.bincount(member.units[own], by_index[own], n_units)
