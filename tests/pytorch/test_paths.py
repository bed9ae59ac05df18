"""Where submodules live, and how clashes are settled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from graphmod.model import load
from graphmod.pytorch import to_torch


def net_of(*nodes, weights=(), name="x"):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.ones((4, 4), np.float32), weight) for weight in weights],
    )
    return to_torch(load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)))


def paths(net):
    return [name for name, module in net.named_modules() if name and not list(module.children())]


def op(op_type, inputs, output, name="", scopes=None):
    node = helper.make_node(op_type, inputs.split(), [output], name=name)
    if scopes is not None:
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=repr(scopes))
    return node


def test_scopes_of_the_current_exporter():
    net = net_of(
        op("Gemm", "x w", "a", scopes=["", "layer1", "layer1.0", "layer1.0.fc", "linear"]),
        op("Relu", "a", "b", scopes=["", "layer1", "layer1.0", "relu"]),
        op("Relu", "b", "c", scopes=["", "relu_3"]),
        weights=["w"],
    )
    assert paths(net) == ["layer1.0.fc", "layer1.0.relu", "relu"]


def test_names_of_the_torchscript_exporter():
    net = net_of(
        op("Gemm", "x w", "a", "/layer1/layer1.0/fc/Gemm"),
        op("Relu", "a", "b", "/layer1/layer1.0/relu/Relu"),
        op("Relu", "b", "c", "/Relu"),
        weights=["w"],
    )
    assert paths(net) == ["layer1.0.fc", "layer1.0.relu", "relu"]


def test_other_names_and_none():
    assert paths(net_of(op("Relu", "x", "a", "my relu:0"), op("Relu", "a", "b"))) == ["my_relu_0", "relu_1"]


def test_a_weight_that_only_one_operator_reads_names_it():
    net = net_of(
        op("Gemm", "x conv1.weight", "a", scopes=["", "bn1", "batch_norm"]),
        op("Gemm", "a shared.weight", "b", scopes=["", "fc1", "linear"]),
        op("Gemm", "b shared.weight", "c", scopes=["", "fc2", "linear"]),
        weights=["conv1.weight", "shared.weight"],
    )
    assert paths(net) == ["conv1", "fc1", "fc2"]


def test_reused_modules_are_numbered():
    node = [op("Relu", a, b, scopes=["", "act", "relu"]) for a, b in ("xa", "ab", "bc")]
    assert paths(net_of(*node)) == ["act", "act_1", "act_2"]


def test_a_leaf_never_takes_a_containers_place():
    net = net_of(
        op("Relu", "x", "a", scopes=["", "block", "relu"]),
        op("Relu", "a", "b", scopes=["", "block", "block.act", "relu"]),
    )
    assert paths(net) == ["block.relu", "block.act"]


def test_attributes_of_modules_are_no_names():
    net = net_of(op("Relu", "x", "a", "forward"), op("Relu", "a", "b", "half"))
    assert paths(net) == ["forward_1", "half_1"]


def test_inputs_become_identifiers():
    net = net_of(op("Relu", "input:0", "a"), name="input:0")
    assert [node.name for node in net.graph.nodes if node.op == "placeholder"] == ["input_0"]
    keyword = net_of(op("Relu", "lambda", "a"), name="lambda")
    assert keyword(torch.ones(1, 4)).shape == (1, 4)


@pytest.mark.parametrize(
    "name", ["graph", "code", "meta", "_graph", "training", "lambda", "a.class.w", "graph.weight", "print_readable"]
)
def test_no_name_of_a_weight_is_in_the_networks_way(name):
    net = net_of(op("Add", f"x {name}", "a"), weights=[name])
    assert net(torch.ones(4, 4)).shape == (4, 4)


@pytest.mark.parametrize("name", ["torch", "getattr", "device", "inf", "self", "len"])
def test_no_name_of_an_input_is_in_the_codes_way(name):
    net = net_of(op("Softsign", name, "a"), op("Relu", "a", "b"), name=name)
    assert net(torch.ones(1, 4)).shape == (1, 4)
