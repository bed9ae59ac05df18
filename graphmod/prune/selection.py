"""Selection: which units go, so that no axis is left empty, none loses far more than its share, and a budget is met."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from math import floor

import numpy as np
from numpy.typing import NDArray

from graphmod.prune.groups import Group, Groups
from graphmod.prune.widths import Alive, Widths

Scores = NDArray[np.float64]
Cost = Callable[[NDArray[np.int64]], float]
"""What a network costs at some widths of its axes."""

STEPS = 16
"""In how many steps a group is taken down, when a budget chooses between groups."""


class Selection:
    """Which units are left, and which may still go.

    Parameters
    ----------
    found : Groups
    widths : Widths
    scores : array of float, shape (n_units,)
        What each unit is worth, comparable across groups.
    multiple_of : int
        What the number of units that are left in a group is rounded up to, where it has so many.
    """

    def __init__(self, found: Groups, widths: Widths, scores: Scores, multiple_of: int = 1):
        self.found, self.widths, self.scores, self.multiple_of = found, widths, scores, multiple_of
        self.alive: Alive = np.ones(found.n_units, bool)
        self._order = {
            group.name: group.first + np.argsort(scores[group.first : group.first + group.n_units], kind="stable")
            for group in found
        }
        self._crossing = self._crossing_axes()

    def _crossing_axes(self) -> dict[int, list[NDArray[np.int64]]]:
        """Return, for units of which an axis has some and not all of the group, the units along such axes.

        Along any other axis something is left as long as a unit of every group is.
        """
        group_of = np.repeat(np.arange(len(self.found)), [group.n_units for group in self.found])
        sizes = np.array([group.n_units for group in self.found])
        crossing: dict[int, list[NDArray[np.int64]]] = {}
        for units in self.widths.units[1:]:
            own = np.unique(units)
            if own[0] < 0:
                continue
            groups, counts = np.unique(group_of[own], return_counts=True)
            if (counts < sizes[groups]).all():
                for unit in own.tolist():
                    crossing.setdefault(unit, []).append(own)
        return crossing

    def left(self, group: Group) -> int:
        """Return how many units of a group are left."""
        return int(self.alive[group.first : group.first + group.n_units].sum())

    def rounded(self, group: Group, n_left: int) -> int:
        """Return how many units to leave, for a group that should be left with so many."""
        n_left = max(1, min(n_left, group.n_units))
        if group.n_units < 2 * self.multiple_of:
            return n_left
        return min(group.n_units, -(-n_left // self.multiple_of) * self.multiple_of)

    def reduce(self, group: Group, n_left: int, at_most: float) -> bool:
        """Take the least important units out until so many are left; return whether any went.

        Of units along an axis that has only a part of the group, no more than the given share goes.
        """
        excess = self.left(group) - n_left
        went = False
        for unit in self._order[group.name].tolist():
            if excess <= 0:
                break
            if self.alive[unit] and self._may_go(unit, at_most):
                self.alive[unit] = False
                excess -= 1
                went = True
        return went

    def _may_go(self, unit: int, at_most: float) -> bool:
        for axis in self._crossing.get(unit, ()):
            n_left = int(self.alive[axis].sum())
            if n_left <= max(1, len(axis) - max(1, floor(len(axis) * at_most + 0.5))):
                return False
        return True

    # -- what users ask for

    def by_ratio(self, ratios: Mapping[str, float]) -> None:
        """Take the same share out of each group, or the shares given by name."""
        for group in self.found:
            ratio = ratios.get(group.name, 0.0)
            n_left = group.n_units - floor(group.n_units * ratio + 0.5)
            self.reduce(group, self.rounded(group, n_left), ratio)

    def by_rank(self, ratio: float, at_most: float) -> None:
        """Take a share of all units out, the least important of the whole network first."""
        ranked = np.argsort(self.scores, kind="stable")
        group_of = np.repeat(np.arange(len(self.found)), [group.n_units for group in self.found])
        floors = np.array([group.n_units - floor(group.n_units * at_most) for group in self.found])
        spare = np.array([group.n_units for group in self.found]) - np.maximum(1, floors)
        goes = np.zeros(len(self.found), np.int64)
        excess = floor(len(ranked) * ratio + 0.5)
        for unit in ranked.tolist():
            if excess > 0 and goes[group_of[unit]] < spare[group_of[unit]]:
                goes[group_of[unit]] += 1
                excess -= 1
        for group, number in zip(self.found, goes.tolist(), strict=True):
            self.reduce(group, self.rounded(group, group.n_units - number), at_most)

    def by_budget(self, cost: Cost, limit: float, at_most: float) -> bool:
        """Take units out until the cost is met, each time where least importance is lost for what is saved.

        A group is taken down in steps of a sixteenth. Returns whether the limit was reached.
        """
        now = cost(self.widths(self.alive))
        ready = [(0.0, place, -1) for place in range(len(self.found))]  # ranked when they are first looked at
        heapq.heapify(ready)
        taken = 0
        while ready and now > limit:
            _, place, seen = heapq.heappop(ready)
            group = self.found.groups[place]
            step = self._step(group, at_most)
            if step is None:
                continue
            rate, alive, after = self._priced(cost, now, step)
            if seen != taken:
                heapq.heappush(ready, (rate, place, taken))
                continue
            self.alive, now, taken = alive, after, taken + 1
            heapq.heappush(ready, (rate, place, -1))
        return now <= limit

    def _step(self, group: Group, at_most: float) -> Alive | None:
        """Return what is left after a further step of a group; None if it has none left to go."""
        before, n_left = self.alive, self.left(group)
        least = max(1, group.n_units - floor(group.n_units * at_most))
        target = n_left - max(1, group.n_units // STEPS)
        target = (max(1, target) // self.multiple_of) * self.multiple_of or target if n_left > self.multiple_of else target
        self.alive = before.copy()
        went = target >= least and self.reduce(group, target, at_most)
        step, self.alive = self.alive, before
        return step if went else None

    def _priced(self, cost: Cost, now: float, step: Alive) -> tuple[float, Alive, float]:
        """Return what a step loses for what it saves, what is left after it, and the cost then."""
        after = cost(self.widths(step))
        lost = float(self.scores[self.alive & ~step].sum())
        return lost / (now - after) if after < now else np.inf, step, after
