"""Selection: which units go, so that no axis is left empty, none loses far more than its share, and a budget is met."""

from __future__ import annotations

import heapq
from collections import Counter
from math import floor
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from graphmod.pruning.groups import Group, Groups
from graphmod.pruning.widths import Alive, Widths

Scores = NDArray[np.float64]

STEPS = 16
"""In how many steps a group is taken down, when a budget chooses between groups."""


class Cost(Protocol):
    """What a network costs when some units are left."""

    def __call__(self, alive: Alive) -> float:
        """Return the cost of the whole network."""

    def part(self, place: int, alive: Alive) -> float:
        """Return what depends on the units of a group, by its place among the groups, or more: all else stays."""


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
    whole : Groups, optional
        Those of the network before earlier steps, of which shares are meant; ``found`` if None.

    Attributes
    ----------
    first : dict of str to int
        How many units each group would have if its operators still made as many channels as in the whole. (What a unit
        is can change on the way: once a single head is left, its channels are what can go.)
    """

    def __init__(
        self, found: Groups, widths: Widths, scores: Scores, multiple_of: int = 1, whole: Groups | None = None
    ):
        self.found, self.widths, self.scores, self.multiple_of = found, widths, scores, multiple_of
        before, now = _channels(whole or found), _channels(found)
        self.first = {
            group.name: max(group.n_units, round(group.n_units * _total(before, group) / max(1, _total(now, group))))
            for group in found
        }
        self._multiples = dict(zip((group.name for group in found), multiples(found, multiple_of), strict=True))
        self.alive: Alive = np.ones(found.n_units, bool)
        self._order = {group.name: group.first + np.argsort(scores[group.own], kind="stable") for group in found}
        self._crossing = self._crossing_axes()

    def _crossing_axes(self) -> dict[int, list[NDArray[np.int64]]]:
        """Return, for units of which an axis has some and not all of the group, the units along such axes.

        Along any other axis something is left as long as a unit of every group is.
        """
        group_of = self.found.group_of
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
        return int(self.alive[group.own].sum())

    def rounded(self, group: Group, n_left: int) -> int:
        """Return how many units to leave, for a group that should be left with so many."""
        multiple = self._multiples[group.name]
        return min(group.n_units, -(-max(1, n_left) // multiple) * multiple)

    def reduce(self, group: Group, n_left: int, at_most: float) -> list[int]:
        """Take the least important units out until so many are left; return which went.

        Of units along an axis that has only a part of the group, no more than the given share goes.
        """
        excess = self.left(group) - n_left
        gone: list[int] = []
        for unit in self._order[group.name].tolist():
            if len(gone) >= excess:
                break
            if self.alive[unit] and self._may_go(unit, at_most, self.first[group.name] / group.n_units):
                self.alive[unit] = False
                gone.append(unit)
        return gone

    def _may_go(self, unit: int, at_most: float, growth: float) -> bool:
        for axis in self._crossing.get(unit, ()):
            n_left, n_first = int(self.alive[axis].sum()), round(len(axis) * growth)
            if n_left <= max(1, n_first - max(1, floor(n_first * at_most + 0.5))):
                return False
        return True

    # -- what users ask for

    def take(self, group: Group, n_units: int, share: float) -> None:
        """Take units of a group out, so that this share of the number that it once had is gone."""
        n_left = n_units - floor(n_units * share + 0.5)
        self.reduce(group, self.rounded(group, n_left), share)

    def by_share(self, share: float) -> None:
        """Leave every group without this share of its units, whatever went before."""
        self.alive = np.ones(self.found.n_units, bool)
        for group in self.found:
            self.take(group, self.first[group.name], share)

    def by_rank(self, n_gone: int, at_most: float) -> None:
        """Take so many units out, the least important of the whole network first."""
        group_of = self.found.group_of
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
        """Take the least share that meets the limit out of every group; return whether there is one.

        What is then left of the limit goes to groups that it lets have one unit, or multiple, more.
        """

        def left(share: float) -> float:
            self.by_share(share)
            return cost(self.alive)

        low, high = 0.0, at_most
        if left(high) > limit:
            return False
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (low, middle) if left(middle) <= limit else (middle, high)
        now = left(high)
        if now <= limit:
            self._give_back(cost, limit - now, high)
        return now <= limit

    def _give_back(self, cost: Cost, spare: float, share: float) -> None:
        """Let groups without a share have one unit, or multiple, more, as far as there is cost to spare.

        Those come first that keep most importance for what they cost.
        """
        offers = []
        for place, group in enumerate(self.found):
            own, n_left = group.own, self.left(group)
            before, was = cost.part(place, self.alive), self.alive[own].copy()
            self.alive[own] = True
            self.reduce(group, self.rounded(group, n_left + 1), share)
            more, added = self.alive[own].copy(), cost.part(place, self.alive) - before
            self.alive[own] = was
            if more.sum() > n_left:
                rate = self._lost(group, more, was) / added if added > 0 else np.inf
                offers.append((-rate, place, more))
        for _, place, more in sorted(offers, key=lambda offer: offer[:2]):
            own = self.found.groups[place].own
            before, was = cost.part(place, self.alive), self.alive[own].copy()
            self.alive[own] = more
            added = cost.part(place, self.alive) - before
            if added > spare:
                self.alive[own] = was
            else:
                spare -= max(0.0, added)

    def by_budget(self, cost: Cost, limit: float, at_most: float) -> bool:
        """Take units out until the cost is met, each time where least importance is lost for what is saved.

        A group is taken down in steps of a sixteenth. Returns whether the limit was reached.
        """
        now = cost(self.alive)
        ready = [(0.0, place, -1) for place in range(len(self.found))]  # priced when they are first looked at
        taken = 0
        while ready and now > limit:
            _, place, seen = heapq.heappop(ready)
            group = self.found.groups[place]
            before, own = cost.part(place, self.alive), group.own
            was = self.alive[own].copy()
            if not self._step(group, at_most):
                continue
            saved = before - cost.part(place, self.alive)
            rate = self._lost(group, was, self.alive[own]) / saved if saved > 0 else np.inf
            is_cheapest = seen == taken
            if is_cheapest:
                now, taken = now - saved, taken + 1
            else:
                self.alive[own] = was
            heapq.heappush(ready, (rate, place, -1 if is_cheapest else taken))
        return now <= limit

    def _lost(self, group: Group, before: Alive, after: Alive) -> float:
        """Return what a step loses: the logarithm of the share of the group's importance that it leaves.

        The product of what all groups have left is so kept as large as the budget allows. A group's last units are
        dear, which sums of importances do not see (Lee et al., Layer-adaptive Sparsity, ICLR 2021, score likewise).
        """
        scores = self.scores[group.own]
        had, has = float(scores[before].sum()), float(scores[after].sum())
        if has >= had:  # what goes is worth nothing, or less
            return 0.0
        return float(np.log(had / has)) if has > 0 else np.inf

    def _least(self, group: Group, at_most: float) -> int:
        """Return how few units of a group may be left."""
        n_units = self.first[group.name]
        return max(1, self._multiples[group.name], n_units - floor(n_units * at_most + 1e-9))

    def _step(self, group: Group, at_most: float) -> bool:
        """Take a group one step further down; return whether any unit could go."""
        multiple = self._multiples[group.name]
        target = (self.left(group) - max(1, group.n_units // STEPS)) // multiple * multiple
        return target >= self._least(group, at_most) and bool(self.reduce(group, target, at_most))


def multiples(found: Groups, multiple_of: int) -> list[int]:
    """Return what the units of every group are rounded to: 1 in small ones, and where a unit is several channels."""
    return [multiple_of if group.n_units >= 2 * multiple_of and _is_single(group) else 1 for group in found]


def _is_single(group: Group) -> bool:
    return all(np.bincount(member.units[member.units >= 0]).max() == 1 for member in group.members if member.makes)


def _channels(found: Groups) -> Counter[str]:
    """Return how many channels of the groups each operator makes."""
    made: Counter[str] = Counter()
    for group in found:
        for member in group.members:
            if member.makes:
                made[member.operator] += int((member.units >= 0).sum())
    return made


def _total(channels: Counter[str], group: Group) -> int:
    return sum(channels[name] for name in group.operators)
