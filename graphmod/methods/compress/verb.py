"""``compress``: the main job, a smaller and faster model that is as good as before.

Every run of boundaries within a module may be replaced by a part. What a part costs in time and does to the output is
measured, shortest paths by both give the best models for every latency, and of these the fastest is kept that training
what was touched brings back within ``max_drop`` on calibration data.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from graphmod.data import Splits, as_splits, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import logits
from graphmod.methods.chance import warn_of_chance, warn_of_little_data
from graphmod.methods.compress.activations import Activations
from graphmod.methods.compress.clock import Clock
from graphmod.methods.compress.damage import Damage
from graphmod.methods.compress.line import Line
from graphmod.methods.compress.points import Built, drops, verified
from graphmod.methods.compress.recovery import Recovered, Recovery
from graphmod.methods.compress.search import Route, Search, route_latency, spread
from graphmod.methods.measuring import latencies, measured
from graphmod.methods.result import Change, CompressionReport, Point, Result
from graphmod.model import Model
from graphmod.modules import ModuleMap, modularize
from graphmod.probe import predict, share_correct, similarity
from graphmod.rewrite import Region
from graphmod.train import Metric, trained_weights

FITTED_ON = 2048
"""Training samples that parts are fitted on, at most."""

MEASURED_ON = 256
"""Calibration samples that damage is measured on, at most."""

POINTS = 12
"""Points of the front that are built and run before any is trained."""

CLOSE = 1.08
"""Points whose latencies differ by less than this factor are not told apart when the fastest is sought."""

NEAR = 0.8
"""Of a target: routes are built whose estimates are from there on, as the sum of steps is not quite what all take."""

PROBED = 5
"""Samples that tell which boundaries have samples along axis 0."""


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
        Parts are fitted and trained on its training part, choices made on its calibration part, and its test part
        serves for the report alone.
    max_drop : float
        What the metric may lose on calibration data (0.005 is half a point of accuracy).
    target : float, optional
        The share of the latency that is enough (0.5 is twice as fast): the model that loses least in that is taken; as
        fast as ``max_drop`` allows if None.
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
        Of each training, at most.
    seed : int
        Same seed, same result (but for what was measured in time).
    progress : bool
        Show progress.

    Returns
    -------
    Result
        ``.model``, ``.report`` and ``.front``.

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
    >>> result = gm.compress(m, gm.demo.splits(), target=0.9, threshold=0.95, batch_sizes=[1], epochs=1)
    >>> result.report.after.weights < result.report.before.weights
    True
    """
    _check(max_drop, target, metric, loss)
    fixed = fixed_batch(model)
    batch_sizes = (fixed,) if fixed else tuple(batch_sizes)
    if not batch_sizes or min(batch_sizes) < 1:
        raise RefusedError(f"batch_sizes={list(batch_sizes)} must be positive numbers of samples, at least one")
    if module_map is not None:
        module_map.check(model)
        Line.of(model).runs(module_map)
    splits = as_splits(model, data, seed, labels=metric is None)
    warn_of_little_data(splits.calibration, max_drop)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, disable=not progress, transient=True) as bar, tempfile.TemporaryDirectory(
        prefix="graphmod-"
    ) as folder:  # fmt: skip
        task = bar.add_task("similarity of boundaries", total=None)

        def tell(text: str) -> None:
            bar.update(task, description=text)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "activations never change, or")
            found = similarity(model, splits.train)
        modules = module_map or modularize(found, threshold=threshold)
        job = _Job(model, splits, modules, batch_sizes, metric, loss, epochs, seed, Path(folder), tell)
        if metric is None:
            warn_of_chance(job.score, model)
        best = job.fastest(max_drop, target)
        tell("figures")
        after = best.recovered.model if best else model
        timing = latencies({"before": model, "after": after}, splits.test, batch_sizes)
        report = CompressionReport(
            measured(model, splits, job.judge, timing["before"]),
            measured(after, splits, job.judge, timing["after"]),
            job.changes(best.built) if best else (),
            job.n_trained(best.recovered) if best else 0,
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
            job.front(best),
        )
    return Result(after, report, model, found, modules)


@dataclass(frozen=True, eq=False)
class _Tried:
    """A point after training."""

    built: Built
    recovered: Recovered


@dataclass(eq=False)
class _Job:
    """One compression."""

    model: Model
    splits: Splits
    modules: ModuleMap
    batch_sizes: tuple[int, ...]
    metric: Metric | None
    loss: Any
    epochs: int
    seed: int
    folder: Path
    tell: Callable[[str], None]
    _points: list[Built] = field(default_factory=list)
    _tried: dict[int, _Tried] = field(default_factory=dict)

    @property
    def judge(self) -> Metric:
        """The metric."""
        return self.metric or share_correct

    @cached_property
    def score(self) -> float:
        """What the original scores on calibration data."""
        calibration = self.splits.calibration
        return self.judge(predict(self.model, calibration), np.asarray(calibration.targets))

    @cached_property
    def _output(self) -> str:
        return logits(self.model) if self.metric is None else self.model.main_output

    @cached_property
    def _line(self) -> Line:
        """The positions at which activations can be kept: boundaries with samples along axis 0."""
        line = Line.of(self.model)
        folder = self.folder / "probe"
        folder.mkdir()
        probed = Activations.stream(self.model, self.splits.train, line.tensors, folder, PROBED)
        return line.at(set(probed.of))

    @cached_property
    def search(self) -> Search:
        """The search, with activations of training and of calibration data."""
        line, parts = self._line, {"train": FITTED_ON, "calibration": MEASURED_ON}
        held = {}
        for name, n in parts.items():
            self.tell(f"activations of {name} data")
            folder = self.folder / name
            folder.mkdir()
            held[name] = Activations.stream(self.model, getattr(self.splits, name), line.tensors, folder, n)
        damage = Damage(self.model, self._output, self.metric is None, held["calibration"])
        clock = Clock(line, self.splits.train, self.batch_sizes)
        return Search(line, clock, held["train"], damage, line.runs(self.modules), self.tell)

    @cached_property
    def _recovery(self) -> Recovery:
        return Recovery(self._line, self.splits, self.metric, self.loss, self.epochs, self.seed)

    @cached_property
    def _weighty(self) -> tuple[int, ...]:
        steps = enumerate(pairwise(self._line.tensors))
        return tuple(i for i, (a, b) in steps if trained_weights(self.model, [Region(a, b)]))

    # -- the fastest point

    def fastest(self, max_drop: float, target: float | None) -> _Tried | None:
        """Return the fastest point that training brings within the allowed drop, trained to the end; None if none."""
        goal = self.score - max_drop - 1e-9
        routes = [route for route in self.search.fronts() if any(edge.part for edge in route)]
        routes = _reaching(routes, target)
        self._points = self._verified(spread(routes, POINTS))
        if target is not None:
            self._points = _enough(self._points, target)
        best = self._bisected(routes, goal, target)
        if best is None:
            return None
        self.tell("training to the end")
        return self._finished(best, goal)

    def _verified(self, routes: Sequence[Route]) -> list[Built]:
        self.tell(f"building and running {len(routes)} points of the front")
        return verified(self.search, routes, self.splits.calibration, self.judge)

    def _bisected(self, routes: Sequence[Route], goal: float, target: float | None) -> _Tried | None:
        """Try points in the middle of those that failed and those that did not, then routes in between."""
        candidates = _not_beaten(self._points)
        low, high = -1, len(candidates)  # what is faster than candidates[high] and not tried yet lies between
        while high - low > 1:
            is_first = (low, high) == (-1, len(candidates))
            middle = 0 if is_first and target is not None else (low + high) // 2  # with a target the first mostly does
            if self._try(candidates[middle], goal).recovered.score >= goal:
                high = middle
            else:
                low = middle
        best = self._tried[id(candidates[high])] if high < len(candidates) else None
        failed = candidates[low].latency if low >= 0 else None
        built = [point.route for point in self._points]
        while best is not None and failed is not None and best.built.latency > CLOSE * failed:
            between = _between([route for route in routes if route not in built], best.built, failed)
            if between is None:
                break
            built.append(between)
            (point,) = self._verified([between])
            self._points = sorted([*self._points, point], key=lambda one: one.latency)
            if point.latency >= best.built.latency or point.latency <= failed:
                break
            tried = self._try(point, goal)
            if tried.recovered.score >= goal:
                best = tried
            else:
                failed = point.latency
        return best

    def _try(self, point: Built, goal: float) -> _Tried:
        self.tell(f"training the point at {point.latency:.0%} of the latency")
        found = self._recovery.of(self.search, point, self._weighty, goal)
        self._tried[id(point)] = _Tried(point, found)
        return self._tried[id(point)]

    def _finished(self, tried: _Tried, goal: float) -> _Tried:
        """Return a point trained on, beyond the goal, up to what the original scores if that can be."""
        found = self._recovery.finished(tried.recovered, tried.built.parts, self._weighty, self.score)
        ways = (self._recovery.final(found), found, tried.recovered)
        found = next(one for one in ways if one.score >= goal)  # what rounds weights may cost a sample
        self._tried[id(tried.built)] = _Tried(tried.built, found)
        return self._tried[id(tried.built)]

    # -- what is told of it

    def n_trained(self, recovered: Recovered) -> int:
        """Return how many scalars were trained."""
        model = recovered.model
        return sum(model.tensors[name].size for name in recovered.trained if name in model.constants)

    def changes(self, built: Built) -> tuple[Change, ...]:
        """Return what was replaced, from the input to the output."""
        line, search = self._line, self.search
        place = {tensor: i for i, tensor in enumerate(line.tensors)}
        held = search.damage.samples
        targets = np.asarray(held.data.targets)
        before = self.judge(predict(self.model, held.data), targets)
        scores = drops(search, built.parts, self.judge, targets)
        edges = [edge for edge in built.route if edge.part is not None]
        found = []
        for edge, part, score in zip(edges, built.parts, scores, strict=True):
            start, stop = place[part.entry], place[part.exit]
            saving = float(search.clock.steps[start:stop].sum()) - edge.latency
            paths = (line.paths[start + 1], line.paths[stop])
            found.append(
                Change(paths, part.entry, part.exit, part.kind, saving, part.error, before - score, edge.error)
            )
        return tuple(found)

    def front(self, best: _Tried | None) -> tuple[Point, ...]:
        """Return every point that was built and run."""
        found = []
        for built in self._points:
            tried = self._tried.get(id(built))
            estimated, bound = built.estimate
            trained = None if tried is None else tried.recovered
            found.append(
                Point(
                    built.latency,
                    built.error,
                    estimated,
                    bound,
                    (built.model if trained is None else trained.model).n_weights,
                    built.score,
                    None if trained is None else trained.score,
                    None if trained is None else self.n_trained(trained),
                    best is not None and built is best.built,
                )
            )
        return tuple(found)


def _reaching(routes: Sequence[Route], target: float | None) -> list[Route]:
    """Return the routes that may be slow enough to lose least in a target, by their estimates."""
    if target is None:
        return list(routes)
    first = max((i for i, route in enumerate(routes) if route_latency(route) <= NEAR * target), default=0)
    return list(routes[first:])


def _enough(points: Sequence[Built], target: float) -> list[Built]:
    """Return the slowest point that is fast enough, and those that are slower, as it may not do."""
    first = max((i for i, point in enumerate(points) if point.latency <= target), default=0)
    return list(points[first:])


def _not_beaten(points: Sequence[Built]) -> list[Built]:
    """Return the points faster than the original that no other betters in both, the fastest first."""
    kept: list[Built] = []
    for point in sorted(points, key=lambda one: (one.latency, one.error)):
        if point.latency < 1 and (not kept or point.error < kept[-1].error):
            kept.append(point)
    return kept


def _between(routes: Sequence[Route], best: Built, failed: float) -> Route | None:
    """Return the route whose latency lies in the middle between a point that did and one that failed."""
    estimate = route_latency(best.route)
    wanted = estimate * (failed / best.latency) ** 0.5
    lowest = estimate * failed / best.latency
    inside = [route for route in routes if lowest < route_latency(route) < estimate]
    return min(inside, key=lambda route: abs(route_latency(route) - wanted), default=None)


def _check(max_drop: float, target: float | None, metric: Metric | None, loss: Any) -> None:
    if not 0 <= max_drop < 1:
        raise RefusedError(f"max_drop={max_drop} is out of range; it is a share of the metric between 0 and 1")
    if target is not None and not 0 < target < 1:
        raise RefusedError(f"target={target} is out of range; it is a share of the latency between 0 and 1")
    if loss is not None and metric is None:
        raise RefusedError("a loss of your own needs a metric of your own: pass metric= too")
