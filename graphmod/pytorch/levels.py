"""Levels: the integers of a quantized tensor as floats, through which gradients pass.

What quantizes makes levels first and integers of them last. An operator that reads integers takes the levels that they
were made from, where there are any; one that only moves integers moves the levels. Integers that nobody reads vanish.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto, helper
from torch import Tensor, fx

from graphmod.pytorch.dtypes import has_tensor, is_float, torch_dtype
from graphmod.pytorch.values import to_numpy

MOVING = frozenset({
    "Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "GlobalMaxPool",
    "Identity", "Max", "MaxPool", "Min", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "Slice", "SpaceToDepth",
    "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
})  # fmt: skip
"""Operators whose results are some of the numbers that they are given: they do the same to levels as to integers."""


def as_integers(levels: Tensor, dtype: torch.dtype | str) -> Tensor | NDArray[np.generic]:
    """Return levels as numbers of the type that they are levels of; an array, where PyTorch has no such tensors.

    Examples
    --------
    >>> as_integers(torch.tensor([1.0, -2.0]), torch.int8)
    tensor([ 1, -2], dtype=torch.int8)
    """
    if isinstance(dtype, str):
        array: NDArray[np.generic] = to_numpy(levels).astype(getattr(ml_dtypes, dtype))
        return array
    return levels.to(dtype)


def name_of(dtype: np.dtype[np.generic]) -> torch.dtype | str:
    """Return the name by which :func:`as_integers` knows a type."""
    return torch_dtype(dtype) if has_tensor(dtype) else dtype.name


def levels_of(node: fx.Node) -> fx.Node:
    """Return the node of the levels that a node's integers are made from, or the node itself."""
    source = node.args[0] if node.target is as_integers else node
    assert isinstance(source, fx.Node)
    return source


def moves(operator: NodeProto) -> bool:
    """Whether an operator does the same to levels as to the integers that are made from them.

    Examples
    --------
    >>> moves(helper.make_node("Transpose", ["x"], ["y"])), moves(helper.make_node("Cast", ["x"], ["y"], to=1))
    (True, True)
    """
    if operator.op_type == "Cast":
        return is_float(helper.tensor_dtype_to_np_dtype(helper.get_node_attr_value(operator, "to")))
    return operator.op_type in MOVING
