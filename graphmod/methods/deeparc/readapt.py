"""DeepArc's re-adaption: blocks whose representations adversarial samples change most are retrained on these.

The score of a block is the drop of CKA between clean and adversarial activations from the block before it, summed over
attacks. The top blocks learn to give, at the last of them, the activations of the clean samples, beside the labels:
0.5 MSE + 0.5 cross-entropy (Ren et al., ICSE 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphmod.data import PARTS, Data, Splits, as_splits
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import Block
from graphmod.methods.deeparc.agreement import agreement, falls
from graphmod.methods.deeparc.residual_sums import residual_blocks
from graphmod.methods.joining import joined
from graphmod.model import Model
from graphmod.rewrite import Region
from graphmod.train import Imitation, Retrained, n_trained, retrained


def vulnerability(model: Model, clean: Data, attacked: Mapping[str, Data]) -> NDArray[np.float64]:
    """Return, for every residual block, how far CKA between clean and attacked activations drops in it.

    Parameters
    ----------
    model : Model
    clean : Data
    attacked : mapping of str to Data
        By attack; row i is made of row i of ``clean``.
    """
    drops = np.array([falls(agreement(model, model, clean, data)) for data in attacked.values()])
    return np.asarray(drops.sum(axis=0))


def top_blocks(model: Model, scores: NDArray[np.float64], share: float) -> list[Block]:
    """Return the blocks of the highest scores that together have no more than a share of the weights, in order."""
    blocks = residual_blocks(model)
    chosen: list[int] = []
    for place in np.argsort(-scores, kind="stable"):
        regions = [Region(blocks[i].entry, blocks[i].exit) for i in [*chosen, int(place)]]
        if 0 < n_trained(model, regions) <= share * model.n_weights:
            chosen.append(int(place))
    if not chosen:
        raise RefusedError(f"every residual block has more than {share:.0%} of the weights; allow a larger share")
    return [blocks[i] for i in sorted(chosen)]


def readapt(
    model: Model, data: object, attacked: Mapping[str, object], *, share: float = 0.2, seed: int = 0, **training: Any
) -> Retrained:
    """Retrain the blocks that attacks change most, everything else frozen.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_splits` takes
        Clean samples.
    attacked : mapping of str to anything that :func:`graphmod.data.as_splits` takes
        Adversarial samples by attack; row i of each part is made of row i of that part of ``data``.
    share : float
        Of the weights that are retrained, at most.
    seed : int
    **training
        Passed on to :func:`graphmod.train.retrained`.

    Raises
    ------
    InvalidDataError
        The rows of an attack's data do not belong to those of the clean data.
    RefusedError
        The share is out of range or too small, or there is no attack.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods.deeparc import attack, readapt
    >>> m, data = gm.load(gm.demo.model_path()), gm.demo.splits()
    >>> parts = (data.train, data.calibration, data.test)
    >>> fgsm = gm.Splits(*(attack(m, part, "fgsm", eps=0.15) for part in parts))
    >>> run = readapt(m, data, {"fgsm": fgsm}, epochs=1)
    >>> gm.accuracy(run.model, fgsm.test) > gm.accuracy(m, fgsm.test)
    True
    """
    if not 0 < share <= 1:
        raise RefusedError(f"share={share} is out of range; it is a share of the weights above 0 and at most 1")
    if not attacked:
        raise RefusedError("there are no adversarial samples; give them by attack, such as {'fgsm': splits}")
    clean = as_splits(model, data, seed, labels=True)
    splits = {name: as_splits(model, given, seed, labels=True) for name, given in attacked.items()}
    for name, found in splits.items():
        _check_pairs(name, clean, found)
    scores = vulnerability(model, clean.train, {name: found.train for name, found in splits.items()})
    blocks = top_blocks(model, scores, share)
    seen = Splits(*(joined([getattr(found, part) for found in splits.values()]) for part in PARTS))
    shown = Splits(*(joined([getattr(clean, part)] * len(splits)) for part in PARTS))
    imitate = Imitation(blocks[-1].exit, model, shown)
    return retrained(model, seen, blocks, imitate=imitate, seed=seed, **training)


def _check_pairs(name: str, clean: Splits, found: Splits) -> None:
    for part in PARTS:
        own, given = getattr(clean, part), getattr(found, part)
        if len(own) != len(given) or not np.array_equal(own.targets, given.targets):
            raise InvalidDataError(
                f"the {part} part of '{name}' does not belong to the clean one, row by row: {len(given)} and "
                f"{len(own)} samples, or other labels; re-adaption needs pairs, graphmod.adapt does not"
            )
