"""Repair: find where a fault is, and make that part work again, at the price of that part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from time import process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, Splits, as_splits, fixed_batch
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import boundaries, logits
from graphmod.methods.chance import warn_of_chance
from graphmod.methods.drawing import fewest
from graphmod.methods.repair.emptying import emptied
from graphmod.methods.repair.finite import finite
from graphmod.methods.repair.mending import mend, mend_in_turn
from graphmod.methods.repair.patching import FAR, faults, first, gap, sound_values, values
from graphmod.methods.repair.suspicion import loss_of, suspects
from graphmod.methods.repair.units import Unit, units
from graphmod.methods.tuning import Candidate, Tuned, TuningReport
from graphmod.model import Model, check_model
from graphmod.probe import predict, share_correct
from graphmod.rewrite import rebatch
from graphmod.rewrite.draft import Draft
from graphmod.train import Imitation, Metric, retrained
from graphmod.train.loop import Settings
from graphmod.train.losses import cross_entropy
from graphmod.train.retrain import Loss, Retrained

Score = Callable[[Model, str], float]
"""From a model and the name of a part of the data, the metric."""

_PATCHED, _SUSPECTED = 32, 128
"""Samples that the analysis looks at, with a healthy model and without."""

_FIRST, _WIDER = (320, 10), (1024, 40)
"""Samples, and steps, of the trainings that are to tell whether units will do: the likeliest one, then more."""

_BY_LABELS = 0.2
"""Share of the weights that may change where labels alone tell what is at fault."""

_FEW = 3
"""Units that are trained at the full learning rate."""

_LEAD = 0.75
"""Share of the first one's score up to which a second suspect leaves no doubt."""

_CAREFUL = 1 / 3
"""Of the learning rate, for more units than these."""

_EVERY = 5
"""Steps between two looks at calibration data."""


def repair(
    model: Model,
    data: object,
    *,
    healthy: Model | None = None,
    share: float | None = None,
    target: float | None = None,
    samples: int | None = None,
    loss: Loss | None = None,
    metric: Metric | None = None,
    epochs: int = 30,
    patience: int = 8,
    learning_rate: float = 3e-3,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Tuned:
    """Find the part of a network that is at fault, and make it work again.

    With a healthy model at hand, its activations are put into the broken one: a unit of the trunk that makes something
    else of them is at fault. Its layers are fitted in closed form to what the healthy model makes; where that does not
    do, the unit is trained to imitate it. No labels are needed. Of the healthy model only activations are used, so that
    its weights may be of another type, fused or quantized.

    Without one, units are ranked by how steep the loss is in their weights, relative to these, and by what skipping
    them saves. The first one is trained with the rest frozen; a second and a third one join it where it does not do.
    What does best on calibration data is kept, the model as it was if nothing is better.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_splits` takes
        Fitted and trained is on its training part, chosen on its calibration part; figures are of its test part.
    healthy : Model, optional
        One that works, with the same inputs and boundaries of the same names.
    share : float, optional
        The largest share of the weights that may change, above 0 and at most 1. If None a fifth by labels alone; all
        with a healthy model, which tells what is at fault.
    target : float, optional
        What the metric is to be on calibration data: enough is done once it is reached. With a healthy model its own if
        None, else whatever can be had.
    samples : int, optional
        Samples that the analysis looks at; 32 with a healthy model and 128 without if None.
    loss : callable, optional
        ``loss(outputs, targets) -> scalar tensor``; cross-entropy with integer labels if None.
    metric : callable, optional
        ``metric(outputs, targets) -> float``, larger is better; accuracy if None. Without labels it is how often the
        model and the healthy one agree.
    epochs, patience : int
        Of the training at the end, at most: where short ones have not reached the target.
    learning_rate : float
    batch_size : int
    seed : int
        Same seed, same result.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Tuned
        The model, and the report: what was at fault, best first, and what was changed. Where nothing was found or
        nothing helped, the model is the one that was given, and the report names no blocks.

    Raises
    ------
    RefusedError
        The healthy model is one of another graph or broken too, an argument is out of range, the share leaves no unit,
        or by labels alone there is no weight that a gradient reaches.
    InvalidDataError
        The data does not fit, or has no labels and there is no healthy model.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods.deeparc.weaken import weaken
    >>> m, data = gm.load(gm.demo.model_path()), gm.demo.splits()
    >>> weak = weaken(m, data, 50, ["layer2.3"])
    >>> done = repair(weak, data, healthy=m)
    >>> done.report.blocks, gm.accuracy(done.model, data.test) > 0.98
    (('layer2.3',), True)
    """
    if share is None:
        share = _BY_LABELS if healthy is None else 1.0
    if not 0 < share <= 1:
        raise RefusedError(f"share={share} is out of range; it is a share of the weights above 0 and at most 1")
    if target is not None and metric is None and loss is None and not 0 < target <= 1:
        raise RefusedError(f"target={target} is out of range; it is an accuracy above 0 and at most 1")
    if min(batch_size, 1 if samples is None else samples) < 1:
        raise RefusedError("samples and batch_size must be at least 1")
    # refuses what is out of range before any work
    Settings(epochs, patience, target, None, learning_rate, batch_size, "adam", False, seed, progress)
    start = process_time()
    splits = as_splits(model, data, seed, targets=False)
    has_labels = all(part.targets is not None for part in _parts(splits).values())
    if healthy is None and not has_labels:
        raise InvalidDataError("the data has no labels, and there is no healthy model to go by; give one of them")
    if has_labels:
        splits = as_splits(model, splits, seed, labels=loss is None)
    if healthy is not None:
        check_model(healthy, "repair(healthy=)")
        _check_inputs(model, healthy)
    score = _score(splits, healthy, loss, metric, has_labels)
    task = _Task(model, splits, share, target, samples, score, progress)
    training = _Training(loss, metric, epochs, patience, learning_rate, batch_size, seed)
    found = _by_labels(task, training) if healthy is None else _by_activations(task, healthy, training)
    if found.model is model or _is_worse(task, found):
        found = replace(found, model=model, chosen=(), touched=0)
    seconds = dict(found.seconds)
    seconds["analysis"] += process_time() - start - sum(seconds.values())
    settings = {
        "healthy": healthy is not None,
        "metric": "agreement" if not has_labels else "accuracy" if metric is None else "metric",
        "share": share,
        "target": target,
        "samples": samples,
        "epochs": epochs,
        "patience": patience,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "seed": seed,
    }
    report = TuningReport(
        tuple(unit.path for unit in found.chosen),
        found.chosen[0].entry if found.chosen else "",
        found.chosen[-1].exit if found.chosen else "",
        found.touched,
        found.touched / max(1, model.n_weights),
        seconds,
        {"test": score(model, "test")},
        {"test": score(found.model, "test")},
        found.ranking,
        settings,
    )
    if settings["metric"] == "accuracy":
        warn_of_chance(report.after["test"], model, "the test data")
    return Tuned(found.model, report, model)


@dataclass(frozen=True, eq=False)
class _Task:
    """What is to be repaired, and how that is measured."""

    model: Model
    splits: Splits
    share: float
    target: float | None
    samples: int | None
    score: Score
    progress: bool

    def within_share(self, ranking: Sequence[Candidate]) -> list[Candidate]:
        """Return the first candidates whose weights are together within the share."""
        left = self.share * self.model.n_weights
        chosen: list[Candidate] = []
        for one in ranking:
            if one.weights <= left:
                chosen.append(one)
                left -= one.weights
        if ranking and not chosen:
            needed = min(one.weights for one in ranking) / self.model.n_weights
            raise RefusedError(
                f"share={self.share:g} leaves nothing to repair: the smallest unit in question has {needed:.1%} of the "
                "weights"
            )
        return chosen


@dataclass(frozen=True, eq=False)
class _Training:
    """How units are trained."""

    loss: Loss | None
    metric: Metric | None
    epochs: int
    patience: int
    learning_rate: float
    batch_size: int
    seed: int

    def run(
        self,
        task: _Task,
        model: Model,
        chosen: Sequence[Unit],
        burst: tuple[int, int] | None = None,
        imitate: Imitation | None = None,
    ) -> Retrained:
        """Train units on all samples until that brings nothing more, or in a burst: some samples, some steps."""
        splits, epochs, patience = task.splits, self.epochs, self.patience
        if burst is not None:
            n, steps = burst
            splits = replace(splits, train=_some(model, splits.train, n, self.seed))
            epochs, patience = ceil(steps * self.batch_size / len(splits.train)), steps
        often = burst is not None or (task.target is not None and imitate is None)
        if often and burst is None:
            patience *= ceil(len(splits.train) / self.batch_size / _EVERY)
        rate = self.learning_rate * (1 if len(chosen) <= _FEW else _CAREFUL)
        goal: dict[str, Any] = {} if imitate is not None else {"until": task.target, "loss": self.loss}
        if imitate is None and self.metric is not None:
            goal["metric"] = self.metric
        return retrained(
            model, splits, [unit.place for unit in chosen],
            imitate=imitate, epochs=epochs, patience=patience, check_every=_EVERY if often else None,
            learning_rate=rate, batch_size=self.batch_size, seed=self.seed, progress=task.progress, **goal,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Found:
    """What became of a task.

    ``reached`` is the metric on calibration data. ``alike`` tells that patching finds no difference from the healthy
    model: then it may be as good as the broken one there, and has to be better else.
    """

    model: Model
    chosen: tuple[Unit, ...]
    touched: int
    ranking: tuple[Candidate, ...]
    reached: float = -np.inf
    alike: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("analysis", "caching", "training"), 0.0))


def _is_worse(task: _Task, found: _Found) -> bool:
    """Whether a model is no better on calibration data than the one that was given."""
    if _enough(found.reached, task.target):
        return False
    before = task.score(task.model, "calibration")
    before = -np.inf if np.isnan(before) else before
    return not (found.reached >= before if found.alike else found.reached > before)  # not a number is worse


def _enough(reached: float, target: float | None) -> bool:
    return target is not None and reached >= target


# -- with a healthy model


def _by_activations(task: _Task, healthy: Model, training: _Training) -> _Found:
    parts = units(task.model, _shared(task.model, healthy))
    some = _some(task.model, task.splits.train, task.samples or _PATCHED, training.seed)
    known = sound_values(healthy, some, parts)
    ranking = faults(task.model, some, parts, known)
    if not ranking:
        return _Found(task.model, (), 0, ranking)
    entries = {one.entry for one in task.within_share(ranking)}
    broken = tuple(unit for unit in parts if unit.entry in entries)
    start = process_time()
    output = parts[-1].exit
    start_from, replaced = finite(
        task.model, broken, lambda model: gap(values(model, some, [output])[output], known[output]) < FAR
    )
    mended = mend(start_from, healthy, task.splits.train, broken, some, known)
    touched = max(mended.touched, sum(replaced.values()))
    left = mended.left(broken)
    if left and _falls_short(task, healthy, mended.model):
        mended = mend_in_turn(mended.model, healthy, task.splits.train, left)
        touched += mended.touched
        left = mended.left(left)
    found = _Found(mended.model, broken, 0, ranking, alike=not left)
    found.seconds["training"] = process_time() - start
    for unit in left:
        if not _falls_short(task, healthy, found.model):
            break
        run = training.run(task, found.model, [unit], imitate=Imitation(unit.exit, healthy, weight=1))
        found = replace(found, model=run.model, seconds=_with(found.seconds, run))
        touched += unit.weights
    touched = min(touched, sum(unit.weights for unit in broken))
    return replace(found, touched=touched, reached=task.score(found.model, "calibration"))


def _falls_short(task: _Task, healthy: Model, model: Model) -> bool:
    """Whether a model is worse on calibration data than is asked for, or than the healthy one."""
    goal = task.score(healthy, "calibration") if task.target is None else task.target
    return not task.score(model, "calibration") >= goal  # not a number falls short


def _shared(model: Model, healthy: Model) -> list[str]:
    """Return the boundaries that both models have.

    Raises
    ------
    RefusedError
        There are too few.
    """
    trunk = boundaries(model)
    shared = [name for name in trunk if name in healthy.producer and _kind(model, name) == _kind(healthy, name)]
    if trunk[-1] not in shared or len(shared) < min(2, len(trunk)):
        odd = next(name for name in reversed(trunk) if name not in shared)
        raise RefusedError(
            f"the healthy model is one of another graph: it has no tensor '{odd}' of type {model.tensors.get(odd)}; "
            "give a model with the boundaries of this one, or none"
        )
    return shared


def _kind(model: Model, name: str) -> tuple[object, ...]:
    """Return the sizes of a tensor, without symbols."""
    kind = model.tensors.get(name)
    return () if kind is None else tuple(size if isinstance(size, int) else None for size in kind.shape or ())


def _check_inputs(model: Model, healthy: Model) -> None:
    for name, kind in model.inputs.items():
        if name not in healthy.inputs or _kind(model, name)[1:] != _kind(healthy, name)[1:]:
            told = ", ".join(f"'{other}': {one}" for other, one in healthy.inputs.items())
            raise RefusedError(
                f"the healthy model is one of another graph: '{name}' is {kind} here and there is {told}"
            )


# -- without one


def _by_labels(task: _Task, training: _Training) -> _Found:
    model = task.model
    if task.target is not None and _enough(task.score(model, "calibration"), task.target):
        return _Found(model, (), 0, ())
    output, loss = logits(model) if training.loss is None else model.main_output, training.loss or cross_entropy
    parts = [unit for unit in units(model) if unit.weights]
    if not parts:
        raise RefusedError("the model has no weights that its input meets, so there is nothing to repair in it")
    some = _some(model, task.splits.train, task.samples or _SUSPECTED, training.seed)
    model, replaced = finite(
        model, parts, lambda model: loss_of(values(model, some, [output])[output], some, loss) < np.inf
    )
    _check_share(task, list(replaced))
    free = model if fixed_batch(model) is None else rebatch(model)
    known = values(free, some, [*(unit.entry for unit in parts), output])
    _check_constants(model, loss_of(known[output], some, loss))
    ranking = suspects(free, some, parts, output, loss, known, replaced)
    first_ = next(unit for unit in parts if unit.entry == task.within_share(ranking)[0].entry)
    if next(one.figures["skipping"] for one in ranking if one.entry == first_.entry) > 0:
        model = emptied(model, some, first_, output, loss, known)
    found = _Found(model, (), 0, ranking)
    for chosen, burst in _widening(task, parts, ranking, len(replaced)):
        run = training.run(task, found.model, chosen, burst)
        found = replace(found, seconds=_with(found.seconds, run))
        now = _best(run)
        if now > found.reached:
            found = replace(found, model=run.model, chosen=tuple(chosen), reached=now)
        if _enough(found.reached, task.target):
            break
    else:
        if training.epochs and found.chosen:
            run = training.run(task, found.model, found.chosen)
            now = _best(run)
            found = replace(found, model=run.model, reached=now, seconds=_with(found.seconds, run))
    return replace(found, touched=sum(unit.weights for unit in found.chosen))


def _check_constants(model: Model, loss: float) -> None:
    """Raise RefusedError if no loss is finite because of constants that hold no weights of a unit, such as scalars."""
    if np.isfinite(loss):
        return
    draft = Draft(model)
    for name, kind in model.constants.items():
        value = draft.constant(name) if kind.is_float else None
        if value is not None and np.isnan(value.astype(np.float64)).any():
            raise RefusedError(
                f"constant '{name}' has values that are no numbers, and no training can start from them; set it in the "
                "graph first, or give the healthy model"
            )


def _check_share(task: _Task, certain: Sequence[Unit]) -> None:
    """Raise RefusedError if units that have to change, as no output is finite with them, have too many weights."""
    needed = sum(unit.weights for unit in certain) / max(1, task.model.n_weights)
    if needed > task.share:
        raise RefusedError(
            f"weights in {', '.join(unit.path for unit in certain)} are not finite, and share={task.share:g} is too "
            f"little to repair that: together {needed:.1%} of the weights may have to change"
        )


def _best(run: Retrained) -> float:
    """Return the best score of a training; what is no number is none."""
    return max((check.score for check in run.history if not np.isnan(check.score)), default=-np.inf)


def _widening(
    task: _Task, parts: Sequence[Unit], ranking: Sequence[Candidate], n_certain: int
) -> Iterator[tuple[list[Unit], tuple[int, int]]]:
    """Yield the units to train in a burst, a wider choice each time, with the samples and the steps of it.

    A step costs what lies behind the first unit that learns, nearly the same however many of these learn too: where
    one does not reach the target, all that lies behind the likeliest ones learns, and at once where none stands out.
    The first so many that are certain learn in any case.
    """
    within = task.within_share(ranking)
    likely = [one.entry for one in within]
    least = max(1, n_certain)
    few, stages = likely[: max(_FEW, least)], [(likely[:least], _FIRST)]
    if task.target is not None:
        first_ = min(place for place, unit in enumerate(parts) if unit.entry in few)
        behind = {unit.entry for unit in parts[first_:]}
        few = [one.entry for one in task.within_share([one for one in ranking if one.entry in behind])]
        if len(within) > least and within[least].score > _LEAD * within[least - 1].score:
            stages = []
    for entries, burst in (*stages, (few, _WIDER)):
        yield [unit for unit in parts if unit.entry in entries], burst


# -- what both need


def _some(model: Model, data: Data, n: int, seed: int) -> Data:
    """Return so many samples, drawn, as data may be sorted by label; or as many as a model takes at a time."""
    n = max(n, fewest(model, data))
    rows = np.sort(np.random.default_rng(seed).permutation(len(data))[:n]) if n < len(data) else np.arange(len(data))
    return first(model, data[rows], n)


def _parts(splits: Splits) -> dict[str, Data]:
    return {"train": splits.train, "calibration": splits.calibration, "test": splits.test}


def _score(splits: Splits, healthy: Model | None, loss: Loss | None, metric: Metric | None, has_labels: bool) -> Score:
    """Return what measures a model on a part of the data."""
    import torch

    parts = _parts(splits)
    wanted = {name: part.targets for name, part in parts.items()}
    known: dict[tuple[Model, str], float] = {}

    def score(model: Model, name: str) -> float:
        if (model, name) not in known:
            known[model, name] = measured(model, name)
        return known[model, name]

    def predicted(model: Model, name: str) -> NDArray[np.generic]:
        return predict(model, parts[name], threads=torch.get_num_threads())

    def measured(model: Model, name: str) -> float:
        outputs = predicted(model, name)
        targets = wanted[name]
        if not has_labels:
            assert healthy is not None, "one of them is there"
            if targets is None:
                targets = wanted[name] = predicted(healthy, name).reshape(len(parts[name]), -1).argmax(1)
            return share_correct(outputs, targets)
        assert targets is not None, "there are labels"
        if metric is not None:
            return metric(outputs, targets)
        if loss is not None:
            return -float(loss(torch.from_numpy(outputs), torch.from_numpy(targets)))
        return share_correct(outputs, targets)

    return score


def _with(seconds: dict[str, float], run: Retrained) -> dict[str, float]:
    """Return seconds with those of a training."""
    caching, training = run.seconds["caching"], run.seconds["import"] + run.seconds["training"]
    return {
        **seconds, "caching": seconds["caching"] + caching, "training": seconds["training"] + training
    }  # fmt: skip
