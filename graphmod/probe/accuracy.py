"""Predictions and their accuracy, through ONNX Runtime."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, check_labels
from graphmod.model import Model
from graphmod.probe.stream import stream


def predict(model: Model, data: Data, *, batch_size: int = 256) -> NDArray[np.generic]:
    """Return the model's first output for all samples, shape (samples, ...)."""
    name = next(iter(model.outputs))
    return np.concatenate([values[name] for _, values in stream(model, data, [name], batch_size)])


def accuracy(model: Model, data: Data, *, batch_size: int = 256) -> float:
    """Return the share of samples whose largest logit is their label's.

    Raises
    ------
    InvalidDataError
        The targets are missing or no labels of the model's classes.

    Examples
    --------
    >>> import graphmod as gm
    >>> accuracy(gm.load(gm.demo.model_path()), gm.demo.splits().test) > 0.98
    True
    """
    labels = check_labels(model, data)
    logits = predict(model, data, batch_size=batch_size)
    return float((logits.reshape(len(labels), -1).argmax(axis=1) == labels).mean())
