"""Recovery: a pruned network is trained with the original as its teacher, normalised by the batch where it can be."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from graphmod.data import Data
from graphmod.errors import InvalidDataError
from graphmod.model import Model
from graphmod.rewrite.fuse import OPSET
from graphmod.rewrite.unfuse import unfuse

if TYPE_CHECKING:
    from torch import Tensor

NORMALISED, OTHERS = 3e-3, 1e-3
"""Learning rates for networks of which most layers are normalised by the batch, which bear larger ones, and others."""


def trainable(model: Model, data: Data) -> Model:
    """Return a model with the batch normalisations that exporters fuse into other operators, for training to come."""
    return unfuse(model, data) if model.opset >= OPSET else model


def recovered(
    model: Model, teacher: Model, data: Data, epochs: int, learning_rate: float | None, seed: int, progress: bool
) -> Model:
    """Train the whole of a pruned model.

    Parameters
    ----------
    model : Model
    teacher : Model
        The original.
    data : Data
        Samples with class labels, or with float targets of the first output's shape, from which the squared error
        counts; a part of them decides which epoch is kept.
    epochs : int
    learning_rate : float, optional
        One that suits the network if None.
    seed : int
    progress : bool
    """
    from graphmod.train import retrain  # what only prunes starts without PyTorch

    types = Counter(operator.op_type for operator in model.operators)
    is_normalised = 2 * types["BatchNormalization"] >= types["Conv"] + types["Gemm"] + types["MatMul"]
    rate = learning_rate or (NORMALISED if is_normalised else OTHERS)
    loss = _squared_error if data.targets is not None and data.targets.dtype.kind == "f" else None
    return retrain(
        model, data, teacher=teacher, loss=loss, epochs=epochs, patience=epochs, learning_rate=rate, seed=seed,
        progress=progress,
    )  # fmt: skip


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    from torch.nn.functional import mse_loss

    if outputs.shape != targets.shape:
        raise InvalidDataError(
            f"targets of shape {list(targets.shape)} do not fit outputs of shape {list(outputs.shape)}; pass "
            "targets of their shape, or integer labels"
        )
    return mse_loss(outputs, targets.to(outputs.dtype))
