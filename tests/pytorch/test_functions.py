"""Functions: the model's own, with weights inside, and those by which ONNX defines operators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch import nn
from torch.nn import functional as F

from graphmod.errors import RefusedError
from graphmod.model import load
from graphmod.pytorch import to_torch, write_back

LAYER = """
    <ir_version: 10, opset_import: ["": 17, "own": 1]>
    g (float[n, 3] x) => (float[n, 3] y) {
        h = own.layer <slope: float = 0.1> (x)
        y = own.layer <slope: float = 0.2> (h)
    }
    <domain: "own", opset_import: ["": 17]>
    layer <slope> (p) => (q) {
        w = Constant <value = float[3, 3] {1, 2, 3, 4, 5, 6, 7, 8, 10}> ()
        b = Constant <value_floats = [1.0, -2.0, 3.0]> ()
        s = MatMul (p, w)
        t = Add (s, b)
        q = LeakyRelu <alpha: float = @slope> (t)
    }"""


def outputs(model, x):
    return next(iter(model.run({"x": x}).values()))


def test_a_weight_inside_a_function_is_one_parameter_and_goes_back_there():
    model = load(parser.parse_model(LAYER))
    net = to_torch(model)
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    np.testing.assert_allclose(net(torch.from_numpy(x)).detach().numpy(), outputs(model, x), rtol=1e-5)
    assert sorted(p.numel() for p in net.parameters()) == [3, 9]
    assert [m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)] == pytest.approx([0.1, 0.2])
    assert write_back(model, net) is model

    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    trained = write_back(model, net)
    np.testing.assert_allclose(net(torch.from_numpy(x)).detach().numpy(), outputs(trained, x), rtol=1e-5)
    assert trained.operators == model.operators
    changed = [a != b for a, b in zip(trained.functions[0].node, model.functions[0].node, strict=True)]
    assert changed == [True, True, False, False, False]


def test_a_weight_that_a_function_computes_cannot_go_back():
    proto = parser.parse_model(LAYER.replace("s = MatMul (p, w)", "v = Exp (w) s = MatMul (p, v)"))
    model = load(proto)
    net = to_torch(model)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    with pytest.raises(RefusedError, match="made inside a function"):
        write_back(model, net)


def test_functions_of_onnx_are_their_bodies():
    """The loss operators have no converter; torch's own losses tell what is right."""
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5]),
        helper.make_tensor_value_info("t", TensorProto.INT64, ["n"]),
    ]
    node = helper.make_node("SoftmaxCrossEntropyLoss", ["x", "t", "w"], ["y"], reduction="mean", ignore_index=2)
    weights = np.array([1, 2, 1, 3, 1], np.float32)
    graph = helper.make_graph(
        [node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    net = to_torch(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    x, t = torch.randn(6, 5, requires_grad=True), torch.tensor([0, 1, 2, 3, 4, 2])
    expected = F.cross_entropy(x, t, torch.from_numpy(weights), ignore_index=2)
    found = net(x, t)
    assert torch.allclose(found, expected)
    gradient = torch.autograd.grad(expected, x)[0]
    assert torch.allclose(torch.autograd.grad(found, x)[0], gradient, atol=1e-6)


def test_an_operator_that_pytorch_cannot_say_warns_and_refuses_a_gradient():
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["": 20, "ai.onnx.ml": 3]>
        g (string[n] words, float[n] x) => (string[n] low, float[n] y) {
            low = StringNormalizer <case_change_action: string = "LOWER"> (words)
            y = Neg (x)
        }""")
    with pytest.warns(UserWarning, match=r"'low' \(StringNormalizer\)"):
        net = to_torch(model)
    low, y = net(np.array(["Ab", "CD"], object), torch.ones(2))
    assert low.tolist() == ["ab", "cd"]
    assert y.tolist() == [-1, -1]
