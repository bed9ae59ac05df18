"""Modularity: how few modules a network falls into, for its number of blocks."""

from __future__ import annotations

from graphmod.modules import ModuleMap


def modularity(modules: ModuleMap) -> float:
    """Return (n + 1 - modules) / (n + 1) for n blocks: n / (n + 1) for a single module, 1 / (n + 1) if none is shared.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods import deeparc
    >>> m = gm.load(gm.demo.model_path())
    >>> sim = deeparc.similarity(m, gm.demo.splits().calibration, passes=1)
    >>> round(modularity(deeparc.decompose(sim, 0.0)), 3)
    0.955
    """
    n = sum(len(module) for module in modules)
    return (n + 1 - len(modules)) / (n + 1)
