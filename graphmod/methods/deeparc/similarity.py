"""DeepArc's similarity: minibatch CKA between residual sums, over several shuffled passes."""

from __future__ import annotations

from graphmod import probe
from graphmod.methods.deeparc.residual_sums import residual_sums
from graphmod.model import Model
from graphmod.probe import Similarity

BATCH_SIZE = 256
PASSES = 5


def similarity(
    model: Model, data: object, *, batch_size: int = BATCH_SIZE, passes: int = PASSES, seed: int = 0
) -> Similarity:
    """Measure how similar the representations behind every pair of residual blocks are.

    Linear CKA with the unbiased HSIC (Nguyen, Raghu & Kornblith 2021), summed over batches of all passes. Fewer samples
    than ``batch_size`` make one batch.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_data` takes
        Samples; targets are not used.
    batch_size, passes : int
        Samples a batch, and how often all of them run, shuffled anew.
    seed : int
        Of the shuffling.

    Raises
    ------
    InvalidDataError
        A batch would have fewer than 4 samples, or the data does not fit the model.
    RefusedError
        The network has no blocks.

    Examples
    --------
    >>> import graphmod as gm
    >>> sim = similarity(gm.load(gm.demo.model_path()), gm.demo.splits().calibration, passes=2)
    >>> len(sim.boundaries)
    21
    """
    return probe.similarity(model, data, residual_sums(model), batch_size=batch_size, passes=passes, seed=seed)
