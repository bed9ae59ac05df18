"""Moments against numpy on activations that were stored."""

import numpy as np
import pytest
from handmade import fan, model
from onnx import helper

import graphmod as gm
from graphmod.probe import moments
from graphmod.probe.moments import strides_between


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def convolutions(rng, stride=2):
    weights = {
        "v": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "w": rng.normal(size=(6, 4, 3, 3)).astype(np.float32),
    }
    operators = [
        helper.make_node("Conv", ["x", "v"], ["a"], pads=[1] * 4),
        helper.make_node("Conv", ["a", "w"], ["b"], pads=[1] * 4, strides=[stride, 1]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    return model(operators, {"x": ["n", 3, 9, 8]}, {"y": ["n", 6, -(-9 // stride), 8]}, weights)


def assert_are_of(found, left, right):
    left, right = left.astype(np.float64), right.astype(np.float64)
    assert found.n == len(left) == len(right)
    for name, expected in {
        "x_sum": left.sum(0), "y_sum": right.sum(0), "xx": left.T @ left, "xy": left.T @ right, "yy": (right**2).sum(0)
    }.items():  # fmt: skip
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-9, atol=1e-9 * len(left), err_msg=name)
    assert found.y_variance == pytest.approx(((right - right.mean(0)) ** 2).sum())


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_images(rng, batch_size):
    network, x = convolutions(rng), rng.normal(size=(15, 3, 9, 8)).astype(np.float32)
    values = network.run({"x": x}, ["a", "b", "y"])
    found = moments(network, gm.Data({"x": x}), [("a", "b"), ("b", "y"), ("x", "a")], batch_size=batch_size)
    rows = {name: np.moveaxis(v, 1, -1) for name, v in {**values, "x": x}.items()}
    assert_are_of(found["a", "b"], rows["a"][:, ::2].reshape(-1, 4), rows["b"].reshape(-1, 6))
    assert found["a", "b"].strides == (2, 1)
    assert not found["a", "b"].same_shape
    assert_are_of(found["b", "y"], rows["b"].reshape(-1, 6), rows["y"].reshape(-1, 6))
    assert found["b", "y"].same_shape
    assert_are_of(found["x", "a"], x.transpose(0, 2, 3, 1).reshape(-1, 3), rows["a"].reshape(-1, 4))


@pytest.mark.parametrize("shape", [(7,), (5, 7)])
def test_channels_last(rng, shape):
    network, x = fan([4, 6], rng, shape), rng.normal(size=(20, *shape)).astype(np.float32)
    values = network.run({"x": x}, ["t0", "t1"])
    found = moments(network, gm.Data({"x": x}), [("t0", "t1")])["t0", "t1"]
    assert_are_of(found, values["t0"].reshape(-1, 4), values["t1"].reshape(-1, 6))
    assert found.strides == ()


def test_additive(rng):
    network, x = fan([4, 6], rng), rng.normal(size=(20, 7)).astype(np.float32)
    parts = [moments(network, gm.Data({"x": p}), [("t0", "t1")])["t0", "t1"] for p in (x[:3], x[3:])]
    values = network.run({"x": x}, ["t0", "t1"])
    assert_are_of(parts[0] + parts[1], values["t0"], values["t1"])


@pytest.mark.parametrize("batch", ["n", 4])
def test_reference_gives_y(rng, batch):
    network, other = fan([4, 6], rng), fan([5, 3], rng, batch=batch)
    x = rng.normal(size=(100, 7)).astype(np.float32)
    found = moments(network, gm.Data({"x": x}), [("t0", "t1")], reference=other)["t0", "t1"]
    right = np.concatenate([other.run({"x": x[i : i + 4]}, ["t1"])["t1"] for i in range(0, 100, 4)])
    assert_are_of(found, network.run({"x": x}, ["t0"])["t0"], right)


def test_pairs_that_nothing_bridges_are_left_out(rng):
    operators = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Relu", ["f"], ["y"])]
    network = model(operators, {"x": ["n", 2, 4, 4]}, {"y": ["n", 32]})
    x = rng.normal(size=(5, 2, 4, 4)).astype(np.float32)
    assert list(moments(network, gm.Data({"x": x}), [("x", "f"), ("f", "y")])) == [("f", "y")]


@pytest.mark.parametrize(
    ("x", "y", "axis", "expected"),
    [
        ((2, 3, 8, 8), (2, 5, 8, 8), 1, (1, 1)),
        ((2, 3, 9, 8), (2, 5, 5, 4), 1, (2, 2)),
        ((2, 3, 8, 8), (2, 5, 1, 1), 1, (8, 8)),
        ((2, 3, 8, 8), (2, 5, 3, 8), 1, (3, 1)),
        ((2, 3, 8, 8), (2, 5, 5, 8), 1, None),
        ((2, 3, 8, 8), (2, 5, 16, 16), 1, None),
        ((2, 3, 8, 8), (2, 5, 0, 8), 1, None),
        ((2, 3, 8, 8), (4, 5, 8, 8), 1, None),
        ((2, 8, 8, 3), (2, 8, 8, 5), -1, ()),
        ((2, 8, 8, 3), (2, 4, 4, 5), -1, None),
        ((2, 6, 3), (2, 6, 5), -1, ()),
        ((2, 6, 3), (2, 5, 3), -1, None),
        ((2, 6, 3), (2, 5, 3), 1, (1,)),
        ((2, 6, 9), (2, 5, 5), 1, (2,)),
        ((2, 6), (2, 9), -1, ()),
        ((2, 6), (2, 9), 1, ()),
        ((2,), (2,), -1, None),
        ((2, 3, 4, 4, 4), (2, 3, 2, 2, 4), 1, (2, 2, 1)),
    ],
)
def test_strides(x, y, axis, expected):
    found = strides_between(x, y, axis)
    assert found == expected
    if found:
        sampled = np.empty(x)[(slice(None), slice(None), *(slice(None, None, s) for s in found))]
        assert sampled.shape[2:] == y[2:]


def sequences(rng):
    """Return a network of 1-D convolutions, then a linear map of its transposed output: every axis has 6 entries."""
    weights = {name: rng.normal(size=(6, 6, 3)).astype(np.float32) for name in "uv"}
    weights["w"] = rng.normal(size=(6, 6)).astype(np.float32)
    operators = [
        helper.make_node("Conv", ["x", "u"], ["a"], pads=[1, 1]),
        helper.make_node("Conv", ["a", "v"], ["b"], pads=[1, 1]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["c", "w"], ["y"]),
    ]
    return model(operators, {"x": ["n", 6, 6]}, {"y": ["n", 6, 6]}, weights)


def test_sequences_have_channels_where_their_operators_have(rng):
    network, x = sequences(rng), rng.normal(size=(15, 6, 6)).astype(np.float32)
    values = network.run({"x": x}, ["a", "b", "c", "y"])
    data = gm.Data({"x": x})
    found = moments(network, data, [("a", "b"), ("c", "y"), ("b", "y"), ("x", "x")], batch_size=4)
    rows = {name: np.moveaxis(value, 1, -1).reshape(-1, 6) for name, value in {"x": x, **values}.items()}
    assert_are_of(found["a", "b"], rows["a"], rows["b"])
    assert_are_of(found["x", "x"], rows["x"], rows["x"])
    assert_are_of(found["c", "y"], values["c"].reshape(-1, 6), values["y"].reshape(-1, 6))
    assert (found["a", "b"].strides, found["c", "y"].strides) == ((1,), ())
    assert ("b", "y") not in found  # of the same shape, but channels lie on different axes
    assert moments(network, data, [("b", "y")]) == {}


def test_the_axis_can_be_said(rng):
    network, x = sequences(rng), rng.normal(size=(15, 6, 6)).astype(np.float32)
    values = network.run({"x": x}, ["b", "y"])
    found = moments(network, gm.Data({"x": x}), [("b", "y")], axis=1)["b", "y"]
    rows = [np.moveaxis(values[name], 1, -1).reshape(-1, 6) for name in ("b", "y")]
    assert_are_of(found, *rows)


def test_images_with_channels_last(rng):
    w = rng.normal(size=(5, 7)).astype(np.float32)
    network = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 3, 4, 5]}, {"y": ["n", 3, 4, 7]}, {"w": w}
    )
    x = rng.normal(size=(9, 3, 4, 5)).astype(np.float32)
    found = moments(network, gm.Data({"x": x}), [("x", "y")])["x", "y"]
    assert_are_of(found, x.reshape(-1, 5), (x @ w).reshape(-1, 7))
