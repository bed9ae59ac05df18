"""Predictions and their accuracy, through ONNX Runtime."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, as_data, check_labels
from graphmod.model import Model
from graphmod.probe.stream import stream


def predict(
    model: Model, data: Data, *, output: str | None = None, batch_size: int = 256, threads: int | None = None
) -> NDArray[np.generic]:
    """Return a tensor for all samples, shape (samples, ...): the first float output, or the one that is named."""
    name = output or model.main_output
    return np.concatenate([values[name] for _, values in stream(model, data, [name], batch_size, threads)])


def share_correct(outputs: NDArray[np.generic], targets: NDArray[np.generic]) -> float:
    """Return the share of rows whose largest value is where the target says.

    >>> share_correct(np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
    0.5
    """
    return float((outputs.reshape(len(targets), -1).argmax(axis=1) == targets).mean())


def accuracy(model: Model, data: object, *, batch_size: int = 256) -> float:
    """Return the share of samples whose largest logit is their label's.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_data` takes
        Samples and integer targets.

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
    samples = as_data(model, data, targets=True)
    return share_correct(predict(model, samples, batch_size=batch_size), check_labels(model, samples))
