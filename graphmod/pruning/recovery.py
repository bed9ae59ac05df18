"""Recovery: a pruned network is trained with the original as its teacher, normalised by the batch where it can be."""

from __future__ import annotations

from collections import Counter

from graphmod.data import Data
from graphmod.model import Model
from graphmod.rewrite.fuse import OPSET
from graphmod.rewrite.unfuse import unfuse

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
        Samples with targets; a part of them decides which epoch is kept.
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
    return retrain(
        model, data, teacher=teacher, epochs=epochs, patience=epochs, learning_rate=rate, seed=seed, progress=progress
    )
