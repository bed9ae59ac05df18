"""The axis of a tensor's channels: the operators around it tell, not the number of its axes.

A convolution reads and makes channels on axis 1, a matrix product with a constant on the last axis. Operators that
leave every axis where it is hand on what their neighbours tell, so the nearest operator that knows decides:

1. operators that mix or normalise channels, or that work beside them (pools);
2. where none is near, constants that differ along one axis alone, such as the bias of a normalisation written out;
3. where there are none either, what is known beyond a Transpose, Squeeze, Unsqueeze, or a Reshape of other axes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from graphmod.errors import InvalidModelError
from graphmod.model import Model

FIRST, LAST = 1, -1
"""The axes that channels lie on: behind the samples, or the last one."""

_ON_FIRST = frozenset(
    {
        "AveragePool", "BatchNormalization", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "DepthToSpace",
        "FusedConv", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GridSample", "GroupNormalization",
        "InstanceNormalization", "LRN", "LpPool", "MaxPool", "MaxRoiPool", "MaxUnpool", "QLinearConv", "RoiAlign",
        "SpaceToDepth",
    }
)  # fmt: skip
"""Operators for which axis 1 of what they read first, and of what they make, is that of the channels."""

_ON_LAST = frozenset(
    {
        "Attention", "BiasGelu", "EmbedLayerNormalization", "FastGelu", "GRU", "GroupQueryAttention", "LSTM",
        "MultiHeadAttention", "NhwcConv", "QAttention", "RNN", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip
"""Operators for which the last axis is."""

_NORMALIZED_FROM = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
"""Operators that normalise over the axes from their attribute ``axis`` on: over channels, if that is the last one."""

_PRODUCTS = {
    "MatMul": 1, "MatMulInteger": 1, "MatMulNBits": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3,
}  # fmt: skip
"""Matrix products, and which of their inputs is the right factor; the left one is the first."""

_SPREADING = frozenset({"Add", "Div", "Mul", "PRelu", "Sub"})
"""Operators whose constants tell, by the axis along which they differ."""

_KEEPING = _SPREADING | frozenset(
    {
        "Abs", "Acos", "Acosh", "And", "Asin", "Asinh", "Atan", "Atanh", "Bernoulli", "BitCast", "BitShift",
        "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip",
        "Concat", "Cos", "Cosh", "CumSum", "DequantizeLinear", "Dropout", "DynamicQuantizeLinear", "Elu",
        "Equal", "Erf", "Exp", "Expand", "Floor", "GatherElements", "Gelu", "Greater", "GreaterOrEqual",
        "HardSigmoid", "HardSwish", "Hardmax", "Identity", "IsInf", "IsNaN", "LayerNormalization", "LeakyRelu",
        "Less", "LessOrEqual", "Log", "LogSoftmax", "LpNormalization", "Max", "Mean",
        "MeanVarianceNormalization", "Min", "Mish", "Mod", "Neg", "Not", "Or", "Pad", "Pow", "QLinearAdd",
        "QLinearLeakyRelu", "QLinearMul", "QLinearSigmoid", "QuantizeLinear", "QuickGelu", "RMSNormalization",
        "Reciprocal", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
        "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Resize", "ReverseSequence", "Round",
        "ScatterElements", "ScatterND", "Selu", "Shrink", "Sigmoid", "Sign", "SimplifiedLayerNormalization",
        "Sin", "Sinh", "Slice", "Softmax", "Softplus", "Softsign", "Split", "Sqrt", "Sum", "Swish", "Tan",
        "Tanh", "ThresholdedRelu", "Tile", "TopK", "Trilu", "Upsample", "Where", "Xor",
    }
)  # fmt: skip
"""Operators that leave every axis of what has the rank of their output where it is."""

_MOVING = frozenset({"Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that take axes elsewhere, join and split them, and nothing else."""

_DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
"""Operator sets whose operators are known here by their types."""


_Shape = tuple[int | str | None, ...]


class _Way(NamedTuple):
    """A tensor that another one's axes are found in, and where each is there; at the same place if ``to`` is None."""

    tensor: str
    to: tuple[int | None, ...] | None = None


def channel_axis(model: Model, tensor: str) -> int:
    """Return the axis that a tensor's channels lie on: 1, or -1 for the last one.

    Where no operator tells, it is 1 for tensors of four axes and more and the last one for others. Of tensors with
    fewer than three axes it is always the last one.

    Parameters
    ----------
    model : Model
    tensor : str
        Its name; inputs and outputs of the model included.

    Raises
    ------
    InvalidModelError
        The model has no tensor of that name.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> channel_axis(m, "image"), channel_axis(m, "logits")
    (1, -1)
    """
    if tensor not in model.producer and tensor not in model.tensors:
        raise InvalidModelError(f"the model has no tensor named '{tensor}'")
    if model not in _KNOWN:
        _KNOWN[model] = _Evidence(model).axes()
    rank = _rank(model, tensor)
    if rank is not None and rank < 3:
        return LAST
    return _KNOWN[model].get(tensor) or (LAST if rank is None or rank < 4 else FIRST)


_KNOWN: WeakKeyDictionary[Model, Mapping[str, int]] = WeakKeyDictionary()
"""What was found of models; they do not change."""


class _Evidence:
    """What every operator of a model tells of the tensors that it reads and makes."""

    def __init__(self, model: Model):
        self.model = model
        self.made: dict[str, int] = {}
        self.read: dict[str, set[int]] = {}
        self.spread: dict[str, int] = {}
        self.kept: dict[str, list[_Way]] = {}
        self.moved: dict[str, list[_Way]] = {}
        varying = set(model.inputs)
        for operator, names in zip(model.operators, model.reads, strict=True):
            if not varying.isdisjoint(names):
                varying.update(filter(None, operator.output))
                if operator.domain in _DOMAINS:
                    self._add(operator, varying)

    def axes(self) -> dict[str, int]:
        """Return the axis of every tensor that something is known of."""
        found = dict(self.made)  # first, so that of two operators as near the one that data come from counts
        for name, axes in self.read.items():
            if len(axes) == 1:
                found.setdefault(name, *axes)
        self._hand_on(found, found, (self.kept,))
        fresh = {name: axis for name, axis in self.spread.items() if name not in found}
        self._hand_on(fresh, found, (self.kept,))
        self._hand_on(found, found, (self.kept, self.moved))
        return found

    def _hand_on(
        self, sources: Mapping[str, int], found: dict[str, int], ways: Sequence[Mapping[str, list[_Way]]]
    ) -> None:
        """Tell the tensors around some that are known, but no tensor that is known, the nearest first."""
        pending = deque(sources)
        found.update(sources)
        while pending:
            tensor = pending.popleft()
            for way in (way for part in ways for way in part.get(tensor, ())):
                axis = self._followed(found[tensor], way)
                if axis is not None and way.tensor not in found:
                    found[way.tensor] = axis
                    pending.append(way.tensor)

    def _followed(self, axis: int, way: _Way) -> int | None:
        """Return where an axis is in the tensor at the end of a way; None where that is neither axis 1 nor the last."""
        if way.to is None:
            return axis
        place = way.to[axis % len(way.to)]
        rank = _rank(self.model, way.tensor)
        return FIRST if place == 1 else LAST if rank is not None and place == rank - 1 else None

    # -- what an operator tells

    def _add(self, operator: NodeProto, varying: set[str]) -> None:
        op_type = operator.op_type
        outputs = [name for name in operator.output if name]
        inputs = [name for name in operator.input if name in varying]
        axis = self._axis(operator)
        if axis is not None:
            self._tell(operator.input[:1], outputs, axis)
        elif op_type in _PRODUCTS:
            self._add_product(operator, varying)
        elif op_type == "Gather" and self._is_table(operator, varying):
            self._tell((), outputs, LAST)
        elif op_type in _KEEPING:
            self._add_kept(inputs, outputs)
        elif op_type in _MOVING and operator.input[0] in varying:
            self._add_moved(operator, operator.input[0], outputs[0])
        if op_type in _SPREADING:
            self._add_spread(operator, outputs[0], varying)

    def _tell(self, inputs: Iterable[str], outputs: Iterable[str], axis: int) -> None:
        for name in inputs:
            self.read.setdefault(name, set()).add(axis)
        for name in outputs:
            self.made[name] = axis

    def _axis(self, operator: NodeProto) -> int | None:
        if operator.op_type in _NORMALIZED_FROM:
            axis, rank = int(_attribute(operator, "axis", -1)), _rank(self.model, operator.input[0])
            return LAST if axis == -1 or (rank is not None and axis == rank - 1) else None
        if operator.op_type == "Attention" and _rank(self.model, operator.input[0]) != 3:
            return None
        return FIRST if operator.op_type in _ON_FIRST else LAST if operator.op_type in _ON_LAST else None

    def _add_product(self, operator: NodeProto, varying: set[str]) -> None:
        """A product with a constant sums over channels; one of activations tells nothing, it may sum over positions."""
        left, right = operator.input[0], operator.input[_PRODUCTS[operator.op_type]]
        if right not in varying:
            factor = _rank(self.model, right)
            self._tell([left], operator.output if factor is None or factor > 1 else (), LAST)
        elif left not in varying and _rank(self.model, right) == 3:  # the last axis but one, which is axis 1
            self._tell([right], operator.output, FIRST)

    def _is_table(self, operator: NodeProto, varying: set[str]) -> bool:
        """Whether a Gather looks up rows of a constant, as an embedding does."""
        table = operator.input[0]
        return table not in varying and _rank(self.model, table) == 2 and _attribute(operator, "axis", 0) in (0, -2)

    def _add_kept(self, inputs: Iterable[str], outputs: Sequence[str]) -> None:
        inputs = list(inputs)
        for one in inputs:
            for other in outputs:
                ranks = _rank(self.model, one), _rank(self.model, other)
                if ranks[0] == ranks[1] and (ranks[0] is not None or len(inputs) == 1):
                    self.kept.setdefault(one, []).append(_Way(other))
                    self.kept.setdefault(other, []).append(_Way(one))

    def _add_moved(self, operator: NodeProto, read: str, made: str) -> None:
        before, after = (_shape(self.model, name) for name in (read, made))
        if before is None or after is None or min(len(before), len(after)) < 2:
            return
        places = self._origins(operator, before, after)
        if places is None:
            return
        back = {origin: place for place, origin in enumerate(places) if origin is not None}
        self.moved.setdefault(made, []).append(_Way(read, places))
        self.moved.setdefault(read, []).append(_Way(made, tuple(back.get(place) for place in range(len(before)))))

    def _origins(self, operator: NodeProto, read: _Shape, made: _Shape) -> tuple[int | None, ...] | None:
        """Return, for every axis of what an operator that moves axes makes, which axis of what it reads that is."""
        if operator.op_type == "Transpose":
            return tuple(_attribute(operator, "perm", range(len(read))[::-1]))
        if operator.op_type == "Reshape":
            return _whole_axes(read, made)
        more, fewer = max(len(read), len(made)), min(len(read), len(made))
        axes = self._integers(operator)
        if axes is None or len({axis % more for axis in axes}) != more - fewer:
            return None
        left = [place for place in range(more) if place not in {axis % more for axis in axes}]
        if operator.op_type == "Squeeze":
            return tuple(left)
        return tuple(left.index(place) if place in left else None for place in range(more))

    def _integers(self, operator: NodeProto) -> list[int] | None:
        """Return the axes that a Squeeze or Unsqueeze names, None where they are not known beforehand."""
        if len(operator.input) < 2:
            axes = _attribute(operator, "axes", None)
            return None if axes is None else list(axes)
        name = operator.input[1]
        if name in self.model.initializers:
            return [int(axis) for axis in np.ravel(self.model.initializer(name))]
        maker = self.model.operators[self.model.producer[name]] if name in self.model.producer else None
        if maker is None or maker.op_type != "Constant":
            return None
        value = _attribute(maker, "value", None)
        axes = _attribute(maker, "value_ints", None) if value is None else numpy_helper.to_array(value)
        return None if axes is None else [int(axis) for axis in np.ravel(axes)]

    def _add_spread(self, operator: NodeProto, made: str, varying: set[str]) -> None:
        rank = _rank(self.model, made)
        for axis in {*self._axes_of_constants(operator, rank, varying)} if rank is not None else ():
            self.spread.setdefault(made, axis)
            for name in operator.input:
                if name in varying and _rank(self.model, name) == rank:
                    self.spread.setdefault(name, axis)

    def _axes_of_constants(self, operator: NodeProto, rank: int, varying: set[str]) -> Iterator[int]:
        for name in operator.input:
            kind = self.model.tensors.get(name)
            if name not in varying and kind is not None and kind.shape is not None:
                places = [place + rank - len(kind.shape) for place, size in enumerate(kind.shape) if size != 1]
                if len(places) == 1 and places[0] in (1, rank - 1):
                    yield FIRST if places[0] == 1 else LAST


def _whole_axes(read: _Shape, made: _Shape) -> tuple[int | None, ...]:
    """Return which axis of what a Reshape reads the second and the last of what it makes are, as far as they are one.

    Values keep their order, so the last axis stays if its size does, and the second if the sizes up to it or those
    behind it stay.
    """
    places: list[int | None] = [None] * len(made)
    if read and made and isinstance(read[-1], int) and read[-1] == made[-1]:
        places[-1] = len(read) - 1
    if min(len(read), len(made)) > 1 and isinstance(read[1], int) and read[1] == made[1]:
        behind = [prod(size for size in shape[2:] if isinstance(size, int)) for shape in (read, made)]
        are_known = all(isinstance(size, int) for size in (*read[2:], *made[2:]))
        if (read[0] is not None and read[0] == made[0]) or (are_known and behind[0] == behind[1]):
            places[1] = 1
    return tuple(places)


def _shape(model: Model, tensor: str) -> _Shape | None:
    kind = model.tensors.get(tensor)
    return None if kind is None else kind.shape


def _rank(model: Model, tensor: str) -> int | None:
    shape = _shape(model, tensor)
    return None if shape is None else len(shape)


def _attribute(operator: NodeProto, name: str, default: Any) -> Any:
    found = next((one for one in operator.attribute if one.name == name), None)
    return default if found is None else helper.get_attribute_value(found)
