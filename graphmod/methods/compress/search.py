"""The search for runs to replace: edges of the trunk, their latency and damage, and the shortest paths among them.

Statistics bound what an edge can do before anything runs: its error at the exit, times the least damage that an error
there was ever seen to do. Only edges that lie on a best path under these bounds are measured, and paths are sought anew
with what was found, until all of a front's edges are measured (LazySP; Dellin & Srinivasa 2016).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from graphmod.graph import blocks, channel_axis, cost
from graphmod.methods.compress.activations import Activations
from graphmod.methods.compress.clock import Clock
from graphmod.methods.compress.damage import Damage
from graphmod.methods.compress.kinds import CLOSED_FORM, SEARCHED, Kind, kinds
from graphmod.methods.compress.line import Line
from graphmod.methods.compress.part import Part
from graphmod.methods.compress.shortest import pareto_paths
from graphmod.methods.compress.site import ROWS, Array, Float, Site, moments_of, rows, strides_of

MIN_SAVING = 0.004
"""Share of the latency that a part must save."""

TICKS = 4000
"""Ticks that the network's latency is counted in: finer than timing can tell."""

BOUND_ROWS = 1 << 13
"""Rows that bounds are fitted on."""

BOUND_VALUES = 1 << 21
"""Values in them, of a tensor: tensors of many channels get fewer rows."""

MEASURED = 300
"""Edges whose damage is measured, at most."""

WORK = 1e13
"""Multiply-accumulates that measuring them may take: large networks get fewer measurements."""

FITS = 1e12
"""Multiply-accumulates that solving for bounds may take, by the cube of the channels a run: of wide networks with many
positions only the shorter runs are tried, of which longer ones can be put together."""

FEWEST_RUNS = 200
"""Runs that are tried however wide the network is."""

OPTIMISM = 0.5
"""What bounds are multiplied by: an edge may do less damage than errors at its exit were seen to do."""

SPREAD = 20
"""Paths of a front whose edges are measured, spread evenly over the ratios of their latencies."""

BLOCKS, RUNS = 10, 6
"""Blocks that fast routes keep and runs that they replace for which searched kinds make parts."""

SLOW = 1.05
"""Latency, of the original's, beyond which no path is wanted."""


@dataclass(frozen=True, eq=False)
class Edge:
    """A run of the trunk as it is, or with a part in its place.

    Parameters
    ----------
    start, stop : int
        Positions.
    latency : float
        Share of the original's.
    error : float
        Damage measured at the output, or a bound of it.
    kind : Kind, optional
        What made the part; None where the run stays.
    part : Part, optional
    is_measured : bool
    """

    start: int
    stop: int
    latency: float
    error: float
    kind: Kind | None = None
    part: Part | None = None
    is_measured: bool = True


Route = tuple[Edge, ...]
"""Edges from the first position to the last."""


@dataclass(eq=False)
class Search:
    """Edges and what is known of them.

    Parameters
    ----------
    line : Line
    clock : Clock
    fitted_on : Activations
        Of training data.
    damage : Damage
        On calibration data.
    runs : sequence of (int, int)
        Positions between which parts may stand.
    tell : callable
        Takes a line of text about what goes on.
    """

    line: Line
    clock: Clock
    fitted_on: Activations
    damage: Damage
    runs: Sequence[tuple[int, int]]
    tell: Callable[[str], None]
    _edges: list[Edge] = field(default_factory=list)
    _ratios: dict[int, float] = field(default_factory=dict)
    """By exit, the least damage over squared error that was measured there."""
    _taken: dict[tuple[int, tuple[int, ...]], Float] = field(default_factory=dict)

    def fronts(self) -> list[Route]:
        """Return the best routes, the fastest first; the damage of all their edges was measured."""
        self.tell("bounds of what can be replaced")
        self._edges = [*self._kept(), *self._bounded()]
        self.tell("damage of replacements")
        self._measure(self._first_to_measure())
        self._settle()
        self._edges += [edge for edge in self._searched() if np.isfinite(edge.error)]
        self._settle()
        return self._front([edge for edge in self._edges if edge.is_measured])

    def site(self, start: int, stop: int, rows: int, x: Array | None = None) -> Site:
        """Return the site of a run, its entry as in the original, or as it is given."""
        tensors = self.line.tensors[start : stop + 1]
        held = self.fitted_on
        return Site(
            self.line.original, tensors, held.of[tensors[0]] if x is None else x, held.of[tensors[-1]],
            held.data.inputs, rows,
        )  # fmt: skip

    # -- edges

    def _kept(self) -> Iterator[Edge]:
        for i, share in enumerate(self.clock.steps):
            yield Edge(i, i + 1, float(share), 0.0)

    def _bounded(self) -> Iterator[Edge]:
        """Yield every part in closed form that no other of its run is both faster and nearer than."""
        reach = np.concatenate([[0.0], np.cumsum(self.clock.steps)])
        for start, stop in self._tried:
            share = float(reach[stop] - reach[start])
            if share < MIN_SAVING or self.clock.steps[start] < MIN_SAVING / 2:
                continue  # begin behind cheap steps: an activation costs nothing to keep
            site = self._bounded_site(start, stop)
            found = [
                Edge(start, stop, self._latency(part), part.error, kind, part, False)
                for kind in kinds(CLOSED_FORM)
                for part in kind.make(site)
                if np.isfinite(part.error)
            ]
            found.sort(key=lambda edge: (edge.latency, edge.error))
            least = np.inf
            for edge in found:
                if edge.error < least and share - edge.latency >= MIN_SAVING:
                    least = edge.error
                    yield edge

    @property
    def _tried(self) -> list[tuple[int, int]]:
        """The runs that are tried, in order."""
        most = max(FEWEST_RUNS, int(FITS / self._widest**3))
        shortest = sorted(self.runs, key=lambda run: (run[1] - run[0], run))
        return sorted(shortest[:most])

    def _bounded_site(self, start: int, stop: int) -> Site:
        """Return a site whose statistics are of few rows, each tensor's taken once."""
        site = self.site(start, stop, self._bound_rows)
        strides = None if site.axis is None else strides_of(site.x, site.y, site.axis)
        if strides is None or site.axis is None:
            return site
        left, right = self._rows(start, site.axis, strides), self._rows(stop, site.axis, ())
        return replace(site, known=moments_of(left, right, strides, site.x.shape == site.y.shape))

    def _rows(self, position: int, axis: int, strides: tuple[int, ...]) -> Float:
        key = (position, strides if any(step > 1 for step in strides) else ())
        if key not in self._taken:
            value = self.fitted_on.of[self.line.tensors[position]]
            self._taken[key] = rows(value, axis, key[1], self._bound_rows)
        return self._taken[key]

    @cached_property
    def _bound_rows(self) -> int:
        return int(max(1 << 8, min(BOUND_ROWS, BOUND_VALUES // self._widest)))

    @cached_property
    def _widest(self) -> int:
        """The most channels that a position has."""
        held = self.fitted_on.of
        wide = [value.shape[channel_axis(self.line.original, name)] for name, value in held.items() if value.ndim > 1]
        return max(wide, default=1)

    def _latency(self, part: Part) -> float:
        held = self.fitted_on
        return self.clock.part(part, {**held.data.inputs, part.entry: held.of[part.entry]})

    def _searched(self) -> Iterator[Edge]:
        """Yield measured edges of the kinds that are searched, for sites that the front so far points to."""
        steps, runs = self._promising()
        for number, (start, stop) in enumerate((*steps, *runs), 1):
            self.tell(f"parts to search for, {number} of {len(steps) + len(runs)}")
            site = self.site(start, stop, ROWS)
            share = float(self.clock.steps[start:stop].sum())
            for kind in kinds(SEARCHED):
                for part in kind.make(site):
                    latency = self._latency(part)
                    if share - latency >= MIN_SAVING:
                        yield Edge(start, stop, latency, self.damage.of_part(part), kind, part)

    def _promising(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return blocks that fast routes keep, and runs of blocks that they replace, those with most latency first."""
        routes = spread(self._front(self._edges), SPREAD)
        kept = Counter(edge.start for route in routes for edge in route if edge.part is None)
        weight = {start: n * float(self.clock.steps[start]) for start, n in kept.items()}
        place = {tensor: i for i, tensor in enumerate(self.line.tensors)}
        allowed = set(self.runs) | {(i, i + 1) for i in range(len(self.line) - 1)}
        parts = [block for block in blocks(self.line.original).walk() if len(block.operators) > 1]
        ends = {(place[b.entry], place[b.exit]) for b in parts if b.entry in place and b.exit in place}
        steps = {(start, stop): sum(weight.get(i, 0.0) for i in range(start, stop)) for start, stop in ends & allowed}
        short = {pair: value for pair, value in steps.items() if pair[1] - pair[0] <= 2 and value >= MIN_SAVING}
        replaced = Counter((e.start, e.stop) for route in routes for e in route if e.part and e.stop - e.start > 1)
        saving = {run: n * float(self.clock.steps[run[0] : run[1]].sum()) for run, n in replaced.items()}
        return _largest(short, BLOCKS), _largest(saving, RUNS)

    # -- measuring

    @cached_property
    def _budget(self) -> int:
        whole = max(1, cost(self.line.original).macs)
        return int(min(MEASURED, max(2 * len(self.line), WORK / (0.5 * whole * len(self.damage.samples)))))

    @property
    def _n_measured(self) -> int:
        return sum(edge.is_measured and edge.part is not None for edge in self._edges)

    def _first_to_measure(self) -> list[int]:
        """Return, for every exit, the edge with the least error and the one that saves most."""
        behind: dict[int, list[int]] = {}
        for number, edge in enumerate(self._edges):
            if edge.part is not None:
                behind.setdefault(edge.stop, []).append(number)
        first = [min(found, key=lambda i: self._edges[i].error) for found in behind.values()]
        most = [min(found, key=lambda i: (self._edges[i].start, self._edges[i].error)) for found in behind.values()]
        return list(dict.fromkeys([*first, *most]))[: self._budget]

    def _measure(self, numbers: Iterable[int]) -> None:
        """Measure edges, those with the same exit after each other, so that what lies behind it is opened once."""
        for number in sorted(numbers, key=lambda i: self._edges[i].stop):
            edge = self._edges[number]
            assert edge.part is not None, "what stays does no damage"
            damage = self.damage.of_part(edge.part)
            self._edges[number] = replace(edge, error=damage, is_measured=True)
            ratio = damage / max(edge.part.error, 1e-3) ** 2
            self._ratios[edge.stop] = min(ratio, self._ratios.get(edge.stop, np.inf))

    def remade(self, edge: Edge, site: Site) -> Part:
        """Return an edge's part, made anew for a site if that is done in closed form."""
        assert edge.part is not None, "the run stays as it is"
        if edge.kind is None or edge.kind.cost == SEARCHED:
            return edge.part
        return next((part for part in edge.kind.make(site) if part.kind == edge.part.kind), edge.part)

    def _settle(self) -> None:
        """Measure edges on the best routes under bounds, until there are none that are not measured."""
        while (left := self._budget - self._n_measured) > 0:
            routes = spread(self._front(self._with_bounds()), SPREAD)
            wanted = Counter(edge for route in routes for edge in route if not edge.is_measured)
            if not wanted:
                return
            place = {(e.start, e.stop, e.part.kind): i for i, e in enumerate(self._edges) if e.part is not None}
            chosen = [edge for edge, _ in wanted.most_common(left)]
            self._measure(place[e.start, e.stop, e.part.kind] for e in chosen if e.part is not None)

    def _with_bounds(self) -> list[Edge]:
        """Return all edges, with bounds of the damage of those that were not measured."""
        exits = np.array(sorted(self._ratios))
        ratios = np.array([self._ratios[stop] for stop in exits.tolist()])
        bounded = []
        for edge in self._edges:
            nearest = 0 if edge.is_measured else int(np.abs(exits - edge.stop).argmin())
            bound = edge.error if edge.is_measured else OPTIMISM * float(ratios[nearest]) * edge.error**2
            bounded.append(replace(edge, error=bound))
        return bounded

    def _front(self, edges: Sequence[Edge]) -> list[Route]:
        found = pareto_paths(
            [edge.start for edge in edges],
            [edge.stop for edge in edges],
            [round(edge.latency * TICKS) for edge in edges],
            [edge.error for edge in edges],
            most=round(SLOW * TICKS),
        )
        return [tuple(edges[i] for i in path.edges) for path in found]


def route_latency(route: Route) -> float:
    """Return what a route takes, as the sum of its edges: a share of the original's latency."""
    return sum(edge.latency for edge in route)


def spread(routes: Sequence[Route], n: int) -> list[Route]:
    """Return at most ``n`` routes whose latencies lie at even ratios, the fastest and the slowest among them."""
    if len(routes) <= n:
        return list(routes)
    logs = np.log([max(route_latency(route), 1e-6) for route in routes])
    wanted = np.linspace(logs[0], logs[-1], n)
    return [routes[i] for i in dict.fromkeys(int(np.abs(logs - value).argmin()) for value in wanted)]


def _largest(values: dict[tuple[int, int], float], n: int) -> list[tuple[int, int]]:
    return sorted(values, key=lambda key: (-values[key], key))[:n]
