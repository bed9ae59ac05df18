"""A budget of time: units go by what operators take one by one; the pruned network, measured whole, is what counts."""

from __future__ import annotations

from collections.abc import Mapping

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

ROUNDS = 20

ATTEMPTS = 6
"""How often units are chosen anew, because the network takes another share of the time than its operators tell."""


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
        self.table = LatencyTable()
        self.timing = Timing(selection.found, selection.widths, self.table, progress)
        self.of_whole = self.timing if selection.found is whole else Timing(whole, Widths(whole), self.table, progress)

    def chosen(self) -> NDArray[np.bool_]:
        """Return which units go.

        How long a network takes is not quite the sum of its operators: what is measured calibrates the sum for the
        next choice. Where the two differ, the operators may have been timed while the machine was busy, so they are
        measured anew first.

        Raises
        ------
        RefusedError
            It takes longer even if all units go that may.
        """
        allowed, over, is_fresh = self._allowed(self._measured({"whole": self.original})["whole"]), 1.0, False
        every = np.ones(self.whole.n_units, bool)
        if allowed >= 1:
            return np.zeros(self.selection.found.n_units, bool)
        for _ in range(ATTEMPTS):
            is_met = self.goal.meet(self.selection, self.timing, self.of_whole(every) * allowed / over)
            if is_met and self.part < 1:
                return ~self.selection.alive
            times = self._times(self.selection.alive)
            share, allowed = times["smaller"] / times["whole"], self._allowed(times["whole"])
            is_within = share <= allowed * TOLERANCE
            if is_met and is_within:
                return ~self.selection.alive
            if not is_met and not is_within:
                break
            told = self.timing(self.selection.alive, anew=not is_fresh) / self.of_whole(every, anew=not is_fresh)
            over, is_fresh = share / told, True
        return self._least()

    def _least(self) -> NDArray[np.bool_]:
        """Return all units that may go, if the network is within the budget without them."""
        self.selection.by_share(self.goal.at_most)
        times = self._times(self.selection.alive)
        share = times["smaller"] / times["whole"]
        if share <= self._allowed(times["whole"]) * TOLERANCE:
            return ~self.selection.alive
        raise RefusedError(
            f"latency={self.budget:g} cannot be met: with as much gone as at_most={self.goal.at_most:g} and "
            f"multiple_of={self.selection.multiple_of} allow, the network takes {times['smaller']:,.0f} of "
            f"{times['whole']:,.0f} microseconds ({share:.1%}), measured as a whole{self._further(share)}; what its "
            f"operators take is kept in '{self.table.file}'; what stays: {reasons(self.whole)}"
        )

    def _further(self, share: float) -> str:
        """Return, in words, whether less time is left where widths are not rounded."""
        own = self.selection
        finer = Selection(own.found, own.widths, own.scores, 1, self.whole)
        finer.by_share(self.goal.at_most)
        if np.array_equal(finer.alive, own.alive):
            return ""
        times = self._times(finer.alive)
        reached = times["smaller"] / times["whole"]
        return f" (with multiple_of=1 {reached:.1%})" if reached * TOLERANCE < share else ""

    def _allowed(self, whole: float) -> float:
        """Return the share of the time that may be left, of an original that takes so many microseconds."""
        return float(min(1.0, self.budget if self.budget <= 1 else self.budget / whole) ** self.part)

    def _times(self, alive: Alive) -> dict[str, float]:
        smaller = cut(self.selection.found, ~alive, leftovers=False)
        return self._measured({"whole": self.original, "smaller": smaller})

    def _measured(self, models: Mapping[str, Model]) -> dict[str, float]:
        """Return the microseconds that networks take for a sample: the least of rounds in turn, as noise only adds."""
        return {name: found.least for name, found in latency(models, self.sample.inputs, rounds=ROUNDS).items()}
