"""Prices: what closing a unit or a block saves of what the network costs as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphmod.graph import Block, cost
from graphmod.probe.operator_latency import LatencyTable
from graphmod.pruning.groups import Groups
from graphmod.pruning.timing import Timing
from graphmod.pruning.widths import Alive, Counted, Widths

Costs = NDArray[np.float64]

BUDGETS = ("latency", "weights", "macs")
"""What a budget can be of: microseconds of operators measured one by one, scalars, multiply-accumulates."""


@dataclass(frozen=True, eq=False)
class Prices:
    """What the network costs, linearised about all that is open.

    Parameters
    ----------
    total : float
    units : float64 array, shape (units,)
        Half of a group's saving over half of its units, as if each cost the same.
    blocks : float64 array, shape (blocks,)
        What all of a block costs.
    inside : int array, shape (units,)
        The block that makes a unit, -1 where none does alone.
    """

    total: float
    units: Costs
    blocks: Costs
    inside: NDArray[np.int64]

    @classmethod
    def of(cls, found: Groups, blocks: Sequence[Block], budget: str, table: LatencyTable) -> Prices:
        """Measure, or count, what a network costs.

        Parameters
        ----------
        found : Groups
        blocks : sequence of Block
        budget : {"latency", "weights", "macs"}
        table : LatencyTable
        """
        widths, model = Widths(found), found.model
        places = [[model.position[name] for name in block.operators] for block in blocks]
        whole = np.ones(found.n_units, bool)
        costs = _costs(found, widths, budget, table)
        if isinstance(costs, Timing):
            saved = [costs.among(own, whole) for own in places]
        else:
            saved = [float(getattr(cost(model, block.operators), budget)) for block in blocks]
        return cls(costs(whole), _of_units(found, costs, whole), np.array(saved), _inside(found, blocks))

    def left(self, closed: Alive) -> float:
        """Return about what is left of the cost when some gates, of units and then blocks, are closed.

        It is never more with more of them closed.
        """
        n = len(self.units)
        within = np.bincount(self.inside + 1, self.units * closed[:n], len(self.blocks) + 1)
        whole = np.maximum(self.blocks, within[1:])  # units of a closed block are paid for with it
        return self.total - float(within[0] + np.where(closed[n:], whole, within[1:]).sum())


def total(found: Groups, budget: str, table: LatencyTable) -> float:
    """Return what a network costs, without prices; see :meth:`Prices.of`."""
    return _costs(found, Widths(found), budget, table)(np.ones(found.n_units, bool))


def _costs(found: Groups, widths: Widths, budget: str, table: LatencyTable) -> Timing | Counted:
    return Timing(found, widths, table) if budget == "latency" else Counted(widths, getattr(widths, budget))


def _of_units(found: Groups, costs: Timing | Counted, whole: Alive) -> Costs:
    units = np.zeros(found.n_units)
    for place, group in enumerate(found):
        half = whole.copy()
        half[group.first : group.first + group.n_units // 2] = False
        saved = costs.part(place, whole) - costs.part(place, half)
        units[group.own] = max(0.0, saved) / max(1, group.n_units // 2)
    return units


def _inside(found: Groups, blocks: Sequence[Block]) -> NDArray[np.int64]:
    """Return the block of each unit: the one whose operators make all activations that the unit is in."""
    inside = np.full(found.n_units, -1)
    made = [{member.operator for member in group.members if not member.is_constant} for group in found]
    for number, block in enumerate(blocks):
        for group, operators in zip(found, made, strict=True):
            if operators and operators.issubset(block.operators):
                inside[group.own] = number
    return inside
