"""Independence: whether what is left of a network is computed without the units that go, and so stays as it is.

A removal is consistent where statistics, sums and maxima are over what is left; here they must not be over the units
at all. Every operator that touches them must be known to work on each index by itself, or to sum over other axes.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from graphmod.model import consumed
from graphmod.pruning.groups import Groups
from graphmod.pruning.registry import MICROSOFT
from graphmod.pruning.rules.elementwise import BROADCASTING, UNARY
from graphmod.rewrite.element_types import STANDARD
from graphmod.rewrite.simplify import RANDOM

BY_INDEX = (
    *UNARY, *BROADCASTING, "AveragePool", "BatchNormalization", "BiasGelu", "Concat", "DequantizeLinear", "Dropout",
    "Expand", "FastGelu", "Flatten", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool", "Pad",
    "QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul",
    "QLinearSigmoid", "QLinearWhere", "QuantizeLinear", "QuickGelu", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Reshape",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that compute every index of an axis that they hand on from the same index of what they read."""

OPERANDS = {
    "Conv": (0, 1), "ConvInteger": (0, 1), "ConvTranspose": (0, 1), "DynamicQuantizeMatMul": (0, 1),
    "FusedConv": (0, 1), "FusedGemm": (0, 1), "FusedMatMul": (0, 1), "Gemm": (0, 1), "MatMul": (0, 1),
    "MatMulInteger": (0, 1), "MatMulIntegerToFloat": (0, 1), "MatMulNBits": (0, 1), "QGemm": (0, 3),
    "QLinearConv": (0, 3), "QLinearMatMul": (0, 3), "TransposeMatMul": (0, 1),
}  # fmt: skip
"""Operators that sum products, and the places of the factors: an axis that only one has is summed over in none."""

SELECTING = ("Gather", "Shape", "Size", "Slice", "Split")
"""Operators that may leave an axis out without looking at it."""


def is_independent(found: Groups, units: NDArray[np.bool_]) -> bool:
    """Whether all but some units is computed without them, as far as rules about operators tell.

    Parameters
    ----------
    found : Groups
    units : array of bool, shape (n_units,)

    Examples
    --------
    >>> import graphmod as gm
    >>> found = gm.groups(gm.load(gm.demo.model_path()), free={"logits": 1})
    >>> classes = found.units(found.analysis.axes["logits"][1])
    >>> is_independent(found, np.isin(np.arange(found.n_units), classes))
    True
    >>> is_independent(found, np.arange(found.n_units) == 0)  # a channel within
    False
    """
    alive = found.left(~units)
    touched = set()
    for tensor, axes in found.analysis.axes.items():
        n_axes = sum(not alive(labels).all() for labels in axes)
        if n_axes > 1:
            return False
        if n_axes:
            touched.add(tensor)
    return all(
        _is_apart(operator, touched) for operator in found.model.operators if not touched.isdisjoint(consumed(operator))
    )


def _is_apart(operator: NodeProto, touched: Collection[str]) -> bool:
    """Whether an operator that reads some indices makes others without them."""
    if operator.domain not in (*STANDARD, MICROSOFT) or operator.op_type in (*RANDOM, "DynamicQuantizeLinear"):
        return False
    if operator.op_type in SELECTING:
        return True
    if not all(name in touched for name in operator.output if name):
        return False
    if operator.op_type in OPERANDS:
        return sum(operator.input[place] in touched for place in OPERANDS[operator.op_type]) == 1
    return operator.op_type in BY_INDEX
