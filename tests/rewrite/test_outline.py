"""Outlining and inlining: the same results, and every operator back as it was."""

import numpy as np
import onnx
import pytest
from handmade import model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from random_graphs import random_graphs

import graphmod as gm
from graphmod.model import RECORD

UNARY = ("Relu", "Tanh", "Sigmoid", "Neg")


@st.composite
def repeated(draw):
    """Draw blocks of a few kinds, one after another, some with weights, a context tensor, an inner output, an If."""
    kinds = [
        draw(
            st.lists(
                st.sampled_from(["unary", "linear", "add", "side", "constant", "alpha", "split"]),
                min_size=2,
                max_size=5,
            )
        )
        for _ in range(2)
    ]
    steps = {number: [draw(st.sampled_from(UNARY)) for _ in kind] for number, kind in enumerate(kinds)}
    operators, weights, names, outputs = [], {}, ["x"], []
    sequence = draw(st.lists(st.sampled_from([0, 0, 0, 1, 1, "if"]), min_size=3, max_size=9))
    for place, block in enumerate(sequence):
        entry = names[-1]
        if block == "if":
            bodies = {
                f"{branch}_branch": helper.make_graph(
                    [helper.make_node(kind, [entry], [f"{branch}{place}"])], branch, [],
                    [helper.make_tensor_value_info(f"{branch}{place}", TensorProto.FLOAT, None)],
                )
                for branch, kind in (("then", "Relu"), ("else", "Neg"))
            }  # fmt: skip
            weights["flag"] = np.array(True)
            operators.append(helper.make_node("If", ["flag"], [f"t{place}"], f"b{place}", **bodies))
            names.append(f"t{place}")
            continue
        for number, kind in enumerate(kinds[block]):
            read, made, name = names[-1], f"t{place}.{number}", f"/b/b.{place}/op{number}/X"
            if kind == "linear":
                weight = f"b.{draw(st.sampled_from([place, 0]))}.{number}.weight"
                rng = np.random.default_rng([place, number])
                weights.setdefault(weight, rng.normal(size=(4, 4)).astype(np.float32) / 2)
                operators.append(helper.make_node("MatMul", [read, weight], [made], name))
            elif kind == "add":
                operators.append(helper.make_node("Add", [read, entry], [made], name))
            elif kind == "side":
                operators.append(helper.make_node("Mul", ["side", read], [made], name))
            elif kind == "constant":
                value = draw(st.sampled_from([0.5, 0.25]))
                operators.append(helper.make_node("Constant", [], [f"c{made}"], value_float=value))
                operators.append(helper.make_node("Add", [read, f"c{made}"], [made], name))
            elif kind == "alpha":
                alpha = draw(st.sampled_from([0.5, 0.25]))
                operators.append(helper.make_node("LeakyRelu", [read], [made], name, alpha=alpha))
            elif kind == "split":
                weights["halves"] = np.array([2, 2])
                operators.append(helper.make_node("Split", [read, "halves"], [f"h{made}", f"g{made}"], name, axis=1))
                operators.append(helper.make_node("Concat", [f"g{made}", f"h{made}"], [made], f"{name}c", axis=1))
            else:
                operators.append(helper.make_node(steps[block][number], [read], [made], name))
            names.append(made)
        outputs += draw(st.sampled_from([[], [], [names[-1]]]))
    outputs = {name: ["n", 4] for name in [*outputs, names[-1]]}
    proto = model(operators, {"x": ["n", 4], "side": ["n", 4]}, outputs, weights).proto()
    for number, operator in enumerate(proto.graph.node):
        operator.doc_string = f"doc {number}"
        operator.metadata_props.add(key="origin", value=f"line {number}")
    helper.set_model_props(proto, {"author": "someone"})
    return gm.load(proto)


def feeds(built, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(3, 4)).astype(np.float32) for name in built.inputs}


def assert_equal(before, after, data):
    expected, found = before.run(data), after.run(data)
    assert list(expected) == list(found)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5 * np.abs(value).max(initial=0))


def as_text(operators):
    return sorted(operator.SerializeToString(deterministic=True) for operator in operators)


def there_and_back(built, data, size=2):
    short = gm.outline(built, size)
    onnx.checker.check_model(short.proto())
    n_inside = sum(len(function.node) for function in short.functions)
    flat = gm.inline(short)
    assert_equal(built, short, data)
    assert_equal(built, flat, data)
    assert as_text(flat.operators) == as_text(built.operators)
    if short is not built:
        assert len(short.operators) < len(built.operators)
        assert n_inside <= len(built.operators)
        bare = [flat.proto(), built.proto()]
        for proto in bare:
            proto.ir_version = 8
            for field in ("node", "value_info"):
                proto.graph.ClearField(field)
            kept = [entry for entry in proto.metadata_props if entry.key != RECORD]
            del proto.metadata_props[:]
            proto.metadata_props.extend(kept)
        assert bare[0] == bare[1]
    return short


@settings(max_examples=100, deadline=None)
@given(repeated())
def test_repeated_parts_come_back_as_they_were(built):
    before = built.digest
    there_and_back(built, feeds(built))
    assert built.digest == before


@settings(max_examples=40, deadline=None)
@given(random_graphs(), st.integers(2, 3))
def test_any_graph_stays_equal(graph, size):
    there_and_back(gm.load(graph.proto), graph.feeds(), size)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(repeated(), st.integers(2, 5))
def test_many_repeated_parts_come_back_as_they_were(built, size):
    there_and_back(built, feeds(built), size)


@pytest.mark.parametrize("name", ["vit12", "resnet18", "gpt2", "branching"])
@pytest.mark.parametrize("exporter", ["current", "torchscript"])
def test_networks(zoo_network, name, exporter):
    network = zoo_network(name, exporter)
    short = there_and_back(network.model, network.feeds, size=4)
    if name == "vit12":
        assert len(short.operators) < len(network.model.operators) / 8


def test_functions_are_named_after_what_scopes_share(zoo_network):
    short = gm.outline(zoo_network("vit12").model)
    assert [function.name for function in short.functions] == ["blocks_block"]
    calls = [operator for operator in short.operators if operator.domain == "graphmod.outlined"]
    assert [gm.graph.scope(call) for call in calls] == [f"blocks.{i}" for i in range(12)]
    assert "blocks.3" in [block.path for block in gm.blocks(gm.inline(short)).walk()]


def test_nothing_repeated_gives_the_model_itself():
    demo = gm.load(gm.demo.model_path())
    assert gm.outline(demo, size=100) is demo
    assert gm.inline(demo) is demo


def test_weights_that_old_files_list_among_inputs_stay_constant():
    proto = gm.load(gm.demo.model_path()).proto()
    proto.ir_version = 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    short = gm.outline(gm.load(proto))
    assert (short.ir_version, [value.name for value in short._proto.graph.input]) == (8, ["image"])


def test_a_second_time_outlines_what_is_left():
    demo = gm.load(gm.demo.model_path())
    x = gm.demo.splits().test.inputs
    once = gm.outline(demo, size=5)
    twice = gm.outline(once, size=2)
    assert len(twice.operators) < len(once.operators)
    assert len({(f.domain, f.name) for f in twice.functions}) == len(twice.functions)
    assert gm.verify(demo, twice, x).exact
    assert gm.verify(demo, gm.inline(twice), x).exact


@pytest.mark.parametrize("size", [1, 0, -3])
def test_a_function_of_one_operator_is_refused(size):
    with pytest.raises(gm.RefusedError, match=rf"at least 2, not {size}$"):
        gm.outline(gm.load(gm.demo.model_path()), size=size)
