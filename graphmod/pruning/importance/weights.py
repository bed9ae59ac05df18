"""Weights as the network uses them: what is stored quantised counts by the floats that it stands for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from graphmod.model import Model
from graphmod.pruning.groups import Groups

Float = NDArray[np.floating]

_LEVELS = {
    "DequantizeLinear": {0: (1, 2)},
    "QLinearConv": {3: (4, 5)},
    "QLinearMatMul": {0: (1, 2), 3: (4, 5)},
    "QGemm": {3: (4, 5)},
    "ConvInteger": {0: (-1, 2), 1: (-1, 3)},
    "MatMulInteger": {0: (-1, 2), 1: (-1, 3)},
}
"""For inputs that hold quantised weights, by operator: the inputs with their scale (-1: none) and their zero point."""


def weight(found: Groups, tensor: str) -> Float | None:
    """Return the value of a constant as floats, float32 or wider; None where it holds no weights.

    Integers that no operator dequantises (token tables, indices, shapes) are no weights.
    """
    value = found.weight(tensor)
    if value is not None:
        return value.astype(np.float64 if value.dtype == np.float64 else np.float32, copy=False)
    return _dequantised(found.model, tensor)


def _dequantised(model: Model, tensor: str) -> Float | None:
    if tensor not in model.initializers:
        return None
    for position in model.readers.get(tensor, ()):
        operator = model.operators[position]
        for place, (scale, zero) in _LEVELS.get(operator.op_type, {}).items():
            if place < len(operator.input) and operator.input[place] == tensor:
                levels = model.initializer(tensor).astype(np.float32)
                axis = _axis(operator, levels.ndim)
                shift, factor = (_parameter(model, operator, p, levels.ndim, axis) for p in (zero, scale))
                return (levels - (0 if shift is None else shift)) * (1 if factor is None else factor)
    return None


def _axis(operator: NodeProto, rank: int) -> int:
    """Return the axis of quantised weights that scales by channel belong to."""
    given = {attribute.name: attribute.i for attribute in operator.attribute}
    if "axis" in given:
        return int(given["axis"]) % rank
    if operator.op_type == "QGemm" and given.get("transB"):
        return 0
    return {"DequantizeLinear": 1, "QLinearConv": 0, "ConvInteger": 0}.get(operator.op_type, rank - 1)


def _parameter(model: Model, operator: NodeProto, place: int, rank: int, axis: int) -> Float | None:
    """Return a scale or zero point, so that it broadcasts to the weights; None where it is not stored."""
    name = operator.input[place] if 0 <= place < len(operator.input) else ""
    if name not in model.initializers:
        return None
    value = model.initializer(name).astype(np.float32)
    return value if value.ndim != 1 or value.size == 1 else value.reshape([-1 if i == axis else 1 for i in range(rank)])
