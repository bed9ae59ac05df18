"""``reengineer``: keep only what a task needs of a trained network, physically.

SeaM (Qi et al., ICSE 2023) looks for the weights that are relevant for a target problem and leaves zeros for the
others. Zeros cost as much as numbers do; here channels, heads, neurons and whole blocks are looked for and removed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from math import ceil
from time import process_time
from typing import Any, Literal

import numpy as np

from graphmod.arguments import check_rates, check_whole, is_real
from graphmod.data import Splits, as_splits, fixed_batch
from graphmod.errors import BudgetError, RefusedError
from graphmod.graph import cost
from graphmod.methods.chance import warn_of_little_data
from graphmod.methods.deeparc.sparsity import n_parameters
from graphmod.methods.digests import digest
from graphmod.methods.measuring import latencies, measured
from graphmod.methods.one_output import check_one_output
from graphmod.methods.reuse.hardening import attacked_too, hardened
from graphmod.methods.reuse.price import BUDGETS
from graphmod.methods.reuse.report import Reengineered, ReuseReport, Rung
from graphmod.methods.reuse.search import Plan, Stage, searched
from graphmod.methods.reuse.start import Start, among_classes, of_features
from graphmod.methods.reuse.task import Classes, Task
from graphmod.methods.reuse.weightwise import zeroed
from graphmod.methods.target_labels import n_labels
from graphmod.model import Model, check_model, edits_of, record
from graphmod.probe import accuracy, least_latency, share_correct
from graphmod.rewrite import rebatch
from graphmod.rewrite.fuse import fuse
from graphmod.train import retrain

MANIFEST = "graphmod.reuse"
"""The metadata entry that tells from what, for which classes, by which data and seed a model was made."""

VERSIONS = ("graphmod", "onnxruntime", "torch")
"""The packages whose versions the manifest has."""

LADDER = (0.6, 0.4, 0.27, 0.18, 0.12, 0.08, 0.05, 0.03)
"""Shares of the cost that are tried where none is asked for, until accuracy is lost twice."""

MISSES = 2
"""Rungs in a row that may miss the accuracy before the search ends."""

LEAST_EPOCHS = 5
"""Of training after the search, where nothing is said."""

MULTIPLE = 8
"""Of channels that are left under a budget of time: what ONNX Runtime's convolutions are laid out in."""


def reengineer(
    model: Model,
    data: object,
    classes: Classes | None,
    *,
    latency: float | None = None,
    weights: float | None = None,
    macs: float | None = None,
    granularity: Literal["unit", "weight"] = "unit",
    harden: float | None = None,
    max_drop: float = 0.003,
    steps: int = 700,
    shrink_every: int = 100,
    epochs: int | None = None,
    learning_rate: float = 2e-3,
    batch_size: int = 64,
    batch_sizes: Sequence[int] = (1, 16),
    seed: int = 0,
    progress: bool = False,
) -> Reengineered:
    """Keep only what a target problem needs of a classifier, and remove the rest.

    The problem is about some of the original's classes, or a new one: then a new last layer is put on the features,
    and the original with that, all of it fine-tuned, is the teacher and the baseline.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_splits` takes
        Samples with the original's labels, of which only those of the target problem are used; or with labels of a new
        problem, 0 to n - 1.
    classes : sequence of int, or of sequences of int, or None
        The target problem: classes by their numbers, each a label of the result in this order; lists of classes that
        are to be one label; a single class (or list), which stands as label 1 against all others; or None, if the
        labels of the data are those of a new problem.
    latency : float, optional
        Share of the original's time in ONNX Runtime, of one sample on one thread, that may be left, above 0 and below
        1. Without any budget the smallest network is found that keeps the accuracy.
    weights, macs : float, optional
        The same of scalars, or of multiply-accumulates. Of several budgets all are met.
    granularity : {"unit", "weight"}
        Whether channels, heads and blocks are removed, or single weights become zero: those make no network faster, but
        :func:`graphmod.pack` writes a smaller file of them, and fewer are needed.
    harden : float, optional
        Learn, besides, training samples of which each value may have changed by this, in the data's units, to lead the
        original's features astray (:func:`graphmod.methods.defects.feature_attack`): what is made on the original
        alone turns fewer samples then. Twice as many samples are trained on, and a teacher that knows them.
    max_drop : float
        What accuracy on calibration data may lose without a budget, beside the baseline: the original among the target
        classes, or fine-tuned for a new problem.
    steps : int
        Of training while gates close, for a budget; about as many go into fine-tuning for a new problem.
    shrink_every : int
        Steps after which what is closed is removed.
    epochs : int, optional
        Of training afterwards; as many as make about ``steps`` steps, and no less than 5, if None.
    learning_rate : float
        While gates close; half of it afterwards.
    batch_size : int
    batch_sizes : sequence of int
        For which latency is reported.
    seed : int
        Same seed, same result, but for what is chosen by measured time.
    progress : bool
        Show progress bars.

    Returns
    -------
    Reengineered
        ``.model`` and ``.report``.

    Raises
    ------
    RefusedError
        The model is no classifier or has several outputs, a class does not exist, an argument is out of range, nothing
        can be removed, or the budget cannot be met.
    InvalidModelError
        What is given is no Model.
    InvalidDataError
        The data does not fit the model, a label of the target problem has no samples, or those of a new problem are not
        0 to n - 1.

    References
    ----------
    Qi et al., Reusing deep neural network models through model re-engineering, ICSE 2023.

    Examples
    --------
    >>> import graphmod as gm
    >>> m, data = gm.load(gm.demo.model_path()), gm.demo.splits()
    >>> small = gm.reengineer(m, data, [3, 5], weights=0.2, steps=80, shrink_every=20, epochs=1)
    >>> small.model.outputs["logits"].shape[1], small.report.weights_left < 0.2
    (2, True)
    """
    check_model(model, "reengineer")
    check_one_output(model)
    budgets = _budgets(latency, weights, macs, granularity)
    if harden is not None and not (is_real(harden) and 0 < harden < np.inf):
        raise RefusedError(f"harden={harden!r} is out of range; it is what a value may change by, above 0")
    _check(max_drop, steps, shrink_every, 0 if epochs is None else epochs, learning_rate, batch_size, batch_sizes, seed)
    start = process_time()
    task = None if classes is None else Task.of(model, classes)
    whole = as_splits(model, data, seed, labels=task is not None)
    parts = whole if task is None else task.data(whole)
    n = n_labels(parts)
    size = fixed_batch(model)
    free = model if size is None else rebatch(model)
    shown = parts if harden is None else attacked_too(free, parts, harden, seed)
    if epochs is None:
        epochs = max(LEAST_EPOCHS, ceil(steps * batch_size / len(shown.train)))
    targets = {budget: LADDER[0] if target is None else target for budget, target in budgets.items()}
    multiple_of = MULTIPLE if "latency" in budgets else 1
    plan = Plan(targets, steps, shrink_every, multiple_of, learning_rate, batch_size, seed, progress)
    begun = of_features(free, n, parts, plan) if task is None else among_classes(free, task, parts, plan, epochs)
    if harden is not None:
        begun = hardened(begun, shown, plan)
    job = _Job(free, begun, parts, shown, plan, epochs, granularity)
    found = job.to_budgets() if None not in budgets.values() else job.down_the_ladder(max_drop)
    seconds = process_time() - start
    settings = {
        "max_drop": max_drop, "steps": steps, "shrink_every": shrink_every, "epochs": epochs, "batch_size": batch_size,
        "learning_rate": learning_rate, "granularity": granularity, "harden": harden, "seed": seed, **budgets,
    }  # fmt: skip
    manifest = {
        "original": model.digest, "classes": task and task.members, "data": digest(parts), "seed": seed,
        "settings": settings, "versions": {name: version(name) for name in VERSIONS},
    }  # fmt: skip
    result = _marked(found if size is None else rebatch(found, size), edits_of(model), manifest)
    timing = latencies({"before": free, "after": found}, parts.test, batch_sizes)
    report = ReuseReport(
        members=() if task is None else task.members,
        before=replace(
            measured(begun.baseline, parts, share_correct, timing["before"]),
            weights=model.n_weights,
            bytes=model.n_bytes,
            macs=cost(free).macs,
        ),
        among_all={
            name: task.accuracy_among_all(free, getattr(parts, name)) for name in ("calibration", "test") if task
        },
        after=replace(measured(found, parts, share_correct, timing["after"]), weights=job.n_left(found)),
        budgets=tuple(budgets),
        rungs=tuple(job.rungs),
        stages=tuple(job.stages),
        samples={name: len(getattr(parts, name)) for name in ("train", "calibration", "test")},
        seconds=seconds,
        settings=settings,
        manifest=manifest,
    )
    return Reengineered(result, report, model)


def _budgets(
    latency: float | None, weights: float | None, macs: float | None, granularity: str
) -> dict[str, float | None]:
    """Return what is cut down, and to what share, None for as far as the accuracy bears."""
    if granularity not in ("unit", "weight"):
        raise RefusedError(f"granularity={granularity!r} is neither unit nor weight")
    if granularity == "weight" and (latency is not None or macs is not None):
        raise RefusedError("single weights that are zero save neither time nor operations; give weights=, or units")
    given = {name: one for name, one in zip(BUDGETS, (latency, weights, macs), strict=True) if one is not None}
    for name, share in given.items():
        if not (is_real(share) and 0 < share < 1):
            raise RefusedError(f"{name}={share!r} is out of range; it is a share of the original's, between 0 and 1")
    return {**given} or {BUDGETS[0] if granularity == "unit" else "weights": None}


def _check(
    max_drop: float,
    steps: int,
    shrink_every: int,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    batch_sizes: Sequence[int],
    seed: int,
) -> None:
    if not (is_real(max_drop) and 0 <= max_drop < 1):
        raise RefusedError(f"max_drop={max_drop!r} is out of range; it is a share of the accuracy between 0 and 1")
    check_whole(1, steps=steps, shrink_every=shrink_every)
    check_whole(0, epochs=epochs, seed=seed)
    check_whole(2, batch_size=batch_size)
    check_rates(learning_rate=learning_rate)
    if not isinstance(batch_sizes, Sequence) or not batch_sizes:
        raise RefusedError(f"batch_sizes={batch_sizes!r} is no list of numbers of samples")
    for size in batch_sizes:
        check_whole(1, batch_sizes=size)


class _Job:
    """One re-engineering: what stays the same in all of it, and what was seen on the way.

    ``parts`` are the samples of the target problem, ``shown`` those that training learns and is chosen by.
    """

    def __init__(
        self, free: Model, begun: Start, parts: Splits, shown: Splits, plan: Plan, epochs: int, granularity: str
    ) -> None:
        self.free, self.begun, self.parts, self.shown = free, begun, parts, shown
        self.plan, self.epochs, self.by_weight = plan, epochs, granularity == "weight"
        self.rungs: list[Rung] = []
        self.stages: list[Stage] = []

    def to_budgets(self) -> Model:
        """Return the network within all budgets."""
        return self._recovered(self._searched(self.begun.student, self.plan))

    def down_the_ladder(self, max_drop: float) -> Model:
        """Return the smallest network that keeps the accuracy; if none does the baseline, or the hardened teacher."""
        floor = accuracy(self.begun.baseline, self.parts.calibration) - max_drop
        warn_of_little_data(self.parts.calibration, max_drop)
        whole = self.begun.baseline if self.shown is self.parts else self.begun.teacher
        kept, model, missed = whole, self.begun.student, 0
        shorter = replace(self.plan, steps=max(self.plan.shrink_every, self.plan.steps // 2))
        for share in LADDER:
            try:
                model = self._searched(model, replace(shorter, targets=dict.fromkeys(self.plan.targets, share)))
            except BudgetError as error:  # nothing more can go
                if kept is whole and model is self.begun.student:
                    hint = "" if "weights" in self.plan.targets else "; where time cannot fall give weights= or macs="
                    raise BudgetError(f"without a budget it begins with {share:.0%}, and {error}{hint}") from error
                break
            found = self._recovered(model)
            if self.rungs[-1].recovered >= floor - 1e-9:
                kept, missed = found, 0
            else:
                missed += 1
            if missed >= MISSES:
                break
        return kept

    def _searched(self, model: Model, plan: Plan) -> Model:
        if self.by_weight:
            return zeroed(model, self.begun.teacher, self.shown, plan, self.free, max(1, self.epochs // 4))
        found, stages = searched(
            model, self.begun.teacher, self.shown.train, plan, of=self.free, measure=self._time_left
        )
        self.stages += stages
        return found

    def _recovered(self, model: Model) -> Model:
        """Return a network trained on, as the operators that it had, and note how that went."""
        trained = retrain(
            model, self.shown, teacher=self.begun.teacher, correct_teacher=True, epochs=self.epochs,
            patience=max(1, self.epochs), learning_rate=self.plan.learning_rate / 2, batch_size=self.plan.batch_size,
            keep_zeros=self.by_weight, seed=self.plan.seed, progress=self.plan.progress,
        )  # fmt: skip
        scores = [accuracy(one, self.parts.calibration) for one in (model, trained)]
        found = fuse(trained, kinds=["unfused"])
        n_left = self.n_left(found)
        left = self.stages[-1].left if self.stages else {"weights": n_left / self.free.n_weights}
        self.rungs.append(Rung(left, n_left, *scores))
        return found

    def n_left(self, model: Model) -> int:
        """Return how many scalars a network has, without those that are zero where single ones went."""
        return n_parameters(model) if self.by_weight else model.n_weights

    def _time_left(self, model: Model) -> float:
        """Return the share of the original's time that a network takes, as a whole and in turn with it."""
        feeds = self.parts.train[:1].inputs
        times = least_latency({"before": self.free, "after": fuse(model, kinds=["unfused"])}, feeds)
        return times["after"] / times["before"]


def _marked(model: Model, edits: Sequence[Any], manifest: dict[str, Any]) -> Model:
    """Return a model with the original's record of edits and a manifest of its own.

    Its weights are trained, which no recipe repeats.
    """
    proto = model.editable()
    entry = next((one for one in proto.metadata_props if one.key == MANIFEST), None)
    entry = entry or proto.metadata_props.add(key=MANIFEST)
    entry.value = json.dumps(manifest, default=lambda one: one.item())  # numpy's numbers
    marked = model.derive(proto)
    record(marked, edits)
    return marked
