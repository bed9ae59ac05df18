"""Boundaries: what both exporters agree on, what the definition says, and what they are good for."""

from __future__ import annotations

import time

import numpy as np
import pytest
import zoo
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper
from random_graphs import random_graphs

import graphmod as gm

COUNTS = {"resnet18": 22, "resnet50": 38, "mobilenetv2": 50, "vit12": 32, "vgg": 17, "branching": 7}


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", COUNTS)
def test_one_boundary_for_each_operator_of_the_trunk(zoo_network, name, exporter):
    assert len(gm.boundaries(zoo_network(name, exporter).model)) == COUNTS[name]


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_both_exporters_give_the_same_tensors(zoo_network, name):
    values = []
    for exporter in zoo.EXPORTERS:
        network = zoo_network(name, exporter)
        values.append(list(network.model.run(network.feeds, outputs=gm.boundaries(network.model)).values()))
    for one, other in zip(*values, strict=True):
        np.testing.assert_allclose(one.ravel(), other.ravel(), rtol=0, atol=1e-3 * np.abs(one).max())


def test_boundaries_are_values_inside_the_torch_module(zoo_network):
    network = zoo_network("resnet18")
    seen = []
    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach().numpy()))
        for stage in (network.module.layer1, network.module.layer2, network.module.layer3, network.module.layer4)
        for block in stage
    ]
    network.module(*network.inputs)
    for hook in hooks:
        hook.remove()
    values = network.model.run(network.feeds, outputs=gm.boundaries(network.model)).values()
    for expected in seen:
        assert any(v.shape == expected.shape and np.allclose(v, expected, atol=1e-4) for v in values)


@settings(max_examples=200, deadline=None)
@given(random_graphs())
def test_boundaries_are_the_tensors_that_cut_the_graph(graph):
    assert gm.boundaries(gm.load(graph.proto), "x", "out") == graph.cuts


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(random_graphs())
def test_nothing_but_the_boundary_and_context_decides_the_output(graph):
    model = gm.load(graph.proto)
    feeds = graph.feeds()
    names = gm.boundaries(model, "x", "out")
    values = model.run(feeds, outputs=names)
    for name in names[:-1]:
        part = gm.graph.subgraph(model, [name], ["out"])
        assert set(part.inputs) <= {name, "side", "x"}
        given_only = {**graph.feeds(seed=1), "side": feeds["side"], name: values[name]}
        result = part.run({key: given_only[key] for key in part.inputs})
        np.testing.assert_allclose(result["out"], values["out"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_a_zoo_network_resumes_at_every_fourth_boundary(zoo_network, name):
    network = zoo_network(name)
    model, feeds = network.model, network.feeds
    source = gm.graph.primary_input(model)
    names = gm.boundaries(model)
    values = model.run(feeds, outputs=names)
    rng = np.random.default_rng(0)
    other = rng.permutation(feeds[source].ravel()).reshape(feeds[source].shape)
    for boundary in names[:-1][::4]:
        part = gm.graph.subgraph(model, [boundary], [names[-1]])
        known = {**feeds, source: other, boundary: values[boundary]}
        result = part.run({key: known[key] for key in part.inputs})[names[-1]]
        np.testing.assert_allclose(result, values[names[-1]], rtol=0, atol=1e-4 * np.abs(result).max())


def relabelled(op_type: str) -> gm.Model:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node(op_type, ["a"], ["b"]),
        helper.make_node("Tanh", ["b"], ["c"]),
        helper.make_node(op_type, ["c"], ["out"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "out")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    return gm.load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))


@pytest.mark.parametrize("op_type", ["Identity", "Dropout"])
def test_an_operator_that_passes_a_tensor_on_adds_no_boundary(op_type):
    assert gm.boundaries(relabelled(op_type)) == ["a", "c", "out"]


def deep(n: int, residual: bool = False) -> gm.Model:
    nodes = []
    for i in range(n):
        plain = not residual or i % 2 == 0
        reads = [f"t{i}"] if plain else [f"t{i}", f"t{i - 1}"]
        nodes.append(helper.make_node("Neg" if plain else "Add", reads, [f"t{i + 1}"]))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("t0", f"t{n}")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    return gm.load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))


@pytest.mark.parametrize("residual", [False, True])
def test_a_chain_of_5000_operators_takes_seconds_and_no_recursion(residual):
    model = deep(5000, residual)
    start = time.perf_counter()
    names = gm.boundaries(model)
    tree = gm.blocks(model)
    assert time.perf_counter() - start < 10
    assert names == [f"t{i}" for i in range(1 + residual, 5001, 1 + residual)]
    assert len(tree.operators) == 5000


def test_a_source_and_sink_in_the_middle(zoo_network):
    model = zoo_network("resnet18").model
    names = gm.boundaries(model)
    assert gm.boundaries(model, names[4], names[9]) == names[5:10]


def test_no_path_between_two_tensors_is_an_error_that_names_both(zoo_network):
    model = zoo_network("resnet18").model
    names = gm.boundaries(model)
    with pytest.raises(gm.InvalidModelError, match=f"'{names[9]}'.*'{names[4]}'"):
        gm.boundaries(model, names[9], names[4])
