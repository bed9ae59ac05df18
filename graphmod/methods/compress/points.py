"""Points of the front: routes built from the input to the output, each part fitted behind those before it, and run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data
from graphmod.methods.compress.activations import Activations
from graphmod.methods.compress.distillation import distilled
from graphmod.methods.compress.line import Line
from graphmod.methods.compress.part import Part
from graphmod.methods.compress.running import Runner
from graphmod.methods.compress.search import Route, Search, route_latency
from graphmod.methods.compress.site import ROWS, Array
from graphmod.model import Model
from graphmod.probe import predict
from graphmod.rewrite import fuse
from graphmod.rewrite.fuse import OPSET
from graphmod.train import Metric


@dataclass(frozen=True, eq=False)
class Built:
    """A route as a model, and what it is like before anything is trained.

    Parameters
    ----------
    route : Route
    parts : tuple of Part
        As they were fitted on what lies before them.
    model : Model
    latency : float
        Measured, over the original's, linear layers in a row being one.
    error : float
        Damage at the output.
    score : float
        The metric on calibration data.
    """

    route: Route = field(repr=False)
    parts: tuple[Part, ...] = field(repr=False)
    model: Model = field(repr=False)
    latency: float
    error: float
    score: float

    @property
    def estimate(self) -> tuple[float, float]:
        """Latency and damage as the sums over edges that the route was chosen by."""
        return route_latency(self.route), sum(edge.error for edge in self.route)


def build(search: Search, route: Route, epochs: int = 0, seed: int = 0) -> tuple[tuple[Part, ...], Model]:
    """Return a route's parts and the network with them: each is fitted to the original's activations at its exit.

    Its inputs are activations as the parts before it make them. Parts that were searched for stay as they were found,
    or are trained for so many epochs.
    """
    line, held = search.line, search.fitted_on
    parts: list[Part] = []
    x: Array | None = None
    at = 0
    for edge in (edge for edge in route if edge.part is not None):
        x, at = _carried(line, held, x, at, edge.start), edge.stop
        site = search.site(edge.start, edge.stop, ROWS, x)
        part = search.remade(edge, site)
        if epochs:
            part = distilled(part, site, search.site(edge.start, edge.stop, ROWS), epochs, seed)
        parts.append(part)
        x = _through(part, held.data, x)
    return tuple(parts), line.build(parts)


def _carried(line: Line, held: Activations, x: Array | None, at: int, to: int) -> Array:
    """Return activations at a later position, nothing being replaced in between."""
    if x is None:
        return held.of[line.tensors[to]]
    if at == to:
        return x
    entry, exit_ = line.tensors[at], line.tensors[to]
    return Runner.between(line.original, entry, exit_)({**held.data.inputs, entry: x})


def _through(part: Part, data: Data, x: Array) -> Array:
    return x if part.model is None else Runner(part.model, part.exit)({**data.inputs, part.entry: x})


def verified(search: Search, routes: Sequence[Route], calibration: Data, metric: Metric) -> list[Built]:
    """Build routes and run them, end to end; the fastest first."""
    made = [build(search, route) for route in routes]
    ratios = search.clock.ratios([fused(model, "chain") for _, model in made]) if made else []
    found = []
    for route, (parts, model), latency in zip(routes, made, ratios, strict=True):
        damage = search.damage
        error = damage.between(predict(model, damage.samples.data, output=damage.output))
        score = metric(predict(model, calibration), np.asarray(calibration.targets))
        found.append(Built(route, parts, model, latency, error, score))
    return sorted(found, key=lambda point: point.latency)


def fused(model: Model, kind: str) -> Model:
    """Return a model after :func:`graphmod.fuse` of one kind, as it is in operator sets too old for that.

    A linear part and the linear layer beside it are a ``chain``: one layer, which ONNX Runtime does not make of them.
    """
    return fuse(model, kinds=[kind]) if model.opset >= OPSET else model


def drops(search: Search, parts: Sequence[Part], metric: Metric, targets: NDArray[np.generic]) -> list[float]:
    """Return the metric after each part, with those before it in place and what lies behind it as in the original."""
    line, held = search.line, search.damage.samples
    place = {tensor: i for i, tensor in enumerate(line.tensors)}
    x: Array | None = None
    at, found = 0, []
    for part in parts:
        x, at = _through(part, held.data, _carried(line, held, x, at, place[part.entry])), place[part.exit]
        output = line.original.main_output
        value = Runner.between(line.original, part.exit, output)({**held.data.inputs, part.exit: x})
        found.append(metric(value, targets[: len(value)]))
    return found
