"""What exporters write out is found again, and nothing that only looks like it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from graphmod.model import load
from graphmod.pytorch import to_torch, write_back

rng = np.random.default_rng(0)


def model_of(lines, shape=("n", 4, 6), opset=17, outputs=("y",), **constants):
    """Return a model of operators written as ``y = Add(a, b) axis=1``, with constants by name."""
    nodes = []
    for line in lines:
        result, call = line.split(" = ", 1)
        op_type, rest = call.split("(", 1)
        inputs, attributes = rest.rsplit(")", 1)
        given = {key: eval(value) for key, value in (item.split("=") for item in attributes.split())}
        nodes.append(helper.make_node(op_type, inputs.split(", "), [result], **given))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def check(model, expected, shape=(2, 4, 6)):
    """Compare with ONNX Runtime; return the modules that the network is made of."""
    net = to_torch(model)
    x = rng.normal(size=shape).astype(np.float32)
    with torch.no_grad():
        made = net(torch.from_numpy(x))
    for actual, wanted in zip(made if isinstance(made, tuple) else (made,), model.run({"x": x}).values(), strict=True):
        np.testing.assert_allclose(actual.numpy(), wanted, rtol=1e-5, atol=1e-5)
    modules = [type(module) for module in net.modules() if not list(module.children())]
    assert (expected in modules) if isinstance(expected, type) else (expected(net, modules))
    assert write_back(model, net) is model


F = np.float32
ERF = ["d = Div(x, root)", "e = Erf(d)", "p = Add(e, one)"]
ROOT = {"root": F(math.sqrt(2)), "one": F(1), "half": F(0.5)}
TANH = [
    "c = Pow(x, three)",
    "k = Mul(c, small)",
    "s = Add(x, k)",
    "m = Mul(s, scale)",
    "t = Tanh(m)",
    "p = Add(one, t)",
]
SCALE = {"three": F(3), "small": F(0.044715), "scale": F(math.sqrt(2 / math.pi)), "one": F(1), "half": F(0.5)}
CENTRED = ["m = ReduceMean(x) axes=[-1]", "c = Sub(x, m)", "q = Pow(c, two)", "v = ReduceMean(q) axes=[-1]"]
NORM = [*CENTRED, "a = Add(v, eps)", "s = Sqrt(a)", "z = Div(c, s)", "w = Mul(z, weight)", "y = Add(w, bias)"]
AFFINE = {"two": F(2), "eps": F(1e-5), "weight": rng.normal(size=6).astype(F), "bias": rng.normal(size=6).astype(F)}
ROOT_MEAN = ["q = Pow(x, two)", "v = ReduceMean(q) axes=[-1]", "a = Add(v, eps)", "s = Sqrt(a)"]
GROUPS = [
    "r = Reshape(x, apart)", "i = InstanceNormalization(r, ones, zeros)", "h = Shape(x)", "b = Reshape(i, h)",
    "w = Mul(b, weight)", "y = Add(w, bias)",
]  # fmt: skip
GROUPED = {
    "apart": np.array([0, 2, -1]), "ones": np.ones(2, F), "zeros": np.zeros(2, F),
    "weight": rng.normal(size=(4, 1)).astype(F), "bias": rng.normal(size=(4, 1)).astype(F),
}  # fmt: skip
FOUND = {
    "gelu of torchscript": ([*ERF, "u = Mul(x, p)", "y = Mul(u, half)"], ROOT, nn.GELU),
    "gelu, half first": ([*ERF, "u = Mul(x, half)", "y = Mul(u, p)"], ROOT, nn.GELU),
    "gelu, half of the sum": ([*ERF, "u = Mul(half, p)", "y = Mul(u, x)"], ROOT, nn.GELU),
    "gelu by tanh": ([*TANH, "u = Mul(half, x)", "y = Mul(u, p)"], SCALE, nn.GELU),
    "silu": (["s = Sigmoid(x)", "y = Mul(x, s)"], {}, nn.SiLU),
    "mish": (["s = Softplus(x)", "t = Tanh(s)", "y = Mul(x, t)"], {}, nn.Mish),
    "hardswish": ([f"s = HardSigmoid(x) alpha={1 / 6} beta=0.5", "y = Mul(x, s)"], {}, nn.Hardswish),
    "layer norm": (NORM, AFFINE, nn.LayerNorm),
    "layer norm by products": ([*NORM[:2], "q = Mul(c, c)", *NORM[3:]], AFFINE, nn.LayerNorm),
    "rms norm": ([*ROOT_MEAN, "z = Div(x, s)", "y = Mul(weight, z)"], AFFINE, nn.RMSNorm),
    "rms norm by reciprocal": (
        [*ROOT_MEAN, "i = Reciprocal(s)", "z = Mul(x, i)", "y = Mul(z, weight)"], AFFINE, nn.RMSNorm),
    "group norm": (GROUPS, GROUPED, nn.GroupNorm),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_found(case):
    lines, constants, module = FOUND[case]
    check(model_of(lines, **constants), module)


def without(module):
    return lambda _, modules: module not in modules


SIMILAR = {
    "gelu of another root": ([*ERF, "u = Mul(x, p)", "y = Mul(u, half)"], ROOT | {"root": F(1.5)}, nn.GELU),
    "silu of something else": (["n = Neg(x)", "s = Sigmoid(n)", "y = Mul(x, s)"], {}, nn.SiLU),
    "hardswish of another slope": (["s = HardSigmoid(x) alpha=0.2 beta=0.5", "y = Mul(x, s)"], {}, nn.Hardswish),
    "layer norm along another axis": (
        [line.replace("axes=[-1]", "axes=[1]") for line in NORM], AFFINE, nn.LayerNorm),
    "layer norm over two axes": (
        [line.replace("axes=[-1]", "axes=[1,2]") for line in NORM], AFFINE, nn.LayerNorm),
    "layer norm with a scalar weight": (NORM, AFFINE | {"weight": F([2.0])}, nn.LayerNorm),
    "groups with other scales": (GROUPS, GROUPED | {"ones": np.array([1, 2], F)}, nn.GroupNorm),
    "groups whose number follows the batch, behind another operator": (
        ["u = Tanh(x)", "k = Shape(u) end=1", "t = Concat(k, two, rest) axis=0", "r = Reshape(u, t)", *GROUPS[1:]],
        GROUPED | {"two": np.array([2]), "rest": np.array([-1])}, nn.GroupNorm),
    "groups of another axis": (
        GROUPS, GROUPED | {"weight": rng.normal(size=(4, 6)).astype(F)}, nn.GroupNorm),
}  # fmt: skip


@pytest.mark.parametrize("case", SIMILAR)
def test_similar_things_stay_what_they_are(case):
    lines, constants, module = SIMILAR[case]
    check(model_of(lines, **constants), without(module))


def test_what_something_else_reads_stays():
    check(model_of(["s = Sigmoid(x)", "y = Mul(x, s)"], outputs=("y", "s")), without(nn.SiLU))


ATTENTION = ["k = Transpose(x) perm=[0,2,1]", "p = MatMul(x, k)"]


def attends(net, _):
    return "scaled_dot_product_attention" in net.code


ATTENTIONS = {
    "plain": ([*ATTENTION, "a = Softmax(p) axis=-1", "y = MatMul(a, x)"], {}, True),
    "with a mask": ([*ATTENTION, "m = Add(p, mask)", "a = Softmax(m) axis=2", "y = MatMul(a, x)"], {}, True),
    "with a mask before": ([*ATTENTION, "m = Add(mask, p)", "a = Softmax(m) axis=-1", "y = MatMul(a, x)"], {}, True),
    "along another axis": ([*ATTENTION, "a = Softmax(p) axis=1", "y = MatMul(a, x)"], {}, False),
    "of one value for all": ([*ATTENTION, "a = Softmax(p) axis=-1", "y = MatMul(a, other)"], {}, True),
    "guarded": (
        [
            *ATTENTION,
            "m = Add(p, mask)",
            "a = Softmax(m) axis=-1",
            "n = IsNaN(a)",
            "w = Where(n, zero, a)",
            "y = MatMul(w, x)",
        ],
        {},
        True,
    ),
}


@pytest.mark.parametrize("case", ATTENTIONS)
def test_attention(case):
    lines, constants, found = ATTENTIONS[case]
    if "mask" in str(lines):
        constants = {"mask": np.triu(np.full((4, 4), -1e4, F), 1), "zero": F(0)}
    if "other" in str(lines):
        constants = {"other": rng.normal(size=(4, 6)).astype(F)}
    check(model_of(lines, **constants), lambda net, modules: attends(net, modules) is found)
