"""Duplicating and reordering, against running the extracted parts one after another."""

import itertools

import numpy as np
import onnx
import pytest
import zoo
from handmade import fan, model
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from random_graphs import random_graphs

import graphmod as gm

RNG = np.random.default_rng(7)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def run_part(whole, entry, exit_, value, feeds):
    """Return what a part of a model makes of a value, other inputs as they are."""
    part = gm.extract(whole, entry, exit_)
    return part.run({name: value if name == entry else feeds[name] for name in part.inputs})[exit_]


def run_chain(whole, start, pairs, feeds):
    """Run parts of a model one after another, from a tensor of it."""
    value = feeds[start] if start in feeds else whole.run(feeds, [start])[start]
    for entry, exit_ in pairs:
        value = run_part(whole, entry, exit_, value, feeds) if entry != exit_ else value
    return value


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs(), st.data(), st.integers(1, 3), st.booleans())
def test_duplicates_in_random_graphs(graph, data, times, share):
    before, feeds = gm.load(graph.proto), graph.feeds()
    cuts = ["x", *graph.cuts]
    same = [pair for pair in itertools.combinations(cuts, 2) if before.tensors[pair[0]] == before.tensors[pair[1]]]
    assume(same)
    entry, exit_ = data.draw(st.sampled_from(same))
    content = before.proto().SerializeToString(deterministic=True)
    after = gm.duplicate(before, (entry, exit_), times, share_weights=share)
    onnx.checker.check_model(after.proto(), full_check=True)
    expected = run_chain(before, entry, [(entry, exit_)] * (times + 1) + [(exit_, "out")], feeds)
    np.testing.assert_allclose(after.run(feeds)["out"], expected, atol=1e-5)
    assert before.proto().SerializeToString(deterministic=True) == content
    if share:
        assert set(after.initializers) == set(before.initializers)
    else:
        fresh = after.initializers.keys() - before.initializers.keys()
        floats = {name for name in fresh if after.tensors[name].is_float}
        assert fresh == floats


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs(), st.data())
def test_other_orders_in_random_graphs(graph, data):
    before, feeds = gm.load(graph.proto), graph.feeds()
    cuts = ["x", *graph.cuts]
    kinds = [before.tensors[name] for name in cuts]
    runs = [list(run) for _, run in itertools.groupby(range(len(cuts)), key=lambda i: kinds[i])]
    run = max(runs, key=len)
    assume(len(run) > 2)
    names = [cuts[i] for i in run]
    pairs = list(itertools.pairwise(names))
    order = data.draw(st.permutations(range(len(pairs))))
    try:
        after = gm.reorder(before, pairs, order)
    except gm.RefusedError as refused:
        if not any(told in str(refused) for told in ("also read by", "would depend on what it makes")):
            raise
        event("refused")
        return
    event("same" if after is before else "reordered")
    onnx.checker.check_model(after.proto(), full_check=True)
    expected = run_chain(before, names[0], [*(pairs[i] for i in order), (names[-1], "out")], feeds)
    np.testing.assert_allclose(after.run(feeds)["out"], expected, atol=1e-5)
    assert sorted(op.name for op in after.operators) == sorted(op.name for op in before.operators)
    assert set(after.initializers) == set(before.initializers)


@pytest.mark.parametrize(("name", "path"), [("vgg", None), ("bert", "model.bert.encoder.layer.0")])
def test_a_copy_is_a_block_of_its_own(name, path):
    network = zoo.network(name)
    tree = gm.blocks(network.model)
    alike = [b for b in tree.walk() if b.path and network.model.tensors[b.entry] == network.model.tensors[b.exit]]
    block = tree[path] if path else max(alike, key=lambda b: len(b.operators))
    after = gm.duplicate(network.model, block.path, 2)
    paths = [one.path for one in gm.blocks(after).walk()]
    assert {f"{block.path}_copy", f"{block.path}_copy2"} <= set(paths)
    assert [p for p in paths if "_copy" not in p] == [one.path for one in tree.walk()]
    copy = gm.blocks(after)[f"{block.path}_copy"]
    assert copy.entry == block.exit
    assert len(copy.operators) == len(block.operators)
    assert gm.blocks(gm.duplicate(after, block.path))[f"{block.path}_copy3"]
    once = gm.remove(after, f"{block.path}_copy2")
    again = gm.remove(once, f"{block.path}_copy")
    assert gm.verify(network.model, again, network.feeds).exact


def test_weights_of_copies():
    network, x = fan([6, 6, 6], RNG, (6,)), normal(3, 6)
    own, shared = (gm.duplicate(network, ("t0", "t1"), share_weights=share) for share in (False, True))
    np.testing.assert_array_equal(own.run({"x": x})["t2"], shared.run({"x": x})["t2"])
    assert own.n_weights == shared.n_weights + 36 == network.n_weights + 36
    np.testing.assert_array_equal(own.initializer("w1_copy"), network.initializer("w1"))


def test_constants_that_operators_make_of_weights_are_copied_too():
    operators = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(normal(4))),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "c"], ["b"]),
        helper.make_node("Reshape", ["b", "shape"], ["y"]),
    ]
    weights = {"q": RNG.integers(-9, 9, (4, 4)).astype(np.int8), "scale": np.float32(0.1), "shape": np.array([-1, 4])}
    network = model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, weights)
    after = gm.duplicate(network, ("x", "b"))
    assert set(after.initializers) == {"q", "scale", "shape", "q_copy", "scale_copy"}
    assert [op.op_type for op in after.operators].count("Constant") == 2
    x = normal(3, 4)
    expected = network.run({"x": network.run({"x": x})["y"]})["y"]
    np.testing.assert_allclose(after.run({"x": x})["y"], expected, atol=1e-2, rtol=1e-2)  # ORT fuses to 8-bit products


def test_values_in_files_stay_there(tmp_path):
    onnx.save(
        fan([6, 6], RNG, (6,)).proto(), tmp_path / "m.onnx",
        save_as_external_data=True, size_threshold=0, location="m.data",
    )  # fmt: skip
    network = gm.load(tmp_path / "m.onnx")
    after = gm.duplicate(network, ("t0", "t1"))
    first, copy = (after._proto.graph.initializer[i] for i in (1, 2))
    assert copy.data_location == TensorProto.EXTERNAL
    assert copy.external_data == first.external_data
    again = gm.load(after.save(tmp_path / "n.onnx"))
    x = {"x": normal(2, 6)}
    np.testing.assert_array_equal(again.run(x)["t1"], after.run(x)["t1"])


def looped():
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["sum", "w"], ["product"]),
            helper.make_node("Add", ["product", "a"], ["next"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 4]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, ["n", 4]),
        ],
    )
    operators = [
        helper.make_node("Tanh", ["x"], ["a"]),
        helper.make_node("Loop", ["two", "", "a"], ["y"], "loop", body=body),
    ]
    weights = {"two": np.array(2), "w": normal(4, 4) / 2}
    return model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, weights)


def test_a_loop_that_captures_entry_and_weight():
    network, x = looped(), normal(3, 4)
    after = gm.duplicate(network, ("a", "y"))
    onnx.checker.check_model(after.proto(), full_check=True)
    w = network.initializer("w")

    def loop(a):
        return (a @ w + a) @ w + a

    np.testing.assert_allclose(after.run({"x": x})["y"], loop(loop(np.tanh(x))), atol=1e-5)
    assert set(after.initializers) == {"two", "w", "w_copy"}
    swapped = gm.reorder(network, [("x", "a"), ("a", "y")], [1, 0])
    np.testing.assert_allclose(swapped.run({"x": x})["y"], np.tanh(loop(x)), atol=1e-5)


def test_calls_of_functions_are_copied():
    act = helper.make_function(
        "own", "Act", ["v"], ["w"], [helper.make_node("LeakyRelu", ["v"], ["w"], alpha=0.3)],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    operators = [helper.make_node("Act", ["x"], ["a"], domain="own"), helper.make_node("Neg", ["a"], ["y"])]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "a", "y")]
    graph = helper.make_graph(operators, "g", value[:1], value[2:], value_info=value[1:2])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    network = gm.load(helper.make_model(graph, ir_version=8, opset_imports=opsets, functions=[act]))
    after, x = gm.duplicate(network, ("x", "a"), 2), normal(3, 4)
    np.testing.assert_allclose(after.run({"x": x})["y"], -np.where(x < 0, x * np.float32(0.3) ** 3, x), atol=1e-6)
    assert len(after.functions) == 1
    assert len(after.proto().graph.value_info) == 3


def test_the_blocks_of_the_demo_in_another_order():
    network = gm.load(gm.demo.model_path())
    tree, x = gm.blocks(network), gm.demo.splits().test.inputs["image"][:8]
    chosen = [tree[f"layer2.{i}"] for i in (1, 2, 3)]
    after = gm.reorder(network, [block.path for block in chosen], [2, 0, 1])
    pairs = [(chosen[i].entry, chosen[i].exit) for i in (2, 0, 1)]
    expected = run_chain(network, chosen[0].entry, [*pairs, (chosen[-1].exit, "logits")], {"image": x})
    np.testing.assert_allclose(after.run({"image": x})["logits"], expected, rtol=1e-4, atol=1e-4)
    paths = [block.path for block in gm.blocks(after)["layer2"].children]
    assert paths[1:4] == ["layer2.3", "layer2.1", "layer2.2"]
    back = gm.reorder(after, ["layer2.3", "layer2.1", "layer2.2"], [1, 2, 0])
    np.testing.assert_array_equal(back.run({"image": x})["logits"], network.run({"image": x})["logits"])


@pytest.mark.slow
def test_encoders_in_another_order():
    network = zoo.network("vit12")
    chosen = [gm.blocks(network.model)[f"blocks.{i}"] for i in (3, 4)]
    after = gm.reorder(network.model, chosen, [1, 0])
    pairs = [(block.entry, block.exit) for block in reversed(chosen)]
    (output,) = network.model.outputs
    expected = run_chain(network.model, chosen[0].entry, [*pairs, (chosen[1].exit, output)], network.feeds)
    np.testing.assert_allclose(after.run(network.feeds)[output], expected, atol=1e-5)


def test_records_replay():
    network = gm.load(gm.demo.model_path())
    after = gm.reorder(gm.duplicate(network, "layer1.3"), ["layer1.3", "layer1.3_copy"], [1, 0])
    assert gm.apply(gm.Recipe.of(after), network).proto().SerializeToString() == after.proto().SerializeToString()


def test_refusals():
    network = fan([6, 6, 5], RNG, (6,))
    for call, match in [
        (lambda: gm.duplicate(network, ("t1", "t2")), "changes the type"),
        (lambda: gm.duplicate(network, ("t0", "t1"), 0), "at least 1"),
        (lambda: gm.reorder(network, [("x", "t0"), ("t0", "t1")], [0, 0]), "once"),
        (lambda: gm.reorder(network, [("x", "t0"), ("m1", "t1")], [1, 0]), "begins at 'm1'"),
        (lambda: gm.reorder(network, [("t0", "t1"), ("t1", "t2")], [1, 0]), "changes the type"),
    ]:
        with pytest.raises(gm.RefusedError, match=match):
            call()
    shown = gm.load(network.proto())
    shown._proto.graph.output.append(helper.make_tensor_value_info("t0", TensorProto.FLOAT, ["n", 6]))
    with pytest.raises(gm.RefusedError, match="is an output of the model"):
        gm.reorder(gm.load(shown.proto()), [("x", "t0"), ("t0", "t1")], [1, 0])
    operators = [
        helper.make_node("Tanh", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    skip = model(operators, {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(gm.RefusedError, match="also read by Add"):
        gm.reorder(skip, [("x", "a"), ("a", "b")], [1, 0])
