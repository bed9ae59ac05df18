"""Parts that run one after another, against the whole in ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import zoo
from handmade import fan, model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from random_graphs import random_graphs

import graphmod as gm
from graphmod.rewrite import run_parts
from graphmod.rewrite.verb import edits_of

LIGHT = sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))
RNG = np.random.default_rng(5)


def agrees(found, expected):
    for name, value in expected.items():
        finite = np.isfinite(value)
        np.testing.assert_array_equal(np.isfinite(found[name]), finite)
        scale = np.abs(value[finite]).max(initial=1e-30)
        np.testing.assert_allclose(found[name][finite], value[finite], rtol=0, atol=1e-5 * scale)


def random_feeds(network):
    rng = np.random.default_rng(0)
    shapes = {name: [n if isinstance(n, int) else 1 for n in kind.shape] for name, kind in network.inputs.items()}
    return {name: rng.random(shape, np.float32) for name, shape in shapes.items()}


def at_every_boundary(whole, feeds):
    expected = whole.run(feeds)
    places = gm.boundaries(whole)[:-1]
    parts = gm.split(whole, places)
    assert len(parts) == len(places) + 1
    for place, before, after in zip(places, parts[:-1], parts[1:], strict=True):
        assert (next(iter(before.outputs)), next(iter(after.inputs))) == (place, place)
    agrees(run_parts(parts, feeds), expected)
    return places, expected


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", ["resnet18", "bert", "gpt2", "two_outputs"])
def test_at_all_boundaries_at_once(name, exporter):
    network = zoo.network(name, exporter)
    at_every_boundary(network.model, network.feeds)


@pytest.mark.slow
def test_at_every_boundary(any_export):
    places, expected = at_every_boundary(any_export.model, any_export.feeds)
    for place in places:
        parts = gm.split(any_export.model, [place])
        agrees(run_parts(parts, any_export.feeds), expected)
        for part in parts:
            onnx.checker.check_model(part.proto(), full_check=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_light_models_at_every_boundary(path):
    whole = gm.load(path)
    feeds = random_feeds(whole)
    places, expected = at_every_boundary(whole, feeds)
    for place in places[:: 1 if "vgg19" not in path.stem else 8]:  # 143 million weights
        agrees(run_parts(gm.split(whole, [place]), feeds), expected)


def test_light_model():
    whole = gm.load(next(path for path in LIGHT if "shufflenet" in path.stem))
    at_every_boundary(whole, random_feeds(whole))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs(), st.data())
def test_a_random_graph_at_random_tensors(graph, data):
    whole = gm.load(graph.proto)
    content = whole.proto().SerializeToString(deterministic=True)
    tensors = list(dict.fromkeys(made for _, made, _ in graph.links if made != "out"))
    at = data.draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=4, unique=True)) if tensors else ["x"]
    try:
        parts = gm.split(whole, at)
    except gm.RefusedError as error:
        assert at == ["x"] or "no operator comes" in str(error) or "nothing that part" in str(error)  # noqa: PT017
        return
    assert len(parts) == len({whole.producer[name] for name in at}) + 1
    found = run_parts(parts, graph.feeds())
    np.testing.assert_allclose(found["out"], whole.run(graph.feeds())["out"], atol=1e-6)
    assert sum(len(part.operators) for part in parts) == len(whole.operators)
    assert whole.proto().SerializeToString(deterministic=True) == content


@pytest.mark.slow
@settings(max_examples=700, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs())
def test_random_graphs_at_each_cut(graph):
    whole = gm.load(graph.proto)
    expected = whole.run(graph.feeds())["out"]
    for cut in graph.cuts[:-1]:
        parts = gm.split(whole, [cut])
        assert next(iter(parts[1].inputs)) == cut
        np.testing.assert_allclose(run_parts(parts, graph.feeds())["out"], expected, atol=1e-6)


def test_into_parts_of_equal_cost():
    whole = zoo.network("vgg").model
    for count in (2, 3, 5):
        parts = gm.split(whole, count)
        assert len(parts) == count
        assert edits_of(parts[1]) == [{"split": {"at": count, "part": 1}}]
    macs = [gm.graph.cost(part).macs for part in gm.split(whole, 2)]
    cumulated = [gm.graph.cost(gm.split(whole, [place], part=0)).macs for place in gm.boundaries(whole)[:-1]]
    total = gm.graph.cost(whole).macs
    assert max(macs) == min(max(one, total - one) for one in cumulated)
    with pytest.raises(gm.RefusedError, match="too few for 99 parts"):
        gm.split(whole, 99)
    with pytest.raises(gm.RefusedError, match="not into 1"):
        gm.split(whole, 1)


def test_places_and_one_part():
    demo = gm.load(gm.demo.model_path())
    tree = gm.blocks(demo)
    parts = gm.split(demo, ["layer2", tree["layer1"]])
    assert [list(part.outputs) for part in parts] == [[tree["layer1"].exit], [tree["layer2"].exit], ["logits"]]
    assert gm.split(demo, ["layer1", "layer2"], part=1).digest == parts[1].digest
    producer = demo.operator_names[demo.producer[tree["layer1"].exit]]
    assert list(gm.split(demo, [producer])[0].outputs) == [tree["layer1"].exit]
    with pytest.raises(gm.RefusedError, match="there is no part 3; the parts are 0 to"):
        gm.split(demo, ["layer1", "layer2"], part=3)


def test_what_crosses_has_its_type():
    """Integers, bools, strings, sequences and optionals are handed along; outputs made early stay where they are."""
    make = helper.make_node
    operators = [
        make("Greater", ["x", "zero"], ["positive"]),
        make("ArgMax", ["x"], ["best"], axis=1),
        make("SequenceConstruct", ["x", "x"], ["both"]),
        make("Optional", ["x"], ["maybe"]),
        make("Identity", ["words"], ["text"]),
        make("Relu", ["x"], ["early"]),
        make("Neg", ["early"], ["cut"]),
        make("ConcatFromSequence", ["both"], ["joined"], axis=0),
        make("Where", ["positive", "cut", "zero"], ["chosen"]),
        make("OptionalGetElement", ["maybe"], ["got"]),
        make("Identity", ["text"], ["said"]),
        make("Add", ["chosen", "got"], ["y"]),
        make("Identity", ["best"], ["z"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", 4]) for n in ("x", "y", "early")]
    words = [helper.make_tensor_value_info(n, TensorProto.STRING, ["n"]) for n in ("words", "said")]
    outputs = [values[1], words[1], values[2], helper.make_tensor_value_info("joined", TensorProto.FLOAT, ["m", 4]),
               helper.make_tensor_value_info("z", TensorProto.INT64, ["n", 1])]  # fmt: skip
    zero = numpy_helper.from_array(np.float32(0), "zero")
    graph = helper.make_graph(operators, "g", [values[0], words[0]], outputs, [zero])
    whole = gm.load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)]))
    before, after = gm.split(whole, ["cut"])
    assert list(before.outputs) == ["cut", "positive", "best", "both", "maybe", "text", "early"]
    assert {n: str(before.outputs[n].dtype) for n in ("positive", "best", "text")} == {
        "positive": "bool", "best": "int64", "text": "object"
    }  # fmt: skip
    kinds = {value.name: value.type.WhichOneof("value") for value in after.proto_inputs}
    assert kinds["both"] == "sequence_type"
    assert kinds["maybe"] == "optional_type"
    feeds = {"x": RNG.normal(size=(3, 4)).astype(np.float32), "words": np.array(["a", "b", "c"], object)}
    kept, _ = gm.split(gm.extract(whole, ["x", "words"], ["y", "said", "early", "z"]), ["cut"])
    assert "both" not in kept.outputs
    expected = whole.run(feeds)
    found = run_parts((before, after), feeds)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_type_that_only_onnx_runtime_knows():
    make = helper.make_node
    operators = [
        make("FusedMatMul", ["x", "w"], ["a"], domain="com.microsoft", alpha=0.5),
        make("Gelu", ["a"], ["b"], domain="com.microsoft"),
        make("Relu", ["b"], ["y"]),
    ]
    proto = fan([4], RNG, (4,)).proto()
    del proto.graph.node[:]
    proto.graph.node.extend(operators)
    proto.graph.output[0].name = "y"
    proto.graph.initializer[0].name = "w"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    whole = gm.load(proto)
    x = {"x": RNG.normal(size=(3, 4)).astype(np.float32)}
    parts = gm.split(whole, ["a", "b"])
    assert [list(part.inputs) for part in parts] == [["x"], ["a"], ["b"]]
    np.testing.assert_allclose(run_parts(parts, x)["y"], whole.run(x)["y"], atol=1e-6)


def test_shared_weights_constants_and_shapes():
    make = helper.make_node
    two = numpy_helper.from_array(np.float32(2), "two_value")
    operators = [
        make("Constant", [], ["two"], value=two),
        make("Mul", ["w", "two"], ["scaled"]),
        make("MatMul", ["x", "scaled"], ["a"]),
        make("Relu", ["a"], ["cut"]),
        make("MatMul", ["cut", "scaled"], ["b"]),
        make("Shape", ["a"], ["size"]),
        make("Reshape", ["b", "size"], ["y"]),
    ]
    weights = {"w": RNG.normal(size=(4, 4)).astype(np.float32), "nobody": np.float32([1, 2])}
    whole = model(operators, {"x": ["n", 4], "unused": [1]}, {"y": ["n", 4]}, weights)
    before, after = gm.split(whole, ["cut"])
    assert [op.op_type for op in before.operators] == ["Constant", "Mul", "MatMul", "Relu", "Shape"]
    assert [op.op_type for op in after.operators] == ["Constant", "Mul", "MatMul", "Reshape"]
    assert list(after.inputs) == ["cut", "size"]
    assert list(before.inputs) == ["x", "unused"]
    assert "nobody" in before.initializers
    feeds = {"x": RNG.normal(size=(3, 4)).astype(np.float32), "unused": np.zeros(1, np.float32)}
    np.testing.assert_array_equal(run_parts([before, after], feeds)["y"], whole.run(feeds)["y"])
    with pytest.raises(gm.InvalidDataError, match="input 'size' of part 0"):
        run_parts([after], {"cut": feeds["x"]})


def test_random_numbers_are_drawn_once():
    make = helper.make_node
    operators = [
        make("RandomNormal", [], ["noise"], shape=[4]),
        make("Add", ["x", "noise"], ["a"]),
        make("Relu", ["a"], ["cut"]),
        make("Sub", ["cut", "noise"], ["y"]),
    ]
    before, after = gm.split(model(operators, {"x": [2, 4]}, {"y": [2, 4]}), ["cut"])
    assert (list(before.outputs), [op.op_type for op in after.operators]) == (["cut", "noise"], ["Sub"])


def test_random_numbers_of_a_function_that_a_branch_calls_are_drawn_once():
    make = helper.make_node
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    noise = helper.make_function("own", "noise", ["i"], ["o"], [make("RandomNormalLike", ["i"], ["o"])], opsets)
    result = [helper.make_tensor_value_info("r", TensorProto.FLOAT, [4])]
    body = helper.make_graph([make("noise", ["w"], ["r"], domain="own")], "body", [], result)
    operators = [
        make("If", ["yes"], ["noise"], then_branch=body, else_branch=body),
        make("Add", ["x", "noise"], ["a"]),
        make("Relu", ["a"], ["cut"]),
        make("Sub", ["cut", "noise"], ["y"]),
    ]
    weights = {"w": np.ones(4, np.float32), "yes": np.array(True)}
    proto = model(operators, {"x": [2, 4]}, {"y": [2, 4]}, weights).proto()
    proto.functions.append(noise)
    proto.opset_import.append(opsets[1])
    before, after = gm.split(gm.load(proto), ["cut"])
    assert (list(before.outputs), [op.op_type for op in after.operators]) == (["cut", "noise"], ["Sub"])


def test_external_weights_stay_where_they_are(tmp_path):
    network = fan([40, 40, 40], RNG, (40,))
    onnx.save_model(network.proto(), tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    whole = gm.load(tmp_path / "m.onnx")
    parts = gm.split(whole, ["t0", "t1"])
    assert all(t.external_data for part in parts for t in part._proto.graph.initializer)
    x = {"x": RNG.normal(size=(3, 40)).astype(np.float32)}
    np.testing.assert_array_equal(run_parts(parts, x)["t2"], whole.run(x)["t2"])


@pytest.mark.parametrize(
    ("at", "reason"),
    [(["x"], "is an input"), (["w0"], "is a constant"), (["t2"], "no operator comes after 't2'"), ([], "no place"),
     (["nothing"], "no tensor, block or operator 'nothing'"), (["Relu[size=3]"], "as a selector")],
)  # fmt: skip
def test_refusals(at, reason):
    with pytest.raises(gm.RefusedError, match=reason):
        gm.split(fan([5, 4, 3], RNG), at)


def test_constants_are_no_place_to_cut():
    operators = [
        helper.make_node("Neg", ["w"], ["c"]),
        helper.make_node("Add", ["x", "c"], ["a"]),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    network = model(operators, {"x": [2]}, {"y": [2]}, {"w": np.float32([1, 2])})
    with pytest.raises(gm.RefusedError, match="'c' depends on no input"):
        gm.split(network, ["c"])
