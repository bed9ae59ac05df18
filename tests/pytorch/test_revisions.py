"""Every revision of every operator: models of one operator, at all operator sets from 7 on at which they are valid.

What torch computes is held against ONNX Runtime, where that does not have the revision against onnx's reference
implementation, and where neither has it, or neither is right, against NumPy.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from graphmod.errors import InvalidDataError, InvalidModelError
from graphmod.model import load
from graphmod.pytorch import to_torch
from graphmod.pytorch.functions import is_function
from graphmod.pytorch.operators.vision import max_roi_pool_of
from graphmod.pytorch.reference import has_reference
from graphmod.pytorch.registry import find
from graphmod.pytorch.values import to_numpy, to_value

FIRST, NEWEST = 7, min(28, onnx.defs.onnx_opset_version())
RUNTIME = 26
"""The newest operator set for which ONNX Runtime keeps its promises."""

rng = np.random.default_rng(0)


def f(*shape):
    return rng.normal(size=shape).astype(np.float32)


def i(*values):
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """One operator, or a whole graph as text, and the operator sets at which it is valid."""

    op_type: str
    inputs: tuple[np.ndarray | None, ...]
    since: int = FIRST
    until: int = NEWEST
    n_outputs: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    expected: Callable[..., Any] | None = None
    fallback: bool = False

    def __str__(self):
        parts = [f"{key}={value}" for key, value in self.attributes.items() if not hasattr(value, "SerializeToString")]
        return "-".join([self.op_type, *parts, *(str(x.shape) for x in self.inputs[1:] if x is not None)])

    @property
    def opsets(self):
        """The operator sets at which the case is valid."""
        valid = range(max(self.since, FIRST), min(self.until, NEWEST) + 1)
        return [opset for opset in valid if has(self.op_type, opset)]

    @property
    def given(self):
        """The inputs that are not left out."""
        return [x for x in self.inputs if x is not None]

    @property
    def ways(self):
        """Whether inputs but for the first are held as constants: both, where there are any."""
        return (True, False) if len(self.given) > 1 and not self.text else (False,)

    @property
    def starts(self):
        """The first operator set of every revision, and the newest."""
        first = {schema(self.op_type, opset).since_version: opset for opset in reversed(self.opsets)}
        return sorted({*first.values(), self.opsets[-1]})


@cache
def schema(op_type, opset):
    return onnx.defs.get_schema(op_type, opset)


def has(op_type, opset):
    """Whether an operator set has an operator and means it to be used; GroupNormalization was withdrawn late."""
    if not onnx.defs.has(op_type, opset):
        return False
    return op_type == "GroupNormalization" or not schema(op_type, opset).deprecated


def c(op_type, *inputs, since=FIRST, until=NEWEST, n=1, expected=None, fallback=False, **attributes):
    given = tuple(None if x is None else np.asarray(x) for x in inputs)
    return Case(op_type, given, since, until, n, attributes, "", expected, fallback)


def g(op_type, text, *inputs, since=FIRST, until=NEWEST, expected=None):
    return Case(op_type, inputs, since, until, text=text, expected=expected)


def model_of(case, opset, held):
    """Return the model of a case whose inputs, but for the first, are initializers (``held``) or inputs."""
    if case.text:
        return parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {case.text}')
    names = [f"x{index}" if x is not None else "" for index, x in enumerate(case.inputs)]
    outputs = [f"y{index}" for index in range(case.n_outputs)]
    present = [(name, x) for name, x in zip(names, case.inputs, strict=True) if name]
    graph = helper.make_graph(
        [helper.make_node(case.op_type, names, outputs, **case.attributes)],
        "g",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for index, (name, x) in enumerate(present)
            if index == 0 or not held
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(x, name) for name, x in present[1:]] if held else [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def feeds_of(case, proto):
    return {value.name: x for value, x in zip(proto.graph.input, case.given, strict=False)}


def expected_of(case, opset, proto):
    """Return the outputs, from the best source that there is; None where there is none."""
    feeds = feeds_of(case, proto)
    if case.expected is not None:
        made = case.expected(*case.inputs)
        return list(made) if isinstance(made, tuple) else [made]
    if opset <= RUNTIME:
        model = load(proto)
        with contextlib.suppress(InvalidModelError, InvalidDataError):  # whatever it is that ONNX Runtime lacks
            return list(model.run(feeds).values())
    try:
        return list(ReferenceEvaluator(proto).run(None, feeds))
    except NotImplementedError:
        return None


def check(case, opset, held, known):
    """Hold an operator set against what its revision computes, which ``known`` keeps.

    A revision that can be run nowhere else is held against the one before it.
    """
    proto = model_of(case, opset, held)
    revision = schema(case.op_type, opset).since_version
    if revision not in known:
        known[revision] = expected_of(case, opset, proto) or known[max(known)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if case.fallback else "error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="index_reduce")
        net = to_torch(proto)
        with torch.no_grad():
            made = net(*[to_value(x) for x in feeds_of(case, proto).values()])
    made = made if isinstance(made, tuple) else (made,)
    assert len(made) == len(known[revision])
    for actual, value in zip(made, known[revision], strict=True):
        same(to_numpy(actual), value)


def same(actual, value):
    if isinstance(value, list):
        assert len(actual) == len(value)
        for left, right in zip(actual, value, strict=True):
            same(left, right)
        return
    value = np.asarray(value)
    assert actual.shape == value.shape
    if value.dtype.kind in "OU":
        assert actual.tolist() == value.tolist()
        return
    assert actual.dtype == value.dtype
    wide = np.complex128 if value.dtype.kind == "c" else np.float64
    finite = np.abs(value.astype(wide))[np.isfinite(value.astype(wide))]
    tolerance = 1e-4 if value.dtype.itemsize > 2 else 1e-2
    np.testing.assert_allclose(
        actual.astype(wide), value.astype(wide), rtol=tolerance, atol=tolerance * finite.max(initial=1e-3)
    )


M, B, IMAGE, V = f(3, 4), f(2, 3, 4), f(2, 4, 7, 7), f(4)
POSITIVE = np.abs(B) + 0.1
UNIT = np.tanh(M)
BN = (f(4), f(4), f(4), np.abs(f(4)) + 0.5)

UNARY = {
    "Abs": M, "Acos": UNIT, "Acosh": POSITIVE + 1, "Asin": UNIT, "Asinh": M, "Atan": M, "Atanh": UNIT, "Ceil": M,
    "Cos": M, "Cosh": M, "Elu": M, "Erf": M, "Exp": M, "Floor": M, "HardSigmoid": M, "HardSwish": M, "Identity": M,
    "IsNaN": np.where(M > 0, np.nan, M).astype(np.float32), "LeakyRelu": M, "Log": POSITIVE, "Mish": M, "Neg": M,
    "Reciprocal": M, "Relu": M, "Round": 2 * M, "Selu": M, "Sigmoid": M, "Sign": M, "Sin": M, "Sinh": M, "Softplus": M,
    "Softsign": M, "Sqrt": POSITIVE, "Tan": M, "Tanh": M, "ThresholdedRelu": M, "Celu": M, "Shape": B, "Size": B,
    "NonZero": (M > 0).astype(np.float32), "GlobalAveragePool": IMAGE, "GlobalMaxPool": IMAGE, "Not": M > 0,
    "Det": f(2, 3, 3), "Gelu": M, "Swish": M, "Shrink": M,
}  # fmt: skip
REDUCE = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
CAST = {
    "float to int64": (M * 3, TensorProto.INT64), "float to bool": (M.round(), TensorProto.BOOL),
    "float to double": (M, TensorProto.DOUBLE), "float to half": (M, TensorProto.FLOAT16),
    "int to float": (i(1, -2), TensorProto.FLOAT), "bool to int": (M > 0, TensorProto.INT32),
}  # fmt: skip
Q = (np.float32(0.1), np.uint8(128))
PER_AXIS = (np.abs(f(4)) + 0.1, np.zeros(4, np.int8))
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def axes_since(op_type):
    """Return the first operator set in which axes are an input."""
    return 13 if op_type in ("ReduceSum", "Squeeze", "Unsqueeze") else 18


def integer_mean(x):
    return x.mean(1, keepdims=True).astype(x.dtype)


def recurrent(op_type, *, layout=0, n_directions=1, lengths=False, start=False, **attributes):
    gates, hidden = GATES[op_type], 5
    x, state = f(3, 2, 4), f(n_directions, 2, hidden)
    if layout:
        x, state = x.transpose(1, 0, 2).copy(), state.transpose(1, 0, 2).copy()
        attributes["layout"] = 1
    states = [state] * (2 if op_type == "LSTM" else 1) if start else []
    return c(
        op_type, x, f(n_directions, gates * hidden, 4), f(n_directions, gates * hidden, hidden),
        f(n_directions, 2 * gates * hidden), np.int32([3, 2]) if lengths else None, *states,
        n=3 if op_type == "LSTM" else 2, since=14 if layout else FIRST, hidden_size=hidden, **attributes,
    )  # fmt: skip


CASES = [
    *(c(name, x) for name, x in UNARY.items()),
    *(c(name, M, V) for name in ("Add", "Sub", "Mul", "Div", "PRelu")),
    *(c(name, i(7, -7, 5), i(2, 2, -3)) for name in ("Add", "Sub", "Mul", "Div")),
    *(c(name, M, V) for name in ("Greater", "Less", "GreaterOrEqual", "LessOrEqual")),
    *(c(name, i(1, 2, 3), i(2, 2, 2), since=9) for name in ("Greater", "Less", "GreaterOrEqual", "LessOrEqual")),
    *(c(name, M > 0, V > 0) for name in ("And", "Or", "Xor", "Equal")),
    c("Equal", i(1, 2), i(1, 3)), c("Equal", M, M.copy(), since=11), c("PRelu", IMAGE, f(4, 1, 1)),
    c("Pow", POSITIVE, V), c("Pow", POSITIVE, i(2), since=12),
    c("Pow", np.int32([2, 3]), np.float32([2, 0.5]), since=12), c("Mod", i(7, -7, 5), i(2, 2, -3)),
    c("Mod", M, V, fmod=1),
    *(c(name, M, V) for name in ("Min", "Max", "Mean", "Sum")), *(c(name, M) for name in ("Min", "Max", "Mean", "Sum")),
    *(c(name, i(1, 5), i(3, 2), since=12) for name in ("Min", "Max")),
    *(c(name, M, V, f(1, 4), since=8) for name in ("Min", "Max", "Mean", "Sum")),
    c("BitShift", np.uint8([1, 2, 200]), np.uint8([1, 2, 3]), direction="RIGHT"), c("Where", M > 0, M, V),
    c("MatMul", B, f(4, 5)), c("MatMul", np.int32([[1, 2]]), np.int32([[3], [4]]), since=9),
    *(c("Gemm", M, f(4, 5), bias) for bias in (f(5), f(1), f(3, 1))), c("Gemm", M, f(4, 5), since=11),
    c("Gemm", M, f(5, 3), f(4, 5), transA=1, transB=1, alpha=0.5, beta=2.0),
    c("Gemm", np.int32([[1, 2]]), np.int32([[3], [4]]), np.int32([5]), since=9, expected=lambda a, b, c: a @ b + c),
    c("Einsum", M, f(4, 5), equation="ij, jk -> ik"), c("Einsum", B, equation="...ij->...ji"),
    *(c(name, B, axis=axis) for name in ("Softmax", "LogSoftmax", "Hardmax") for axis in (0, 1, 2)),
    *(c(name, x) for name in ("Softmax", "LogSoftmax", "Hardmax") for x in (M, B, IMAGE)),
    *(c(name, B, axis=axis, since=11) for name in ("Softmax", "LogSoftmax", "Hardmax") for axis in (-1, -2, -3)),
    *(c("Flatten", B, axis=axis) for axis in (0, 1, 2, 3)), c("Flatten", B, axis=-1, since=11),
    c("Flatten", i(1, 2, 3), since=9),
    *(c("Concat", M, f(3, 2), axis=axis) for axis in (1,)), c("Concat", M, f(3, 2), axis=-1, since=11),
    c("Transpose", B), c("Transpose", B, perm=[1, 2, 0]), c("Shape", B, start=1, end=-1, since=15),
    # axes and sizes: attributes first, inputs later
    *(c(name, x, until=axes_since(name) - 1, axes=axes, keepdims=k) for name in REDUCE for x in (POSITIVE,)
      for axes, k in (([1], 0), ([0, 2], 1))),
    *(c(name, POSITIVE, since=11, until=axes_since(name) - 1, axes=[-1]) for name in REDUCE),
    *(c(name, POSITIVE, i(-1, 0), since=axes_since(name), keepdims=k) for name in REDUCE for k in (0, 1)),
    *(c(name, POSITIVE, keepdims=0) for name in REDUCE), *(c(name, POSITIVE) for name in REDUCE),
    *(c(name, POSITIVE, since=axes_since(name), noop_with_empty_axes=1, expected=function)
      for name, function in {"ReduceSum": lambda x: x, "ReduceMean": lambda x: x, "ReduceMax": lambda x: x,
                             "ReduceL1": np.abs, "ReduceL2": np.abs, "ReduceSumSquare": np.square,
                             "ReduceLogSum": np.log, "ReduceLogSumExp": lambda x: x, "ReduceMin": lambda x: x,
                             "ReduceProd": lambda x: x}.items()),
    *(c(name, i(3, 1, 2)) for name in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare")),
    *(c(name, np.array([[True, False]]), i(1), since=20) for name in ("ReduceMax", "ReduceMin")),
    *(c(name, np.int8([[3, -4]]), since=12) for name in ("ReduceMax", "ReduceMin")),
    c("Squeeze", f(1, 3, 1), until=12, axes=[0]), c("Squeeze", f(1, 3, 1), since=11, until=12, axes=[-1]),
    c("Squeeze", f(1, 3, 1), i(0, -1), since=13), c("Squeeze", f(1, 3, 1)),
    c("Unsqueeze", M, until=12, axes=[0, 3]), c("Unsqueeze", M, since=11, until=12, axes=[-1]),
    c("Unsqueeze", M, i(0, -1), since=13), c("Unsqueeze", M, i(2), since=13),
    c("Split", f(2, 6), until=12, n=2, axis=1, split=[2, 4]), c("Split", f(2, 6), until=17, n=3, axis=1),
    c("Split", f(2, 6), since=11, until=17, n=2, axis=-1), c("Split", f(2, 6), i(1, 5), since=13, n=2, axis=1),
    c("Split", f(2, 7), since=18, n=3, axis=1, num_outputs=3),
    c("Slice", B, until=9, starts=[0, -2], ends=[1, 1000], axes=[0, 2]), c("Slice", B, until=9, starts=[1], ends=[2]),
    c("Slice", B, i(1, 0), i(2, 3), since=10), c("Slice", B, i(1), i(1000), i(1), i(2), since=10),
    c("Slice", B, i(-1), i(-1000), i(2), i(-1), since=10), c("Slice", B, i(-2), i(1000), i(-1), since=11),
    c("Pad", B, until=10, pads=[0, 1, 2, 1, 0, 0], value=1.5),
    c("Pad", B, until=10, pads=[0, 1, 2, 0, 1, 1], mode="edge"),
    c("Pad", B, until=10, pads=[0, 1, 2, 0, 1, 1], mode="reflect"),
    c("Pad", B, i(0, 1, 2, 1, 0, 0), np.float32(1.5), since=11), c("Pad", B, i(0, 1, 2, 0, 1, 1), since=11),
    c("Pad", B, i(0, 1, 2, 0, 1, 1), since=11, mode="reflect"), c("Pad", B, i(0, 1, 2, 0, 1, 1), since=11, mode="edge"),
    c("Pad", B, i(1, 1), np.float32(2), i(-1), since=18), c("Pad", B, i(0, 1, 2, 0, 1, 1), since=19, mode="wrap"),
    c("Pad", i(1, 2, 3), i(1, 1), np.int64(9), since=13),
    c("Clip", M, until=10, min=-0.5, max=0.5), c("Clip", M, until=10, max=0.5), c("Clip", M, until=10),
    c("Clip", M, np.float32(-0.5), np.float32(0.5), since=11), c("Clip", M, None, np.float32(0.5), since=11),
    c("Clip", M, np.float32(-0.5), since=11), c("Clip", M, since=11), c("Clip", i(1, 9, 5), i(2)[0], i(6)[0], since=12),
    c("Dropout", M), c("Dropout", M, until=11, ratio=0.3), c("Dropout", M, np.float32(0.3), since=12),
    c("Dropout", M, np.float32(0.3), np.array(False), since=12, fallback=True),
    c("Dropout", M, since=12, n=2), c("Dropout", M, until=9, n=2, expected=lambda x: (x, np.ones_like(x))),
    c("Dropout", M, since=10, until=11, n=2, expected=lambda x: (x, np.ones(x.shape, bool))),
    c("TopK", B, until=9, n=2, k=2), c("TopK", B, until=9, n=2, k=2, axis=1), c("TopK", B, i(2), since=10, n=2),
    c("TopK", B, i(2), since=10, n=2, axis=1), c("TopK", B, i(2), since=11, n=2, axis=-2, largest=0),
    c("TopK", i(3, 1, 2, 3), i(2), since=11, n=2),
    c("Upsample", IMAGE, until=8, mode="nearest", scales=[1.0, 1.0, 2.0, 3.0]),
    c("Upsample", IMAGE, np.float32([1, 1, 2, 3]), since=9, until=9, mode="nearest"),
    *(c("Upsample", IMAGE, np.float32([1, 1, 2, 2]), since=9, until=9, mode=mode) for mode in ("nearest", "linear")),
    *(c("Resize", IMAGE, np.float32([1, 1, 2, s]), since=10, until=10, mode=mode)
      for mode, s in (("nearest", 2), ("linear", 2), ("linear", 0.6))),
    *(c("Resize", IMAGE, None, np.float32([1, 1, 2, 0.6]), since=13, mode=mode, coordinate_transformation_mode=place)
      for mode, place in [("nearest", "asymmetric"), ("linear", "half_pixel"), ("linear", "align_corners"),
                          ("linear", "pytorch_half_pixel"), ("cubic", "half_pixel")]),
    c("Resize", IMAGE, np.zeros(0, np.float32), np.float32([1, 1, 2, 0.6]), since=11, mode="linear"),
    c("Resize", IMAGE, None, None, i(2, 4, 5, 9), since=13, mode="linear"),
    c("Resize", IMAGE, None, None, i(5, 9), since=18, mode="linear", axes=[2, 3]),
    c("Resize", IMAGE, None, np.float32([1, 1, 2, 2]), since=18, mode="linear", antialias=1),
    c("Resize", IMAGE, None, np.float32([0.6, 0.6]), since=18, mode="linear", antialias=1, axes=[2, 3]),
    c("Resize", IMAGE, None, None, i(5, 9), since=18, mode="linear", axes=[2, 3],
      keep_aspect_ratio_policy="not_larger"),
    c("Resize", IMAGE, None, None, i(5, 9), since=19, mode="linear", axes=[2, 3],
      coordinate_transformation_mode="half_pixel_symmetric"),
    c("Reshape", B, i(0, -1)), c("Reshape", B, i(-1, 2, 2)), c("Reshape", f(0, 3), i(3, 0), since=14, allowzero=1),
    c("Tile", M, i(2, 1)), c("Expand", f(3, 1), i(2, 1, 4)), c("Range", i(1)[0], i(9)[0], i(3)[0]),
    *(c("Range", np.float32(0), np.float32(end), np.float32(step)) for end, step in ((2, 0.25), (0.6, 0.2))),
    c("Range", np.float16(0), np.float16(5), np.float16(0.1), since=27),
    c("Range", np.float16(0), np.float16(5), np.float16(0.1), since=27, stash_type=1),
    c("ConstantOfShape", i(2, 3)),
    c("ConstantOfShape", i(2), value=helper.make_tensor("v", TensorProto.INT64, [1], [7])),
    c("OneHot", i(0, 2, 1), i(4)[0], f(2)), c("OneHot", i(0, 2, -1), i(4)[0], f(2), since=11, axis=0),
    c("EyeLike", M, k=1), c("EyeLike", M, dtype=TensorProto.INT64),
    c("Compress", M, np.array([True, False, True]), axis=0),
    c("Compress", M, np.array([True, False, True]), axis=-2, since=11), c("Compress", M, np.array([True, False, True])),
    c("CumSum", M, np.int64(1)), c("CumSum", M, np.int64(0), exclusive=1, reverse=1), c("CumSum", M, np.int64(-1)),
    c("ReverseSequence", f(4, 3), i(2, 4, 1)), c("ReverseSequence", f(3, 4), i(2, 4, 1), time_axis=1, batch_axis=0),
    c("Trilu", M), c("Trilu", M, np.int64(-1), upper=0),
    *(c("ArgMax", np.round(B), axis=axis, keepdims=k) for axis in (0, 2) for k in (0, 1)),
    *(c(name, np.round(B), axis=-1, since=11) for name in ("ArgMax", "ArgMin")), c("ArgMin", B), c("ArgMax", B),
    *(c(name, np.round(B), axis=-1, since=12, select_last_index=1) for name in ("ArgMax", "ArgMin")),
    c("ArgMax", i(3, 1, 3), since=11),
    # indices
    c("Gather", M, i(2, 0), axis=0), c("Gather", M, i(3, 1), axis=1), c("Gather", M, i(-1, 0), since=11, axis=-1),
    c("GatherElements", M, np.array([[0, 1, -1, 2]])), c("GatherElements", M, np.array([[0], [1], [-1]]), axis=-1),
    c("GatherND", M, np.array([[0, 1], [2, -1]])), c("GatherND", B, np.array([[1], [2]]), since=12, batch_dims=1),
    c("Scatter", M, np.array([[0, 2]]), f(1, 2), axis=1), c("Scatter", M, np.array([[0, 2, 1, 0]]), f(1, 4)),
    c("ScatterElements", M, np.array([[0, -1]]), f(1, 2), axis=1), c("ScatterND", M, np.array([[0], [2]]), f(2, 4)),
    *(c("ScatterElements", M, np.array([[0, 0]]), f(1, 2), axis=1, since=since, reduction=how)
      for how, since in (("add", 16), ("mul", 16), ("max", 18), ("min", 18))),
    *(c("ScatterND", M, np.array([[0], [0]]), f(2, 4), since=since, reduction=how)
      for how, since in (("add", 16), ("mul", 16), ("max", 18), ("min", 18))),
    c("Unique", i(3, 1, 3, 2), n=4), c("Unique", i(3, 1, 3, 2), n=4, sorted=0),
    c("Unique", np.float32([[1, 0], [1, 0], [2, 3]]), n=4, axis=0),
    c("NonMaxSuppression", np.float32([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 10, 1, 11]]]), np.float32([[[0.9, 0.75,
      0.6]]]),
      i(3), np.float32([0.5]), np.float32([0])),
    c("NonMaxSuppression", np.float32([[[0, 0, 1, 1], [0, 5, 1, 6], [0, 10, 1, 11]]]), np.float32([[[0.9, 0.75, 0.6]]]),
      i(2), center_point_box=1),
    c("DepthToSpace", f(1, 8, 2, 3), blocksize=2), c("SpaceToDepth", f(1, 2, 4, 6), blocksize=2),
    *(c("DepthToSpace", f(1, 8, 2, 3), blocksize=2, since=11, mode=mode) for mode in ("DCR", "CRD")),
    # layers
    c("Conv", IMAGE, f(6, 4, 3, 3), f(6)), c("Conv", IMAGE, f(6, 2, 3, 3), group=2, pads=[1, 0, 1, 2], strides=[2, 1]),
    c("Conv", IMAGE, f(6, 4, 3, 3), dilations=[2, 2], auto_pad="VALID"), c("ConvTranspose", IMAGE, f(4, 5, 3, 3), f(5)),
    c("ConvTranspose", IMAGE, f(4, 5, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    c("DeformConv", IMAGE, f(6, 4, 3, 3), 0.2 * f(2, 18, 5, 5)),
    c("BatchNormalization", IMAGE, *BN), c("BatchNormalization", M, *BN, epsilon=1e-3),
    c("BatchNormalization", IMAGE, *BN, since=14, n=3, training_mode=1, momentum=0.8),
    c("InstanceNormalization", IMAGE, f(4), f(4)), c("LRN", IMAGE, size=3, alpha=0.1), c("LpNormalization", M, p=1),
    c("LpNormalization", M, axis=0), c("MeanVarianceNormalization", IMAGE), c("MeanVarianceNormalization", B, axes=[1]),
    c("LayerNormalization", B, f(4), f(4)), c("LayerNormalization", B, f(3, 4), axis=1, n=3),
    c("RMSNormalization", B, f(4)), c("GroupNormalization", IMAGE, f(2), f(2), until=20, num_groups=2,
                                      expected=lambda x, w, b: group_norm(x, w.repeat(2), b.repeat(2))),
    c("GroupNormalization", IMAGE, f(4), f(4), since=21, num_groups=2, expected=lambda x, w, b: group_norm(x, w, b)),
    c("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    c("MaxPool", IMAGE, since=8, n=2, kernel_shape=[2, 2], strides=[2, 2]),
    c("MaxPool", IMAGE, since=10, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, dilations=[2, 1]),
    c("MaxPool", (10 * IMAGE).astype(np.int8), since=12, kernel_shape=[3, 3]),
    c("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    c("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    c("AveragePool", IMAGE, since=10, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    c("AveragePool", IMAGE, since=19, kernel_shape=[2, 2], dilations=[2, 2]),
    c("GlobalLpPool", IMAGE, expected=lambda x: np.sqrt(np.square(x).sum((2, 3), keepdims=True))),
    c("LpPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], p=2), c("LpPool", IMAGE, kernel_shape=[3, 3], p=1),
    c("LpPool", IMAGE, since=18, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    c("LpPool", IMAGE, since=18, kernel_shape=[2, 2], dilations=[2, 2]),
    c("MaxUnpool", f(1, 1, 2, 2), np.array([[[[5, 7], [13, 15]]]]), kernel_shape=[2, 2], strides=[2, 2],
      expected=lambda x, at: np.bincount(at.ravel(), x.ravel(), 16).reshape(1, 1, 4, 4).astype(np.float32)),
    c("RoiAlign", IMAGE, np.float32([[0, 0, 4, 4], [1, 1, 6, 5]]), i(0, 1), until=15, output_height=2, output_width=2,
      sampling_ratio=2),
    *(c("RoiAlign", IMAGE, np.float32([[0, 0, 4, 4], [1, 1, 6, 5]]), i(0, 1), since=16, output_height=2,
        output_width=2, sampling_ratio=2, coordinate_transformation_mode=place)
          for place in ("half_pixel", "output_half_pixel")),
    *(c("MaxRoiPool", IMAGE, np.float32([[0, 0, 0, 4, 4], [1, 1, 1.5, 6, 5], [1, 3, 3, 2, 2], [0, 4, 4, 20, 20]]),
        pooled_shape=[2, 3], spatial_scale=scale) for scale in (1.0, 0.5)),
    *(c("GridSample", IMAGE, np.tanh(f(2, 3, 3, 2)), since=since, mode=mode, padding_mode=pad)
      for since, mode in ((20, "linear"), (20, "nearest"), (20, "cubic")) for pad in ("zeros", "border")),
    *(c("GridSample", IMAGE, np.tanh(f(2, 3, 3, 2)), until=19, mode=mode)
      for mode in ("bilinear", "nearest", "bicubic")),
    *(recurrent(name, layout=layout) for name in GATES for layout in (0, 1)), recurrent("GRU", linear_before_reset=1),
    *(recurrent(name, n_directions=2, direction="bidirectional") for name in GATES),
    *(recurrent(name, lengths=True, start=True) for name in GATES),
    *(recurrent(name, direction="reverse", start=True) for name in GATES), recurrent("RNN", activations=["Relu"]),
    recurrent("LSTM", clip=0.3), recurrent("LSTM", activations=["Sigmoid", "Relu", "Tanh"]),
    c("NegativeLogLikelihoodLoss", np.log(POSITIVE), np.array([[0, 1, 2, 0], [2, 2, 1, 0]]), f(3)),
    c("NegativeLogLikelihoodLoss", np.log(POSITIVE), np.array([[0, 1, 2, 0], [2, 2, 1, 0]]), since=13, ignore_index=0),
    c("SoftmaxCrossEntropyLoss", B, np.array([[0, 1, 2, 0], [2, 2, 1, 0]]), reduction="sum"),
    c("SoftmaxCrossEntropyLoss", B, np.array([[0, 1, 2, 0], [2, 2, 1, 0]]), n=2),
    # what is empty, of no axes, or not finite
    *(c(name, np.zeros((2, 0), np.float32), i(1), since=20) for name in ("ReduceMax", "ReduceMin")),
    *(c(name, np.zeros((2, 0), np.float32), i(1), since=18) for name in ("ReduceSum", "ReduceProd")),
    *(c(name, np.float32(3)) for name in ("ReduceSum", "ReduceMean", "Flatten", "Shape", "Size")),
    c("Softmax", np.float32(3), since=13),
    c("Flatten", f(), axis=0), c("Tile", M, i(0, 2)), c("Expand", f(1), i(2, 3)), c("Slice", B, i(2), i(1), since=10),
    c("ReduceLogSumExp", np.float32([[1000, 1000]])), c("Max", np.float32([1, math.nan]), np.float32([2, 2]), since=8),
    c("Clip", M, np.float32(0.5), np.float32(-0.5), since=11),
    c("Mod", np.float32([7.5, -7.5]), np.float32([3, -math.inf]), since=28),
    *(c("BitShift", np.int32([-8, 5, -1]), np.int32([1, 40, -2]), since=28, direction=side)
      for side in ("LEFT", "RIGHT")),
    c("SpaceToDepth", f(1, 2, 4, 6), blocksize=2, mode="CRD", since=28),
    # types
    c("Cast", i(3, -4), to=TensorProto.STRING, since=9, fallback=True),
    c("Equal", np.array(["a", "b"], object), np.array(["a", "c"], object), since=19, fallback=True),
    c("Identity", np.array(["a", "b"], object), fallback=True),
    c("Concat", np.array(["a", "b"], object), np.array(["c"], object), axis=0, fallback=True),
    *(c("Cast", x, to=to) for x, to in CAST.values()), c("CastLike", M, i(0)), c("CastLike", i(1, 2), np.float16([0])),
    c("IsInf", np.float32([math.inf, -math.inf, 1])), c("IsInf", np.float32([math.inf, -math.inf]), detect_negative=0),
    c("IsInf", np.float16([math.inf, 1]), since=20), c("IsNaN", np.float64([math.nan, 1])), c("Sign", i(-3, 0, 2)),
    c("Neg", np.int32([1, -2])), c("Relu", np.int32([1, -2]), since=14), c("Identity", i(1)), c("Abs", i(-1)),
    c("QuantizeLinear", M, *Q), c("QuantizeLinear", M, np.float32(0.1)),
    c("QuantizeLinear", M, *PER_AXIS, since=13, axis=1), c("QuantizeLinear", M, *PER_AXIS, since=13, axis=-1),
    c("QuantizeLinear", M, np.float32(0.01), np.uint16(30000), since=21),
    c("QuantizeLinear", f(4, 6), np.abs(f(2, 6)) + 0.1, np.zeros((2, 6), np.int8), since=21, axis=0, block_size=2),
    c("DequantizeLinear", np.uint8([1, 200, 30]), *Q),
    c("DequantizeLinear", np.int8([[1, -9, 3, 4]]), *PER_AXIS, since=13),
    c("DequantizeLinear", np.int32([1, -9]), np.float32(0.1)),
    c("DequantizeLinear", np.int8(10 * f(4, 6)), np.abs(f(2, 6)), np.zeros((2, 6), np.int8), since=21, axis=0,
      block_size=2),
    c("DequantizeLinear", np.uint16([1, 40000]), np.float32(0.1), np.uint16(30000), since=21),
    c("QLinearMatMul", np.uint8([[1, 200]]), np.float32(0.1), np.uint8(3), np.uint8([[7], [9]]), np.float32(0.2),
      np.uint8(4), np.float32(0.5), np.uint8(5)),
    # signals
    c("DFT", f(1, 8, 1), until=19, axis=1), c("DFT", f(1, 8, 1), until=19, axis=1, onesided=1),
    c("DFT", f(1, 8, 2), until=19, axis=1, inverse=1), c("DFT", f(1, 8, 1), i(6)[0], until=19, axis=1),
    c("DFT", f(1, 8, 1), None, i(1)[0], since=20), c("DFT", f(1, 8, 1), i(6)[0], i(1)[0], since=20, onesided=1),
    c("DFT", f(1, 8, 2), None, i(1)[0], since=20, inverse=1), c("DFT", f(2, 8, 3, 1), since=20),
    # sequences and control
    g("SplitToSequence",
      "g (float[6,2] x) => (float[?,2] y) { p = Constant <value_int = 2> () s = SplitToSequence <axis = 0> (x, p)"
      " j = Constant <value_int = 1> () y = SequenceAt (s, j) }", f(6, 2), since=12),
    g("SplitToSequence", "g (float[3,2] x) => (float[2] y) { s = SplitToSequence <axis = 0, keepdims = 0> (x)"
      " j = Constant <value_int = 1> () y = SequenceAt (s, j) }", f(3, 2), since=12),
    g("If", "g (float[2] x) => (float[2] y) { z = ReduceSum <keepdims = 0> (x) h = Constant <value = float {0.0}> ()"
      " b = Greater (z, h) y = If (b) <then_branch = t () => (float[2] a) { a = Neg (x) },"
      " else_branch = e () => (float[2] d) { d = Exp (x) }> }", np.float32([1, 2]), since=9),
    g("Loop", "g (float[2] x) => (float[2] y, float[k, 2] s) { n = Constant <value = int64 {3}> ()"
      " c = Constant <value = bool {1}> () y, s = Loop (n, c, x) <body = b (int64 j, bool i, float[2] v) => (bool o,"
      " float[2] w, float[2] u) { o = Identity (i) w = Add (v, v) u = Neg (v) }> }", np.float32([1, 2])),
    g("Scan", "g (float[2] x, float[3, 2] s) => (float[2] y, float[3, 2] t) { y, t = Scan <num_scan_inputs = 1,"
      " body = b (float[2] v, float[2] i) => (float[2] w, float[2] o) { w = Add (v, i) o = Neg (w) }> (x, s) }",
      np.float32([1, 2]), f(3, 2), since=9),
    g("Scan", "g (float[2, 2] x, float[2, 3, 2] s) => (float[2, 2] y, float[2, 3, 2] t) {"
      " y, t = Scan <num_scan_inputs = 1,"
      " body = b (float[2] v, float[2] i) => (float[2] w, float[2] o) { w = Add (v, i) o = Neg (w) }> (, x, s) }",
      f(2, 2), f(2, 3, 2), until=8, expected=lambda x, s: (x + s.sum(1), -(x[:, None] + s.cumsum(1)))),
    *(g(name, "g (float[2] x) => (float[2] y) { o = Optional (x) y = OptionalGetElement (o) }", f(2),
        expected=lambda x: x) for name in ("Optional", "OptionalGetElement")),
    g("OptionalGetElement", "g (float[2] x) => (float[2] y) { y = OptionalGetElement (x) }", f(2), since=18),
    g("OptionalHasElement", "g (float[2] x) => (bool y) { o = Optional (x) y = OptionalHasElement (o) }", f(2)),
    g("OptionalHasElement", "g (float[2] x) => (bool y) { y = OptionalHasElement (x) }", f(2), since=18),
    *(g("Constant", f"g (float[n] x) => (float[m] y) {{ c = Constant <{value}> () y = Add (x, c) }}", f(2), since=since)
      for value, since in (("value = float[2] {1, 2}", 7), ("value_float = 1.5", 12),
                           ("value_floats = [1.0, 2.0]", 12))),
    *(c("Attention", f(1, 2, 3, 4), f(1, 2, 5, 4), f(1, 2, 5, 4), since=23, is_causal=k) for k in (0, 1)),
    c("Attention", f(1, 3, 8), f(1, 5, 8), f(1, 5, 8), since=23, q_num_heads=2, kv_num_heads=2),
    c("Attention", f(1, 2, 3, 4), f(1, 2, 5, 4), f(1, 2, 5, 4), f(3, 5), since=23, softcap=2.0),
    c("Attention", f(1, 4, 3, 4), f(1, 2, 5, 4), f(1, 2, 5, 4), since=23),
    c("RotaryEmbedding", f(1, 2, 3, 4), f(5, 2), f(5, 2), np.array([[0, 1, 2]])),
]  # fmt: skip


def group_norm(x, weight, bias, groups=2):
    parts = x.reshape(x.shape[0], groups, -1)
    parts = (parts - parts.mean(-1, keepdims=True)) / np.sqrt(parts.var(-1, keepdims=True) + 1e-5)
    return parts.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_revision(case):
    known = {}
    for opset in case.starts:
        for held in case.ways:
            check(case, opset, held, known)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_operator_set(case):
    known = {}
    for opset in case.opsets:
        for held in case.ways:
            check(case, opset, held, known)


# -- randomness


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "dtype", "shape"),
    [
        ("Bernoulli", [np.full((3, 4), 0.5, np.float32)], {}, torch.float32, (3, 4)),
        ("Bernoulli", [np.full((3, 4), 0.5, np.float32)], {"dtype": TensorProto.INT64}, torch.int64, (3, 4)),
        ("Multinomial", [np.log(np.float32([[0.5, 0.5], [1, 1]]))], {"sample_size": 5}, torch.int32, (2, 5)),
        ("Multinomial", [np.zeros((2, 3), np.float32)], {"dtype": TensorProto.INT64}, torch.int64, (2, 1)),
        *((f"Random{kind}", [], {"shape": [3, 4]}, torch.float32, (3, 4)) for kind in ("Normal", "Uniform")),
        *(
            (f"Random{kind}Like", [M], {"dtype": TensorProto.DOUBLE}, torch.float64, (3, 4))
            for kind in ("Normal", "Uniform")
        ),
    ],
)
def test_random_operators_have_types_and_shapes(op_type, inputs, attributes, dtype, shape):
    case = Case(op_type, tuple(inputs), attributes=attributes)
    for opset in case.starts:
        net = to_torch(model_of(case, opset, held=False))
        made = net(*[torch.from_numpy(x) for x in inputs])
        assert (made.dtype, tuple(made.shape)) == (dtype, shape)
        assert not torch.equal(torch.cat([net(*map(torch.from_numpy, inputs)) for _ in range(9)]), made.repeat(9, 1))


def test_multinomial_draws_with_the_probabilities_that_it_is_given():
    net = to_torch(model_of(Case("Multinomial", (M,), attributes={"sample_size": 20_000}), NEWEST, held=False))
    probabilities = np.float32([[0.2, 0.8], [0.7, 0.3]])
    drawn = net(torch.from_numpy(np.log(probabilities) + 3))
    np.testing.assert_allclose((drawn == 0).float().mean(1), probabilities[:, 0], atol=0.02)


def test_gradient_of_the_largest_in_regions():
    x, regions = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True), torch.tensor([[0.0, 1, 0, 4, 3]])
    assert torch.autograd.gradcheck(lambda x: max_roi_pool_of(x, regions, (2, 2), 1.0), x)


# -- completeness


NEEDED = {
    "TfIdfVectorizer": {"max_gram_length": 1, "max_skip_count": 0, "min_gram_length": 1, "mode": "TF",
                        "ngram_counts": [0], "ngram_indexes": [0], "pool_int64s": [1]},
}  # fmt: skip
"""Attributes without which the reference implementation does not take an operator."""
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


@cache
def served():
    """The operator sets that have an operator, by its name."""
    names = {entry.name for entry in onnx.defs.get_all_schemas_with_history() if entry.domain == ""}
    return {name: [opset for opset in range(FIRST, NEWEST + 1) if has(name, opset)] for name in sorted(names)}


def test_every_operator_of_every_operator_set_is_found():
    missing = {
        name
        for name, opsets in served().items()
        for opset in opsets
        if find(name, "", opset) is None
        and not is_function(name, "", opset)
        and not has_reference(helper.make_node(name, [], [], **NEEDED.get(name, {})), opset)
    }
    assert missing == set()


def test_every_operator_with_several_revisions_has_cases_for_all_of_them():
    tested = {name: set() for name in served()}
    for case in CASES:
        tested[case.op_type] |= {schema(case.op_type, opset).since_version for opset in case.opsets}
    untested = {
        f"{name} {revision}"
        for name, opsets in served().items()
        for revision in {schema(name, opset).since_version for opset in opsets} - tested[name]
        if name not in RANDOM and len({schema(name, opset).since_version for opset in opsets}) > 1
    }
    assert untested == set()
