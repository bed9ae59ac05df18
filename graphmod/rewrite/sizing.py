"""Following a dimension through a graph: the shapes, and the small values made of them, at one size of it.

Two sizes, one of them the file's and one that occurs nowhere, tell which dimensions follow from it. Operators are
taken one by one, by ONNX's own shape inference and reference implementation, so that none needs a rule here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TypeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graphmod.model import Model, TensorType, has_bodies
from graphmod.model.initializers import LARGE, values
from graphmod.rewrite.element_types import STANDARD
from graphmod.rewrite.shaped_alike import shaped_alike
from graphmod.rewrite.simplify import RANDOM

Array = NDArray[np.generic]
Shape = tuple[int | None, ...]


@dataclass(eq=False)
class Sizes:
    """Shapes and small values of tensors, at one size of the dimension that is followed.

    Parameters
    ----------
    model : Model
    shapes : dict of str to tuple of int or None
        Of the tensors known so far; None stands for a dimension that nothing tells.
    values : dict of str to array
        Of small tensors that follow from constants and shapes alone.
    like : dict of str to str
        For tensors that the model does not have, one of its own of the same type.
    """

    model: Model
    shapes: dict[str, Shape] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    like: dict[str, str] = field(default_factory=dict)
    _elements: dict[str, int] = field(default_factory=dict)  # types of what inference makes

    def __post_init__(self) -> None:
        for name, tensor in self.model.initializers.items():
            self.shapes[name] = tuple(tensor.dims)
            if prod(tensor.dims) <= LARGE:
                self.values[name] = values(tensor, self.model.folder)
        for sparse in self.model._proto.graph.sparse_initializer:
            self.shapes[sparse.values.name] = tuple(sparse.dims)
            self._elements[sparse.values.name] = sparse.values.data_type

    def follow(self, operator: NodeProto) -> str:
        """Note what an operator makes; return why inference fails where it does, "" otherwise."""
        given = [name for name in operator.input if name]
        if operator.op_type == "Shape" and operator.domain in STANDARD:
            self._note_shape(operator)
        elif self._follows_from_values(operator, given):
            self._compute(operator)
        if all(name in self.values for name in operator.output if name):
            self.shapes.update((name, self.values[name].shape) for name in operator.output if name)
            return ""
        return self._infer(operator, given)

    def _note_shape(self, operator: NodeProto) -> None:
        shape = self.shapes.get(operator.input[0])
        bounds = {attribute.name: attribute.i for attribute in operator.attribute}
        if shape is not None:
            part = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
            if None not in part:
                self.values[operator.output[0]] = np.array(part, np.int64)

    def _follows_from_values(self, operator: NodeProto, given: list[str]) -> bool:
        if has_bodies(operator) or operator.domain not in STANDARD or operator.op_type in RANDOM:
            return False
        return all(name in self.values for name in given) and self._stays_small(operator)

    def _stays_small(self, operator: NodeProto) -> bool:
        match operator.op_type:
            case "Range":
                start, limit, delta = (float(self.values[name].item()) for name in operator.input)
                return abs(limit - start) <= LARGE * abs(delta)
            case "ConstantOfShape" | "Expand" | "Tile":
                return bool(np.abs(self.values[operator.input[-1]].astype(np.float64)).prod() <= LARGE)
        return True

    def _compute(self, operator: NodeProto) -> None:
        try:
            evaluator = ReferenceEvaluator(operator, opsets=self.model.opsets)
            found: Any = evaluator.run(None, {name: self.values[name] for name in operator.input if name})
        except Exception:  # noqa: BLE001  # the reference implementation raises what it likes; then nothing is known
            return
        for name, value in zip(operator.output, found, strict=True):
            if name and isinstance(value, np.ndarray | np.generic) and np.size(value) <= LARGE:
                self.values[name] = np.asarray(value)

    def _infer(self, operator: NodeProto, given: list[str]) -> str:
        alike = shaped_alike(operator, self.model.opset)
        if alike:
            return next(filter(None, [self._infer(one, list(filter(None, one.input))) for one in alike]), "")
        domain = "" if operator.domain in STANDARD else operator.domain
        version = self.model.opsets.get(domain, 1)
        types = {name: kind for name in given if (kind := self._type(name)) is not None}
        if not onnx.defs.has(operator.op_type, version, domain) or len(types) < len(set(given)):
            return ""
        held = {
            name: self.values[name] for name in given if name in self.values and self.values[name].dtype.kind in "iufb"
        }
        data = {name: numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()}
        schema = onnx.defs.get_schema(operator.op_type, version, domain)
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema, operator, types, input_data=data, opset_imports=list(self.model._proto.opset_import)
            )
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError) as error:
            return str(error).strip().splitlines()[0]
        for name, kind in found.items():
            self._elements[name] = kind.tensor_type.elem_type
            if kind.HasField("tensor_type") and kind.tensor_type.HasField("shape"):
                dims = kind.tensor_type.shape.dim
                self.shapes[name] = tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in dims)
        return ""

    def _type(self, tensor: str) -> TypeProto | None:
        kind = self.model.tensors.get(self.like.get(tensor, tensor), TensorType(None, None))
        dtype = self.values[tensor].dtype if tensor in self.values else kind.dtype
        element = self._elements.get(tensor) if dtype is None else helper.np_dtype_to_tensor_dtype(dtype)
        if not element:
            return None
        return helper.make_tensor_type_proto(element, self.shapes.get(tensor))


def scaled(before: Shape, after: Shape) -> list[int]:
    """Return the axes of a tensor that follow from the dimension, by its shapes at two sizes of it.

    >>> scaled((1, 16, 64), (31, 16, 64))
    [0]
    """
    return [axis for axis, (old, new) in enumerate(zip(before, after, strict=True)) if old != new or old is None]


def reshaped(before: Shape, after: Shape, target: Shape, size: int, inner: bool = False) -> tuple[int, ...] | None:
    """Return the shape that a Reshape should make at the other size; None where rows would be mixed.

    Both shapes list the same scalars row by row. The dimension goes to an axis before which as many scalars stand as
    before it; if it is a part of an axis, of which the file does not say whether the outer or the inner one, the
    axes that this axis splits into can all hold it.

    Parameters
    ----------
    before, after : tuple of int
        The input's shape at the two sizes.
    target : tuple of int
        The output's shape at the first.
    size : int
        The first size.
    inner : bool
        Whether to take the last axis that can hold the dimension and has its size, instead of the first that can.

    Examples
    --------
    >>> reshaped((1, 16, 64), (31, 16, 64), (16, 4, 16), 1), reshaped((16, 64), (496, 64), (1, 16, 64), 1)
    ((496, 4, 16), (31, 16, 64))
    >>> reshaped((16, 64), (496, 64), (16, 1, 64), 1, inner=True)
    (16, 31, 64)
    """
    if None in before or None in after or None in target:
        return None
    old, new, made = (np.array(shape, np.int64) for shape in (before, after, target))
    axes = np.flatnonzero(old != new)
    if len(axes) != 1 or old.prod() != made.prod() or not old.prod():
        return None if len(axes) else tuple(map(int, made))
    axis = int(axes[0])
    ahead, until = int(old[:axis].prod()), int(old[: axis + 1].prod())
    ends = np.cumprod(made)
    starts = ends // made
    reaches = max(until, ahead * size)
    able = [j for j in range(len(made)) if starts[j] <= ahead <= ends[j] or ahead <= starts[j] <= reaches]
    exact = [j for j in able if made[j] == size and ahead <= starts[j] and ends[j] <= reaches]
    leading = [j for j in able if starts[j] == ahead]
    pure = old[axis] == size
    choice = exact[-1:] if inner and not pure else exact[:1] if pure or size > 1 else []
    choice = [axis] if pure and axis in exact else choice or leading[:1] or able[:1]
    if not choice or int(made[choice[0]]) * int(new[axis]) % int(old[axis]):
        return None
    made[choice[0]] = int(made[choice[0]]) * int(new[axis]) // int(old[axis])
    return tuple(map(int, made))
