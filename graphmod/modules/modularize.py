"""Modules: consecutive boundaries with similar representations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from graphmod.modules.module_map import Module, ModuleMap
from graphmod.modules.rule import Rule
from graphmod.modules.segmentation import dissimilarity
from graphmod.probe import Similarity


def modularize(
    similarity: Similarity,
    method: str = "optimal",
    *,
    threshold: float | None = None,
    n_modules: int | None = None,
    floor: float | None = None,
    cuts: Sequence[str] = (),
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
    floor : float, optional
        With ``n_modules`` and "optimal": no pair of boundaries within a module may be less similar.
    cuts : sequence of str
        Boundaries at which a module must begin, such as those of :func:`graphmod.modules.shape_cuts`.

    Raises
    ------
    RefusedError
        Not exactly one of ``threshold`` and ``n_modules`` is given, or it is out of range; the greedy rule gives that
        many modules at no threshold; the floor or the cuts need more modules (the message says how many); or a cut is
        no boundary.

    Examples
    --------
    >>> import graphmod as gm
    >>> sim = gm.similarity(gm.load(gm.demo.model_path()), gm.demo.splits().calibration)
    >>> len(gm.modularize(sim, n_modules=4))
    4
    """
    rule, matrix = Rule.of(similarity, method, threshold, n_modules, floor, cuts), similarity.matrix
    starts = rule.starts(matrix)
    modules = []
    for start, end in pairwise([*starts, len(matrix)]):
        run = slice(start, end)
        inside = matrix[run, run]
        lowest = 1.0 if end - start == 1 else float(np.nan_to_num(inside, nan=0.0).min())
        modules.append(Module(similarity.boundaries[run], similarity.blocks[run], lowest))
    cost = dissimilarity(matrix, starts)
    found = rule.threshold_for(matrix)
    return ModuleMap(similarity.digest, tuple(modules), method, found, cost, floor, tuple(cuts))
