"""Exposing and hiding outputs, against the tensors that ONNX Runtime shows of the original."""

import numpy as np
import onnx
import pytest
import zoo
from handmade import fan, model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from random_graphs import random_graphs

import graphmod as gm
from graphmod.model import RECORD

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", ["resnet18", "bert"])
def test_every_boundary_of_a_network(name, exporter):
    network = zoo.network(name, exporter)
    whole = network.model
    names = gm.boundaries(whole)
    shown = gm.expose(whole, names)
    assert list(shown.outputs) == [*whole.outputs, *(n for n in names if n not in whole.outputs)]
    assert all(kind.dtype is not None and kind.shape is not None for kind in shown.outputs.values())
    expected = whole.run(network.feeds, names)
    found = shown.run(network.feeds)
    for tensor in names:
        np.testing.assert_allclose(
            found[tensor], expected[tensor], rtol=1e-4, atol=1e-5 * np.abs(expected[tensor]).max()
        )
    onnx.checker.check_model(shown.proto(), full_check=True)
    again = gm.hide(shown, [n for n in names if n not in whole.outputs])
    assert [op.name for op in again.operators] == [op.name for op in whole.operators]
    assert again.outputs == whole.outputs


def without_record(network):
    proto = network.proto()
    kept = [entry for entry in proto.metadata_props if entry.key != RECORD]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    del proto.graph.value_info[:]
    return proto.SerializeToString(deterministic=True)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs(), st.data())
def test_expose_then_hide_is_the_original(graph, data):
    whole = gm.load(graph.proto)
    content = whole.proto().SerializeToString(deterministic=True)
    inner = list(dict.fromkeys(made for _, made, _ in graph.links if made != "out"))
    names = data.draw(st.lists(st.sampled_from(inner), max_size=3, unique=True)) if inner else []
    shown = gm.expose(whole, names)
    assert (shown is whole) == (not names)
    found, expected = shown.run(graph.feeds()), whole.run(graph.feeds(), ["out", *names])
    assert list(found) == list(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    hidden = gm.hide(shown, names)
    np.testing.assert_allclose(hidden.run(graph.feeds())["out"], expected["out"], atol=1e-6)
    behind = graph.between("x", "out")
    if {read for read, _, operator in graph.links if operator in behind} >= set(names):
        assert without_record(hidden) == without_record(whole)
    assert whole.proto().SerializeToString(deterministic=True) == content
    if names:  # the other way round: only what the inner tensors need is left
        part = gm.hide(shown, ["out"])
        for name, value in part.run(graph.feeds()).items():
            np.testing.assert_allclose(value, expected[name], atol=1e-6)
        read = {tensor for tensor, _, _ in graph.links}
        ends = [*names, *(made for _, made, _ in graph.links if made not in read)]  # dead ends are not hide's to take
        needed = {name for made in ends if made != "out" for name in graph.between("x", made)}
        for operator in part.operators:
            assert operator.op_type in ("Shape", "Split") or operator.name in needed


def test_places():
    demo = gm.load(gm.demo.model_path())
    tree = gm.blocks(demo)
    matches = gm.find(demo, "Add > Relu")
    shown = gm.expose(demo, ["Add > Relu", tree["layer1"], "layer2", demo.operator_names[0], "logits"])
    assert list(shown.outputs) == ["logits", *(match.exit for match in matches), demo.operators[0].output[0]]
    assert gm.expose(demo, ["logits"]) is demo
    assert gm.hide(demo, []) is demo


def test_what_only_a_hidden_output_needed_goes():
    whole = zoo.network("two_outputs").model
    first, second = whole.outputs
    part = gm.hide(whole, [second])
    assert list(part.outputs) == [first]
    assert part.n_weights < whole.n_weights
    feeds = zoo.network("two_outputs").feeds
    np.testing.assert_allclose(part.run(feeds)[first], whole.run(feeds)[first], rtol=1e-5)
    with pytest.raises(gm.RefusedError, match="no output left"):
        gm.hide(whole, [first, second])
    with pytest.raises(gm.RefusedError, match="no output 'x'"):
        gm.hide(whole, ["x"])


def test_types_that_are_no_floats():
    make = helper.make_node
    operators = [
        make("Greater", ["x", "zero"], ["positive"]),
        make("ArgMax", ["x"], ["best"], axis=1),
        make("SequenceConstruct", ["x", "x"], ["both"]),
        make("ConcatFromSequence", ["both"], ["y"], axis=0),
    ]
    whole = model(operators, {"x": ["n", 4]}, {"y": ["m", 4]}, {"zero": np.float32(0)})
    shown = gm.expose(whole, ["positive", "best", "both"])
    assert [str(kind) for kind in shown.outputs.values()][:3] == ["float32[m, 4]", "bool[n, 4]", "int64[n, 1]"]
    assert shown.proto_outputs[3].type.WhichOneof("value") == "sequence_type"
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    found = shown.run({"x": x})
    np.testing.assert_array_equal(found["positive"], x > 0)
    np.testing.assert_array_equal(found["best"], x.argmax(1)[:, None])
    np.testing.assert_array_equal(found["both"][1], x)


def test_refusals():
    body = [
        helper.make_graph(
            [helper.make_node(kind, ["x"], [f"inner_{kind}"])],
            kind,
            [],
            [helper.make_tensor_value_info(f"inner_{kind}", TensorProto.FLOAT, None)],
        )
        for kind in ("Relu", "Neg")
    ]
    choice = helper.make_node("If", ["c"], ["y"], "choice", then_branch=body[0], else_branch=body[1])
    whole = model([choice], {"x": [2]}, {"y": [2]}, {"c": np.array(True)})
    for place, reason in (
        ("inner_Relu", "in a subgraph of operator 'choice'"),
        ("x", "is an input"),
        ("c", "is an initializer"),
        ("nothing", "no tensor, block or operator 'nothing'"),
        ("Conv", "no operator matches"),
    ):
        with pytest.raises(gm.RefusedError, match=reason):
            gm.expose(whole, [place])
    size = helper.make_node("Reshape", ["x", "s"], ["a"])
    proto = fan([4], RNG).proto()
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend([size, helper.make_node("ReduceSum", ["a"], ["t0"])])
    proto.graph.input.append(helper.make_tensor_value_info("s", TensorProto.INT64, ["k"]))
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    with pytest.raises(gm.RefusedError, match="how many axes tensor 'a' has is unknown"):
        gm.expose(gm.load(proto), ["a"])
