"""DeepArc's modules: runs of blocks of which each is similar to the one before it (section 3.2)."""

from __future__ import annotations

from graphmod.modules import ModuleMap, modularize
from graphmod.probe import Similarity

THRESHOLDS = tuple(round(0.90 + 0.01 * step, 2) for step in range(10))
"""The thresholds that the paper looks at."""


def decompose(similarity: Similarity, threshold: float = 0.95) -> ModuleMap:
    """Cut the network into modules: a block begins one unless it is more similar than ``threshold`` to the one before.

    Parameters
    ----------
    similarity : Similarity
        Of :func:`graphmod.methods.deeparc.similarity`.
    threshold : float
        The paper takes 0.90 to 0.99.

    Raises
    ------
    RefusedError
        The threshold is not between 0 and 1.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods import deeparc
    >>> sim = deeparc.similarity(gm.load(gm.demo.model_path()), gm.demo.splits().calibration, passes=1)
    >>> len(decompose(sim, 0.9)) <= len(decompose(sim, 0.99))
    True
    """
    return modularize(similarity, method="greedy", threshold=threshold)
