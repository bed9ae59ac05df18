"""Quantized models: equal to ONNX Runtime, trainable as the floats that they stand for, and back as integers."""

from __future__ import annotations

import io
import logging
import warnings
from functools import cache

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from torch import nn

from graphmod.errors import InvalidModelError, RefusedError
from graphmod.model import load
from graphmod.pytorch import to_torch, write_back
from graphmod.pytorch.levels import as_integers
from graphmod.pytorch.operators.integer import requantize
from graphmod.pytorch.operators.quantization import dequantize, limits_of, quantize
from graphmod.pytorch.steps import Dequantize

rng = np.random.default_rng(0)

F32, I8, U8, I32 = np.float32, np.int8, np.uint8, np.int32


def normal(*shape):
    return rng.normal(size=shape).astype(F32)


def whole(dtype, *shape):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype)


def node(op_type, inputs, outputs, **attributes):
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def proto_of(nodes, inputs, outputs, opset=21, **constants):
    """Return a model; inputs are arrays by name, outputs element types by name."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), [f"{name}_n", *x.shape[1:]])
         for name, x in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(proto)


def outputs_of(net, feeds):
    made = net(*(torch.from_numpy(x) for x in feeds.values()))
    return [value.detach().numpy() if isinstance(value, torch.Tensor) else value
            for value in (made if isinstance(made, tuple) else (made,))]  # fmt: skip


def truth(proto, feeds):
    """Return what ONNX Runtime computes, or onnx's reference implementation where that has no kernel."""
    try:
        return list(load(proto).run(feeds).values())
    except InvalidModelError:
        return ReferenceEvaluator(proto).run(None, feeds)


# -- QuantizeLinear and DequantizeLinear

SCALES = {
    "tensor": (F32(0.03), {}),
    "axis 0": (np.array([0.01, 0.02, 0.05], F32), {"axis": 0}),
    "axis -1": (np.linspace(0.01, 0.05, 10).astype(F32), {"axis": -1}),
    "blocks": (np.linspace(0.01, 0.05, 9).reshape(3, 3).astype(F32), {"axis": 1, "block_size": 4}),
}


SINCE = {"tensor": 10, "axis 0": 13, "axis -1": 13, "blocks": 21}
"""The operator set that has scales first."""


@pytest.mark.parametrize(
    ("opset", "kind", "granularity"),
    [
        pytest.param(opset, kind, granularity, id=f"{opset}-{kind.__name__}-{granularity}")
        for granularity, since in SINCE.items()
        for kind in (U8, I8, np.uint16, np.int16)
        for opset in (10, 13, 19, 21, 23, 25)
        if opset >= max(since, 21 if kind in (np.uint16, np.int16) else 10)
    ],
)
def test_quantizing_there_and_back_is_exact(opset, kind, granularity):
    scale, attributes = SCALES[granularity]
    zero = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, scale.shape).astype(kind)
    nodes = [node("QuantizeLinear", "x s z", "q", **attributes), node("DequantizeLinear", "q s z", "y", **attributes)]
    x = normal(3, 10) * 3
    x[0, :4] = [np.inf, -np.inf, 0.5 * float(scale.flat[0]), 1e30]
    proto = proto_of(
        nodes, {"x": x}, {"q": helper.np_dtype_to_tensor_dtype(zero.dtype), "y": 1}, opset, s=scale, z=zero
    )
    expected = truth(proto, {"x": x})
    actual = outputs_of(to_torch(proto), {"x": x})
    assert actual[0].dtype == kind
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)


SMALL = [ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2, ml_dtypes.float8_e4m3fn,
         ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz]  # fmt: skip


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
def test_small_types_pass_between_quantizing_and_dequantizing(kind):
    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [
        node("QuantizeLinear", "x s", "q", output_dtype=code),
        node("Transpose", "q", "t", perm=[1, 0]),
        node("DequantizeLinear", "t s", "y"),
    ]
    x = normal(3, 10)
    proto = proto_of(nodes, {"x": x}, {"y": 1, "q": code}, 25, s=F32(0.3))
    net = to_torch(proto)
    expected = ReferenceEvaluator(proto).run(None, {"x": x})
    actual = outputs_of(net, {"x": x})
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1].astype(F32), np.asarray(expected[1]).astype(F32))
    leaf = torch.from_numpy(x).requires_grad_()
    net(leaf)[0].sum().backward()
    assert set(leaf.grad.unique().tolist()) <= {0.0, 1.0}
    assert leaf.grad.any()


def test_precisions_and_types_of_the_result():
    nodes = [
        node("QuantizeLinear", "x s", "q", output_dtype=TensorProto.INT8, precision=TensorProto.FLOAT),
        node("DequantizeLinear", "q s", "y", output_dtype=TensorProto.FLOAT),
    ]
    x = normal(5, 7).astype(np.float16)
    proto = proto_of(nodes, {"x": x}, {"y": 1, "q": TensorProto.INT8}, 23, s=np.float16(0.07))
    y, q = outputs_of(to_torch(proto), {"x": x})
    np.testing.assert_array_equal(q, np.rint(x.astype(F32) / F32(np.float16(0.07))).astype(I8))
    assert y.dtype == F32
    np.testing.assert_array_equal(y, q * F32(np.float16(0.07)))


@pytest.mark.parametrize("axis", [None, 0])
def test_gradients_pass_inside_of_the_range_alone(axis):
    x = (torch.randn(4, 50) * 4).requires_grad_()
    scale = torch.tensor(0.03) if axis is None else torch.linspace(0.02, 0.05, 4)
    zero = torch.tensor(7, dtype=torch.int8) if axis is None else torch.tensor([7, 0, -5, 100], dtype=torch.int8)
    made = dequantize(quantize(x, scale, zero, 0, 0, (-128, 127)), scale, zero, 0)
    if axis is None:
        expected = torch.fake_quantize_per_tensor_affine(x, 0.03, 7, -128, 127)
    else:
        expected = torch.fake_quantize_per_channel_affine(x, scale, zero.int(), 0, -128, 127)
    weights = torch.randn_like(x)
    torch.testing.assert_close(made, expected)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (made, expected))
    torch.testing.assert_close(ours, theirs)
    assert 0 < (ours == 0).float().mean() < 1


MOVED = {
    "nothing": ([], "q"),
    "identity": ([node("Identity", "q", "m")], "m"),
    "transpose": ([node("Transpose", "q", "m", perm=[1, 0, 3, 2])], "m"),
    "reshape": ([node("Reshape", "q shape", "m")], "m"),
    "flatten": ([node("Flatten", "q", "m")], "m"),
    "max pool": ([node("MaxPool", "q", "m", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], "m"),
    "max pool, pads by side": ([node("MaxPool", "q", "m", kernel_shape=[2, 2], pads=[0, 0, 1, 1])], "m"),
    "concat": ([node("Identity", "q", "i"), node("Concat", "q i", "m", axis=1)], "m"),
    "concat with a constant": ([node("Concat", "q c", "m", axis=2)], "m"),
    "relu": ([node("Relu", "q", "m")], "m"),
    "clip": ([node("Clip", "q low high", "m")], "m"),
    "pad": ([node("Pad", "q pads low", "m")], "m"),
    "slice": ([node("Slice", "q starts ends", "m")], "m"),
    "split": ([node("Split", "q", "m n", axis=1, num_outputs=2)], "m"),
    "gather": ([node("Gather", "q picks", "m", axis=1)], "m"),
    "several": ([node("Relu", "q", "a"), node("Transpose", "a", "b", perm=[0, 2, 3, 1]), node("Flatten", "b", "m")],
                "m"),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVED)
def test_gradients_pass_operators_on_integers(case):
    between, last = MOVED[case]
    nodes = [node("QuantizeLinear", "x s z", "q"), *between, node("DequantizeLinear", f"{last} t z", "y")]
    constants = {
        "s": F32(0.04), "t": F32(0.08), "z": I8(-3), "shape": np.array([0, -1]), "low": I8(-20), "high": I8(31),
        "pads": np.array([0, 0, 1, 2, 0, 0, 0, 1]), "starts": np.array([0, 1]), "ends": np.array([9, 3]),
        "picks": np.array([3, 0, 0]), "c": whole(I8, 1, 4, 2, 7),
    }  # fmt: skip
    x = normal(1, 4, 7, 7)
    read = {name for op in nodes for name in op.input}
    proto = proto_of(nodes, {"x": x}, {"y": 1}, 21, **{k: v for k, v in constants.items() if k in read})
    net = to_torch(proto)
    np.testing.assert_array_equal(outputs_of(net, {"x": x})[0], truth(proto, {"x": x})[0])
    assert as_integers not in {n.target for n in net.graph.nodes}
    leaf = torch.from_numpy(x).requires_grad_()
    net(leaf).sum().backward()
    assert torch.isfinite(leaf.grad).all()
    assert leaf.grad.any()
    torch.testing.assert_close(leaf.grad, (leaf.grad / 2).round() * 2)  # every path scales by t / s


# -- constant weights behind DequantizeLinear

KINDS = {
    "int8": I8, "uint8": U8, "int16": np.int16, "int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2,
}  # fmt: skip
BEHIND = {
    "conv": ([node("Conv", "x w", "y")], (6, 4, 3, 3), (2, 4, 6, 6), nn.Conv2d),
    "gemm": ([node("Gemm", "x w", "y")], (4, 6), (5, 4), nn.Linear),
    "matmul": ([node("MatMul", "x w", "y")], (4, 6), (5, 4), nn.Linear),
    "matmul behind identity and transpose": (
        [node("Identity", "w", "a"), node("Transpose", "a", "b", perm=[1, 0]), node("MatMul", "x b", "y")],
        (6, 4), (5, 4), nn.Linear),
    "gemm behind reshape": ([node("Reshape", "w to", "r"), node("Gemm", "x r", "y")], (4, 2, 3), (5, 4), nn.Linear),
    "gather": ([node("Gather", "w x", "y")], (8, 4), (3, 2), nn.Embedding),
}  # fmt: skip


def weight_behind(kind, granularity, case):
    nodes, shape, x_shape, module = BEHIND[case]
    kind = np.dtype(KINDS[kind])
    axis, block = (0, 0) if granularity == "axis" else (1, 2) if granularity == "blocks" else (1, 0)
    sizes = () if granularity == "tensor" else shape[:1] if granularity == "axis" else (shape[0], -(-shape[1] // 2),
                                                                                       *shape[2:])  # fmt: skip
    scale = rng.uniform(0.01, 0.02, sizes).astype(F32)
    is_float = "float" in kind.name
    levels = normal(*shape) * 3 if is_float else rng.integers(*(lambda i: (i.min, i.max))(ml_dtypes.iinfo(kind)), shape)
    constants = {"q": levels.astype(kind), "s": scale}
    if kind.name.startswith("uint"):
        constants["z"] = np.full(sizes, 5).astype(kind)
    if "to" in {name for op in nodes for name in op.input}:
        constants["to"] = np.array([4, 6])
    attributes = {"axis": axis, **({"block_size": block} if block else {})}
    first = node("DequantizeLinear", "q s z" if "z" in constants else "q s", "w", **attributes)
    x = rng.integers(0, 8, x_shape) if case == "gather" else normal(*x_shape)
    return proto_of([first, *nodes], {"x": x}, {"y": 1}, 21, **constants), x, module


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["tensor", "axis", "blocks"])
@pytest.mark.parametrize("case", BEHIND)
def test_weights_behind_dequantization_train_and_go_back(kind, granularity, case):
    proto, x, module = weight_behind(kind, granularity, case)
    model, net = load(proto), to_torch(proto)
    assert module in {type(child) for child in net.modules()}
    assert len(list(net.parameters())) == 1
    assert write_back(model, net) is model
    expected = ReferenceEvaluator(proto).run(None, {"x": x})[0]
    np.testing.assert_allclose(outputs_of(net, {"x": x})[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    made = net(torch.from_numpy(x))
    made.square().sum().backward()
    (parameter,) = net.parameters()
    assert torch.isfinite(parameter.grad).all()
    assert parameter.grad.abs().max() > 0
    with torch.no_grad():
        parameter.mul_(0.9)
    changed = write_back(model, net)
    before, after = model.proto(), changed.proto()
    names = [b.name for b, a in zip(before.graph.initializer, after.graph.initializer, strict=True) if a != b]
    assert names == ["q"]
    assert before.graph.node == after.graph.node
    trained = dict(to_torch(changed).named_parameters())
    (stored,) = trained.values()
    error = (stored - parameter).abs().detach().numpy()
    if kind.startswith("float"):
        bits = 2 + (kind == "float8_e4m3fn")
        assert (error <= 1.01 * 2.0 ** -(bits + 1) * np.abs(parameter.detach().numpy()) + 1e-4).all()
    else:  # one level, as zero goes with the others where 0 stands for another number
        assert error.max() <= 1.01 * model.initializer("s").max()
    difference = outputs_of(net, {"x": x})[0] - ReferenceEvaluator(after).run(None, {"x": x})[0]
    reach = 1 if case == "gather" else np.abs(x).reshape(len(x), -1).sum(1).max()
    assert np.abs(difference).max() <= 1.01 * error.max() * reach


def test_training_beyond_the_scale_is_refused():
    proto, _, _ = weight_behind("int8", "axis", "gemm")
    net = to_torch(proto)
    with torch.no_grad():
        next(net.parameters()).mul_(3)
    with pytest.raises(RefusedError, match="steps beyond what their scale can say"):
        write_back(load(proto), net)


def test_one_weight_dequantized_twice_is_one_parameter():
    nodes = [
        node("DequantizeLinear", "q s", "w"),
        node("MatMul", "x w", "h"),
        node("DequantizeLinear", "q s", "v"),
        node("MatMul", "h v", "y"),
    ]
    model = load(proto_of(nodes, {"x": normal(3, 4)}, {"y": 1}, q=whole(I8, 4, 4), s=F32(0.01)))
    net = to_torch(model)
    (parameter,) = net.parameters()
    with torch.no_grad():
        parameter.mul_(0.5)
    changed = write_back(model, net)
    np.testing.assert_allclose(changed.initializer("q"), model.initializer("q") * 0.5, rtol=0, atol=0.501)
    assert len(changed.initializers) == 2


def test_one_weight_dequantized_in_two_ways_is_refused_once_it_is_trained():
    nodes = [
        node("DequantizeLinear", "q s", "w"),
        node("MatMul", "x w", "h"),
        node("DequantizeLinear", "q t", "v"),
        node("MatMul", "h v", "y"),
    ]
    model = load(proto_of(nodes, {"x": normal(3, 4)}, {"y": 1}, q=whole(I8, 4, 4), s=F32(0.01), t=F32(0.02)))
    net = to_torch(model)
    assert write_back(model, net) is model
    with torch.no_grad():
        next(net.parameters()).mul_(0.5)
    with pytest.raises(RefusedError, match="dequantized in another way too"):
        write_back(model, net)


def test_float_weights_that_are_quantized_in_the_graph_stay_floats():
    nodes = [
        node("QuantizeLinear", "w s z", "q", axis=0),
        node("DequantizeLinear", "q s z", "v", axis=0),
        node("Conv", "x v", "y"),
    ]
    x = normal(2, 4, 6, 6)
    model = load(
        proto_of(nodes, {"x": x}, {"y": 1}, w=normal(3, 4, 3, 3), s=np.full(3, 0.02, F32), z=np.zeros(3, I8))
    )  # fmt: skip
    net = to_torch(model)
    assert [name for name, _ in net.named_parameters()] == ["w"]
    assert write_back(model, net) is model
    net(torch.from_numpy(x)).square().mean().backward()
    (parameter,) = net.parameters()
    assert torch.isfinite(parameter.grad).all()
    assert parameter.grad.any()
    with torch.no_grad():
        parameter -= 0.1 * parameter.grad
    changed = write_back(model, net)
    expected = changed.run({"x": x})["y"]
    np.testing.assert_allclose(outputs_of(net, {"x": x})[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert changed.operators == model.operators


# -- integer arithmetic


def conv_case(x_kind, w_kind, per_channel, **attributes):
    n_out, n_in = 8, 6 // attributes.get("group", 1)
    scales = rng.uniform(0.002, 0.01, n_out if per_channel else ()).astype(F32)
    zeros = np.zeros(scales.shape, w_kind) if w_kind == I8 else np.full(scales.shape, 131, w_kind)
    attributes = {"pads": [1, 1, 0, 1], "strides": [2, 1], **attributes}
    proto = proto_of(
        [node("QLinearConv", "x xs xz w ws wz ys yz b", "y", **attributes)],
        {"x": whole(x_kind, 3, 6, 11, 9)},
        {"y": helper.np_dtype_to_tensor_dtype(np.dtype(x_kind))},
        xs=F32(0.02), xz=x_kind(130 if x_kind == U8 else 17), w=whole(w_kind, n_out, n_in, 3, 3), ws=scales, wz=zeros,
        ys=F32(0.05), yz=x_kind(3), b=rng.integers(-5000, 5000, n_out).astype(I32),
    )  # fmt: skip
    return proto, ["w", "b"]


def matmul_case(x_kind, w_kind, per_channel):
    scales = rng.uniform(0.002, 0.01, 12 if per_channel else ()).astype(F32)
    proto = proto_of(
        [node("QLinearMatMul", "x xs xz w ws wz ys yz", "y")],
        {"x": whole(x_kind, 5, 7, 40)},
        {"y": helper.np_dtype_to_tensor_dtype(np.dtype(x_kind))},
        xs=F32(0.02), xz=x_kind(130 if x_kind == U8 else 17), w=whole(w_kind, 40, 12), ws=scales,
        wz=np.full(scales.shape, 131 if w_kind == U8 else 5, w_kind),
        ys=F32(0.04), yz=x_kind(9),
    )  # fmt: skip
    return proto, ["w"]


QLINEAR = {
    "conv": lambda *kinds: conv_case(*kinds),
    "conv in groups": lambda *kinds: conv_case(*kinds, group=2),
    "conv, dilated": lambda *kinds: conv_case(*kinds, dilations=[2, 2]),
    "conv, same": lambda *kinds: conv_case(*kinds, auto_pad="SAME_UPPER", pads=None),
    "matmul": matmul_case,
}


@pytest.mark.parametrize("case", QLINEAR)
@pytest.mark.parametrize(("x_kind", "w_kind"), [(U8, I8), (I8, I8), (U8, U8)], ids=["u8i8", "i8i8", "u8u8"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_quantized_products_equal_onnx_runtime_and_train(case, x_kind, w_kind, per_channel):
    proto, names = QLINEAR[case](x_kind, w_kind, per_channel)
    model, net = load(proto), to_torch(proto)
    x = whole(x_kind, *(size.dim_value or 3 for size in proto.graph.input[0].type.tensor_type.shape.dim))
    (actual,), (expected,) = outputs_of(net, {"x": x}), model.run({"x": x}).values()
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)
    assert ((expected > np.iinfo(x_kind).min) & (expected < np.iinfo(x_kind).max)).mean() > 0.2
    parameters = dict(net.named_parameters())
    assert list(parameters) == names
    assert write_back(model, net) is model
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.mul_(torch.rand_like(parameter))
    changed = write_back(model, net)
    np.testing.assert_array_equal(outputs_of(net, {"x": x})[0], changed.run({"x": x})["y"])
    assert [name for name in model.initializers if model.initializers[name] != changed.initializers[name]] == [
        name for name in model.initializers if name in names
    ]


@pytest.mark.parametrize("kind", [I8, U8, np.int16])
def test_halves_are_written_as_the_network_rounds_them(kind):
    scale = rng.uniform(0.002, 0.01, 50).astype(F32)
    zero = whole(kind, 50) // 4
    old = whole(kind, 50, 101)
    low, high = max(np.iinfo(kind).min, -200), min(np.iinfo(kind).max, 200)
    halves = np.linspace(low, high - 1, 101).round() + 0.5 - zero[:, None]
    weights = (halves * scale[:, None]).astype(F32)
    for array in (weights, np.nextafter(weights, F32(np.inf)), np.nextafter(weights, F32(-np.inf))):
        levels = quantize(*map(torch.from_numpy, (array, scale, zero)), axis=0, limits=limits_of(np.dtype(kind)))
        np.testing.assert_array_equal(Dequantize(scale, zero, 0, 0).back(array, old), levels.numpy())


INTEGER = {
    "matmul": ([node("MatMulInteger", "x w xz wz", "y")], (4, 5, 700), (700, 9), (9,)),
    "matmul, one zero": ([node("MatMulInteger", "x w xz wz", "y")], (5, 40), (40, 9), ()),
    "matmul, no zero": ([node("MatMulInteger", "x w", "y")], (5, 40), (40, 9), ()),
    "conv": ([node("ConvInteger", "x w xz wz", "y", pads=[1, 1, 1, 1], group=2)], (2, 4, 8, 8), (6, 2, 3, 3), ()),
    "wide conv": ([node("ConvInteger", "x w xz", "y", strides=[2, 2])], (2, 80, 8, 8), (6, 80, 3, 3), ()),
}


@pytest.mark.parametrize("case", INTEGER)
@pytest.mark.parametrize("extreme", [False, True])
def test_integer_products_are_exact(case, extreme):
    nodes, shape, w_shape, zeros = INTEGER[case]
    x, w = whole(U8, *shape), whole(U8, *w_shape)
    if extreme:
        x, w = np.full_like(x, 255), np.full_like(w, 255) - (w > 250).astype(U8)
    names = set(nodes[0].input)
    constants = {"w": w, "xz": U8(0 if extreme else 100), "wz": np.full(zeros, 0 if extreme else 7, U8)}
    proto = proto_of(nodes, {"x": x}, {"y": TensorProto.INT32}, **{k: v for k, v in constants.items() if k in names})
    (actual,) = outputs_of(to_torch(proto), {"x": x})
    assert actual.dtype == I32
    np.testing.assert_array_equal(actual, load(proto).run({"x": x})["y"])


@pytest.mark.parametrize("x", [normal(3, 40), np.abs(normal(3, 40)), -np.abs(normal(3, 40)), np.zeros((3, 4), F32)],
                         ids=["mixed", "positive", "negative", "zero"])  # fmt: skip
def test_dynamic_quantization_is_exact(x):
    proto = proto_of(
        [node("DynamicQuantizeLinear", "x", "y s z")],
        {"x": x},
        {"y": TensorProto.UINT8, "s": 1, "z": TensorProto.UINT8},
    )
    expected = load(proto).run({"x": x}).values()
    for a, e in zip(outputs_of(to_torch(proto), {"x": x}), expected, strict=True):
        np.testing.assert_array_equal(a, e)


def test_gradients_of_requantization_are_those_of_the_product():
    total, factor = torch.randn(2, 3, 4, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    total.requires_grad_()
    made = requantize(total * 50, factor, torch.tensor(0, dtype=torch.int8), 1, (-128, 127))
    (gradient,) = torch.autograd.grad(made.sum(), total)
    torch.testing.assert_close(gradient, (50 * factor).reshape(3, 1).expand(2, 3, 4).to(torch.float64))


# -- what ONNX Runtime's quantizers make


class Cnn(nn.Module):
    shape = (3, 12, 12)

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.conv3, self.head = nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, stride=2), nn.Linear(64, 5)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        x = self.pool(torch.relu(self.conv2(x) + x))
        return self.head(torch.relu(self.conv3(x)).flatten(1))


class Mlp(nn.Module):
    shape = (6, 16)

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 5, bias=False)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


class Calibration(CalibrationDataReader):
    """A few random inputs."""

    def __init__(self, shape):
        generator = np.random.default_rng(1)
        self.rest = iter([{"x": generator.normal(size=(8, *shape)).astype(F32)} for _ in range(4)])

    def get_next(self):
        return next(self.rest, None)


STATIC = {
    "qdq": {"quant_format": QuantFormat.QDQ},
    "qdq, by channel": {"quant_format": QuantFormat.QDQ, "per_channel": True},
    "qdq, unsigned": {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8},
    "qdq, 16 bits": {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt16,
                     "extra_options": {"UseQDQContribOps": False}},
    "qdq, pairs of their own": {"quant_format": QuantFormat.QDQ, "extra_options": {"DedicatedQDQPair": True}},
    "qdq, float weights": {"quant_format": QuantFormat.QDQ, "extra_options": {"AddQDQPairToWeight": True}},
    "qoperator": {"quant_format": QuantFormat.QOperator, "activation_type": QuantType.QUInt8},
    "qoperator, by channel": {"quant_format": QuantFormat.QOperator, "per_channel": True},
}  # fmt: skip
SHARE = {(Mlp, "qoperator"): 0.96}
"""Share of the weights that can be trained where it is not all: biases of QLinearAdd are integers."""
DYNAMIC = {"dynamic": {}, "dynamic, by channel": {"per_channel": True}, "dynamic, unsigned":
           {"weight_type": QuantType.QUInt8}}  # fmt: skip


@cache
def quantized(network, how):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, whose opset 21 is not official
        return _quantized(network, how)


def _quantized(network, how):
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    module = network().eval()
    file = io.BytesIO()
    torch.onnx.export(
        module, (torch.zeros(2, *network.shape),), file, dynamo=False, opset_version=21 if "16" in how else 17,
        input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
    )  # fmt: skip
    proto = onnx.load_from_string(file.getvalue())
    made = io.BytesIO()
    if how in DYNAMIC:
        quantize_dynamic(proto, made, op_types_to_quantize=["MatMul", "Conv", "Gemm"], **DYNAMIC[how])
    else:
        quantize_static(proto, made, Calibration(network.shape), **STATIC[how])
    logging.disable(logging.NOTSET)
    return load(onnx.load_from_string(made.getvalue()))


@pytest.mark.parametrize("how", [*STATIC, *DYNAMIC])
@pytest.mark.parametrize("network", [Cnn, Mlp])
def test_quantized_networks_agree_train_and_go_back(network, how):
    model = quantized(network, how)
    net = to_torch(model)
    assert write_back(model, net) is model
    x = np.random.default_rng(5).normal(size=(16, *network.shape)).astype(F32)
    before = model.run({"x": x})["y"]
    difference = np.abs(outputs_of(net, {"x": x})[0] - before)
    step = np.ptp(before) / 255
    assert difference.max() <= 1.01 * step
    assert difference.mean() < 0.01 * step

    target = torch.from_numpy(0.7 * before)  # towards which weights shrink, inside of what their scales can say

    def loss_of(y):
        return (torch.as_tensor(y) - target).square().mean() / target.square().mean()

    parameters = dict(net.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.004)
    for n in range(8):
        optimizer.zero_grad()
        loss = loss_of(net(torch.from_numpy(x)))
        loss.backward()
        if n == 0:
            gradients = torch.cat([p.grad.reshape(-1) for p in parameters.values()])
            n_weights = sum(p.numel() for p in network().parameters())
            assert gradients.numel() >= SHARE.get((network, how.split(",")[0]), 1) * n_weights
            assert torch.isfinite(gradients).all()
            assert (gradients != 0).float().mean() > 0.9
        optimizer.step()
    changed = write_back(model, net)
    assert changed.operators == model.operators
    after = changed.run({"x": x})["y"]
    assert loss_of(after) < 0.5 * loss_of(before)
    assert abs(loss_of(after) - loss_of(net(torch.from_numpy(x)))) < 0.2 * loss_of(before)
