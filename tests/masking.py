"""What removing channels should compute, in the network's original shapes and by plain onnx: the independent reference.

Where a weight loses indices, its slices become zero. That alone is not the same as removal where an operator mixes or
counts along an axis that loses some (a mean is over fewer elements, a softmax gives its share to the others) or where
zero is no rest (0/0). Such an operator gets its inputs compressed to the indices that are left, runs as it is, and has
zeros put back where its outputs lost indices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

Removed = Mapping[tuple[str, int], np.ndarray]

NORMS = (
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "GroupNorm", "RMSNormalization",
    "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "LpNormalization",
    "MeanVarianceNormalization", "LRN",
)  # fmt: skip
REDUCTIONS = tuple(
    f"Reduce{what}"
    for what in ("Mean", "Sum", "Max", "Min", "L1", "L2", "SumSquare", "Prod", "LogSumExp", "LogSum")
)  # fmt: skip
LEVELLING = {"DynamicQuantizeLinear", "DynamicQuantizeMatMul"}  # by the largest of all values
MIXING = {*NORMS, *LEVELLING, *REDUCTIONS, "Softmax", "LogSoftmax", "Hardmax", "LpPool", "CumSum", "ArgMax", "ArgMin"}
NO_REST_AT_ZERO = {"Div", "Pow", "Mod", "Reciprocal", "Log"}
PRODUCTS = {
    "MatMul",
    "Gemm",
    "Einsum",
    "FusedMatMul",
}  # linear in a constant, which is zeroed; else both can be off zero

# Inputs by operator that scale or shift levels: dividing by zero is no rest, and what is levelled rests anyway.
LEVELS = {
    "QuantizeLinear": {1, 2}, "DequantizeLinear": {1, 2}, "QLinearConv": {1, 2, 4, 5, 6, 7},
    "QLinearMatMul": {1, 2, 4, 5, 6, 7}, "ConvInteger": {2, 3}, "MatMulInteger": {2, 3},
    "QGemm": {1, 2, 4, 5, 7, 8}, "DynamicQuantizeMatMul": {2, 3}, "MatMulIntegerToFloat": {2, 3, 4, 5},
    "QAttention": {3, 4, 6, 7}, "DynamicQuantizeLSTM": {8, 9, 10, 11}, "MatMulNBits": {3},
}  # fmt: skip
ZERO_POINTS = {
    ("DequantizeLinear", 0): 2, ("QLinearConv", 3): 5, ("QLinearMatMul", 3): 5, ("QLinearMatMul", 0): 2,
    ("QGemm", 3): 5, ("DynamicQuantizeMatMul", 1): 3, ("MatMulIntegerToFloat", 1): 5, ("QAttention", 1): 7,
    ("DynamicQuantizeLSTM", 1): 9, ("DynamicQuantizeLSTM", 2): 11,
    ("ConvInteger", 1): 3, ("MatMulInteger", 1): 3, ("MatMulInteger", 0): 2,
}  # fmt: skip


def masked(proto: ModelProto, removed: Removed, leftovers: bool = False) -> ModelProto:
    """Return the network in its original shapes, computing what it should compute without some indices.

    Parameters
    ----------
    proto : ModelProto
        Opset 11 or newer where operators must be compressed. Bodies of If, Loop and Scan stay as they are.
    removed : mapping of (tensor, axis) to int array
        Indices that go, for weights (initializers, Constant and ConstantOfShape outputs) and for activations.
    leftovers : bool
        Whether only weights that make channels become zero (Conv, ConvTranspose, Gemm, MatMul: the output axis and the
        bias), so that what follows makes constants of removed channels, as BatchNormalization does.

    Raises
    ------
    ValueError
        Where the reference cannot say what removal means: groups of GroupNormalization left uneven, a sparse weight.
    """
    result = ModelProto()
    result.CopyFrom(proto)
    by_tensor: dict[str, dict[int, np.ndarray]] = {}
    for (tensor, axis), indices in removed.items():
        if len(indices):
            by_tensor.setdefault(tensor, {})[axis] = np.unique(np.asarray(indices, np.int64))
    _Zeroing(result.graph, by_tensor, leftovers).apply()
    _Compressing(result, by_tensor).apply()
    return result


def _attribute(node: NodeProto, name: str, default: object = None) -> object:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _constant_value(node: NodeProto) -> np.ndarray | None:
    """Return the value of a Constant of floats or ints, as an array."""
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return numpy_helper.to_array(value)
        if attribute.name in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if attribute.name in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
    return None


class _Zeroing:
    """The slices of weights that removal takes away, set to what counts as zero."""

    def __init__(self, graph: GraphProto, by_tensor: dict[str, dict[int, np.ndarray]], leftovers: bool):
        self.graph, self.by_tensor, self.leftovers = graph, by_tensor, leftovers
        self.initializers = {tensor.name: i for i, tensor in enumerate(graph.initializer)}
        self.makers = {tensor: node for node in graph.node for tensor in node.output}
        self.readers: dict[str, list[tuple[NodeProto, int]]] = {}
        for node in graph.node:
            for i, tensor in enumerate(node.input):
                self.readers.setdefault(tensor, []).append((node, i))

    def apply(self) -> None:
        sparse = {tensor.values.name for tensor in self.graph.sparse_initializer} & set(self.by_tensor)
        if sparse:
            raise ValueError(f"sparse weights {sorted(sparse)} cannot be masked")
        filled: set[str] = set()
        for tensor, axes in self.by_tensor.items():
            value = self.value(tensor)
            rest = None if value is None else self.rest(tensor, value)
            if value is None or rest is None:
                continue
            changed = value.copy()
            for axis, indices in axes.items():
                if not self.leftovers or axis % value.ndim in self.made_axes(tensor, value.ndim):
                    where = (slice(None),) * (axis % value.ndim) + (indices,)
                    changed[where] = np.broadcast_to(rest, value.shape)[where]
            if self.store(tensor, numpy_helper.from_array(changed, tensor)):
                filled.add(tensor)
        kept = [node for node in self.graph.node if not filled.intersection(node.output)]
        if filled:
            del self.graph.node[:]
            self.graph.node.extend(kept)

    def value(self, tensor: str) -> np.ndarray | None:
        """Return the value of an initializer or of a constant's output; None for activations."""
        if tensor in self.initializers:
            return numpy_helper.to_array(self.graph.initializer[self.initializers[tensor]])
        maker = self.makers.get(tensor)
        if maker is not None and maker.op_type == "Constant":
            return _constant_value(maker)
        if maker is not None and maker.op_type == "ConstantOfShape":
            shape = self.value(maker.input[0])
            filling = _constant_value(maker)
            if shape is None and (filling is None or not filling.any()):
                return None  # zeros already
            if shape is None:
                raise ValueError(f"the shape of {tensor!r} is computed: its slices cannot be masked")
            fill = _attribute(maker, "value")
            return np.full(shape, 0.0 if fill is None else numpy_helper.to_array(fill)[0], _dtype(fill))
        return None

    def rest(self, tensor: str, value: np.ndarray) -> np.ndarray | None:
        """Return what counts as zero in a weight, or None where it is none (indices, shapes, scales of levels)."""
        for node, i in self.readers.get(tensor, []):
            if i in LEVELS.get(node.op_type, ()):
                return None
            if (node.op_type, i) in ZERO_POINTS:
                position = ZERO_POINTS[node.op_type, i]
                point = (
                    self.value(node.input[position]) if len(node.input) > position and node.input[position] else None
                )
                if point is None or not point.any():
                    return np.zeros((), value.dtype)
                if point.size == 1:
                    return point.reshape(())
                if point.ndim > 1:
                    raise ValueError(f"zero points of {tensor!r} come in blocks: its slices cannot be masked")
                is_flipped = node.op_type == "QGemm" and bool(_attribute(node, "transB", 0))
                default = {"DequantizeLinear": 1, "QLinearConv": 0}.get(
                    node.op_type, 0 if is_flipped else value.ndim - 1
                )
                axis = int(_attribute(node, "axis", default)) % value.ndim
                return point.reshape([-1 if i == axis else 1 for i in range(value.ndim)])
        return np.zeros((), value.dtype) if value.dtype.kind in "fV" else None  # V: bfloat16, float8

    def made_axes(self, tensor: str, rank: int) -> set[int]:
        """Return the axes of a weight that become channels, also where it is dequantised, cast or transposed first."""
        axes, todo = set(), [(tensor, list(range(rank)))]
        while todo:
            name, origin = todo.pop()
            for node, i in self.readers.get(name, []):
                if i == 0 and node.op_type in ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity"):
                    todo.append((node.output[0], origin))
                elif node.op_type == "Transpose":
                    order = _attribute(node, "perm", list(range(rank))[::-1])
                    todo.append((node.output[0], [origin[axis] for axis in order]))
                elif (axis := _made_axis(node, i, rank)) is not None:
                    axes.add(origin[axis])
        return axes

    def store(self, tensor: str, value: TensorProto) -> bool:
        """Put a value in place; say whether it took the place of an operator."""
        if tensor in self.initializers:
            self.graph.initializer[self.initializers[tensor]].CopyFrom(value)
            return False
        self.graph.initializer.append(value)
        return True


def _dtype(fill: TensorProto | None) -> np.dtype:
    return np.dtype(np.float32) if fill is None else helper.tensor_dtype_to_np_dtype(fill.data_type)


def _made_axis(node: NodeProto, i: int, rank: int) -> int | None:
    """Return which axis of an operator's input becomes its output channels."""
    match node.op_type, i:
        case "Conv", 1:
            return 0
        case "ConvTranspose", 1:
            return 1
        case (("Conv" | "ConvTranspose" | "Gemm"), 2):
            return rank - 1
        case "Gemm", 0:
            return 1 if _attribute(node, "transA", 0) else 0
        case "Gemm", 1:
            return 0 if _attribute(node, "transB", 0) else 1
        case "MatMul", 0:
            return rank - 2 if rank > 1 else None
        case "MatMul", 1:
            return rank - 1
        case _:
            return None


def _inferable(model: ModelProto) -> ModelProto:
    """Return a network of the same types, without operators behind which inference of shapes ends."""
    same = ModelProto()
    same.CopyFrom(model)
    for node in same.graph.node:
        if node.op_type in ("GroupNormalization", "QuickGelu", "SkipLayerNormalization"):
            node.CopyFrom(helper.make_node("Identity", node.input[:1], node.output))
    return same


class _Compressing:
    """Operators that mix along an axis which loses indices, run over what is left."""

    def __init__(self, model: ModelProto, by_tensor: dict[str, dict[int, np.ndarray]]):
        self.graph, self.by_tensor = model.graph, by_tensor
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        known = shape_inference.infer_shapes(_inferable(model)).graph
        infos = [*known.value_info, *known.input, *known.output]
        self.types = {info.name: info.type.tensor_type for info in infos}
        self.nodes: list[NodeProto] = []
        self.constants = {tensor.name for tensor in model.graph.initializer}
        for node in model.graph.node:
            if all(not tensor or tensor in self.constants for tensor in node.input):
                self.constants.update(node.output)

    def apply(self) -> None:
        originals = list(self.graph.node)
        for node in originals:
            if self.must_run_smaller(node):
                self.run_smaller(node)
            else:
                self.nodes.append(node)
        copies = [NodeProto.FromString(node.SerializeToString()) for node in self.nodes]
        del self.graph.node[:]
        self.graph.node.extend(copies)

    def must_run_smaller(self, node: NodeProto) -> bool:
        if not any(tensor in self.by_tensor for tensor in node.input):
            return False
        if node.op_type in PRODUCTS:
            return not any(tensor in self.constants for tensor in node.input[:2])
        if node.op_type == "AveragePool":  # a local response normalisation moves over channels
            return any(axis > 1 for axis in self.by_tensor.get(node.input[0], ()))
        return node.op_type in MIXING or node.op_type in NO_REST_AT_ZERO

    def run_smaller(self, node: NodeProto) -> None:
        if self.opset < 11:
            raise ValueError(
                f"operator {node.name!r} must run over what is left: that needs opset 11, not {self.opset}"
            )
        smaller = NodeProto()
        smaller.CopyFrom(node)
        smaller.input[:] = [self.compressed(tensor) for tensor in node.input]
        smaller.output[:] = [f"{tensor}/left" if tensor in self.by_tensor else tensor for tensor in node.output]
        if node.op_type in ("GroupNormalization", "GroupNorm"):
            self.fit_groups(smaller, node)
        self.nodes.append(smaller)
        for tensor in node.output:
            if tensor in self.by_tensor:
                self.put_back(tensor)

    def add(self, op_type: str, reads: Iterable[str], made: str | None = None, **attributes: object) -> str:
        made = made or f"masking/{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(reads), [made], f"masking/{made}", **attributes))
        return made

    def ints(self, *values: int) -> str:
        return self.add("Constant", [], value=numpy_helper.from_array(np.array(values, np.int64)))

    def alive(self, tensor: str, axis: int, lost: np.ndarray, already_lost: int = 0) -> str:
        """Add a vector with 1 for every index of an axis that stays and 0 for the others."""
        length = self.add("Gather", [self.add("Shape", [tensor]), self.ints(axis)])
        length = self.add("Add", [length, self.ints(already_lost)])
        ones = self.add("ConstantOfShape", [length], value=numpy_helper.from_array(np.ones(1, np.int64)))
        return self.add("ScatterElements", [ones, self.ints(*lost), self.ints(*[0] * len(lost))])

    def compressed(self, tensor: str) -> str:
        for axis, lost in self.by_tensor.get(tensor, {}).items():
            there = self.add("NonZero", [self.alive(tensor, axis, lost)])
            tensor = self.add("Gather", [tensor, self.add("Reshape", [there, self.ints(-1)])], axis=axis)
        return tensor

    def put_back(self, tensor: str) -> None:
        """Append a zero slice along every axis that lost indices, and point every lost index at it."""
        current = f"{tensor}/left"
        axes = self.by_tensor[tensor]
        for axis, lost in axes.items():
            alive = self.alive(current, axis, lost, already_lost=len(lost))
            rank = self.add("CumSum", [alive, self.add("Constant", [], value_int=0)])
            beyond = self.add("Gather", [self.add("Shape", [current]), self.ints(axis)])
            is_alive = self.add("Cast", [alive], to=TensorProto.BOOL)
            index = self.add("Where", [is_alive, self.add("Sub", [rank, self.ints(1)]), beyond])
            slice_shape = self.add("Shape", [self.add("Gather", [current, self.ints(0)], axis=axis)])
            nothing = self.add("ConstantOfShape", [slice_shape], value=self.zero(tensor))
            longer = self.add("Concat", [current, nothing], axis=axis)
            current = self.add("Gather", [longer, index], axis=axis)
        self.add("Identity", [current], tensor)

    def zero(self, tensor: str) -> TensorProto:
        element = self.types[tensor].elem_type if tensor in self.types else 0
        return helper.make_tensor("zero", element or TensorProto.FLOAT, [1], [0])

    def fit_groups(self, smaller: NodeProto, node: NodeProto) -> None:
        """Set the number of groups: whole ones may go, or as many channels in each of those that stay."""
        name, axis = ("num_groups", 1) if node.op_type == "GroupNormalization" else ("groups", -1)
        dims = self.types[node.input[0]].shape.dim
        axis %= len(dims)
        here = np.ones(dims[axis].dim_value, bool)
        here[self.by_tensor.get(node.input[0], {}).get(axis, [])] = False
        left = here.reshape(_attribute(node, name), -1).sum(1)
        if len(set(left) - {0}) != 1:
            raise ValueError(f"operator {node.name!r} is left with {left.tolist()} channels in its groups")
        for attribute in smaller.attribute:
            if attribute.name == name:
                attribute.i = int((left > 0).sum())
