"""DeepArc's restructuring: some blocks within modules are skipped, drawn at random."""

from __future__ import annotations

import numpy as np

from graphmod.errors import RefusedError
from graphmod.methods.deeparc.inside import module_of
from graphmod.methods.skipping import skip
from graphmod.model import Model
from graphmod.modules import ModuleMap


def restructure(model: Model, modules: ModuleMap, k: int, seed: int = 0) -> Model:
    """Skip ``k`` blocks, drawn from all that lie in a module of several.

    Parameters
    ----------
    model : Model
    modules : ModuleMap
        Of :func:`graphmod.methods.deeparc.decompose`.
    k : int
        How many.
    seed : int
        Decides which.

    Raises
    ------
    RefusedError
        Fewer blocks lie in modules, the map is of another model, or the seed is negative.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods import deeparc
    >>> m = gm.load(gm.demo.model_path())
    >>> modules = deeparc.decompose(deeparc.similarity(m, gm.demo.splits().train, passes=1), 0.9)
    >>> restructure(m, modules, k=3).n_weights < m.n_weights
    True
    """
    if seed < 0:
        raise RefusedError(f"seed={seed} is out of range; it is at least 0")
    inside = [block for block, module in module_of(model, modules).items() if module is not None]
    if not 0 <= k <= len(inside):
        told = "; lower the threshold of decompose for larger modules" if k > 0 else ""
        raise RefusedError(f"{k} blocks cannot be skipped: {len(inside)} lie in a module of several{told}")
    chosen = np.sort(np.random.default_rng(seed).choice(len(inside), k, replace=False))
    return skip(model, [inside[place] for place in chosen])
