"""Operators against ONNX Runtime: the modules that they become, and attributes that no table of revisions has."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from graphmod.errors import InvalidModelError, UnsupportedOperatorError
from graphmod.model import load
from graphmod.pytorch import to_torch
from graphmod.pytorch.dtypes import to_tensor

rng = np.random.default_rng(0)


def f(*shape):
    return rng.normal(size=shape).astype(np.float32)


def i(*values):
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """One operator: what it is fed, what it holds as constants (by input position), its attributes and opsets."""

    op_type: str
    x: np.ndarray
    constants: dict[int, np.ndarray] = field(default_factory=dict)
    opsets: tuple[int, ...] = (17,)
    n_outputs: int = 1
    module: type[nn.Module] | None = None
    attributes: dict[str, object] = field(default_factory=dict)

    def __str__(self):
        return "-".join([self.op_type, *(f"{key}={value}" for key, value in self.attributes.items())])


def c(op_type, x, *constants, opsets=(17,), n=1, module=None, at=1, **attributes):
    held = {index: value for index, value in enumerate(constants, at) if value is not None}
    return Case(op_type, x, held, tuple(opsets), n, module, attributes)


IMAGE, WIDE, MATRIX, BATCH = f(2, 4, 7, 7), f(2, 3, 9, 8), f(3, 4), f(2, 3, 4)
EMPTY = np.zeros(0, np.float32)
POSITIVE = np.abs(MATRIX) + 0.1
BN = (f(4), f(4), f(4), np.abs(f(4)) + 0.5)
NORM = (7, 9, 14, 15, 17)

CASES = [
    c("Conv", f(2, 4, 9), f(6, 4, 3), f(6), opsets=(7, 11, 17), module=nn.Conv1d, strides=[2], pads=[1, 1]),
    c("Conv", IMAGE, f(6, 4, 3, 3), opsets=(7, 11, 17), module=nn.Conv2d, dilations=[2, 2]),
    c("Conv", IMAGE, f(8, 1, 3, 3), f(8), module=nn.Conv2d, group=4, pads=[1, 1, 1, 1]),
    c("Conv", IMAGE, f(6, 4, 3, 3), f(6), module=nn.Conv2d, pads=[0, 1, 2, 0]),
    c("Conv", WIDE, f(6, 3, 3, 2), f(6), module=nn.Conv2d, auto_pad="SAME_UPPER", strides=[2, 2]),
    c("Conv", WIDE, f(6, 3, 3, 2), f(6), module=nn.Conv2d, auto_pad="SAME_LOWER"),
    c("Conv", WIDE, f(6, 3, 3, 2), module=nn.Conv2d, auto_pad="VALID"),
    c("Conv", f(1, 2, 5, 5, 5), f(3, 2, 2, 2, 2), module=nn.Conv3d),
    c("ConvTranspose", IMAGE, f(4, 5, 3, 3), f(5), opsets=(7, 11), module=nn.ConvTranspose2d, strides=[2, 2],
      pads=[1, 1, 1, 1], output_padding=[1, 1]),
    c("ConvTranspose", IMAGE, f(4, 2, 3, 3), module=nn.ConvTranspose2d, group=2, pads=[0, 1, 1, 0]),
    c("ConvTranspose", IMAGE, f(4, 2, 3, 3), module=nn.ConvTranspose2d, strides=[2, 2], output_shape=[14, 14]),
    c("ConvTranspose", f(1, 2, 6), f(2, 3, 4), module=nn.ConvTranspose1d, strides=[2], auto_pad="SAME_UPPER"),
    c("BatchNormalization", IMAGE, *BN, opsets=NORM, module=nn.BatchNorm2d),
    c("BatchNormalization", f(3, 4), *BN, opsets=NORM, module=nn.BatchNorm1d, epsilon=1e-3),
    c("BatchNormalization", f(3, 4, 5), *BN, module=nn.BatchNorm1d),
    c("BatchNormalization", f(2, 4, 3, 3, 3), *BN, module=nn.BatchNorm3d),
    c("InstanceNormalization", IMAGE, f(4), f(4), opsets=(7, 17), module=nn.InstanceNorm2d),
    c("LayerNormalization", BATCH, f(4), f(4), module=nn.LayerNorm),
    c("LayerNormalization", BATCH, f(3, 4), f(3, 4), module=nn.LayerNorm, axis=1),
    c("LayerNormalization", BATCH, f(4), module=nn.LayerNorm, epsilon=1e-3),
    c("LayerNormalization", BATCH, f(4), f(1), axis=-1),
    c("GroupNormalization", IMAGE, f(4), f(4), opsets=(21,), module=nn.GroupNorm, num_groups=2),
    c("RMSNormalization", BATCH, f(4), opsets=(23,), module=nn.RMSNorm),
    c("LRN", IMAGE, opsets=(7, 13), module=nn.LocalResponseNorm, size=3, alpha=0.1, beta=0.6, bias=1.5),
    c("LpNormalization", MATRIX, axis=1, p=2), c("LpNormalization", MATRIX, axis=0, p=1),
    *(c(name, MATRIX, opsets=(7, 13, 17), module=kind) for name, kind in
      {"Relu": nn.ReLU, "Sigmoid": nn.Sigmoid, "Tanh": nn.Tanh, "Softplus": nn.Softplus, "Softsign": nn.Softsign,
       "Elu": nn.ELU, "Selu": nn.SELU, "LeakyRelu": nn.LeakyReLU}.items()),
    c("Elu", MATRIX, alpha=0.5), c("Selu", MATRIX, alpha=2.0, gamma=0.5), c("Celu", MATRIX, alpha=2.0),
    c("LeakyRelu", MATRIX, alpha=0.3), c("ThresholdedRelu", MATRIX, opsets=(10,), module=nn.Threshold, alpha=0.4),
    c("HardSigmoid", MATRIX, alpha=0.3, beta=0.4), c("HardSigmoid", MATRIX, module=nn.Hardsigmoid, alpha=1 / 6),
    c("HardSwish", MATRIX, module=nn.Hardswish), c("Mish", MATRIX, opsets=(18,), module=nn.Mish),
    c("Gelu", MATRIX, opsets=(20,), module=nn.GELU), c("Gelu", MATRIX, opsets=(20,), approximate="tanh"),
    c("PRelu", IMAGE, f(1), opsets=(9,)), c("PRelu", MATRIX, f(3, 4)), c("Shrink", MATRIX, lambd=0.4, bias=0.1),
    c("Clip", MATRIX, opsets=(6, 7), module=nn.ReLU6, min=0.0, max=6.0), c("Clip", MATRIX, opsets=(7,), min=-0.5),
    c("Clip", MATRIX, np.float32(0), np.float32(6), opsets=(11, 12, 13), module=nn.ReLU6),
    c("Softmax", BATCH, opsets=(7, 11, 13, 17), module=nn.Softmax),
    c("Gemm", MATRIX, f(4, 5), f(5), opsets=(7, 9, 11, 13), module=nn.Linear),
    c("Gemm", MATRIX, f(5, 4), f(5), module=nn.Linear, transB=1), c("Gemm", MATRIX, f(4, 5), module=nn.Linear),
    c("Gemm", MATRIX, f(5, 4), f(3, 5), transB=1, alpha=0.5, beta=2.0), c("Gemm", MATRIX, f(3, 5), transA=1),
    c("Gemm", MATRIX, f(4, 5), np.float32(2)), c("Gemm", MATRIX, f(4, 5), alpha=0.5),
    c("MatMul", BATCH, f(4, 5), module=nn.Linear), c("MatMul", BATCH, f(2, 4, 5)), c("MatMul", BATCH, f(4)),
    c("MatMul", f(4), f(4, 5), module=nn.Linear),
    c("MaxPool", IMAGE, opsets=(7, 8, 10, 12), module=nn.MaxPool2d, kernel_shape=[3, 3], strides=[2, 2],
      pads=[1, 1, 1, 1]),
    c("MaxPool", IMAGE, module=nn.MaxPool2d, kernel_shape=[3, 2], pads=[0, 1, 2, 0]),
    c("MaxPool", IMAGE, opsets=(10, 17), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, dilations=[2, 2]),
    c("MaxPool", WIDE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    c("MaxPool", f(1, 2, 9), module=nn.MaxPool1d, kernel_shape=[3]),
    c("AveragePool", IMAGE, opsets=(7, 10, 11), module=nn.AvgPool2d, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    c("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1, strides=[2, 2]),
    c("AveragePool", IMAGE, opsets=(7, 10, 17), kernel_shape=[3, 3], pads=[0, 0, 1, 1], strides=[2, 2]),
    c("AveragePool", IMAGE, kernel_shape=[3, 3], pads=[0, 0, 1, 1], strides=[2, 2], count_include_pad=1),
    c("AveragePool", WIDE, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    c("LpPool", IMAGE, kernel_shape=[2, 2], p=3), c("GlobalLpPool", IMAGE, p=2),
    c("GlobalAveragePool", IMAGE, module=nn.AdaptiveAvgPool2d), c("GlobalMaxPool", IMAGE, module=nn.AdaptiveMaxPool2d),
    c("Flatten", IMAGE, opsets=(7, 9, 13), module=nn.Flatten), c("Flatten", IMAGE, axis=2), c("Flatten", IMAGE, axis=0),
    *(c(name, POSITIVE) for name in ["Log", "Sqrt", "Reciprocal"]), c("Acosh", POSITIVE + 1),
    c("IsInf", MATRIX / np.float32([1, 0, 1, 1]), detect_negative=0),
    *(c(name, MATRIX, np.float32(0.3)) for name in ("Add", "Sub", "Mul", "Div", "Equal", "Less", "Greater")),
    c("Sub", MATRIX, np.float32([[0.5]]), at=0), *(c("Mod", i(-7, 7, 5), i(2, -2, 3), fmod=k) for k in (0, 1)),
    c("Pow", POSITIVE, np.float32(2.5), opsets=(7, 12, 15)), c("Pow", MATRIX, i(2), opsets=(12, 15)),
    *(c(name, MATRIX, f(4), f(3, 1), opsets=(8, 13)) for name in ("Max", "Min", "Sum", "Mean")),
    c("Where", MATRIX > 0, f(3, 4), np.float32(-1)), c("Where", MATRIX > 0, np.float32(1), np.float32(-1)),
    *(c("CumSum", MATRIX, np.int64(1), exclusive=e, reverse=r) for e in (0, 1) for r in (0, 1)),
    c("Cast", i(0, 1, 2), to=TensorProto.BOOL),
    *(c(name, np.abs(BATCH), opsets=(7, 11, 13), axes=[0, 2]) for name in
      ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
       "ReduceSumSquare")),
    c("ReduceSum", BATCH, i(-1), opsets=(13, 17), keepdims=0),
    *(c(name, BATCH, opsets=(7, 11, 13), axis=1, keepdims=k) for name in ("ArgMax", "ArgMin") for k in (0, 1)),
    c("TopK", BATCH, i(2), n=2, largest=0), c("Transpose", BATCH, perm=[1, 0, 2]),
    c("Shape", BATCH, opsets=(15,), start=1),
    c("Slice", BATCH, opsets=(7, 9), starts=[0, 1], ends=[1, 1000], axes=[0, 2]),
    *(c("Pad", BATCH, i(0, 1, 2, 1, 0, 1), opsets=(11, 13, 18), mode=mode) for mode in ("constant", "edge")),
    c("Gather", MATRIX, i(2, 0, -1), opsets=(7, 11, 13), axis=1), c("Gather", MATRIX, np.int64(1)),
    c("Gather", i(0, 2, 1), f(5, 3), at=0, module=nn.Embedding),
    c("GatherElements", MATRIX, np.array([[0, 1, -1, 2]]), axis=0), c("NonZero", np.float32([[0, 1], [2, 0]])),
    c("Det", f(3, 3)), c("ConstantOfShape", i(2, 3), value=helper.make_tensor("v", TensorProto.INT64, [1], [7])),
    *(c("Resize", f(1, 2, 4, 5), EMPTY, np.float32([1, 1, 2, 1.5]), opsets=(11, 13, 19), mode=mode,
        coordinate_transformation_mode=place)
      for mode in ("nearest", "linear", "cubic") for place in ("half_pixel", "asymmetric", "align_corners")
      if (mode, place) != ("nearest", "half_pixel")),
    c("Resize", f(1, 2, 4, 5), np.float32([1, 1, 2, 2]), opsets=(10,), mode="nearest"),
    c("Resize", f(1, 2, 4, 5), None, None, i(1, 2, 7, 3), mode="linear"),
    *(c("Resize", f(1, 2, 6, 5), None, np.float32([1, 1, 0.5, 2]), mode="nearest", nearest_mode=mode)
      for mode in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")),
    c("Upsample", f(1, 2, 4, 5), opsets=(7,), mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]),
    c("Upsample", f(1, 2, 4, 5), np.float32([1, 1, 2, 2]), opsets=(9,), mode="linear"),
    c("GridSample", f(1, 2, 4, 5), np.tanh(f(1, 3, 3, 2)), opsets=(16,), padding_mode="border"),
    c("DynamicQuantizeLinear", MATRIX, opsets=(11,), n=3),
    *(c(name, np.int32([1, 6, 12]), np.int32([3, 5, 10]), opsets=(18,))
      for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    c("BitwiseNot", np.int32([1, 6]), opsets=(18,)), c("HannWindow", np.int64(8)), c("HammingWindow", np.int64(8)),
    c("CenterCropPad", f(5, 6), i(3, 9), opsets=(18,)),
]  # fmt: skip


def model_of(case: Case, opset: int):
    n = 1 + max(case.constants, default=0)
    place = next(index for index in range(n + 1) if index not in case.constants)
    names = [f"c{index}" if index in case.constants else "" for index in range(max(n, place + 1))]
    names[place] = "x"
    outputs = [f"y{index}" for index in range(case.n_outputs)]
    operator = helper.make_node(case.op_type, names, outputs, **case.attributes)
    kind = helper.np_dtype_to_tensor_dtype(case.x.dtype)
    graph = helper.make_graph(
        [operator],
        "g",
        [helper.make_tensor_value_info("x", kind, case.x.shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), f"c{index}") for index, value in case.constants.items()],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


@pytest.mark.parametrize(
    ("case", "opset"), [pytest.param(case, opset, id=f"{case}-{opset}") for case in CASES for opset in case.opsets]
)
def test_operator(case, opset):
    model = model_of(case, opset)
    net = to_torch(model)
    with torch.no_grad():
        made = net(to_tensor(case.x))
    expected = model.run({"x": np.asarray(case.x)})
    for actual, value in zip(made if isinstance(made, tuple) else (made,), expected.values(), strict=True):
        assert actual.numpy().dtype == value.dtype
        assert tuple(actual.shape) == value.shape
        scale = np.abs(value.astype(np.float64)[np.isfinite(value.astype(np.float64))]).max(initial=1e-3)
        np.testing.assert_allclose(
            actual.numpy().astype(np.float64), value.astype(np.float64), rtol=0, atol=1e-4 * scale
        )
    if case.module is not None:
        assert any(isinstance(module, case.module) for module in net.children())
    constants = [value for value in case.constants.values() if value.dtype.kind == "f" and value.size > 1]
    assert len(list(net.parameters())) <= len(constants)


def graph_of(*nodes, opset=17, domains=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 8, 8])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [None] * 4)],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


@pytest.mark.parametrize(("axis", "shape"), [(None, (8,)), (1, (3,)), (0, (2, 3))])
def test_operands_of_opset_6_name_the_axis_where_they_begin(axis, shape):
    right, attributes = f(*shape), {} if axis is None else {"axis": axis}
    model = graph_of(helper.make_node("Add", ["x", "c"], ["y"], broadcast=1, **attributes), opset=6)
    model.graph.initializer.append(numpy_helper.from_array(right, "c"))
    x = f(2, 3, 8, 8)
    after = 0 if axis is None else 4 - axis - len(shape)
    expected = x + right.reshape(shape + (1,) * after)
    np.testing.assert_allclose(to_torch(model)(torch.from_numpy(x)).detach().numpy(), expected)


def test_every_unsupported_operator_is_listed():
    model = graph_of(
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Frobnicate", ["a"], ["b"], name="first", domain="my.domain"),
        helper.make_node("Gelu", ["b"], ["c"], name="second"),
        helper.make_node("Frobnicate", ["c"], ["d"], domain="my.domain"),
        domains=["my.domain"],
    )
    with pytest.raises(UnsupportedOperatorError) as caught:
        to_torch(model)
    message = str(caught.value)
    assert "3 operator(s)" in message
    assert "'first' (Frobnicate, domain 'my.domain', opset 1)" in message
    assert "'second' (Gelu, domain '', opset 17)" in message
    assert "'d' (Frobnicate, domain 'my.domain', opset 1)" in message


def test_unsupported_operators_are_refused_before_weights_are_read(monkeypatch):
    from graphmod.model import initializers

    model = graph_of(helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Frob", ["a"], ["b"], domain="d"))
    model.opset_import.append(helper.make_opsetid("d", 1))
    model.graph.initializer.append(numpy_helper.from_array(f(4, 3, 3, 3), "w"))
    loaded = load(model)
    monkeypatch.setattr(initializers, "values", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(UnsupportedOperatorError, match="Frob"):
        to_torch(loaded)


@pytest.mark.parametrize(
    ("node", "inputs", "opset"),
    [
        (
            helper.make_node(
                "TfIdfVectorizer", ["a"], ["y"], mode="TF", min_gram_length=1, max_gram_length=2, max_skip_count=0,
                ngram_counts=[0, 2], ngram_indexes=[0, 1, 2], pool_int64s=[1, 2, 1, 2],
            ),
            [i(1, 2, 1, 3)],
            17,
        ),
        (helper.make_node("Dropout", ["a", "b", "c"], ["y"]), [MATRIX, np.float32(0), np.array(True)], 17),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)  # fmt: skip
def test_what_torch_cannot_say_is_computed_by_the_reference_with_a_warning(node, inputs, opset):
    feeds = dict(zip(node.input, inputs, strict=True))
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feeds.items()
    ]
    graph = helper.make_graph([node], "g", values, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    with pytest.warns(UserWarning, match=node.op_type):
        net = to_torch(model)
    (expected,) = ReferenceEvaluator(model).run(None, feeds)
    made = net(*(to_tensor(value) for value in feeds.values())).numpy()
    assert made.dtype == expected.dtype
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize(
    ("node", "opset", "attribute"),
    [
        (helper.make_node("Relu", ["x"], ["y"], from_the_future=1), 17, "from_the_future"),
        (helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2]), 17, "dilations"),
        (helper.make_node("Resize", ["x", "", "s"], ["y"], antialias=1), 13, "antialias"),
    ],
)
def test_attributes_that_the_operator_set_does_not_know_are_refused(node, opset, attribute):
    model = graph_of(node, opset=opset)
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 1, 2, 2]), "s"))
    with pytest.raises(InvalidModelError, match=attribute):
        to_torch(model)
