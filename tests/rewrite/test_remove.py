"""Removing by name, at the ends, and where it cannot be done."""

import numpy as np
import pytest
from handmade import model
from onnx import helper

import graphmod as gm

SHAPE = ["n", 4]


@pytest.fixture
def demo():
    return gm.load(gm.demo.model_path())


def chain(outputs=("d",)):
    """x -Relu-> a -Neg-> b -Tanh-> c -Neg-> d."""
    steps = zip(("Relu", "Neg", "Tanh", "Neg"), "xabc", "abcd", strict=True)
    operators = [helper.make_node(kind, [read], [made], name=f"{kind}_{made}") for kind, read, made in steps]
    return model(operators, {"x": SHAPE}, dict.fromkeys(outputs, SHAPE))


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (("x", "b"), lambda x: -np.tanh(x)),
        (("b", "d"), lambda x: -np.maximum(x, 0)),
        (("x", "d"), lambda x: x),
        ("Tanh_c", lambda x: np.maximum(x, 0)),
        ("Neg_d", lambda x: np.tanh(-np.maximum(x, 0))),
        ("Relu_a", lambda x: -np.tanh(-x)),
    ],
)
def test_at_the_input_at_the_output_and_by_operator(place, expected):
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    found = gm.remove(chain(), place)
    assert list(found.inputs) == ["x"]
    np.testing.assert_allclose(found.run({"x": x})["d"], expected(x), atol=1e-6)


def test_an_inner_tensor_that_is_an_output_stays():
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    found = gm.remove(chain(["d", "b"]), ("x", "c")).run({"x": x})
    np.testing.assert_allclose(found["d"], -x)
    np.testing.assert_allclose(found["b"], -np.maximum(x, 0))


def test_a_block_by_path_and_by_object(demo):
    x = gm.demo.splits().test.inputs["image"][:4]
    block = gm.blocks(demo)["layer2.3"]
    by_path, by_block = gm.remove(demo, "layer2.3"), gm.remove(demo, block)
    assert by_path.digest == by_block.digest
    assert by_path.n_weights == demo.n_weights - gm.graph.cost(demo, block.operators).weights
    head = gm.extract(demo, "image", block.entry)
    tail = gm.extract(demo, block.exit, "logits")
    expected = tail.run({block.exit: head.run({"image": x})[block.entry]})["logits"]
    np.testing.assert_allclose(by_path.run({"image": x})["logits"], expected, atol=1e-4)
    assert "layer2.3" not in [b.path for b in gm.blocks(by_path).walk()]
    assert gm.remove(by_path, "layer2.4").n_weights < by_path.n_weights


@pytest.mark.parametrize(
    ("place", "match"),
    [
        ("layer2.0", "graphmod.replace"),
        ("layer9", "there is no block or operator 'layer9'"),
        (("relu", "nothing"), "nothing"),
        (("nothing", "relu"), "no operator's output is named 'nothing'"),
        (("relu",), "is no place"),
        (3, "is no place"),
        (("relu", "relu"), "empty"),
        (("relu_2", "relu"), "'relu' comes before 'relu_2'"),
        (("getitem_3", "relu_2"), "past 'getitem_3'"),
        ("", "there is no block"),
    ],
)
def test_refusals(demo, place, match):
    content = demo.proto().SerializeToString(deterministic=True)
    with pytest.raises(gm.RefusedError, match=match):
        gm.remove(demo, place)
    assert demo.proto().SerializeToString(deterministic=True) == content


def test_an_operator_that_joins_two_tensors_is_no_region(demo):
    joins = next(name for name, op in zip(demo.operator_names, demo.operators, strict=True) if op.op_type == "Add")
    with pytest.raises(gm.RefusedError, match="joins 2 tensors"):
        gm.remove(demo, joins)


def test_unknown_shapes():
    operators = [
        helper.make_node("NonZero", ["x"], ["p"]),
        helper.make_node("Cast", ["p"], ["q"], to=1),
        helper.make_node("Mul", ["q", "q"], ["y"]),
        helper.make_node("ReduceSum", ["y"], ["z"]),
        helper.make_node("Add", ["x", "z"], ["out"]),
    ]
    network = model(operators, {"x": SHAPE}, {"out": SHAPE})
    with pytest.raises(gm.RefusedError):
        gm.remove(network, ("x", "y"))


def test_operators_that_no_output_needs_keep_what_they_read():
    operators = [
        helper.make_node("MatMul", ["x", "w"], ["idle"]),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("Neg", ["a"], ["idle too"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    network = model(operators, {"x": SHAPE}, {"y": SHAPE}, {"w": np.eye(4, dtype=np.float32)})
    found = gm.remove(network, ("x", "b"))
    assert [op.output[0] for op in found.operators] == ["idle", "a", "idle too", "y"]
    assert list(found.initializers) == ["w"]


def test_the_first_output_that_has_a_name_is_the_exit():
    weights = {name: np.zeros((1, 16, 4), np.float32) for name in "wr"}
    operators = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "h"], name="lstm", hidden_size=4),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    network = model(operators, {"x": [1, "n", 4]}, {"y": [1, "n", 4]}, weights)
    assert [op.op_type for op in gm.remove(network, "lstm").operators] == ["Relu"]


def two_towers():
    operators = [
        helper.make_node("Tanh", ["a"], ["ta"], name="tanh_a"),
        helper.make_node("Relu", ["ta"], ["ra"], name="relu_a"),
        helper.make_node("Tanh", ["b"], ["tb"], name="tanh_b"),
        helper.make_node("Relu", ["tb"], ["rb"], name="relu_b"),
        helper.make_node("Add", ["ra", "rb"], ["s"], name="sum"),
        helper.make_node("Neg", ["s"], ["y"], name="head"),
    ]
    return model(operators, {"a": ["n", 4], "b": ["n", 4]}, {"y": ["n", 4]})


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("relu_b", lambda a, b: -(np.maximum(np.tanh(a), 0) + np.tanh(b))),
        ("tb..rb", lambda a, b: -(np.maximum(np.tanh(a), 0) + np.tanh(b))),
        ("Relu", lambda a, b: -(np.tanh(a) + np.tanh(b))),
        (("ra", "s"), lambda a, b: -np.maximum(np.tanh(a), 0) + 0 * b),
    ],
)
def test_every_input_has_a_part_of_the_network(place, expected):
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(gm.remove(two_towers(), place).run({"a": a, "b": b})["y"], expected(a, b), atol=1e-6)


def test_a_sum_of_two_inputs_parts_does_not_choose_between_them():
    with pytest.raises(gm.RefusedError, match=r"joins 2 tensors of activations \(ra, rb\)"):
        gm.remove(two_towers(), "sum")
