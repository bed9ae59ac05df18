"""Joined models, against running them one after another in ONNX Runtime."""

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
from graphmod.model import RECORD

RNG = np.random.default_rng(8)
make = helper.make_node


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def square(width=4, seed=0):
    """Return a model of float tensors whose input and output have one shape."""
    return fan([width], np.random.default_rng(seed), (width,))


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", ["resnet18", "bert", "two_outputs"])
def test_split_then_composed_is_the_original(name, exporter):
    network = zoo.network(name, exporter)
    whole = network.model
    head, *rest = gm.split(whole, gm.boundaries(whole)[:-1])
    again = gm.compose(head, rest, outputs=list(whole.outputs))
    expected = whole.run(network.feeds)
    found = again.run(network.feeds)
    assert list(found) == list(expected)
    for tensor, value in expected.items():
        np.testing.assert_allclose(found[tensor], value, rtol=0, atol=1e-5 * np.abs(value).max())
    assert list(again.inputs) == list(whole.inputs)
    assert sorted(op.name for op in again.operators) == sorted(op.name for op in whole.operators)
    assert {n: t.SerializeToString() for n, t in again.initializers.items()} == {
        n: t.SerializeToString() for n, t in whole.initializers.items()
    }
    onnx.checker.check_model(again.proto(), full_check=True)


@pytest.mark.slow
def test_every_network_split_then_composed(any_export):
    whole = any_export.model
    head, *rest = gm.split(whole, gm.boundaries(whole)[:-1])
    again = gm.compose(head, rest, outputs=list(whole.outputs))
    assert sorted(op.name for op in again.operators) == sorted(op.name for op in whole.operators)
    expected, found = whole.run(any_export.feeds), again.run(any_export.feeds)
    for tensor, value in expected.items():
        np.testing.assert_allclose(found[tensor], value, rtol=0, atol=1e-5 * np.abs(value).max())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs(), st.data())
def test_random_graphs_split_then_composed(graph, data):
    whole = gm.load(graph.proto)
    cuts = graph.cuts[:-1]
    if not cuts:
        return
    at = data.draw(st.lists(st.sampled_from(cuts), min_size=1, max_size=3, unique=True))
    head, *rest = gm.split(whole, at)
    again = gm.compose(head, rest)
    assert (set(again.inputs), list(again.outputs)) == (set(whole.inputs), ["out"])
    np.testing.assert_allclose(again.run(graph.feeds())["out"], whole.run(graph.feeds())["out"], atol=1e-6)
    assert {op.name for op in again.operators} == {op.name for op in whole.operators}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs(), random_graphs(), st.sampled_from([None, ["head."]]))
def test_random_graphs_one_after_the_other(first, second, prefix):
    """All names clash; only the path from ``out`` to ``x`` is joined."""
    before, after = gm.load(first.proto), gm.load(second.proto)
    contents = [one.proto().SerializeToString(deterministic=True) for one in (before, after)]
    width = before.outputs["out"].shape[1]
    if width != 4:
        with pytest.raises(gm.RefusedError, match=rf"'out' is float32\[batch, {width}\] and input 'x' is"):
            gm.compose(before, after, connect={"x": "out"}, prefix=prefix)
        return
    whole = gm.compose(before, after, connect={"x": "out"}, prefix=prefix)
    mark = "b/" if prefix is None else "head."
    assert list(whole.inputs) == ["x", "side", f"{mark}side"]
    assert list(whole.outputs) == [f"{mark}out"]
    feeds, other = first.feeds(), second.feeds(1)
    middle = before.run(feeds)["out"]
    expected = after.run({"x": middle, "side": other["side"]})["out"]
    found = whole.run({**feeds, f"{mark}side": other["side"]})[f"{mark}out"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    onnx.checker.check_model(whole.proto(), full_check=True)
    assert [one.proto().SerializeToString(deterministic=True) for one in (before, after)] == contents


def test_by_position_three_times():
    one, two, three = square(seed=0), square(seed=1), square(seed=2)
    x = normal(5, 4)
    expected = x
    for network in (one, two, three):
        expected = network.run({"x": expected})["t0"]
    whole = gm.compose(one, [two, three], connect="position")
    assert (list(whole.inputs), list(whole.outputs)) == (["x"], ["c/t0"])
    assert list(whole.initializers) == ["w0", "b/w0", "c/w0"]
    np.testing.assert_allclose(whole.run({"x": x})["c/t0"], expected, atol=1e-6)
    kept = gm.compose(one, [two, three], connect="position", outputs=["c/t0", "t0"])
    assert list(kept.run({"x": x})) == ["c/t0", "t0"]
    np.testing.assert_allclose(kept.run({"x": x})["t0"], one.run({"x": x})["t0"], atol=1e-6)
    early = gm.compose(one, [two, three], connect="position", outputs=["b/t0"])
    assert len(early.operators) == 4
    assert "c/w0" not in early.initializers
    again = gm.compose(whole, square(seed=3), connect={"x": "c/t0"})
    assert list(again.outputs) == ["b2/t0"]


def test_one_model_twice_shares_its_weights():
    one, x = square(), normal(5, 4)
    whole = gm.compose(one, one, connect="position")
    assert list(whole.initializers) == ["w0"]
    np.testing.assert_allclose(whole.run({"x": x})["b/t0"], one.run({"x": one.run({"x": x})["t0"]})["t0"], atol=1e-6)


def test_inputs_of_one_name_are_one():
    """An ensemble: two models side by side on one input."""
    one, two, x = square(seed=0), square(seed=1), normal(5, 4)
    whole = gm.compose(one, [two])
    assert (list(whole.inputs), list(whole.outputs)) == (["x"], ["t0", "b/t0"])
    found = whole.run({"x": x})
    np.testing.assert_allclose(found["t0"], one.run({"x": x})["t0"], atol=1e-6)
    np.testing.assert_allclose(found["b/t0"], two.run({"x": x})["t0"], atol=1e-6)


def test_scopes_get_the_prefix():
    demo = gm.load(gm.demo.model_path())
    tail = gm.extract(demo, "image", "layer1")
    whole = gm.compose(tail, [gm.extract(demo, gm.blocks(demo)["layer1"].entry, "layer1")], connect="position")
    tree = gm.blocks(whole)
    assert [f"b.{block.path}" for block in tree["layer1"].children] == [block.path for block in tree["b"].children]
    network = zoo.network("resnet18", "torchscript").model
    torchscript = gm.extract(network, gm.graph.primary_input(network), "layer1")
    entry = gm.blocks(torchscript)["layer1"].entry
    twice = gm.compose(torchscript, [gm.extract(torchscript, entry, "layer1")], connect="position")
    assert {"b.layer1.0", "b.layer1.1"} <= {block.path for block in gm.blocks(twice).walk()}


def choosing(op_type, inner):
    """Return a model with an If whose bodies capture, hold a weight and make a tensor of a given name."""
    bodies = []
    for sign in (1, -1):
        weight = numpy_helper.from_array(np.float32([sign * len(op_type)]), "inner_w")
        nodes = [make(op_type, ["a"], [f"{inner}_h"], "inside"), make("Mul", [f"{inner}_h", "inner_w"], [inner])]
        result = [helper.make_tensor_value_info(inner, TensorProto.FLOAT, None)]
        bodies.append(helper.make_graph(nodes, "body", [], result, [weight]))
    operators = [
        make("Add", ["x", "w"], ["a"], "add"),
        make("ReduceSum", ["x"], ["sum"], "sum", keepdims=0),
        make("Greater", ["sum", "zero"], ["c"], "greater"),
        make("If", ["c"], ["y"], "if", then_branch=bodies[0], else_branch=bodies[1]),
    ]
    weights = {"w": normal(4), "zero": np.float32(0)}
    return model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, weights)


@pytest.mark.parametrize(("one", "two"), [("r", "r"), ("r", "a"), ("a_", "r")])
def test_names_in_subgraphs(one, two):
    if two == "a":  # what a body makes is what the other model calls an outer tensor
        two = "x2"
    first, second = choosing("Tanh", one), choosing("Sigmoid", two)
    whole = gm.compose(first, second, connect={"x": "y"})
    assert list(whole.initializers) == ["w", "zero", "b/w"]
    for sign in (1, -1):
        x = np.abs(normal(3, 4)) * np.float32(sign)
        expected = second.run({"x": first.run({"x": x})["y"]})["y"]
        np.testing.assert_allclose(whole.run({"x": x})["b/y"], expected, atol=1e-6)


def test_a_body_does_not_hide_an_outer_tensor():
    first = model([make("Relu", ["x"], ["r"]), make("Neg", ["r"], ["z"])], {"x": ["n", 4]}, {"z": ["n", 4]})
    second = choosing("Tanh", "r")
    whole = gm.compose(first, second, connect={"x": "z"})
    inner = {name for op in whole.operators for a in op.attribute for node in a.g.node for name in node.output}
    assert inner == {"b/r", "b/r_h"}
    x = normal(3, 4)
    np.testing.assert_allclose(whole.run({"x": x})["y"], second.run({"x": first.run({"x": x})["z"]})["y"], atol=1e-6)


def calling(op_type, helper_type="Neg"):
    """Return a model that calls a function that calls another."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    outer = helper.make_function("own", "outer", ["i"], ["o"], [make(op_type, ["i"], ["h"]),
                                 make("inner", ["h"], ["o"], domain="own")], opsets)  # fmt: skip
    inner = helper.make_function("own", "inner", ["i"], ["o"], [make(helper_type, ["i"], ["o"])], opsets)
    proto = model([make("outer", ["x"], ["y"], "call", domain="own")], {"x": ["n", 4]}, {"y": ["n", 4]}).proto()
    proto.functions.extend([outer, inner])
    proto.opset_import.append(opsets[1])
    return gm.load(proto)


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (("Tanh",), ("Tanh",), ["outer", "inner"]),
        (("Tanh",), ("Sigmoid",), ["outer", "inner", "outer_b"]),
        (("Tanh",), ("Tanh", "Exp"), ["outer", "inner", "outer_b", "inner_b"]),
    ],
)
def test_functions_of_one_name(first, second, names):
    before, after, x = calling(*first), calling(*second), normal(3, 4)
    whole = gm.compose(before, after, connect="position")
    assert [function.name for function in whole.functions] == names
    np.testing.assert_allclose(whole.run({"x": x})["b/y"], after.run({"x": before.run({"x": x})["y"]})["y"], atol=1e-6)


def test_symbols_of_dimensions():
    pair = [make("MatMul", ["x", "m"], ["y"], "product")]
    first = model(pair, {"x": ["batch", "k"], "m": ["k", "n"]}, {"y": ["batch", "n"]})
    second = model([make("MatMul", ["x", "m"], ["y"], "product")], {"x": ["rows", "n"], "m": ["n", "k"]},
                   {"y": ["rows", "k"]})  # fmt: skip
    whole = gm.compose(first, second, connect={"x": "y"})
    assert {name: kind.shape for name, kind in whole.inputs.items()} == {
        "x": ("batch", "k"), "m": ("k", "n"), "b/m": ("n", "b/k")
    }  # fmt: skip
    assert whole.outputs["b/y"].shape == ("batch", "b/k")
    twisted = model([make("Transpose", ["x"], ["y"])], {"x": ["n", "n"]}, {"y": ["n", "n"]})
    joined = gm.compose(first, twisted, connect={"x": "y"})
    assert joined.outputs["b/y"].shape == (None, None)  # nobody says that batch and n are one size
    fixed = model([make("Relu", ["x"], ["a"])], {"x": ["k", 4]}, {"a": [3, 4]})
    assert gm.compose(fixed, twisted, connect={"x": "a"}).outputs["y"].shape == (None, None)
    feeds = {"x": normal(2, 3), "m": normal(3, 4), "b/m": normal(4, 5)}
    np.testing.assert_allclose(whole.run(feeds)["b/y"], feeds["x"] @ feeds["m"] @ feeds["b/m"], rtol=1e-4, atol=1e-5)


def test_lower_operator_sets_are_converted():
    old = model(
        [make("Softmax", ["x"], ["s"], "soft", axis=1), make("ReduceSum", ["s", ], ["y"], "sum", axes=[2], keepdims=1)],
        {"x": [2, 3, 4]}, {"y": [2, 3, 1]}, opset=11,
    )  # fmt: skip
    proto = old.proto()
    proto.graph.node[0].metadata_props.add(key="origin", value="line 7")
    old = gm.load(proto)
    new = model([make("Mul", ["y", "w"], ["z"], "scale")], {"y": [2, 3, 1]}, {"z": [2, 3, 4]}, {"w": normal(4)})
    x = normal(2, 3, 4)
    for parts in ((old, new), (gm.load(new.proto()), model([make("Softmax", ["z"], ["p"], axis=1)], {"z": [2, 3, 4]},
                                                           {"p": [2, 3, 4]}, opset=11))):  # fmt: skip
        whole = gm.compose(*parts)
        assert whole.opset == 17
        feeds = {"x": x} if parts[0] is old else {"y": normal(2, 3, 1)}
        middle = parts[0].run(feeds)
        expected = parts[1].run(middle)
        for name, value in whole.run(feeds).items():
            np.testing.assert_allclose(value, expected[name], atol=1e-6)
    converted = gm.compose(old, new)
    assert any(entry.value == "line 7" for op in converted.operators for entry in op.metadata_props)


def test_operator_sets_that_say_the_same_only_change_their_number():
    network = zoo.network("resnet18", "torchscript").model
    low = model([make("Relu", ["i"], ["y"])], {"i": ["n", 10]}, {"y": ["n", 10]}, opset=14)
    whole = gm.compose(network, low, connect="position")
    assert (whole.opset, whole.ir_version) == (max(network.opset, 14), max(network.ir_version, low.ir_version))


def test_operator_sets_that_cannot_be_converted():
    inside = helper.make_graph([make("Softmax", ["x"], ["r"])], "b", [],
                               [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)])  # fmt: skip
    old = model([make("If", ["c"], ["y"], then_branch=inside, else_branch=inside)], {"x": [2, 3]}, {"y": [2, 3]},
                {"c": np.array(True)}, opset=11)  # fmt: skip
    with pytest.raises(gm.RefusedError, match=r"version 11 .* another 17, and Softmax .* in a subgraph"):
        gm.compose(old, square(3), connect="position")
    one, two = square().proto(), square().proto()
    for version, proto in ((1, one), (2, two)):
        proto.opset_import.append(helper.make_opsetid("mine", version))
        proto.graph.node[0].domain = "mine"
    with pytest.raises(gm.RefusedError, match="operator set 'mine'"):
        gm.compose(gm.load(one), gm.load(two), connect="position")


def test_metadata():
    one, two = square(seed=0).proto(), square(seed=1).proto()
    one.ir_version, two.ir_version = 8, 9
    helper.set_model_props(one, {"author": "a", "same": "s", "first": "1"})
    helper.set_model_props(two, {"author": "b", "same": "s", "second": "2"})
    whole = gm.compose(gm.load(one), gm.load(two), connect="position")
    found = {key: value for key, value in whole.metadata.items() if key != RECORD}
    assert found == {"author": "a", "same": "s", "first": "1", "second": "2", "b/author": "b"}
    assert whole.ir_version == 9


@pytest.mark.parametrize("old", [(0,), (1,), (0, 1)])
def test_weights_that_old_files_list_among_inputs_stay_constant(old):
    models = [square(seed=seed) for seed in (0, 1)]
    expected = gm.compose(*models, connect="position")
    for which in old:
        proto = models[which].proto()
        proto.ir_version = 3
        for tensor in proto.graph.initializer:
            proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        models[which] = gm.load(proto)
    whole = gm.compose(*models, connect="position")
    assert whole.inputs == expected.inputs
    listed = len(whole.initializers) if len(old) == 2 else 0
    assert len(whole._proto.graph.input) == len(whole.inputs) + listed
    assert gm.verify(expected, whole, {"x": np.ones((3, 4), np.float32)}).exact


def test_external_data_of_two_folders(tmp_path):
    networks, loaded = [square(40, 0), square(40, 1)], []
    for i, network in enumerate(networks):
        (tmp_path / f"part{i}").mkdir()
        path = tmp_path / f"part{i}" / "m.onnx"
        onnx.save_model(network.proto(), path, save_as_external_data=True, location="w", size_threshold=0)
        loaded.append(gm.load(path))
    whole = gm.compose(loaded[0], loaded[1], connect="position")
    assert all(tensor.external_data for tensor in whole._proto.graph.initializer)
    x = normal(3, 40)
    expected = networks[1].run({"x": networks[0].run({"x": x})["t0"]})["t0"]
    np.testing.assert_allclose(whole.run({"x": x})["b/t0"], expected, atol=1e-6)
    (tmp_path / "saved").mkdir()
    again = gm.load(whole.save(tmp_path / "saved" / "m.onnx"))
    np.testing.assert_allclose(again.run({"x": x})["b/t0"], expected, atol=1e-6)
    inside = gm.compose(networks[0], loaded[1], connect="position")
    np.testing.assert_allclose(inside.run({"x": x})["b/t0"], expected, atol=1e-6)
    same = gm.compose(loaded[0], loaded[0], connect="position")
    assert list(same.initializers) == ["w0"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"connect": "nearest"}, "not by 'nearest'"),
        ({"connect": {"y": "t0"}}, "nothing connects"),
        ({"connect": {"x": "t0", "z": "t0"}}, "no other model has an input 'z'"),
        ({"connect": {"x": "t9"}}, "no output 't9' is there to feed input 'x'; there are t0"),
        ({"connect": "position", "prefix": ["a", "b"]}, "takes a prefix: give 1, not 2"),
        ({"connect": "position", "prefix": [""], "outputs": ["q"]}, "no model has an output 'q'"),
        ({"connect": "position", "outputs": []}, "no output"),
    ],
)
def test_refusals(arguments, reason):
    with pytest.raises(gm.RefusedError, match=reason):
        gm.compose(square(seed=0), square(seed=1), **arguments)


@pytest.mark.parametrize("third", [square(seed=2), [square(seed=2)]])
def test_several_models_that_are_no_list(third):
    with pytest.raises(gm.RefusedError, match="pass several other models as a list"):
        gm.compose(square(), square(seed=1), third)


def test_refusals_of_types():
    integers = helper.make_graph([make("Neg", ["x"], ["y"])], "g",
                                 [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 4])],
                                 [helper.make_tensor_value_info("y", TensorProto.INT64, ["n", 4])])  # fmt: skip
    wrong = gm.load(helper.make_model(integers, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    with pytest.raises(gm.RefusedError, match=r"'t0' is float32\[n, 4\] and input 'x' is int64\[n, 4\]"):
        gm.compose(square(), wrong, connect="position")
    flat = model([make("Relu", ["x"], ["y"])], {"x": ["n", 4, 1]}, {"y": ["n", 4, 1]})
    with pytest.raises(gm.RefusedError, match=r"input 'x' is float32\[n, 4, 1\]"):
        gm.compose(square(), flat, connect="position")
    assert gm.compose(flat, []) is flat
    taken = gm.compose(square(), square(seed=1), connect="position", prefix=["p."])
    with pytest.raises(gm.RefusedError, match=r"with prefix 'p.' tensor '.*' still clashes"):
        gm.compose(taken, square(seed=2), connect="position", prefix=["p."])


def test_the_record_replays(tmp_path):
    demo = gm.load(gm.demo.model_path())
    parts = gm.split(demo, ["layer1", "layer2"])
    paths = [part.save(tmp_path / f"{i}.onnx") for i, part in enumerate(parts)]
    whole = gm.compose(parts[0], [str(path) for path in paths[1:]])
    again = gm.apply(gm.Recipe.of(whole), demo)
    assert again.proto().SerializeToString(deterministic=True) == whole.proto().SerializeToString(deterministic=True)
