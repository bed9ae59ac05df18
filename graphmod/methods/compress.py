"""The main job: a smaller and faster model that is as good as before.

Modules are found by representation similarity. Every run of boundaries within a module may be replaced by a layer that
is fitted in closed form; runs are taken greedily by latency saved per accuracy lost, each fitted on the prefix as it
then is and towards the original's activations. As many of them are kept as retraining of what was touched can bring
back within ``max_drop`` on calibration data.
"""

from __future__ import annotations

import warnings
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from graphmod.data import Data, Splits, as_splits, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import Block, cost
from graphmod.methods.result import Change, CompressionReport, Measured, Result
from graphmod.methods.trunk import Run, Trunk
from graphmod.model import Model
from graphmod.modules import ModuleMap, modularize
from graphmod.probe import Moments, block_latency, latency, moments, predict, share_correct, similarity
from graphmod.rewrite import Proposal, Region, proposals
from graphmod.train import Metric, retrain, trained_weights

SHORTLIST = 12
"""Proposals a round whose damage is measured; the rest is ranked by error and saving alone."""

RECOVERABLE = 0.08
"""Metric that may be lost before retraining (or twice ``max_drop``, if that is more); beyond it nothing is tried."""

ROUNDS = 150
"""Rounds of the timing before and after."""

MIN_SAVING = 0.01
"""Share of the latency that a proposal must save."""


def compress(
    model: Model,
    data: object,
    max_drop: float = 0.005,
    target: float | None = None,
    *,
    threshold: float = 0.8,
    module_map: ModuleMap | None = None,
    batch_sizes: Sequence[int] = (1, 64),
    metric: Metric | None = None,
    loss: Any = None,
    epochs: int = 30,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Make a model smaller and faster, at no more than a given loss of accuracy.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_splits` takes
        Layers are fitted and trained on its training part, choices made on its calibration part, and its test part
        serves for the report alone.
    max_drop : float
        What the metric may lose on calibration data (0.005 is half a point of accuracy).
    target : float, optional
        Stop as soon as blocks that took this share of the latency are left (0.5 is twice as fast); as far as
        ``max_drop`` allows if None.
    threshold : float
        Similarity that every pair of boundaries within a module must have.
    module_map : ModuleMap, optional
        Modules that were found before; ``threshold`` is not used then.
    batch_sizes : sequence of int
        What latency is measured at; all count the same. A model that takes a fixed number is measured at that.
    metric : callable, optional
        ``metric(outputs, targets) -> float``, larger is better; accuracy if None.
    loss : callable, optional
        ``loss(outputs, targets) -> scalar tensor`` for retraining, with a ``metric``; cross-entropy if None.
    epochs : int
        Of retraining, at most.
    seed : int
        Same seed, same result (but for what was measured in time).
    progress : bool
        Show progress.

    Returns
    -------
    Result
        ``.model`` and ``.report``.

    Raises
    ------
    InvalidDataError
        The data does not fit, or a label is out of range.
    RefusedError
        The module map is of another model, or an argument is out of range.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> result = gm.compress(m, gm.demo.splits(), target=0.9, epochs=1)
    >>> result.report.after.weights < result.report.before.weights
    True
    """
    if not 0 <= max_drop < 1:
        raise RefusedError(f"max_drop={max_drop} is out of range; it is a share of the metric between 0 and 1")
    if target is not None and not 0 < target < 1:
        raise RefusedError(f"target={target} is out of range; it is a share of the latency between 0 and 1")
    if loss is not None and metric is None:
        raise RefusedError("a loss of your own needs a metric of your own: pass metric= too")
    fixed = fixed_batch(model)
    batch_sizes = (fixed,) if fixed else tuple(batch_sizes)
    if not batch_sizes or min(batch_sizes) < 1:
        raise RefusedError(f"batch_sizes={list(batch_sizes)} must be positive numbers of samples, at least one")
    trunk = Trunk.of(model)
    if module_map is not None:
        module_map.check(model)
        _check_on_trunk(module_map, trunk)
    splits = as_splits(model, data, seed, labels=metric is None)
    _warn_of_little_data(splits, max_drop)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, disable=not progress, transient=True) as bar:
        task = bar.add_task("similarity of boundaries", total=None)

        def tell(text: str) -> None:
            bar.update(task, description=text)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "activations never change, or")
            found = similarity(model, splits.train)
        modules = module_map or modularize(found, threshold=threshold)
        tell("latency of blocks")
        judge = metric or share_correct
        search = _Search(trunk, modules, splits, batch_sizes, judge, max(RECOVERABLE, 2 * max_drop))
        if metric is None:
            _warn_of_chance(search.score, model)
        path = list(search.greedy(target, tell))
        after, final, taken = search.recover(path, max_drop, loss, metric, epochs, seed, tell)
        tell("figures")
        timing = _latencies({"before": model, "after": after}, splits.test, batch_sizes)
        report = CompressionReport(
            _measured(model, splits, judge, timing["before"]),
            _measured(after, splits, judge, timing["after"]),
            tuple(taken),
            search.n_trained(after, final),
            max_drop,
            {name: len(getattr(splits, name)) for name in ("train", "calibration", "test")},
            {
                "target": target,
                "threshold": threshold if module_map is None else None,
                "modules": len(modules),
                "batch_sizes": list(batch_sizes),
                "epochs": epochs,
                "seed": seed,
            },
        )
    return Result(after, report, model, found, modules)


@dataclass(frozen=True, eq=False)
class _Step:
    """The trunk after one more change."""

    trunk: Trunk
    change: Change


@dataclass(eq=False)
class _Search:
    """The search over runs of boundaries within modules."""

    start: Trunk
    modules: ModuleMap
    splits: Splits
    batch_sizes: tuple[int, ...]
    metric: Metric
    recoverable: float
    _built: dict[tuple[Run, ...], Model] = field(default_factory=dict)
    _seen: dict[tuple[object, ...], Moments | None] = field(default_factory=dict)
    """Statistics of candidates: they depend on the runs before them alone."""
    _replacement_costs: dict[tuple[object, ...], float] = field(default_factory=dict)

    def greedy(self, target: float | None, tell: Callable[[str], None]) -> Iterator[_Step]:
        """Yield ever smaller trunks, each with the best change to the one before."""
        trunk = self.start
        saved = 0.0
        while target is None or 1 - saved > target:
            best = self._best_change(trunk)
            if best is None:
                return
            trunk, saved = best.trunk, self._saved(best.trunk)
            tell(f"{len(trunk.runs)} runs replaced, about {saved:.0%} of the latency saved")
            yield best

    def recover(
        self,
        path: Sequence[_Step],
        max_drop: float,
        loss: Any,
        metric: Metric | None,
        epochs: int,
        seed: int,
        tell: Callable[[str], None],
    ) -> tuple[Model, Trunk, list[Change]]:
        """Return the last model on the path that retraining brings within ``max_drop``, the original if none."""
        for n in range(len(path), 0, -1):
            tell(f"retraining after {n} of {len(path)} changes")
            trunk = path[n - 1].trunk
            model = trunk.build(self._built)
            places = trunk.touched(self._weighty)
            if places:
                model = retrain(
                    model,
                    self.splits,
                    places,
                    teacher=self.start.original,
                    loss=loss,
                    metric=metric,
                    epochs=epochs,
                    seed=seed,
                )
            score = self.metric(predict(model, self.splits.calibration), self._targets)
            if score >= self.score - max_drop - 1e-9:
                return model, trunk, [step.change for step in path[:n]]
        return self.start.original, self.start, []

    def n_trained(self, model: Model, trunk: Trunk) -> int:
        """Return how many scalars were trained."""
        regions = [Region(*place) for place in trunk.touched(self._weighty)]
        names = trained_weights(model, regions) if regions else frozenset()
        return sum(model.tensors[name].size for name in names if name in model.constants)

    # -- what a change saves

    @cached_property
    def _timed(self) -> NDArray[np.float64]:
        """Latency between each boundary and the one before it, a row a batch size."""
        tensors, model = self.start.tensors, self.start.original
        parts = [Block(str(i), a, b, ()) for i, (a, b) in enumerate(pairwise(tensors), 1)]
        times = np.zeros((len(self.batch_sizes), len(tensors)))
        for row, size in zip(times, self.batch_sizes, strict=True):
            timed = block_latency(model, parts, self.splits.train, batch_size=size)
            row[1:] = [timed[part.path] for part in parts]
        return times

    @cached_property
    def _steps(self) -> NDArray[np.float64]:
        """Share of the latency between each boundary and the one before it, averaged over batch sizes."""
        share: NDArray[np.float64] = (self._timed / self._timed.sum(axis=1, keepdims=True)).mean(axis=0)
        return share

    def _cost_of(self, trunk: Trunk, run: Run) -> float:
        """Return the share of the original's latency that a replacement takes, timed as a model of its own."""
        if run.proposal.fit.is_identity:
            return 0.0
        region = Region(trunk.tensors[run.start], trunk.tensors[run.stop])
        tensors = self.start.original.tensors
        key = (run.proposal.kind, tensors[region.entry], tensors[region.exit])
        known = self._replacement_costs
        if key not in known:
            model = self.start.with_run(run).build()
            part = Block("x", region.entry, region.exit, ())
            times = [block_latency(model, [part], self.splits.train, batch_size=size)["x"] for size in self.batch_sizes]
            known[key] = float((np.array(times) / self._timed.sum(axis=1)).mean())
        return known[key]

    def _saved(self, trunk: Trunk) -> float:
        return sum(
            float(self._steps[run.start + 1 : run.stop + 1].sum()) - self._cost_of(trunk, run) for run in trunk.runs
        )

    @cached_property
    def _weighty(self) -> tuple[int, ...]:
        tensors, model = self.start.tensors, self.start.original
        pairs = enumerate(pairwise(tensors), 1)
        return tuple(i for i, (a, b) in pairs if trained_weights(model, [Region(a, b)]))

    # -- what a change loses

    @cached_property
    def _targets(self) -> NDArray[Any]:
        return np.asarray(self.splits.calibration.targets)

    @cached_property
    def _logits(self) -> NDArray[np.float64]:
        return predict(self.start.original, self.splits.calibration).astype(np.float64)

    @cached_property
    def score(self) -> float:
        return self.metric(self._logits, self._targets)

    def _damage(self, model: Model) -> tuple[float, float]:
        """Return the metric lost, and that plus the squared error of the outputs.

        The squared error, over the outputs' mean square, tells changes apart that lose nothing.
        """
        logits = predict(model, self.splits.calibration).astype(np.float64)
        drop = self.score - self.metric(logits, self._targets)
        return drop, max(0.0, drop) + float(((logits - self._logits) ** 2).mean() / (self._logits**2).mean())

    # -- the next change

    def _candidates(self, trunk: Trunk) -> list[tuple[int, int]]:
        """Return the runs within modules that would save enough, and that cut no replaced run in two."""
        position = {tensor: i for i, tensor in enumerate(trunk.tensors)}
        steps = self._steps
        found = []
        for module in self.modules:
            places = [position[tensor] for tensor in module.boundaries]
            for i, start in enumerate(places[:-1]):
                if steps[start + 1] < MIN_SAVING / 2:  # begin behind cheap steps: an activation costs nothing to keep
                    continue
                for stop in places[i + 1 :]:
                    inside = [run for run in trunk.runs if run.overlaps(start, stop)]
                    whole = all(start <= run.start and run.stop <= stop for run in inside)
                    same = any((run.start, run.stop) == (start, stop) for run in inside)
                    if whole and not same and steps[start + 1 : stop + 1].sum() >= MIN_SAVING:
                        found.append((start, stop))
        return found

    def _best_change(self, trunk: Trunk) -> _Step | None:
        now = self._saved(trunk)
        ranked: list[tuple[float, float, Trunk, Run]] = []
        for start, stop, proposal in self._proposals(trunk):
            run = Run(start, stop, proposal)
            changed = trunk.with_run(run)
            gain = self._saved(changed) - now
            if gain >= MIN_SAVING:
                ranked.append((gain / max(proposal.error**2, 1e-6), gain, changed, run))
        ranked.sort(key=lambda item: -item[0])
        best: tuple[float, _Step] | None = None
        for _, gain, changed, run in ranked[:SHORTLIST]:
            drop, damage = self._damage(changed.build(ChainMap({}, self._built)))
            if drop > self.recoverable:
                continue
            rate = gain / max(damage, 1e-6)
            if best is None or rate > best[0]:
                paths = (trunk.paths[run.start + 1], trunk.paths[run.stop])
                tensors = (trunk.tensors[run.start], trunk.tensors[run.stop])
                change = Change(paths, *tensors, run.proposal.kind, gain, run.proposal.error, drop)
                best = (rate, _Step(changed, change))
        return None if best is None else best[1]

    def _proposals(self, trunk: Trunk) -> Iterator[tuple[int, int, Proposal]]:
        """Fit every kind for every candidate on the model as it is, towards the original's activations."""
        current = trunk.build(self._built)
        pairs: dict[tuple[int, int], tuple[str, str]] = {}
        keys: dict[tuple[int, int], tuple[object, ...]] = {}
        for start, stop in self._candidates(trunk):
            pairs[start, stop] = (trunk.entry(start), trunk.tensors[stop])
            keys[start, stop] = (start, stop, *(run for run in trunk.runs if run.stop <= start))
        unseen = [pair for place, pair in pairs.items() if keys[place] not in self._seen]
        found = moments(current, self.splits.train, unseen, reference=self.start.original) if unseen else {}
        for (start, stop), pair in pairs.items():
            seen = self._seen.setdefault(keys[start, stop], found.get(pair))
            for proposal in proposals(Region(*pair), seen) if seen is not None else ():
                yield start, stop, proposal


def _warn_of_little_data(splits: Splits, max_drop: float) -> None:
    n = len(splits.calibration)
    if n * max_drop < 1:
        warnings.warn(
            f"{n} calibration samples cannot show a drop of {max_drop:.2%}: one sample is {1 / n:.2%}", stacklevel=3
        )


def _warn_of_chance(score: float, model: Model) -> None:
    classes = model.n_classes
    if classes is not None and score < 1.5 / classes:
        warnings.warn(
            f"the model is right on {score:.1%} of the calibration data, about as often as chance among {classes} "
            "classes; check the labels' order and how the inputs are scaled",
            stacklevel=3,
        )


def _check_on_trunk(module_map: ModuleMap, trunk: Trunk) -> None:
    for module in module_map:
        for tensor in module.boundaries:
            if tensor not in trunk.tensors:
                raise RefusedError(
                    f"'{tensor}' of the module map is no boundary of the trunk; make the map of boundaries"
                )


def _latencies(models: dict[str, Model], data: Data, batch_sizes: Sequence[int]) -> dict[str, dict[int, float]]:
    timed: dict[str, dict[int, float]] = {name: {} for name in models}
    for size in batch_sizes:
        feeds = data[np.arange(size) % len(data)].inputs
        for name, value in latency(models, feeds, rounds=ROUNDS).items():
            timed[name][size] = value.median
    return timed


def _measured(model: Model, splits: Splits, metric: Metric, timing: dict[int, float]) -> Measured:
    whole = cost(model)
    scores = [metric(predict(model, part), np.asarray(part.targets)) for part in (splits.calibration, splits.test)]
    return Measured(model.n_weights, model.n_bytes, whole.macs, timing, *scores)
