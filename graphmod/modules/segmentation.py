"""Cutting a sequence of boundaries into runs of similar ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graphmod.errors import RefusedError

Matrix = NDArray[np.float64]


def greedy(similarity: Matrix, threshold: float, cuts: Sequence[int] = ()) -> list[int]:
    """Return the starts of runs by DeepArc's rule: stay in the run while CKA[i-1, i] > threshold.

    Source: Ren et al., ICSE 2023, section 3.2. A run also starts at each of ``cuts``.

    Examples
    --------
    >>> greedy(np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]]), 0.8)
    [0, 2]
    """
    neighbours = np.diagonal(_known(similarity), offset=1)
    return sorted({0, *cuts, *(int(i) + 1 for i in np.flatnonzero(~(neighbours > threshold)))})


def optimal(similarity: Matrix, n_modules: int, *, floor: float | None = None, cuts: Sequence[int] = ()) -> list[int]:
    """Return the starts of exactly ``n_modules`` runs with the least within-module dissimilarity.

    Exact, by dynamic programming over ends of runs: O(n^2) states and transitions for each number of runs. No run has a
    pair less similar than ``floor``, and one starts at each of ``cuts``.

    Raises
    ------
    RefusedError
        There are fewer boundaries than modules, or more modules are needed.

    Examples
    --------
    >>> optimal(np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]]), 2)
    [0, 2]
    """
    n = len(similarity)
    if not 1 <= n_modules <= n:
        raise RefusedError(f"{n} boundaries cannot form {n_modules} modules; ask for 1 to {n}")
    cost = np.where(_allowed(similarity, floor, cuts), _run_costs(similarity), np.inf)
    best = np.full(n + 1, np.inf)
    best[0] = 0
    starts = []
    for _ in range(n_modules):
        through = best[:-1, None] + cost
        starts.append(through.argmin(axis=0))
        best = np.concatenate([[np.inf], through.min(axis=0)])
    if not np.isfinite(best[-1]):
        why = [] if floor is None else [f"no pair less similar than {floor:g}"]
        why += ["a module at every cut"] if cuts else []
        needed = len(fewest(similarity, -np.inf if floor is None else floor, cuts))
        raise RefusedError(
            f"{n_modules} modules are too few for {' and '.join(why)}; the fewest that will do are {needed}"
        )
    found: list[int] = []
    end = n
    for row in reversed(starts):
        end = int(row[end - 1])
        found.append(end)
    return found[::-1]


def fewest(similarity: Matrix, threshold: float, cuts: Sequence[int] = ()) -> list[int]:
    """Return the starts of as few runs as possible whose every pair is at least ``threshold`` similar.

    Of the solutions with the fewest runs it is the one with the least within-module dissimilarity. Exact, by dynamic
    programming over ends of runs: O(n^2). A run starts at each of ``cuts``.

    Examples
    --------
    >>> fewest(np.array([[1, 0.95, 0.7], [0.95, 1, 0.9], [0.7, 0.9, 1]]), 0.8)
    [0, 2]
    """
    n = len(similarity)
    allowed, cost = _allowed(similarity, threshold, cuts), _run_costs(similarity)
    runs, spent = np.zeros(n + 1, dtype=int), np.zeros(n + 1)  # of the first so many boundaries
    start_of = []
    for end in range(n):
        starts = np.flatnonzero(allowed[: end + 1, end])
        starts = starts[runs[starts] == runs[starts].min()]
        totals = spent[starts] + cost[starts, end]
        start = int(starts[totals.argmin()])
        start_of.append(start)
        runs[end + 1], spent[end + 1] = runs[start] + 1, totals.min()
    found: list[int] = []
    end = n
    while end:
        end = start_of[end - 1]
        found.append(end)
    return found[::-1]


def dissimilarity(similarity: Matrix, starts: Sequence[int]) -> float:
    """Return the within-module dissimilarity: the sum of 1 - CKA over all pairs that share a module.

    Examples
    --------
    >>> round(dissimilarity(np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]]), [0, 2]), 9)
    0.1
    """
    cost = _run_costs(similarity)
    ends = [*(start - 1 for start in starts[1:]), len(similarity) - 1]
    return float(sum(cost[start, end] for start, end in zip(starts, ends, strict=True)))


def _known(similarity: Matrix) -> Matrix:
    """A boundary whose similarity is unknown (its activations never change) is like no other."""
    return np.where(np.isnan(similarity), np.eye(len(similarity)), similarity)


def _run_costs(similarity: Matrix) -> Matrix:
    """Return the sum of 1 - CKA over the pairs of every run [start..end]; infinite below the diagonal."""
    n = len(similarity)
    pairs = np.triu(1 - _known(similarity), 1)
    column = np.cumsum(pairs[::-1], axis=0)[::-1]
    cost = np.cumsum(np.triu(column), axis=1)
    full: Matrix = np.full((n, n), np.inf)
    for start in range(n):
        full[start, start:] = cost[start, start:]
    return full


def _allowed(similarity: Matrix, floor: float | None, cuts: Sequence[int]) -> NDArray[np.bool_]:
    """Return which runs [start..end] have no pair less similar than a floor, and no cut behind their start."""
    n = len(similarity)
    allowed = np.triu(np.ones((n, n), dtype=bool))
    if floor is not None:
        pairs = np.where(np.triu(allowed, 1), _known(similarity), np.inf)
        of_end = np.minimum.accumulate(pairs[::-1], axis=0)[::-1]
        allowed &= np.minimum.accumulate(of_end, axis=1) >= floor
    begun = np.cumsum(np.isin(np.arange(n), list(cuts)))
    allowed &= begun[:, None] == begun[None, :]
    return allowed
