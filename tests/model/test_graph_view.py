"""The networkx view against a traversal of its own."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from random_graphs import random_graphs

import graphmod as gm

LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))

CAPTURES = """<ir_version: 8, opset_import: ["" : 17]>
agraph (float[2] x, bool flag, int64 times) => (float[2] out) {
    a = Relu(x)
    b = Tanh(x)
    c = If (flag) <
        then_branch = yes () => (float[2] y) { y = Neg(a) },
        else_branch = no () => (float[2] n) {
            m = Exp(b)
            n = If (flag) <
                then_branch = deep () => (float[2] d) { d = Add(m, x) },
                else_branch = flat () => (float[2] e) { e = Sub(m, b) }
            >
        }
    >
    out = Loop (times, flag, c) <body = step (int64 i, bool go, float[2] s) => (bool still, float[2] t) {
        still = Identity(go)
        t = Add(s, a)
    }>
}"""


def edges_by_hand(proto: onnx.ModelProto) -> set[tuple[str, str, str]]:
    """Return (maker, reader, tensor) of a graph whose operators all have names."""

    def free(graph: onnx.GraphProto) -> set[str]:
        own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        found = set()
        for node in graph.node:
            found |= reads(node) - own
            own |= set(node.output)
        return found | ({v.name for v in graph.output} - own)

    def reads(node: onnx.NodeProto) -> set[str]:
        bodies = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        return {name for name in node.input if name}.union(*map(free, bodies))

    constants = {t.name for t in proto.graph.initializer}
    maker = {v.name: f"input:{v.name}" for v in proto.graph.input if v.name not in constants}
    maker |= {name: node.name for node in proto.graph.node for name in node.output if name}
    edges = {(maker[t], node.name, t) for node in proto.graph.node for t in reads(node) if t in maker}
    return edges | {(maker[v.name], f"output:{v.name}", v.name) for v in proto.graph.output}


def named(proto: onnx.ModelProto) -> onnx.ModelProto:
    for i, node in enumerate(proto.graph.node):
        node.name = f"own{i}"
    return proto


def check_view(model: gm.Model) -> None:
    assert isinstance(model.graph, nx.MultiDiGraph)
    assert set(model.graph.edges(keys=True)) == edges_by_hand(model.proto())


def test_views_of_the_zoo(any_export):
    check_view(gm.load(named(any_export.model.proto())))


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_views_of_onnx_light_models(path):
    check_view(gm.load(named(onnx.load_model(path))))


@settings(max_examples=50, deadline=None)
@given(random_graphs())
def test_views_of_random_graphs(graph):
    check_view(gm.load(named(graph.proto)))


def test_what_subgraphs_capture_becomes_edges():
    model = gm.load(named(onnx.parser.parse_model(CAPTURES)))
    check_view(model)
    into_if = {(maker, tensor) for maker, _, tensor in model.graph.in_edges("own2", keys=True)}
    assert into_if == {("input:flag", "flag"), ("own0", "a"), ("own1", "b"), ("input:x", "x")}
    assert ("own0", "own3", "a") in model.graph.edges
    assert gm.boundaries(model, "x", "out") == ["out"]


def test_nodes_tell_what_they_are(zoo_network):
    model = zoo_network("two_inputs").model
    kinds = nx.get_node_attributes(model.graph, "kind")
    assert {name for name, kind in kinds.items() if kind == "input"} == {f"input:{name}" for name in model.inputs}
    assert {name for name, kind in kinds.items() if kind == "output"} == {f"output:{name}" for name in model.outputs}
    for position, name in enumerate(model.operator_names):
        node = model.graph.nodes[name]
        assert (node["kind"], node["position"]) == ("operator", position)
        assert node["op_type"] == node["proto"].op_type == model.operators[position].op_type


@pytest.mark.parametrize(
    "names",
    [("", "", "", ""), ("Relu_1", "", "", ""), ("same", "same", "", "own"), ("Tanh_3", "Relu_0_", "Tanh_3_", "")],
)
def test_every_operator_has_a_name_of_its_own(names):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[2] x) => (float[2] out) { a = Relu(x) b = Relu(a) c = Tanh(b) out = Tanh(c) }"""
    proto = onnx.parser.parse_model(text)
    for node, name in zip(proto.graph.node, names, strict=True):
        node.name = name
    model = gm.load(proto)
    assert len(set(model.operator_names)) == 4
    assert model.graph.number_of_nodes() == 6
    kept = [(own, given) for own, given in zip(model.operator_names, names, strict=True) if names.count(given) == 1]
    assert all(own == given for own, given in kept if given)


def test_networkx_sees_the_trunk(zoo_network):
    model = zoo_network("resnet18").model
    source, sink = f"input:{next(iter(model.inputs))}", f"output:{next(iter(model.outputs))}"
    assert nx.is_directed_acyclic_graph(model.graph)
    dominators, node = [], nx.immediate_dominators(model.graph, source)[sink]
    while node != source:
        dominators.append(node)
        node = nx.immediate_dominators(model.graph, source)[node]
    makers = {tensor: maker for maker, _, tensor in model.graph.edges(keys=True)}
    assert [makers[tensor] for tensor in gm.boundaries(model)] == dominators[::-1]
