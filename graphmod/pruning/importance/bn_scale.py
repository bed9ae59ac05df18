"""Batch-norm scale: how much of a channel its BatchNormalization lets through.

Liu et al., Learning Efficient Convolutional Networks through Network Slimming (ICCV 2017), section 3.
"""

from __future__ import annotations

import numpy as np

from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.pruning.groups import Group
from graphmod.pruning.importance.registry import Evidence, Scores, by_unit, importance

SCALE = 1
"""The input of BatchNormalization that holds the scale."""


@importance("bn_scale")
def bn_scale(group: Group, evidence: Evidence) -> Scores:
    """Sum of the absolute scales of all BatchNormalization operators that a unit runs through.

    Raises
    ------
    RefusedError
        No BatchNormalization normalises the group; exporters fold them into convolutions.
    """
    model = evidence.found.model
    scales = [member for member in group.weights if _is_scale(model, member.tensor)]
    if not scales:
        raise RefusedError(
            f"no BatchNormalization normalises the {group.n_units} units of group '{group.name}' (exporters fold it "
            "into the convolution before); take another importance, such as l2, or leave this group out by where="
        )
    total = np.zeros(group.n_units)
    for member in scales:
        value = evidence.found.weight(member.tensor)
        assert value is not None, "the scale of a BatchNormalization is a float"
        total += by_unit(member.units, np.abs(value.astype(np.float64)), group.n_units)
    return total


def _is_scale(model: Model, tensor: str) -> bool:
    readers = (model.operators[position] for position in model.readers.get(tensor, ()))
    return any(operator.op_type == "BatchNormalization" and operator.input[SCALE] == tensor for operator in readers)
