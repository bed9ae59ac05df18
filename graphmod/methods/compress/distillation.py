"""Local distillation: a part that was searched for is trained by itself to give the original's activations at its exit.

Parts in closed form are the best of their kind already. Neither what lies behind a part nor any label is needed, and
a part is small: a few epochs take a fraction of what training end to end does.
"""

from __future__ import annotations

import numpy as np

from graphmod.data import Data, Splits
from graphmod.methods.compress.part import Part
from graphmod.methods.compress.site import Site
from graphmod.train import Imitation, retrained

EPOCHS = 5
"""Of each part, at most."""

RATE = 3e-3
"""Learning rate."""

CHECKED = 8
"""One in so many samples is left to tell whether training has brought the part nearer."""


def distilled(part: Part, site: Site, before: Site, epochs: int, seed: int) -> Part:
    """Return a part after training, no farther from what is wanted than before; one in closed form as it is.

    Parameters
    ----------
    part : Part
    site : Site
        The part's, with activations as the parts before it make them.
    before : Site
        The same run in the original, whose activations at the exit are wanted.
    epochs, seed : int
    """
    if part.is_exact or part.model is None:
        return part
    like = Imitation(part.exit, site.run, data=_splits(before.data(site.run)), weight=1)
    run = retrained(
        part.model, _splits(site.data(part.model)), imitate=like, epochs=epochs, patience=epochs,
        learning_rate=RATE, batch_statistics=False, seed=seed,
    )  # fmt: skip
    return Part.ready(part.kind, part.entry, part.exit, site.error_of(run.model), run.model)


def _splits(data: Data) -> Splits:
    """Return samples to learn and samples to check, the only one as both."""
    number = np.arange(len(data))
    learnt, checked = number[number % CHECKED > 0], data[number[::CHECKED]]
    return Splits(data[learnt] if len(learnt) else data, checked, checked)
