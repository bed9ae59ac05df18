r"""Shortest paths by two criteria: all best trade-offs of latency and error from the first position to the last.

Positions are numbered along the trunk, an edge leads forward and has a latency and an error, both at least 0, and a
path's are the sums. A path is worth knowing if no other is as fast with less error (Hansen 1980, "Bicriterion path
problems"). As edges lead forward, positions are settled in their order: the labels of a position are what its incoming
edges make of the labels of the positions before. Latencies are whole numbers of ticks, so that a position has at most
one label a tick, an array, and an edge extends all labels at once: the search is exact for these latencies and takes
time in proportion to edges times ticks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Path:
    """One best trade-off.

    Parameters
    ----------
    latency : int
        Ticks.
    error : float
    edges : tuple of int
        The places of its edges among all, in order.
    """

    latency: int
    error: float
    edges: tuple[int, ...]


def pareto_paths(
    starts: Sequence[int],
    stops: Sequence[int],
    latencies: Sequence[int],
    errors: Sequence[float],
    most: int | None = None,
) -> list[Path]:
    """Return all best trade-offs, the fastest first: each slower one has less error.

    Of paths that are alike in both, one is returned.

    Parameters
    ----------
    starts, stops : sequence of int
        Positions that edges join, ``0 <= start < stop``; paths lead from 0 to the largest.
    latencies : sequence of int
        Ticks, at least 0.
    errors : sequence of float
        At least 0; infinite ones are on no path.
    most : int, optional
        Ticks beyond which no path is wanted.

    Examples
    --------
    >>> pareto_paths([0, 1, 0, 0], [1, 2, 2, 2], [2, 3, 1, 9], [0.0, 0.0, 0.5, 0.0])
    [Path(latency=1, error=0.5, edges=(2,)), Path(latency=5, error=0.0, edges=(0, 1))]
    """
    last = max(stops, default=0)
    into: list[list[int]] = [[] for _ in range(last + 1)]
    for edge, stop in enumerate(stops):
        if np.isfinite(errors[edge]):
            into[stop].append(edge)
    slowest = sum(max((latencies[edge] for edge in edges), default=0) for edges in into)
    width = 1 + (slowest if most is None else min(most, slowest))
    best = np.full((last + 1, width), np.inf)
    best[0, 0] = 0.0
    came = np.full((last + 1, width), -1, np.int64)
    for stop, edges in enumerate(into):
        for edge in edges:
            ticks = latencies[edge]
            if ticks >= width:
                continue
            reached = best[starts[edge], : width - ticks] + errors[edge]
            better = reached < best[stop, ticks:]
            best[stop, ticks:][better] = reached[better]
            came[stop, ticks:][better] = edge
    found: list[Path] = []
    for tick in np.flatnonzero(np.isfinite(best[last])).tolist():
        error = float(best[last, tick])
        if not found or error < found[-1].error:
            found.append(Path(tick, error, _edges(came, starts, latencies, last, tick)))
    return found


def _edges(came: np.ndarray, starts: Sequence[int], latencies: Sequence[int], stop: int, tick: int) -> tuple[int, ...]:
    """Return the edges of the path that a label stands for."""
    edges: list[int] = []
    while stop:
        edge = int(came[stop, tick])
        edges.append(edge)
        stop, tick = starts[edge], tick - latencies[edge]
    return tuple(reversed(edges))
