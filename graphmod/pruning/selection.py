"""Selection: which units go, so that no axis is left empty, none loses far more than its share, and a budget is met."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import floor

import numpy as np
from numpy.typing import NDArray

from graphmod.pruning.groups import Group, Groups
from graphmod.pruning.widths import Alive, Widths

Scores = NDArray[np.float64]
Cost = Callable[[Alive], float]
"""What a network costs when some units are left."""

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
        What the number of channels that are left in a group is rounded up to, if it has at least twice as many.
    """

    def __init__(self, found: Groups, widths: Widths, scores: Scores, multiple_of: int = 1):
        self.found, self.widths, self.scores, self.multiple_of = found, widths, scores, multiple_of
        self.alive: Alive = np.ones(found.n_units, bool)
        self._order = {
            group.name: group.first + np.argsort(scores[group.first : group.first + group.n_units], kind="stable")
            for group in found
        }
        self._crossing = self._crossing_axes()

    @classmethod
    def of_all(cls, found: Groups) -> Selection:
        """Return a selection of all units, for what the network costs as it is."""
        return cls(found, Widths(found), np.zeros(found.n_units))

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
        multiple = self._multiple(group)
        return max(1, min(group.n_units, -(-n_left // multiple) * multiple))

    def _multiple(self, group: Group) -> int:
        """Return what to round to: 1 in small groups, and where a unit is more than one channel."""
        is_single = all(
            np.bincount(member.units[member.units >= 0]).max() == 1 for member in group.members if member.makes
        )
        return self.multiple_of if is_single and group.n_units >= 2 * self.multiple_of else 1

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

    def take(self, group: Group, n_units: int, share: float) -> None:
        """Take units of a group out, so that this share of the number that it once had is gone."""
        n_left = n_units - floor(n_units * share + 0.5)
        self.reduce(group, self.rounded(group, n_left), share)

    def by_rank(self, n_gone: int, at_most: float) -> None:
        """Take so many units out, the least important of the whole network first."""
        group_of = np.repeat(np.arange(len(self.found)), [group.n_units for group in self.found])
        spare = [group.n_units - self._least(group, at_most) for group in self.found]
        goes = [0] * len(self.found)
        for unit in np.argsort(self.scores, kind="stable").tolist():
            place = int(group_of[unit])
            if n_gone > 0 and goes[place] < spare[place]:
                goes[place] += 1
                n_gone -= 1
        for group, number in zip(self.found, goes, strict=True):
            self.reduce(group, self.rounded(group, group.n_units - number), at_most)

    def by_common_share(self, cost: Cost, limit: float, at_most: float) -> bool:
        """Take the least share that meets the limit out of every group; return whether there is one."""

        def left(share: float) -> float:
            self.alive = np.ones(self.found.n_units, bool)
            for group in self.found:
                self.take(group, group.n_units, share)
            return cost(self.alive)

        low, high = 0.0, at_most
        if left(high) > limit:
            return False
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (low, middle) if left(middle) <= limit else (middle, high)
        return left(high) <= limit

    def by_budget(self, cost: Cost, limit: float, at_most: float) -> bool:
        """Take units out until the cost is met, each time where least importance is lost for what is saved.

        A group is taken down in steps of a sixteenth. Returns whether the limit was reached.
        """
        now = cost(self.alive)
        ready = [(0.0, place, -1) for place in range(len(self.found))]  # priced when they are first looked at
        taken = 0
        while ready and now > limit:
            _, place, seen = heapq.heappop(ready)
            step = self._step(self.found.groups[place], at_most)
            if step is None:
                continue
            after = cost(step)
            lost = self._lost(self.found.groups[place], step)
            rate = lost / (now - after) if after < now else np.inf
            is_cheapest = seen == taken
            if is_cheapest:
                self.alive, now, taken = step, after, taken + 1
            heapq.heappush(ready, (rate, place, -1 if is_cheapest else taken))
        return now <= limit

    def _lost(self, group: Group, step: Alive) -> float:
        """Return what a step loses: the logarithm of the share of the group's importance that it leaves.

        The product of what all groups have left is so kept as large as the budget allows. A group's last units are
        dear, which sums of importances do not see (Lee et al., Layer-adaptive Sparsity, ICLR 2021, score likewise).
        """
        own = slice(group.first, group.first + group.n_units)
        before, after = (float(self.scores[own][alive[own]].sum()) for alive in (self.alive, step))
        if after >= before:  # what goes is worth nothing, or less
            return 0.0
        return float(np.log(before / after)) if after > 0 else np.inf

    def _least(self, group: Group, at_most: float) -> int:
        """Return how few units of a group may be left."""
        return max(1, self._multiple(group), group.n_units - floor(group.n_units * at_most + 1e-9))

    def _step(self, group: Group, at_most: float) -> Alive | None:
        """Return what is left after a further step of a group; None if it has none left to go."""
        before, n_left = self.alive, self.left(group)
        multiple = self._multiple(group)
        target = (n_left - max(1, group.n_units // STEPS)) // multiple * multiple
        self.alive = before.copy()
        went = target >= self._least(group, at_most) and self.reduce(group, target, at_most)
        step, self.alive = self.alive, before
        return step if went else None
