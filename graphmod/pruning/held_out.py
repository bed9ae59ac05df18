"""Held-out samples: whether what is fitted to some of few samples holds for the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch
from graphmod.model import Model
from graphmod.probe import stream

FOLDS = 4
"""Parts of the samples, each of which is held out once."""


def generalises(model: Model, plain: Model, fit: Callable[[Data], Model], data: Data) -> bool:
    """Return whether fitting comes nearer to a model at samples that it has not seen than what needs no samples.

    Nearer is a higher correlation of outputs: those of a pruned network that is not fitted are smaller, mostly in
    proportion, which leaves its predictions right while a squared error would count it. What cannot be compared, such
    as texts or as many detections as there happen to be, tells of none that is nearer.

    Parameters
    ----------
    model : Model
    plain : Model
        What needs no samples.
    fit : callable
        What does, of some of them.
    data : Data
    """
    unit = fixed_batch(model) or 1
    n_folds = min(FOLDS, len(data) // unit)
    dtype = model.outputs[model.main_output].dtype
    if n_folds < 2 or dtype is None or dtype.kind in "OSU":
        return False
    of_sample = np.arange(len(data)) // unit % n_folds
    made: list[list[NDArray[np.float64]]] = [[], [], []]
    for fold in range(n_folds):
        held_out = data[np.flatnonzero(of_sample == fold)]
        fitted = fit(data[np.flatnonzero(of_sample != fold)])
        for outputs, one in zip(made, (model, plain, fitted), strict=True):
            outputs.append(_output(one, held_out))
    original, without, with_fit = map(np.concatenate, made)
    if not original.shape == without.shape == with_fit.shape:
        return False
    return _correlation(original, with_fit) > _correlation(original, without)


def _output(model: Model, data: Data) -> NDArray[np.float64]:
    """Return all entries of the main output."""
    name = model.main_output
    return np.concatenate([values[name].ravel() for _, values in stream(model, data, [name])]).astype(np.float64)


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the correlation of two arrays; 0 where one of them never varies."""
    a, b = a - a.mean(), b - b.mean()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0
