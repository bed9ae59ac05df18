"""Indirect reuse: a network for another data set, from the weights that a search keeps of a trained one.

A new layer on the features is trained alone, masks on all other weights are searched until they keep a share, and what
is left is trained as a whole, with a new layer again (Qi et al., Reusing deep neural network models through model
re-engineering, ICSE 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch

from graphmod.arguments import check_rates, check_whole
from graphmod.data import as_splits, fixed_batch
from graphmod.graph import final_features, up_to_logits
from graphmod.methods.seam.network import without_head
from graphmod.methods.seam.search import SeamRun, Settings, search_by
from graphmod.methods.target_labels import n_labels
from graphmod.model import Model
from graphmod.pytorch import to_torch
from graphmod.rewrite import new_head, rebatch
from graphmod.train import retrain
from graphmod.train.loop import Clock


@dataclass(frozen=True, eq=False)
class Transferred:
    """What indirect reuse came to.

    Parameters
    ----------
    model : Model
        The original's graph with a new final layer, trained as a whole.
    kept : float
        Share of the values that had a mask that are not zero in it; more than the search kept where zeros may grow.
    run : SeamRun
        The search.
    seconds : float
        CPU time of all.
    """

    model: Model = field(repr=False)
    kept: float
    run: SeamRun
    seconds: float

    @property
    def masked(self) -> Model:
        """The network that the search found, before it was trained as a whole, with the final layer that it had."""
        return self.run.model


def transfer(
    model: Model,
    data: object,
    *,
    share: float = 0.4,
    alpha: float = 0.5,
    epochs: int = 300,
    patience: int | None = 30,
    mask_rate: float = 0.05,
    head_rate: float = 0.001,
    layer_rate: float = 0.01,
    tuning_epochs: int = 30,
    tuning_rate: float = 0.001,
    keep_zeros: bool = False,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Transferred:
    """Make a network for another data set of the weights of a trained one that it needs.

    1. The final layer gives way to a new one (:func:`graphmod.new_head`), which is trained alone.
    2. All other weights get masks, which are searched together with that layer (:func:`graphmod.methods.seam.search`,
       ``own_head=True``, in no epoch the layer alone) until no more than ``share`` is kept.
    3. On the masked weights another new layer is put, and the whole network is trained.

    The published code lets what the masks have set to zero grow again in step 3, so that the masks are where training
    begins, and few of the weights are zero in the network that comes out. ``keep_zeros`` trains only what is left.

    Parameters
    ----------
    model : Model
        A classifier, of whatever classes.
    data : anything that :func:`graphmod.data.as_splits` takes
        Samples of the new problem, labelled 0 to n - 1. The training part is learnt, the calibration part decides
        when to stop and what is kept, the test part is not used.
    share : float
        What the search may keep of the masked values, from 0 to 1.
    alpha : float
        Weight of the share that is kept in the search's loss, at least 0.
    epochs, patience : int
        Of the search, see there; ``patience`` may be None.
    mask_rate, head_rate : float
        Learning rates of the search. A mask takes about 1 / ``mask_rate`` steps or more to 0: where an epoch has few, a
        smaller rate lets the search come down to the share by degrees.
    layer_rate : float
        Learning rate of the new layer alone.
    tuning_epochs : int
        At most so many for the new layer alone, and for the whole network, at least 1.
    tuning_rate : float
        Learning rate of the whole network.
    keep_zeros : bool
        What the masks have set to zero stays so.
    batch_size : int
    seed : int
        Same seed, same result.
    progress : bool
        Show progress bars.

    Returns
    -------
    Transferred
        ``run.reached`` says whether the search came down to the share; if not, the masks are those of its epoch of the
        best accuracy less share.

    Raises
    ------
    InvalidDataError
        The data do not fit, or their labels are not those of two or more classes, 0 to n - 1.
    RefusedError
        There is no final layer with features before it, nothing else to mask, or an argument is out of range.
    UnsupportedOperatorError
        An operator cannot be imported into PyTorch.

    Examples
    --------
    >>> import graphmod as gm
    >>> m, digits = gm.load(gm.demo.model_path()), gm.demo.splits()
    >>> parts = (digits.train[:128], digits.calibration[:50], digits.test[:50])
    >>> odd = gm.Splits(*(gm.Data(part.inputs, part.targets % 2) for part in parts))
    >>> other = transfer(m, odd, share=0.8, epochs=4, mask_rate=0.3, tuning_epochs=1, keep_zeros=True)
    >>> other.model.outputs["logits"].shape, other.run.reached, other.kept == other.run.kept <= 0.8
    (('batch', 2), True, True)
    """
    clock = Clock()
    settings = Settings(
        None, share, True, None, alpha, epochs, mask_rate, head_rate, batch_size, patience, seed, progress
    )
    check_whole(1, tuning_epochs=tuning_epochs)
    check_rates(layer_rate=layer_rate, tuning_rate=tuning_rate)
    splits = as_splits(model if fixed_batch(model) is None else rebatch(model), data, seed)
    n_classes = n_labels(splits)
    train = partial(retrain, data=splits, epochs=tuning_epochs, batch_size=batch_size, seed=seed, progress=progress)
    fresh = new_head(model, n_classes, seed=seed)
    layer = final_features(fresh), fresh.main_output
    run = search_by(settings, train(fresh, blocks=[layer], learning_rate=layer_rate), splits)
    again = new_head(run.model, n_classes, seed=seed + 1)
    found = train(again, learning_rate=tuning_rate, keep_zeros=keep_zeros)
    return Transferred(found, _share_left(found), run, clock.passed())


def _share_left(model: Model) -> float:
    """Return which share of all values that can be masked, those of the final layer aside, is not zero."""
    part = up_to_logits(model)
    masked, _ = without_head(part, to_torch(part, dtype=torch.float32))
    return sum(int(one.count_nonzero()) for one in masked.values()) / sum(one.numel() for one in masked.values())
