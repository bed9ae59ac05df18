"""``prune``: channel groups become smaller, physically, by importance, under a budget, with recovery between steps."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np

from graphmod.data import Data
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import find
from graphmod.model import Model
from graphmod.probe.operator_latency import LatencyTable
from graphmod.pruning.compensation import compensate
from graphmod.pruning.groups import Groups, groups
from graphmod.pruning.importance import Evidence
from graphmod.pruning.importance.scores import normalised, scores
from graphmod.pruning.recovery import recovered, trainable
from graphmod.pruning.removal import cut
from graphmod.pruning.selection import Cost, Selection
from graphmod.pruning.timing import Timing
from graphmod.pruning.widths import Widths
from graphmod.rewrite.fuse import fuse
from graphmod.rewrite.verb import Samples, verb

Ranking = Literal["local", "global"]


@verb(exact=False, example="graphmod prune in.onnx --ratio 0.5 --out out.onnx")
def prune(
    model: Model,
    ratio: float | Mapping[str, float] | None = None,
    *,
    weights: float | None = None,
    macs: float | None = None,
    latency: float | None = None,
    importance: Any = "l2",
    ranking: Ranking | None = None,
    where: str | None = None,
    at_most: float = 0.9,
    multiple_of: int | None = None,
    data: Samples = None,
    steps: int = 1,
    epochs: int = 0,
    learning_rate: float | None = None,
    leftovers: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Model:
    """Remove the least important channels, heads and neurons, so that the network is physically smaller.

    Parameters
    ----------
    model : Model
    ratio : float or mapping of str to float
        Share of the units to remove from every group, between 0 and 1; or shares by the names of groups.
    weights : float
        Instead of a ratio, a budget: at most so many of the weights are left, as a share up to 1, or as a number.
    macs : float
        The same for multiply-accumulates.
    latency : float
        The same for the time in ONNX Runtime on this machine, one sample and thread, as a share or in microseconds.
    importance : str, mapping of str to array, or callable
        How units are ranked: a name such as l2, scores by group, or ``importance(group, evidence) -> scores``.
    ranking : {"local", "global"}
        Whether every group loses the same share, or the least important of all groups go; if not given, local for a
        ratio and global for a budget.
    where : str
        A selector: only groups that these operators make.
    at_most : float
        Largest share that a group loses under a budget or a global ranking.
    multiple_of : int
        Round the number of channels that are left up to a multiple of it, in groups of at least twice as many; if not
        given, 8 under a budget of latency (what ONNX Runtime's convolutions are laid out in), else 1.
    data : anything that :func:`graphmod.data.as_data` takes
        Calibration samples, for importances that need them and for recovery.
    steps : int
        In how many steps to prune, each with importances of its own.
    epochs : int
        Epochs of recovery after every step: the whole network is trained on the data, with the original as its teacher
        and, where an exporter has fused it, with batch normalization that is fused again at the end.
    learning_rate : float
        Of the recovery; if not given, 0.003 for networks with batch normalization, 0.001 for others.
    leftovers : bool
        Whether biases take in what removed channels held: their means over the data where there is any, else the
        constants that are left of them without the weights that made them, wherever that is exact.
    seed : int
        Same seed, same result.
    progress : bool
        Show progress bars.

    Raises
    ------
    RefusedError
        No group can be pruned, a parameter is out of range, a group does not exist, or a budget cannot be met.
    InvalidDataError
        Importances do not fit the groups, or samples are needed and there are none.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> small = gm.prune(m, 0.5)
    >>> small.n_weights / m.n_weights < 0.3
    True
    """
    budgets = {"weights": weights, "macs": macs, "latency": latency}
    _check(ratio, budgets, at_most, multiple_of, steps, epochs, seed)
    if learning_rate is not None and not learning_rate > 0:
        raise RefusedError(f"learning_rate={learning_rate} is out of range; it is above 0")
    if epochs and data is None:
        raise InvalidDataError("recovery trains the network: pass data=, or epochs=0")
    multiple_of = multiple_of or (1 if latency is None else 8)
    pruned = trainable(model, data) if epochs else model
    whole = _chosen(groups(pruned, _shapes(data)), where)
    for step in range(1, steps + 1):
        found = whole if step == 1 else _chosen(groups(pruned, _shapes(data)), where)
        values = normalised(found, scores(found, importance, Evidence(found, data, seed, progress)))
        selection = Selection(found, Widths(found), values, multiple_of)
        if ratio is not None:
            _take_shares(selection, whole, ratio, step / steps, ranking or "local", at_most)
        else:
            _meet_budget(selection, whole, budgets, step / steps, ranking or "global", at_most, progress)
        if not selection.alive.all():
            removed = ~selection.alive
            takes_means = leftovers and data is not None
            pruned = compensate(found, removed, data) if takes_means else cut(found, removed, leftovers)
        if epochs:
            pruned = recovered(pruned, model, data, epochs, learning_rate, seed, progress)
    return fuse(pruned, kinds=["unfused"]) if epochs else pruned


def _check(
    ratio: float | Mapping[str, float] | None,
    budgets: Mapping[str, float | None],
    at_most: float,
    multiple_of: int | None,
    steps: int,
    epochs: int,
    seed: int,
) -> None:
    given = [name for name, value in {"ratio": ratio, **budgets}.items() if value is not None]
    if len(given) != 1:
        raise RefusedError(
            f"say how much to remove by one of ratio, {', '.join(budgets)}; {' and '.join(given) or 'none'} is given"
        )
    shares = ratio if isinstance(ratio, Mapping) else {"": ratio} if ratio is not None else {}
    for name, share in shares.items():
        if not 0 < share < 1:
            raise RefusedError(f"ratio{name and f' of {name}'}={share} is out of range; it is a share between 0 and 1")
    for name, value in budgets.items():
        if value is not None and not value > 0:
            raise RefusedError(f"{name}={value} is out of range; it is a share up to 1, or a number")
    if not 0 < at_most <= 1 or (multiple_of or 1) < 1 or steps < 1 or epochs < 0 or seed < 0:
        raise RefusedError(
            "at_most is a share above 0 and up to 1, multiple_of and steps are at least 1, epochs and seed at least 0"
        )


def _shapes(data: Data | None) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of two samples, which fit the network where its dynamic dimensions cannot have any size."""
    return None if data is None else {name: (2, *array.shape[1:]) for name, array in data.inputs.items()}


def _chosen(found: Groups, where: str | None) -> Groups:
    """Return the groups that some operators make.

    Raises
    ------
    RefusedError
        There are none.
    """
    if not len(found):
        raise RefusedError(f"no group of channels can be pruned: {_reasons(found)}")
    if where is None:
        return found
    operators = {name for match in find(found.model, where) for name in match.operators}
    named = [group.name for group in found if operators.intersection(group.operators)]
    if not named:
        raise RefusedError(f"no operator that '{where}' selects makes a group of channels that can be pruned")
    return found.only(named)


def _reasons(found: Groups) -> str:
    """Return why channels are kept, in words."""
    if not found.kept:
        return "no operator of the network makes channels by its weights"
    told = [f"{one.operator} ({one.n_channels} channels): {one.reason}" for one in found.kept[:5]]
    more = f"; and {len(found.kept) - 5} others (graphmod groups lists them)" if len(found.kept) > 5 else ""
    return "; ".join(told) + more


def _take_shares(
    selection: Selection,
    whole: Groups,
    ratio: float | Mapping[str, float],
    part: float,
    ranking: Ranking,
    at_most: float,
) -> None:
    """Take shares of the groups as they were at first out, or that part of the way which a step goes."""
    if isinstance(ratio, Mapping):
        unknown = next((name for name in ratio if name not in whole), None)
        if unknown is not None:
            near = get_close_matches(unknown, [group.name for group in whole], 1)
            hint = f"; did you mean '{near[0]}'?" if near else "; graphmod groups lists them"
            raise RefusedError(f"no group of channels is named '{unknown}'{hint}")
    elif ranking == "global":
        n_left = whole.n_units * (1 - ratio) ** part
        selection.by_rank(selection.found.n_units - round(n_left), at_most)
        return
    shares = ratio if isinstance(ratio, Mapping) else {group.name: ratio for group in whole}
    for group in selection.found:
        share = 1 - (1 - shares.get(group.name, 0.0)) ** part
        selection.take(group, whole[group.name].n_units, share)


def _meet_budget(
    selection: Selection,
    whole: Groups,
    budgets: Mapping[str, float | None],
    part: float,
    ranking: Ranking,
    at_most: float,
    progress: bool,
) -> None:
    """Take units out until a budget is met, or that part of the way to it which a step goes."""
    name, budget = next((name, value) for name, value in budgets.items() if value is not None)
    cost, before = _cost(name, selection, progress), _cost(name, Selection.of_all(whole), progress)
    first = before(np.ones(whole.n_units, bool))
    share = budget if budget <= 1 else min(1.0, budget / first)
    limit = first * share**part
    met = (
        selection.by_budget(cost, limit, at_most)
        if ranking == "global"
        else selection.by_common_share(cost, limit, at_most)
    )
    if not met:
        least = cost(selection.alive)
        raise RefusedError(
            f"{name}={budget:g} cannot be met: with {at_most:.0%} of every group gone, {least:,.0f} of {first:,.0f} "
            f"({least / first:.1%}) are left; what stays: {_reasons(whole)}"
        )


def _cost(name: str, selection: Selection, progress: bool) -> Cost:
    """Return what a budget counts."""
    if name == "latency":
        return Timing(selection.found, selection.widths, LatencyTable(), progress)
    polynomial = selection.widths.weights if name == "weights" else selection.widths.macs
    return lambda alive: polynomial(selection.widths(alive))
