"""Fine-tuning: the weights that a search has left are trained for the target problem."""

from __future__ import annotations

from typing import Any

from graphmod.methods.seam.search import SeamRun
from graphmod.model import Model
from graphmod.train import retrain


def finetune(of: SeamRun | Model, data: object, *, keep_zeros: bool = True, **training: Any) -> Model:
    """Train what is left of a network, head included; what the masks have set to zero stays so.

    Parameters
    ----------
    of : SeamRun or Model
        What :func:`search` returned, or its model.
    data : anything that :func:`graphmod.data.as_splits` takes
        Labelled as for the search.
    keep_zeros : bool
        The published code fine-tunes from the masked weights and lets them grow again: False does so too.
    **training
        Passed on to :func:`graphmod.retrain`, which says what is refused.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods import seam
    >>> m, digits = gm.load(gm.demo.model_path()), gm.demo.splits()
    >>> parts = (digits.train, digits.calibration, digits.test)
    >>> odd = gm.Splits(*(gm.Data(part.inputs, part.targets % 2) for part in parts))
    >>> run = seam.search(m, odd, accuracy=0.9, epochs=2)
    >>> tuned = seam.finetune(run, odd, epochs=1)
    """
    return retrain(of.model if isinstance(of, SeamRun) else of, data, keep_zeros=keep_zeros, **training)
