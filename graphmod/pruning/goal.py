"""Goals: how much a pruning removes, as shares of groups or as a budget of weights, multiply-accumulates or time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import numpy as np

from graphmod.errors import RefusedError
from graphmod.pruning.groups import Groups
from graphmod.pruning.selection import Cost, Selection
from graphmod.pruning.widths import Counted, Widths

Ranking = Literal["local", "global"]

UNITS = {"weights": "weights", "macs": "multiply-accumulates"}


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

    def take(self, selection: Selection, whole: Groups, part: float) -> None:
        """Take units out of a selection, unless the goal is a time: :mod:`graphmod.pruning.latency_budget` does that.

        Parameters
        ----------
        selection : Selection
            All units of the network as it is.
        whole : Groups
            Those of the network as it was at first, of which the goal speaks.
        part : float
            Which part of the way to go, up to 1.

        Raises
        ------
        RefusedError
            The budget cannot be met.
        """
        if isinstance(self.value, Mapping):
            self._take_shares(selection, whole, self.value, part)
        elif self.name != "ratio":
            self._meet(selection, whole, self.value, part)
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

    def _meet(self, selection: Selection, whole: Groups, budget: float, part: float) -> None:
        cost = self._cost(selection.widths)
        first = (cost if selection.found is whole else self._cost(Widths(whole)))(np.ones(whole.n_units, bool))
        if not self.meet(selection, cost, first * min(1.0, budget if budget <= 1 else budget / first) ** part):
            least = cost(selection.alive)
            raise RefusedError(
                f"{self.name}={budget:g} cannot be met: with as much gone as at_most={self.at_most:g} and "
                f"multiple_of={selection.multiple_of} allow, {least:,.0f} of {first:,.0f} {UNITS[self.name]} "
                f"({least / first:.1%}) are left; what stays: {reasons(whole)}"
            )

    def _cost(self, widths: Widths) -> Cost:
        """Return what the budget counts."""
        return Counted(widths, widths.weights if self.name == "weights" else widths.macs)

    def meet(self, selection: Selection, cost: Cost, limit: float) -> bool:
        """Take units out of a whole network until its cost is within a limit; return whether it is."""
        selection.alive = np.ones(selection.found.n_units, bool)
        take = selection.by_budget if self.ranking == "global" else selection.by_common_share
        return take(cost, limit, self.at_most)


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
        told = f"{' and '.join(given)} both say how much to remove" if given else "nothing says how much to remove"
        raise RefusedError(f"{told}; give one of ratio, {', '.join(budgets)}")
    ((name, value),) = given.items()
    if ranking not in ("local", "global"):
        raise RefusedError(f"ranking={ranking!r} is neither local nor global")
    if isinstance(value, Mapping) and ranking == "global":
        raise RefusedError("shares by group leave nothing to rank across groups; give one ratio, or no ranking")
    if isinstance(value, Mapping) and not value:
        raise RefusedError("ratio is empty; name the groups that shall lose units, as {group: share}")
    for group, share in (value if isinstance(value, Mapping) else {"": value}).items():
        if not isinstance(share, Real):
            raise RefusedError(f"{name}{f' of {group}' if group else ''}={share!r} is no number")
        if name == "ratio" and not 0 < share < 1:
            told = f"ratio of {group}" if group else "ratio"
            raise RefusedError(f"{told}={share} is out of range; it is a share above 0 and below 1")
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
