"""What baselines train when they do not train the whole network: the last layer, normalisations, some blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import graphmod as gm
from graphmod.rewrite.region import find_regions
from graphmod.train import n_trained


def last_layer(model: gm.Model) -> str:
    """Return the last operator with weights that multiplies."""
    kinds = ("Gemm", "MatMul", "Conv")
    heavy = [i for i, operator in enumerate(model.operators) if operator.op_type in kinds]
    return model.operator_names[[i for i in heavy if any(name in model.constants for name in model.reads[i])][-1]]


def normalized(model: gm.Model, data: gm.Data) -> tuple[gm.Model, list[Any]]:
    """Return a network with normalisations that can be trained, and the selector of these."""
    if any(operator.op_type == "LayerNormalization" for operator in model.operators):
        return model, ["LayerNormalization"]
    return gm.unfuse(model, data[:512]), ["BatchNormalization"]


def count(model: gm.Model, places: Sequence[Any]) -> int:
    """Return how many weights some places have."""
    return n_trained(model, [region for place in places for region in find_regions(model, place)])
