"""ONNX Runtime's Attention and the projection after it as nn.MultiheadAttention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from graphmod.model import load
from graphmod.pytorch import to_torch, write_back
from graphmod.pytorch.operators.multihead_attention import is_hidden


def model_of(rng, *, mask=False, bias=True, **attributes):
    inputs = ["x", "w", "b", *(["mask"] if mask else [])]
    nodes = [
        helper.make_node("Attention", inputs, ["a"], domain="com.microsoft", num_heads=2, **attributes),
        helper.make_node("MatMul", ["a", "o"], ["p" if bias else "y"]),
    ]
    shapes = {"w": (8, 24), "b": (24,), "o": (8, 8)} | ({"c": (8,)} if bias else {})
    if bias:
        nodes.append(helper.make_node("Add", ["p", "c"], ["y"]))
    declared = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5, 8])]
    if mask:
        declared.append(helper.make_tensor_value_info("mask", TensorProto.INT32, ["n", 5]))
    graph = helper.make_graph(
        nodes, "g", declared, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5, 8])],
        [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), name) for name, s in shapes.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return load(helper.make_model(graph, opset_imports=opsets, ir_version=8))


MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 0]], np.int32)


def feeds_of(rng, mask):
    return {"x": rng.normal(size=(3, 5, 8)).astype(np.float32)} | ({"mask": MASK} if mask else {})


@pytest.mark.parametrize("mask", [False, True])
def test_it_is_the_module_and_its_weights_go_back(mask):
    rng = np.random.default_rng(0)
    model = model_of(rng, mask=mask)
    net, feeds = to_torch(model), feeds_of(rng, mask)
    assert [type(module) for module in net.children()] == [nn.MultiheadAttention]
    assert write_back(model, net) is model
    inputs = [torch.from_numpy(value) for value in feeds.values()]
    net.train()(*inputs).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    torch.optim.SGD(net.parameters(), 0.1).step()
    trained = write_back(model, net)
    with torch.no_grad():
        np.testing.assert_allclose(net.eval()(*inputs).numpy(), trained.run(feeds)["y"], atol=1e-5)
    assert trained.operators == model.operators


def test_a_sample_of_which_all_is_hidden_attends_as_if_nothing_were():
    assert is_hidden(torch.tensor([[1, 0], [0, 0]])).tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("attributes", [{"unidirectional": 1}, {"scale": 0.3}, {"bias": False}])
def test_what_the_module_does_not_do_stays_apart(attributes):
    rng = np.random.default_rng(0)
    model = model_of(rng, **attributes)
    net, feeds = to_torch(model), feeds_of(rng, mask=False)
    assert nn.MultiheadAttention not in {type(module) for module in net.children()}
    with torch.no_grad():
        made = net(*map(torch.from_numpy, feeds.values())).numpy()
    np.testing.assert_allclose(made, model.run(feeds)["y"], atol=1e-5)
