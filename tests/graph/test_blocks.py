"""Blocks: a tree of regions with one boundary in and one out."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import onnx
import onnx.parser
import pytest
import zoo
from hypothesis import given, settings
from random_graphs import random_graphs

import graphmod as gm

LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))


def check_tree(model: gm.Model, tree: gm.Block) -> None:
    """Check unique paths, children within their parents, one after the other or side by side.

    Branches side by side share the operator that they start from if it has several outputs, and no other.
    """
    forks = {n for n, op in zip(model.operator_names, model.operators, strict=True) if len(op.output) > 1}
    paths = Counter(block.path for block in tree.walk())
    assert max(paths.values()) == 1, paths.most_common(3)
    for block in tree.walk():
        children = block.children
        inner = [name for child in children for name in child.operators]
        assert set(inner) <= set(block.operators)
        assert {name for name, times in Counter(inner).items() if times > 1} <= forks
        if not children:
            continue
        if [child.entry for child in children[1:]] == [child.exit for child in children[:-1]]:
            assert children[0].entry == block.entry
            if children[-1].exit == block.exit:
                assert inner == list(block.operators)
                continue
        assert {child.entry for child in children} == {block.entry}  # branches side by side, joined behind them


def bare(proto: onnx.ModelProto) -> onnx.ModelProto:
    for operator in proto.graph.node:
        del operator.metadata_props[:]
        operator.name = ""
    return proto


def test_trees_of_both_exporters_nest(any_export):
    model = any_export.model
    tree = gm.blocks(model)
    check_tree(model, tree)
    assert (tree.entry, tree.exit) == (gm.graph.primary_input(model), gm.boundaries(model)[-1])


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_trees_nest_without_names_and_scopes(name):
    model = gm.load(bare(zoo.export(name, "torchscript")))
    tree = gm.blocks(model)
    check_tree(model, tree)
    assert all(part.isdigit() for block in tree.children for part in block.path.split("."))


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_trees_of_onnx_light_models_nest(path):
    model = gm.load(path)
    tree = gm.blocks(model)
    check_tree(model, tree)
    relabelled = {op.output[0] for op in model.operators if op.op_type == "Dropout"}
    assert {*gm.boundaries(model), *relabelled} >= {child.exit for child in tree.children}


@settings(max_examples=100, deadline=None)
@given(random_graphs())
def test_a_block_has_the_operators_between_its_tensors(graph):
    model = gm.load(graph.proto)
    tree = gm.blocks(model, "x", "out")
    check_tree(model, tree)
    for block in tree.walk():
        assert set(block.operators) >= graph.between(block.entry, block.exit)
    assert set(tree.operators) == graph.between("x", "out")


@settings(max_examples=100, deadline=None)
@given(random_graphs())
def test_blocks_at_the_top_end_at_boundaries(graph):
    model = gm.load(graph.proto)
    tree = gm.blocks(model, "x", "out")
    assert {child.exit for child in tree.children} <= set(graph.cuts)
    for before, after in pairwise(tree.children):
        assert before.exit == after.entry


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
def test_paths_are_the_modules_of_the_source(zoo_network, exporter):
    network = zoo_network("resnet50", exporter)
    tree = gm.blocks(network.model)
    modules = {path for path, _ in network.module.named_modules()}
    for path in ("layer1", "layer3", "layer3.1", "layer3.5", "layer4.2"):
        assert path in modules
        assert tree[path].path == path
    assert [child.path for child in tree["layer3"].children] == [f"layer3.{i}" for i in range(6)]


def test_a_block_computes_what_its_torch_module_computes(zoo_network):
    network = zoo_network("resnet18")
    block = gm.blocks(network.model)["layer3.1"]
    seen = {}
    hook = network.module.layer3[1].register_forward_hook(lambda _m, inputs, out: seen.update(x=inputs[0], y=out))
    network.module(*network.inputs)
    hook.remove()
    values = network.model.run(network.feeds, outputs=[block.entry, block.exit])
    assert abs(values[block.entry] - seen["x"].detach().numpy()).max() < 1e-4
    assert abs(values[block.exit] - seen["y"].detach().numpy()).max() < 1e-4


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
def test_branches_lie_side_by_side_in_the_block_that_joins_them(zoo_network, exporter):
    joined, activation = gm.blocks(zoo_network("resnet50", exporter).model)["layer2.0"].children
    assert (len(joined.operators), len(activation.operators)) == (7, 1)
    assert sorted(len(branch.operators) for branch in joined.children) == [1, 5]
    assert [branch.entry for branch in joined.children] == [joined.entry, joined.entry]


def test_equal_and_numbered_scopes_stay_apart():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[1, 4] x) => (float[1, 4] out) {
        a = Relu(x) b = Tanh(a) c = Relu(b) d = Tanh(c) out = Relu(d)
    }"""
    proto = onnx.parser.parse_model(text)
    for operator, name in zip(proto.graph.node, ("/act", "/a", "/act", "/b", "/act_2"), strict=True):
        operator.name = f"{name}/{operator.op_type}"
    model = gm.load(proto)
    tree = gm.blocks(model)
    assert len(tree.children) == 5
    check_tree(model, tree)


def test_an_unknown_path_lists_those_at_the_top(zoo_network):
    with pytest.raises(gm.RefusedError, match=r"layer9.*layer1, layer2, layer3, layer4"):
        gm.blocks(zoo_network("resnet18").model)["layer9"]
