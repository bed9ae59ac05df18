"""Shortening before sparsity: blocks go as a whole, those first that the network misses least.

DeepArc draws the blocks at random and at most a few. What counts here is the divergence of the predictions without a
block, which a few hundred samples tell, and that a block that has gone costs no time in any iteration that follows.
"""

from __future__ import annotations

import numpy as np

from graphmod.data import as_data, part_of
from graphmod.errors import RefusedError
from graphmod.methods.criteria.kl import kl
from graphmod.methods.criteria.registry import Evidence
from graphmod.methods.deeparc.residual_sums import is_skippable, residual_blocks
from graphmod.methods.drawing import drawn
from graphmod.methods.skipping import skip
from graphmod.model import Model
from graphmod.rewrite import Region
from graphmod.train import n_trained


def shorten(model: Model, data: object, remaining: float, *, samples: int = 256, seed: int = 0) -> Model:
    """Skip the residual blocks that a network misses least, as long as a share of its parameters stays.

    Blocks go whole, so more than the share stays mostly: the block that would take the network below it stays, and so
    do all that are missed more. Where the blocks run out first, all that can go are gone. What is left is
    ``shorter.n_weights / model.n_weights``. Nothing is trained: :func:`prune_retrain` does that at the accuracy that is
    asked for.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_data` takes
        Samples, of which the training part counts where there is one; targets are not used.
    remaining : float
        The least share of the parameters that stays, between 0 and 1.
    samples : int
        So many are looked at, at most, drawn with ``seed``.
    seed : int

    Raises
    ------
    RefusedError
        The share or the seed is out of range, no samples are to be looked at, or no block has entry and exit of one
        type.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> shorter = shorten(m, gm.demo.splits(), remaining=0.5)
    >>> 0.5 <= shorter.n_weights / m.n_weights < 0.6
    True
    """
    if not 0 <= remaining <= 1:
        raise RefusedError(f"remaining={remaining} is out of range; it is the least share that stays, between 0 and 1")
    if samples < 1:
        raise RefusedError(f"samples={samples} leaves nothing to look at; 256 tell what most blocks are worth")
    blocks = [block for block in residual_blocks(model) if is_skippable(model, block)]
    if not blocks:
        raise RefusedError("there is nothing to skip: no block of the trunk has an exit of its entry's type")
    regions = [Region(block.entry, block.exit) for block in blocks]
    damage = kl(Evidence(model, regions, drawn(model, as_data(model, part_of(data, "train")), samples, seed)))
    left, gone = model.n_weights, []
    for place in np.argsort(damage, kind="stable"):
        weights = n_trained(model, [regions[place]])
        if left - weights < remaining * model.n_weights:
            break  # smaller ones further on are missed more
        left -= weights
        gone.append(place)
    return skip(model, [blocks[place] for place in sorted(gone)])
