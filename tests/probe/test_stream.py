"""Streaming: the values are those of one run over everything."""

import numpy as np
import pytest
from handmade import fan, model
from onnx import helper

import graphmod as gm
from graphmod.probe import accuracy, predict, stream


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.mark.parametrize("batch", ["n", 1, 3])
def test_values_of_inputs_inner_tensors_and_outputs(rng, batch):
    network, x = fan([5, 4], rng, batch=batch), rng.normal(size=(30, 7)).astype(np.float32)
    whole = fan([5, 4], np.random.default_rng(11))
    expected = {"x": x, **whole.run({"x": x}, ["t0", "t1"])}
    names = ["t1", "x", "t0"]
    batches = list(stream(network, gm.Data({"x": x}, np.arange(30)), names, batch_size=7))
    assert [list(values) for _, values in batches] == [names] * len(batches)
    assert np.concatenate([part.targets for part, _ in batches]).tolist() == list(range(30))
    assert max(len(part) for part, _ in batches) <= 7
    for name in names:
        np.testing.assert_allclose(np.concatenate([v[name] for _, v in batches]), expected[name], atol=1e-6)


def test_views_of_any_strides(rng):
    operators = [helper.make_node("Add", ["a", "b"], ["y"])]
    shape = ["n", 3, 40, 40]
    network = model(operators, {"a": shape, "b": shape}, {"y": shape})
    a, b = (rng.normal(size=(64, 40, 40, 3)).astype(np.float32).transpose(0, 3, 1, 2) for _ in range(2))
    for part, values in stream(network, gm.Data({"a": a[::-1], "b": b}), ["y"], batch_size=8):
        np.testing.assert_array_equal(values["y"], part.inputs["a"] + part.inputs["b"])


def test_a_remainder_that_a_fixed_batch_cannot_take(rng):
    network = fan([5], rng, batch=4)
    with pytest.raises(gm.InvalidDataError, match="leave 2 out"):
        next(stream(network, gm.Data({"x": np.zeros((10, 7), np.float32)}), ["t0"]))


def test_unknown_tensor(rng):
    with pytest.raises(gm.InvalidModelError, match="'nothing'"):
        next(stream(fan([5], rng), gm.Data({"x": np.zeros((4, 7), np.float32)}), ["nothing"]))


def test_one_batch_at_a_time(rng):
    taken = []

    class Watched(gm.Data):
        def __getitem__(self, rows):
            taken.append(rows)
            return super().__getitem__(rows)

    batches = stream(fan([5], rng), Watched({"x": np.zeros((40, 7), np.float32)}), ["t0"], batch_size=4)
    for seen in range(1, 4):
        next(batches)
        assert len(taken) == seen


def test_accuracy(rng):
    network, x = fan([5, 4], rng), rng.normal(size=(50, 7)).astype(np.float32)
    logits = network.run({"x": x})["t1"]
    labels = rng.integers(0, 4, 50)
    assert accuracy(network, gm.Data({"x": x}, labels), batch_size=8) == np.mean(
        [int(row.argmax() == label) for row, label in zip(logits, labels, strict=True)]
    )
    np.testing.assert_allclose(predict(network, gm.Data({"x": x}), batch_size=8), logits, atol=1e-6)
    with pytest.raises(gm.InvalidDataError, match="label 4"):
        accuracy(network, gm.Data({"x": x}, labels + 1))


def test_memory_that_is_used_again_holds_the_right_values(rng):
    network, x = fan([5, 4], rng), rng.normal(size=(23, 7)).astype(np.float32)
    expected = network.run({"x": x}, ["t0", "t1"])
    held = []
    for _, values in stream(network, gm.Data({"x": x}), ["t0", "t1"], batch_size=8, reuse=2):
        held.append({name: value.copy() for name, value in values.items()})
    for name, value in expected.items():
        np.testing.assert_allclose(np.concatenate([one[name] for one in held]), value, rtol=1e-5, atol=1e-6)


def test_a_fixed_batch_with_inner_dimensions_of_one(rng):
    operators = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["a"], ["y"]),
    ]
    weights = {"w": rng.normal(size=(2, 3, 3, 3)).astype(np.float32)}
    network = model(operators, {"x": [1, 3, 6, 6]}, {"y": [1, 2, 1, 1]}, weights)
    x = rng.normal(size=(8, 3, 6, 6)).astype(np.float32)
    found = gm.similarity(network, x, batch_size=8)
    free = gm.similarity(gm.rebatch(network), x, batch_size=8)
    np.testing.assert_allclose(found.matrix, free.matrix, atol=1e-5)


def test_data_that_the_model_fails_on(rng):
    weights = {"w": rng.normal(size=(4, 2)).astype(np.float32)}
    network = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", "d"]}, {"y": ["n", 2]}, weights)
    with pytest.raises(gm.InvalidDataError, match="fails on this data"):
        gm.similarity(network, rng.normal(size=(8, 5)).astype(np.float32))
