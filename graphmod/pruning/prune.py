"""``prune``: channel groups become smaller, physically, by importance, under a budget, with recovery between steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphmod.arguments import check_rates, check_whole
from graphmod.data import Data
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import find
from graphmod.model import Model
from graphmod.pruning.compensation import compensate
from graphmod.pruning.goal import Goal, Ranking, goal_of, reasons
from graphmod.pruning.groups import Groups, groups
from graphmod.pruning.importance import Evidence
from graphmod.pruning.importance.scores import normalised, scores
from graphmod.pruning.latency_budget import LatencyBudget
from graphmod.pruning.recovery import recovered, trainable
from graphmod.pruning.removal import cut
from graphmod.pruning.selection import Selection
from graphmod.pruning.widths import Widths
from graphmod.rewrite.fuse import fuse
from graphmod.rewrite.verb import Samples, verb


@verb(exact=False, example="graphmod prune in.onnx --ratio 0.5 --out out.onnx")
def prune(
    model: Model,
    ratio: float | Mapping[str, float] | None = None,
    *,
    weights: float | None = None,
    macs: float | None = None,
    latency: float | None = None,
    importance: Any = "l2",
    ranking: Ranking = "local",
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
        Share of the units to remove from every group, above 0 and below 1; or shares by the names of groups, as
        ``{conv1: 0.5}``: other groups stay.
    weights : float
        Instead of a ratio, a budget: at most so many of the weights are left, as a share up to 1, or as a number.
    macs : float
        The same for multiply-accumulates.
    latency : float
        The same for the time in ONNX Runtime on this machine, one sample and thread, as a share or in microseconds. A
        recipe that is replayed measures anew, so on another machine or day other units may go.
    importance : str, mapping of str to array, or callable
        How units are ranked: without data l2, l1, l2_making, l2_all, bn_scale or random; with data taylor, fisher,
        activation_norm, activation_variance or similarity; or one's own: a registered name, scores by group, or
        ``importance(group, evidence) -> scores``.
    ranking : {"local", "global"}
        Whether every group loses the same share, or the least important of all groups go. Under a budget, global takes
        step by step what loses least importance for what it saves.
    where : str
        A selector, such as ``Conv[scope=layer3]`` or ``[name=conv1]``: only groups that these operators make.
    at_most : float
        Largest share that a group loses under a budget or a global ranking.
    multiple_of : int
        Round the number of units that are left up to a multiple of it, in groups that have at least twice as many and
        whose units are single channels (heads are not rounded); if not given, 8 under a budget of latency (what ONNX
        Runtime's convolutions are laid out in), else 1.
    data : anything that :func:`graphmod.data.as_data` takes
        Calibration samples, for importances that need them and for recovery.
    steps : int
        In how many steps to prune, each with importances of its own.
    epochs : int
        Epochs of recovery after every step: the whole network is trained on the labelled data, with the original as its
        teacher and, where an exporter has fused it, with batch normalization that is fused again at the end.
    learning_rate : float
        Of the recovery; if not given, 0.003 for networks with batch normalization, 0.001 for others.
    leftovers : bool
        Whether what read removed channels makes up for them: where there is data, its weights and biases take in what
        the other channels tell of them, or, before recovery, biases their means; without data, biases take in the
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
    goal = goal_of(ratio, {"weights": weights, "macs": macs, "latency": latency}, ranking, at_most)
    check_whole(1, multiple_of=1 if multiple_of is None else multiple_of, steps=steps)
    check_whole(0, epochs=epochs, seed=seed)
    check_rates(learning_rate=1.0 if learning_rate is None else learning_rate)
    if learning_rate is not None and not epochs:
        raise RefusedError(f"learning_rate={learning_rate} is of the recovery; give epochs, too")
    if epochs and data is None:
        raise InvalidDataError("recovery trains the network: pass data=, or epochs=0")
    if steps > 1 and not isinstance(importance, str) and not callable(importance):
        raise InvalidDataError("scores that are given are those of the first step; with steps, name an importance")
    multiple_of = multiple_of or (1 if latency is None else 8)
    unnamed = {
        name: operator.name
        for name, operator in zip(model.operator_names, model.operators, strict=True)
        if name != operator.name  # they are called by their places, which edits change
    }
    named = _renamed(model, {name: name for name in unnamed})
    pruned = trainable(named, data) if epochs else named
    all_groups = groups(pruned, _shapes(data))
    whole = _chosen(all_groups, model, where, ratio if isinstance(ratio, Mapping) else None)
    if isinstance(importance, Mapping):
        importance = {name: one for name, one in importance.items() if name in whole or name not in all_groups}
    for step in range(1, steps + 1):
        found = whole if step == 1 else _again(groups(pruned, _shapes(data)), whole)
        values = normalised(found, scores(found, importance, Evidence(found, data, seed, progress)))
        selection = Selection(found, Widths(found), values, multiple_of, whole)
        removed = _selected(goal, selection, whole, step / steps, model, data, progress)
        left = partial(_without, pruned, found, removed, data, leftovers, progress)
        pruned = left(by_weights=not epochs)
        if epochs:
            fitted = partial(left, by_weights=True)
            pruned = recovered(pruned, fitted, model, data, epochs, learning_rate, seed, progress)
    if pruned is named:
        return model
    return _renamed(fuse(pruned, kinds=["unfused"]) if epochs else pruned, unnamed)


def _renamed(model: Model, names: Mapping[str, str]) -> Model:
    """Return a model of which some operators have other names."""
    if not names:
        return model
    proto = model.editable()
    for operator, name in zip(proto.graph.node, model.operator_names, strict=True):
        operator.name = names.get(name, operator.name)
    return Model(proto, model.folder)


def _check_names(names: Iterable[str], found: Groups) -> None:
    """Raise RefusedError unless there are groups of all these names."""
    unknown = next((name for name in names if name not in found), None)
    if unknown is not None:
        own = [group.name for group in found if unknown in group.operators]
        near = get_close_matches(unknown, [group.name for group in found], 1)
        if own:
            hint = f"that operator makes group '{own[0]}'"
        else:
            hint = f"did you mean '{near[0]}'?" if near else "graphmod groups lists them"
        raise RefusedError(f"no group of channels is named '{unknown}'; {hint}")


def _shapes(data: Data | None) -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of two samples, which fit the network where its dynamic dimensions cannot have any size."""
    return None if data is None else {name: (2, *array.shape[1:]) for name, array in data.inputs.items()}


def _chosen(found: Groups, model: Model, where: str | None, shares: Mapping[str, float] | None) -> Groups:
    """Return the groups that operators make that a selector picks, or that have shares.

    Raises
    ------
    RefusedError
        There are none, or not all that have shares.
    """
    if not len(found):
        raise RefusedError(f"no group of channels can be pruned: {reasons(found)}")
    chosen = found
    if where is not None:
        picked = {name for match in find(model, where) for name in match.operators}
        chosen = found.only([group.name for group in found if not picked.isdisjoint(group.operators)])
        if not len(chosen):
            raise RefusedError(f"no operator that '{where}' selects makes a group of channels that can be pruned")
    if shares is not None:
        _check_names(shares, found)
        beside = next((name for name in shares if name not in chosen), None)
        if beside is not None:
            raise RefusedError(f"ratio names group '{beside}', which '{where}' does not select; leave out one of them")
        chosen = chosen.only(shares)
    return chosen


def _again(found: Groups, whole: Groups) -> Groups:
    """Return the groups of a smaller network that operators make which made groups before."""
    made = {operator for group in whole for operator in group.operators}
    return found.only([group.name for group in found if made.issuperset(group.operators)])


def _selected(
    goal: Goal,
    selection: Selection,
    whole: Groups,
    part: float,
    original: Model,
    data: Data | None,
    progress: bool,
) -> NDArray[np.bool_]:
    """Return which units go."""
    if goal.name == "latency":
        return LatencyBudget(goal, selection, whole, part, original, data, progress).chosen()
    goal.take(selection, whole, part)
    return ~selection.alive


def _without(
    model: Model,
    found: Groups,
    removed: NDArray[np.bool_],
    data: Data | None,
    leftovers: bool,
    progress: bool,
    by_weights: bool,
) -> Model:
    """Return a network without some units; itself, with what it shares, if none go."""
    if not removed.any():
        return model
    if leftovers and data is not None:
        return compensate(found, removed, data, by_weights=by_weights, progress=progress)
    return cut(found, removed, leftovers)
