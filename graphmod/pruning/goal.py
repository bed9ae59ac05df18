"""Goals: how much a pruning removes, as shares of groups or as a budget of weights, multiply-accumulates or time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from typing import Literal

import numpy as np

from graphmod.data import Data, fixed_batch, noise
from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.probe import latency
from graphmod.probe.operator_latency import LatencyTable
from graphmod.pruning.groups import Groups
from graphmod.pruning.selection import Cost, Selection
from graphmod.pruning.timing import Timing
from graphmod.pruning.widths import Counted, Widths

Ranking = Literal["local", "global"]

TOLERANCE = 1.02
"""How far over a budget of latency a measured network may be: measuring twice differs by as much."""

ROUNDS = 15

UNITS = {"weights": "weights", "macs": "multiply-accumulates", "latency": "microseconds"}


@dataclass(frozen=True)
class Goal:
    """How much to remove.

    Parameters
    ----------
    name : str
        ``ratio``, or the name of a budget.
    value : float or mapping of str to float
        A share to remove; or what may be left, as a share of the network or as a number.
    ranking : {"local", "global"}
    at_most : float
        Largest share that a group may lose.
    """

    name: str
    value: float | Mapping[str, float]
    ranking: Ranking
    at_most: float

    def take(
        self, selection: Selection, whole: Groups, part: float, over: float, data: Data | None, progress: bool
    ) -> None:
        """Take units out of a selection.

        Parameters
        ----------
        selection : Selection
            All units of the network as it is.
        whole : Groups
            Those of the network as it was at first, of which the goal speaks.
        part : float
            Which part of the way to go, up to 1.
        over : float
            How far over the budget an attempt before has come out.
        data : Data, optional
            Samples to measure the latency of the whole network on.
        progress : bool

        Raises
        ------
        RefusedError
            A group does not exist, or the budget cannot be met.
        """
        if isinstance(self.value, Mapping):
            _check_names(self.value, whole)
            self._take_shares(selection, whole, self.value, part)
        elif self.name != "ratio":
            self._meet(selection, whole, self.value, part, over, data, progress)
        elif self.ranking == "global":
            n_left = sum(selection.first.values()) * (1 - self.value) ** part
            selection.by_rank(selection.found.n_units - round(n_left), self.at_most)
        else:
            self._take_shares(selection, whole, {group.name: self.value for group in whole}, part)

    def _take_shares(self, selection: Selection, whole: Groups, shares: Mapping[str, float], part: float) -> None:
        made_in = {operator: group.name for group in whole for operator in group.operators}
        for group in selection.found:  # in a smaller network one may have another name
            name = group.name if group.name in whole else made_in.get(group.operators[0], "")
            selection.take(group, selection.first[group.name], 1 - (1 - shares.get(name, 0.0)) ** part)

    def _meet(
        self,
        selection: Selection,
        whole: Groups,
        budget: float,
        part: float,
        over: float,
        data: Data | None,
        progress: bool,
    ) -> None:
        cost = _cost(self.name, selection.found, selection.widths, progress)
        of_whole = cost if selection.found is whole else _cost(self.name, whole, Widths(whole), progress)
        first = of_whole(np.ones(whole.n_units, bool))
        share = budget if budget <= 1 else budget / self._unit(whole.model, first, data)
        limit = first * min(1.0, share) ** part / over
        take = selection.by_budget if self.ranking == "global" else selection.by_common_share
        if not take(cost, limit, self.at_most):
            least = cost(selection.alive)
            raise RefusedError(
                f"{self.name}={budget:g} cannot be met: with as much gone as at_most={self.at_most:g} and "
                f"multiple_of={selection.multiple_of} allow, {least:,.0f} of {first:,.0f} {UNITS[self.name]} "
                f"({least / first:.1%}) are left; what stays: {reasons(whole)}"
            )

    def _unit(self, model: Model, first: float, data: Data | None) -> float:
        """Return what the whole network costs, in the unit that a budget is given in."""
        return first if self.name != "latency" else _measured({"whole": model}, data)["whole"]

    def over(self, model: Model, smaller: Model, data: Data | None) -> float:
        """Return how far over a budget of latency a pruned network is, as measured; 1 where it is within.

        The sum of its operators is not quite what a network takes.
        """
        assert not isinstance(self.value, Mapping), "it is a budget"
        times = _measured({"whole": model, "smaller": smaller}, data)
        limit = self.value * times["whole"] if self.value <= 1 else self.value
        return max(1.0, times["smaller"] / limit)


def goal_of(
    ratio: float | Mapping[str, float] | None,
    budgets: Mapping[str, float | None],
    ranking: Ranking,
    at_most: float,
) -> Goal:
    """Return the goal that parameters describe.

    Raises
    ------
    RefusedError
        None or several are given, or one is out of range.
    """
    given = {name: value for name, value in {"ratio": ratio, **budgets}.items() if value is not None}
    if len(given) != 1:
        raise RefusedError(
            f"say how much to remove by one of ratio, {', '.join(budgets)}; {' and '.join(given) or 'none'} is given"
        )
    ((name, value),) = given.items()
    if ranking not in ("local", "global"):
        raise RefusedError(f"ranking={ranking!r} is neither local nor global")
    if isinstance(value, Mapping) and ranking == "global":
        raise RefusedError("shares by group leave nothing to rank across groups; give one ratio, or no ranking")
    for group, share in (value if isinstance(value, Mapping) else {"": value}).items():
        if not isinstance(share, Real):
            raise RefusedError(f"{name}{f' of {group}' if group else ''}={share!r} is no number")
        if name == "ratio" and not 0 < share < 1:
            told = f"ratio of {group}" if group else "ratio"
            raise RefusedError(f"{told}={share} is out of range; it is a share between 0 and 1")
        if not share > 0:
            raise RefusedError(f"{name}={share} is out of range; it is a share up to 1, or a number")
    if not 0 < at_most <= 1:
        raise RefusedError(f"at_most={at_most} is out of range; it is a share above 0 and up to 1")
    return Goal(name, value, ranking, at_most)


def reasons(found: Groups) -> str:
    """Return why channels are kept, in words."""
    if not found.kept:
        return "no other operator makes channels by its weights"
    told = [f"{one.operator} ({one.n_channels} channels): {one.reason}" for one in found.kept[:5]]
    more = f"; and {len(found.kept) - 5} others (graphmod groups lists them)" if len(found.kept) > 5 else ""
    return "; ".join(told) + more


def _check_names(shares: Mapping[str, float], whole: Groups) -> None:
    unknown = next((name for name in shares if name not in whole), None)
    if unknown is not None:
        near = get_close_matches(unknown, [group.name for group in whole], 1)
        hint = f"; did you mean '{near[0]}'?" if near else "; graphmod groups lists them"
        raise RefusedError(f"no group of channels is named '{unknown}'{hint}")


def _cost(name: str, found: Groups, widths: Widths, progress: bool) -> Cost:
    """Return what a budget counts."""
    if name == "latency":
        return Timing(found, widths, LatencyTable(), progress)
    return Counted(widths, widths.weights if name == "weights" else widths.macs)


def _measured(models: Mapping[str, Model], data: Data | None) -> dict[str, float]:
    """Return what networks take for one sample, in microseconds, measured in turn."""
    model = next(iter(models.values()))
    sample = noise(model, 1) if data is None else data[: fixed_batch(model) or 1]
    return {name: found.median for name, found in latency(models, sample.inputs, rounds=ROUNDS).items()}
