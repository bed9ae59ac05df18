"""Agreement: CKA between what two networks of one graph make at every residual sum, of the same samples or of pairs."""

from __future__ import annotations

from math import lcm

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.methods.deeparc.residual_sums import residual_sums
from graphmod.methods.deeparc.similarity import BATCH_SIZE
from graphmod.model import Model
from graphmod.probe import stream
from graphmod.probe.similarity import MIN_SAMPLES, cka, hsic_of_batch


def agreement(
    model: Model, other: Model, data: Data, other_data: Data | None = None, *, batch_size: int = BATCH_SIZE
) -> NDArray[np.float64]:
    """Return, for every residual sum, the CKA between what two networks of one graph make there.

    Where activations do not differ between samples it is 1 if those of neither network do, and 0 if those of one do.

    Parameters
    ----------
    model, other : Model
    data : Data
        Samples; targets are not used.
    other_data : Data, optional
        What the other network gets to see, row by row; the same samples if None.
    batch_size : int

    Raises
    ------
    RefusedError
        The networks have other residual sums, or the first axis of one is not the batch.
    InvalidDataError
        A batch would have fewer than 4 samples.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> bool((agreement(m, m, gm.demo.splits().calibration) > 0.999).all())
    True
    """
    names = residual_sums(model)
    odd = set(names) ^ set(names if other is model else residual_sums(other))
    if odd:
        raise RefusedError(f"only one of the models has a residual sum '{min(odd)}'; compare networks of one graph")
    unit = lcm(*(fixed_batch(one) or 1 for one in (model, other)))
    sums = [np.zeros((2, 2)) for _ in names]
    sides = ((model, data), (other, data if other_data is None else other_data))
    both = (stream(one, samples, names, batch_size, unit=unit, by_sample=True) for one, samples in sides)
    for (batch, first), (_, second) in zip(*both, strict=True):
        if len(batch) < MIN_SAMPLES:
            raise InvalidDataError(f"a batch has {len(batch)} samples; CKA needs at least {MIN_SAMPLES}")
        folded = next((name for name in names if name not in first), None)
        if folded is not None:
            raise RefusedError(f"the first axis of '{folded}' is not the batch, so samples cannot be compared there")
        for total, name in zip(sums, names, strict=True):
            total += hsic_of_batch([first[name], second[name]])
    return np.array([_known(total) for total in sums])


def falls(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far agreement falls in every block from that before it; networks agree on their input.

    >>> falls(np.array([0.75, 0.5]))
    array([0.25, 0.25])
    """
    return -np.diff(found, prepend=1.0)


def _known(hsic: NDArray[np.float64]) -> float:
    """Return the CKA of two representations, also where one never changes."""
    found = float(cka(hsic)[0, 1])
    return float(not (np.diag(hsic) > 0).any()) if np.isnan(found) else found
