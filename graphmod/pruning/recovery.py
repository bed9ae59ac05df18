"""Recovery: a pruned network is trained with the original as its teacher, normalised by the batch where it can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from graphmod.data import Data, as_splits
from graphmod.errors import InvalidDataError
from graphmod.model import Model
from graphmod.probe import accuracy, predict
from graphmod.rewrite.fuse import OPSET
from graphmod.rewrite.unfuse import unfuse

if TYPE_CHECKING:
    from torch import Tensor

NEAR, FAR = 0.02, 0.1
"""How near to the original training must come to be taken without looking at what it could have started from, and how
far from it that is tried, too: an MNIST network with 0.9 % of its multiply-accumulates came to 85 instead of 76 %."""

NORMALISED, OTHERS = 3e-3, 1e-3
"""Learning rates for networks of which most layers are normalised by the batch, which bear larger ones, and others."""


def trainable(model: Model, data: Data) -> Model:
    """Return a model with the batch normalisations that exporters fuse into other operators, for training to come.

    float16 is too coarse for them, see :func:`graphmod.unfuse`: such a model is trained as it is.
    """
    return unfuse(model, data) if model.opset >= OPSET else model


def is_normalised(model: Model) -> bool:
    """Whether most layers of a model are normalised by the batch."""
    types = Counter(operator.op_type for operator in model.operators)
    return 2 * types["BatchNormalization"] >= types["Conv"] + types["Gemm"] + types["MatMul"]


def recovered(
    model: Model,
    fitted: Callable[[], Model],
    teacher: Model,
    data: Data,
    epochs: int,
    learning_rate: float | None,
    seed: int,
    progress: bool,
) -> Model:
    """Train the whole of a pruned model.

    Parameters
    ----------
    model : Model
    fitted : callable
        The same without training, its weights fitted to the data. Where training stays far from the original, it is
        tried from there, too; and where it does not even reach that, at a rate that keeps it.
    teacher : Model
        The original.
    data : Data
        Samples with class labels, or with float targets of the first output's shape, from which the squared error
        counts; a fifth of them decides which epoch is kept.
    epochs : int
    learning_rate : float, optional
        One that suits the network if None.
    seed : int
    progress : bool
    """
    from graphmod.train import retrain  # what only prunes starts without PyTorch

    is_regression = data.targets is not None and data.targets.dtype.kind == "f"
    splits = as_splits(teacher, {"train": data, "test": data}, seed, labels=not is_regression)

    def trained(start: Model, rate: float, batch_statistics: bool | None) -> Model:
        return retrain(
            start, splits, teacher=teacher, loss=_squared_error if is_regression else None, epochs=epochs,
            patience=epochs, learning_rate=rate, batch_statistics=batch_statistics, seed=seed, progress=progress,
        )  # fmt: skip

    rate = learning_rate or (NORMALISED if is_normalised(model) else OTHERS)

    def error(one: Model) -> float:
        return _error(one, splits.calibration)

    found = trained(model, rate, None)
    missing, scale = error(found) - error(teacher), error(teacher) if is_regression else 1.0
    if missing <= NEAR * scale:
        return found
    start = fitted()
    if missing > FAR * scale:
        found = min(found, trained(start, rate, None), key=error)
    return found if error(found) <= error(start) else trained(start, learning_rate or OTHERS, False)


def _error(model: Model, data: Data) -> float:
    """Return the share of samples that are classified wrongly, or the mean squared error."""
    if data.targets is not None and data.targets.dtype.kind == "f":
        return float(
            np.mean((np.asarray(predict(model, data), np.float64) - np.asarray(data.targets, np.float64)) ** 2)
        )
    return 1 - accuracy(model, data)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    from torch.nn.functional import mse_loss

    if outputs.shape != targets.shape:
        raise InvalidDataError(
            f"targets of shape {list(targets.shape)} do not fit outputs of shape {list(outputs.shape)}; pass "
            "targets of their shape, or integer labels"
        )
    return mse_loss(outputs, targets.to(outputs.dtype))
