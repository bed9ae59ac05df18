"""Modules: consecutive boundaries with similar representations."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from graphmod.errors import RefusedError
from graphmod.modules.module_map import Module, ModuleMap
from graphmod.modules.segmentation import dissimilarity, fewest, greedy, optimal
from graphmod.probe import Similarity


def modularize(
    similarity: Similarity,
    method: str = "optimal",
    *,
    threshold: float | None = None,
    n_modules: int | None = None,
) -> ModuleMap:
    """Cut the trunk into modules of consecutive, similar boundaries.

    Parameters
    ----------
    similarity : Similarity
    method : {"optimal", "greedy"}
        "greedy" is DeepArc's published rule: a boundary stays in the module while its similarity to the one before it
        exceeds the threshold. "optimal" with ``n_modules`` minimises the within-module dissimilarity exactly; with
        ``threshold`` it finds the fewest modules whose every pair is at least that similar.
    threshold : float, optional
        Between 0 and 1.
    n_modules : int, optional
        For "greedy": the threshold that gives this many modules is found.

    Raises
    ------
    RefusedError
        Not exactly one of ``threshold`` and ``n_modules`` is given, or it is out of range; or the greedy rule gives
        that many modules at no threshold.

    Examples
    --------
    >>> import graphmod as gm
    >>> sim = gm.similarity(gm.load(gm.demo.model_path()), gm.demo.splits().calibration)
    >>> len(gm.modularize(sim, n_modules=4))
    4
    """
    if (threshold is None) == (n_modules is None):
        raise RefusedError("give either a threshold or a number of modules, not both")
    if threshold is not None and not 0 <= threshold <= 1:
        raise RefusedError(f"the threshold {threshold} is out of range; similarities lie between 0 and 1")
    if n_modules is not None and not 1 <= n_modules <= len(similarity.boundaries):
        raise RefusedError(
            f"{len(similarity.boundaries)} boundaries cannot form {n_modules} modules; "
            f"ask for 1 to {len(similarity.boundaries)}"
        )
    matrix = similarity.matrix
    if method == "greedy":
        if n_modules is not None:
            threshold = _greedy_threshold(similarity, n_modules)
        starts = greedy(matrix, threshold or 0.0)
        if n_modules is not None and len(starts) != n_modules:
            raise RefusedError(
                f"no threshold gives exactly {n_modules} modules by the greedy rule (neighbours are equally similar or "
                "not similar at all); ask for another number or for method='optimal'"
            )
    elif method == "optimal":
        starts = optimal(matrix, n_modules) if n_modules is not None else fewest(matrix, threshold or 0.0)
    else:
        raise RefusedError(f"there is no method '{method}'; choose 'optimal' or 'greedy'")
    modules = []
    for start, end in pairwise([*starts, len(matrix)]):
        run = slice(start, end)
        inside = matrix[run, run]
        lowest = 1.0 if end - start == 1 else float(np.nan_to_num(inside, nan=0.0).min())
        modules.append(Module(similarity.boundaries[run], similarity.blocks[run], lowest))
    return ModuleMap(similarity.digest, tuple(modules), method, threshold, dissimilarity(matrix, starts))


def _greedy_threshold(similarity: Similarity, n_modules: int) -> float:
    """Return the threshold at which the greedy rule gives a number of modules: it cuts the least similar neighbours."""
    neighbours = np.sort(np.nan_to_num(np.diagonal(similarity.matrix, offset=1), nan=-np.inf))
    if n_modules == 1:
        return max(0.0, float(np.nextafter(neighbours[0], -np.inf))) if len(neighbours) else 0.0
    return float(max(0.0, neighbours[n_modules - 2]))
