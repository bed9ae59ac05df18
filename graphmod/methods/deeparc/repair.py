"""DeepArc's repair: the module whose representations depart from those of the healthy network is retrained."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphmod.data import Splits, as_splits
from graphmod.graph import Block
from graphmod.methods.deeparc.agreement import agreement, falls
from graphmod.methods.deeparc.decompose import decompose
from graphmod.methods.deeparc.residual_sums import residual_blocks, residual_sums
from graphmod.methods.deeparc.similarity import similarity
from graphmod.model import Model
from graphmod.train import Retrained, retrained


def locate(model: Model, healthy: Model, data: Splits, *, threshold: float = 0.95, seed: int = 0) -> list[Block]:
    """Return the blocks of the module that is at fault.

    That is the module of the healthy network in which the agreement with it falls most from one block to the next; all
    of its blocks are retrained, as the method knows no smaller part.

    Parameters
    ----------
    model, healthy : Model
    data : Splits
        Its training part is looked at.
    threshold : float
        Of the decomposition into modules.
    seed : int

    Raises
    ------
    RefusedError
        The networks have other residual sums, or the first axis of one is not the batch.
    """
    worst = residual_sums(model)[int(np.argmax(falls(agreement(model, healthy, data.train))))]
    modules = decompose(similarity(healthy, data.train, seed=seed), threshold)
    module = next(one for one in modules.modules if worst in one.boundaries)
    pairs = zip(residual_sums(model), residual_blocks(model), strict=True)
    return [block for name, block in pairs if name in module.boundaries]


def repair(
    model: Model, data: object, healthy: Model, *, threshold: float = 0.95, seed: int = 0, **training: Any
) -> Retrained:
    """Retrain the module that :func:`locate` finds, on labels, with everything else frozen.

    Parameters
    ----------
    model : Model
        The weakened network.
    data : anything that :func:`graphmod.data.as_splits` takes
    healthy : Model
        What it was.
    threshold : float
        Of the decomposition into modules.
    seed : int
    **training
        Passed on to :func:`graphmod.train.retrained`.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods.deeparc.weaken import weaken
    >>> m, data = gm.load(gm.demo.model_path()), gm.demo.splits()
    >>> weak = weaken(m, data, 50, ["layer3.4"])
    >>> run = repair(weak, data, m, epochs=2)
    >>> run.history[-1].score > run.history[0].score
    True
    """
    splits = as_splits(model, data, seed, labels=True)
    return retrained(
        model, splits, locate(model, healthy, splits, threshold=threshold, seed=seed), seed=seed, **training
    )
