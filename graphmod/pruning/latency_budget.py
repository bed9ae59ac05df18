"""A budget of time: units go by what operators take one by one; the pruned network, measured whole, is what counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch, noise
from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.probe import latency
from graphmod.probe.operator_latency import LatencyTable
from graphmod.pruning.goal import Goal, reasons
from graphmod.pruning.groups import Groups
from graphmod.pruning.removal import cut
from graphmod.pruning.selection import Selection
from graphmod.pruning.timing import Timing
from graphmod.pruning.widths import Alive, Widths

TOLERANCE = 1.02
"""How far over the budget a measured network may be: measuring twice differs by as much."""

CLOSE = 0.9
"""What share of the budget is to be used; else units are chosen again, as fewer may do."""

ROUNDS = 15
REPEATS = 8

ATTEMPTS = 6
"""How often units are chosen anew, because the network takes another share of the time than its operators tell."""


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
        self.every = np.ones(whole.n_units, bool)
        self.table = LatencyTable()
        self.timing = Timing(selection.found, selection.widths, self.table, progress)
        self.of_whole = self.timing if selection.found is whole else Timing(whole, Widths(whole), self.table, progress)

    def chosen(self) -> NDArray[np.bool_]:
        """Return which units go.

        How long a network takes is not quite the sum of its operators: what is measured calibrates the sum for the
        next choice. Where it takes longer than they tell, they may have been timed while the machine was busy, so they
        are measured anew first.

        Raises
        ------
        RefusedError
            It takes longer even if all units go that may.
        """
        original = 1.0 if self.budget <= 1 else self._measured({"original": self.original})["original"]
        share, over = self._allowed(original), 1.0
        if share >= 1:
            return np.zeros(self.selection.found.n_units, bool)
        tried: dict[bytes, Times] = {}
        for _ in range(ATTEMPTS):
            is_met = self.goal.meet(self.selection, self.timing, self.of_whole(self.every) * share / over)
            alive = self.selection.alive
            if alive.tobytes() in tried:
                break
            tried[alive.tobytes()] = times = self._times(alive)
            is_within, share = self._is_within(times), self._allowed(times.original)
            if (is_within and times.share > share * CLOSE) or not (is_within or is_met):
                break
            anew = len(tried) == 1 and not is_within
            over = times.share / (self.timing(alive, anew=anew) / self.of_whole(self.every, anew=anew))
        within = [times for times in tried.values() if self._is_within(times)]
        return ~max(within, key=lambda one: one.share).alive if within else self._least()

    def _least(self) -> NDArray[np.bool_]:
        """Return all units that may go, if the network is within the budget without them."""
        self.selection.by_share(self.goal.at_most)
        times = min((self._times(self.selection.alive) for _ in range(2)), key=lambda one: one.share)
        if self._is_within(times):
            return ~times.alive
        raise RefusedError(
            f"latency={self.budget:g} cannot be met: with as much gone as at_most={self.goal.at_most:g} and "
            f"multiple_of={self.selection.multiple_of} allow, the network takes {times.pruned:,.0f} of "
            f"{times.original:,.0f} microseconds ({times.share:.1%}), measured as a whole{self._further(times)}; what "
            f"its operators take is kept in '{self.table.file}'; what stays: {reasons(self.whole)}"
        )

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

    def _is_within(self, times: Times) -> bool:
        return times.share <= self._allowed(times.original) * TOLERANCE

    def _times(self, alive: Alive) -> Times:
        pruned = cut(self.selection.found, ~alive, leftovers=False)
        found = self._measured({"original": self.original, "pruned": pruned})
        return Times(alive, found["original"], found["pruned"])

    def _measured(self, models: Mapping[str, Model]) -> dict[str, float]:
        """Return the microseconds that networks take for one sample, measured in turn.

        The least of some rounds, and of as many again until these change nothing: what else the machine does only adds.
        """
        least = dict.fromkeys(models, inf)
        for _ in range(REPEATS):
            found = latency(models, self.sample.inputs, rounds=ROUNDS)
            before, least = least, {name: min(time, found[name].least) for name, time in least.items()}
            if all(time * TOLERANCE >= before[name] for name, time in least.items()):
                break
        return least
