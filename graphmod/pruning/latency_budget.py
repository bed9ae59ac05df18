"""A budget of time: units go by what operators take one by one; the pruned network, measured whole, is what counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch, noise
from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.probe.latency import TOLERANCE, least_latency
from graphmod.probe.operator_latency import LatencyTable
from graphmod.pruning.goal import Goal, reasons
from graphmod.pruning.groups import Groups
from graphmod.pruning.removal import cut
from graphmod.pruning.selection import Selection
from graphmod.pruning.timing import Timing
from graphmod.pruning.widths import Alive, Widths


@dataclass(frozen=True, eq=False)
class Times:
    """The microseconds that the original takes, and the network with the units that are left, measured in turn."""

    alive: Alive
    original: float
    pruned: float

    @property
    def share(self) -> float:
        """What is left of the time."""
        return self.pruned / self.original


class LatencyBudget:
    """How much of the original's time a network may take, on this machine.

    Parameters
    ----------
    goal : Goal
        At most so much is left, as a share up to 1, or in microseconds.
    selection : Selection
        All units of the network as it is.
    whole : Groups
        Those of the network as it was at first.
    part : float
        Which part of the way to go, up to 1.
    original : Model
        What the network is measured beside.
    data : Data, optional
        A sample is taken from it; random numbers if None.
    progress : bool
    """

    def __init__(
        self,
        goal: Goal,
        selection: Selection,
        whole: Groups,
        part: float,
        original: Model,
        data: Data | None,
        progress: bool,
    ):
        assert not isinstance(goal.value, Mapping), "it is a budget"
        self.goal, self.budget, self.part = goal, goal.value, part
        self.selection, self.whole, self.original = selection, whole, original
        self.sample = noise(original, 1) if data is None else data[: fixed_batch(original) or 1]
        table = LatencyTable()
        self.timing = Timing(selection.found, selection.widths, table, progress)
        self.of_whole = self.timing if selection.found is whole else Timing(whole, Widths(whole), table, progress)

    def chosen(self) -> NDArray[np.bool_]:
        """Return which units go.

        Networks from the floor, without all units that may go, to the whole, a step of a group apart: bisected for the
        largest that is measured within the budget, from what operators tell on.

        Raises
        ------
        RefusedError
            It takes longer even if all units go that may.
        """
        original = 1.0 if self.budget <= 1 else least_latency({"one": self.original}, self.sample.inputs)["one"]
        if self._allowed(original) >= 1:
            return np.zeros(self.selection.found.n_units, bool)
        floor = self._floor()
        guess = self._guess(floor) | floor.alive
        below, above = self._steps(floor.alive, guess), self._steps(guess, np.ones_like(guess))
        step_of = np.zeros(len(guess), int)
        for step, units in enumerate([*below, *above], 1):
            step_of[units] = step
        met, now, missed = 0, max(1, len(below)), len(below) + len(above) + 1
        while met < now < missed:
            times = self._times(step_of <= now)
            used = times.share / self._allowed(times.original)
            met, missed = (now, missed) if used <= 1 else (met, now)
            if 1 <= used * TOLERANCE <= TOLERANCE:  # measuring could not tell what is larger and within the budget
                break
            now = (met + missed) // 2
        return step_of > met

    def _floor(self) -> Times:
        """Return the times of the network without all units that may go, if they are within the budget."""
        self.selection.by_share(self.goal.at_most)
        times = self._times(self.selection.alive)
        if times.share <= self._allowed(times.original) * TOLERANCE:
            return times
        raise RefusedError(
            f"latency={self.budget:g} cannot be met: with as much gone as at_most={self.goal.at_most:g} and "
            f"multiple_of={self.selection.multiple_of} allow, the network takes {times.pruned:,.0f} of "
            f"{times.original:,.0f} microseconds ({times.share:.1%}), measured as a whole{self._further(times)}; "
            f"what stays: {reasons(self.whole)}"
        )

    def _guess(self, floor: Times) -> Alive:
        """Return what is left if networks take of the way from the whole to the floor what their operators take."""
        over = 1 - self._allowed(floor.original)
        whole = self.of_whole(np.ones(self.whole.n_units, bool))
        way = over / max(over, 1 - floor.share) * (whole - self.timing(floor.alive))
        self.goal.meet(self.selection, self.timing, whole - way)
        return self.selection.alive

    def _steps(self, small: Alive, large: Alive) -> list[NDArray[np.intp]]:
        """Return the units that a network has more than another: a step of a group each, evenly, coarse ones last."""
        steps = []
        for group in self.selection.found:
            own = group.own
            more = group.first + (large & ~small)[own].nonzero()[0]
            more = more[np.argsort(-self.selection.scores[more], kind="stable")]
            n_left = int(small[own].sum())
            ends = sorted({self.selection.rounded(group, n_left + n) - n_left for n in range(1, len(more) + 1)})
            parts = np.split(more, ends[:-1]) if ends else []
            steps += [((place + 1) / len(parts), part) for place, part in enumerate(parts)]
        return [part for _, part in sorted(steps, key=lambda step: step[0])]

    def _further(self, least: Times) -> str:
        """Return, in words, how little time is left where widths are not rounded, if that is less."""
        own = self.selection
        finer = Selection(own.found, own.widths, own.scores, 1, self.whole)
        finer.by_share(self.goal.at_most)
        if np.array_equal(finer.alive, least.alive):
            return ""
        share = self._times(finer.alive).share
        return f" (with multiple_of=1 {share:.1%})" if share * TOLERANCE < least.share else ""

    def _allowed(self, original: float) -> float:
        """Return the share of the time that may be left, of an original that takes so many microseconds."""
        return float(min(1.0, self.budget if self.budget <= 1 else self.budget / original) ** self.part)

    def _times(self, alive: Alive) -> Times:
        pruned = cut(self.selection.found, ~alive, leftovers=False)
        found = least_latency({"original": self.original, "pruned": pruned}, self.sample.inputs)
        return Times(alive, found["original"], found["pruned"])
