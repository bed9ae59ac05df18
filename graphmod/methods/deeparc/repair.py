"""DeepArc's repair: the module whose representations depart from those of the healthy network is retrained."""

from __future__ import annotations

from itertools import pairwise
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, Splits, as_splits, fixed_batch
from graphmod.graph import Block
from graphmod.methods.deeparc.decompose import decompose
from graphmod.methods.deeparc.residual_sums import residual_blocks, residual_sums
from graphmod.methods.deeparc.similarity import BATCH_SIZE, similarity
from graphmod.model import Model
from graphmod.probe import stream
from graphmod.probe.similarity import cka, hsic_of_batch
from graphmod.train import Retrained, retrained


def agreement(model: Model, healthy: Model, data: Data, *, batch_size: int = BATCH_SIZE) -> NDArray[np.float64]:
    """Return, for every residual sum, the CKA between what two networks of one graph make there.

    Parameters
    ----------
    model, healthy : Model
    data : Data
        Samples; targets are not used.
    batch_size : int

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> bool((agreement(m, m, gm.demo.splits().calibration) > 0.999).all())
    True
    """
    names = residual_sums(model)
    unit = lcm(*(fixed_batch(one) or 1 for one in (model, healthy)))
    sums = [np.zeros((2, 2)) for _ in names]
    both = (stream(one, data, names, batch_size, unit=unit) for one in (model, healthy))
    for (_, weak), (_, sound) in zip(*both, strict=True):
        for total, name in zip(sums, names, strict=True):
            total += hsic_of_batch([weak[name], sound[name]])
    return np.array([cka(total)[0, 1] for total in sums])


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
    """
    found = agreement(model, healthy, data.train)
    falls = [before - after for before, after in pairwise([1.0, *found])]
    modules = decompose(similarity(healthy, data.train, seed=seed), threshold)
    names = residual_sums(model)
    worst = names[int(np.argmax(falls))]
    module = next(one for one in modules.modules if worst in one.boundaries)
    return [block for name, block in zip(names, residual_blocks(model), strict=True) if name in module.boundaries]


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
