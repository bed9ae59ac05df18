"""A new head: features by ONNX Runtime times the drawn weights, on matrices, images and tokens, old opsets too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from planted import net

import graphmod as gm
from graphmod.errors import RefusedError

IMAGES = (
    "(float[n,3,5,4] x) => (float[n,7] y) { r = Relu(x)  c = Conv(r, k)  g = GlobalAveragePool(c)  y = Flatten(g) }"
)
TOKENS = """(float[n,5,4] x) => (float[n,7] y) {
    r = Tanh(x)  h = MatMul(r, w)  z = Constant<value_int=0>()  y = Gather<axis=1>(h, z) }"""
ROWS = "(float[n,4] x) => (float[n,7] y) { r = Sigmoid(x)  h = MatMul(r, w)  y = Softmax(h) }"


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize(
    ("text", "weights", "x", "features"),
    [
        (IMAGES, {"k": (7, 3, 1, 1)}, (6, 3, 5, 4), lambda x: np.maximum(x, 0).mean((2, 3))),
        (TOKENS, {"w": (4, 7)}, (6, 5, 4), lambda x: np.tanh(x).mean(1)),
        (ROWS, {"w": (4, 7)}, (6, 4), lambda x: 1 / (1 + np.exp(-x))),
    ],
)
def test_the_head_is_a_linear_layer_on_the_mean_features(
    text: str,
    weights: dict[str, tuple[int, ...]],
    x: tuple[int, ...],
    features: Callable[[np.ndarray], np.ndarray],
    opset: int,
) -> None:
    values = np.random.default_rng(0).standard_normal(x).astype(np.float32)
    small = gm.new_head(net(text, weights, opset=opset), 5, seed=1)
    assert small.outputs["y"].shape == ("n", 5)
    weight, bias = (small.initializer(name) for name in ("head.weight", "head.bias"))
    assert np.abs(weight).max() <= weight.shape[1] ** -0.5
    np.testing.assert_allclose(small.run({"x": values})["y"], features(values) @ weight.T + bias, rtol=2e-5, atol=2e-6)


def test_other_outputs_stay_and_what_only_the_old_head_needed_goes() -> None:
    text = """(float[n,4] x) => (float[n,7] y, float[n,7] z) {
        r = Tanh(x)  h = MatMul(r, w)  b = Add(h, v)  z = Softmax(h)  y = Softmax(b) }"""
    model = net(text, {"w": (4, 7), "v": (7,)})
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    other = gm.new_head(model, 3)
    np.testing.assert_array_equal(other.run({"x": x})["z"], model.run({"x": x})["z"])
    assert "v" not in other.constants
    assert gm.new_head(model, 3, seed=1).digest != other.digest == gm.new_head(model, 3).digest


def test_features_that_two_paths_read_are_those_of_channels() -> None:
    text = """(float[n,3,5,4] x) => (float[n,7] y) {
        r = Relu(x)  a = GlobalAveragePool(r)  b = GlobalMaxPool(r)  c = Flatten(a)  d = Flatten(b)
        e = MatMul(c, v)  f = MatMul(d, w)  y = Add(e, f) }"""
    x = np.random.default_rng(0).standard_normal((6, 3, 5, 4)).astype(np.float32)
    small = gm.new_head(net(text, {"v": (3, 7), "w": (3, 7)}), 2)
    weight, bias = (small.initializer(name) for name in ("head.weight", "head.bias"))
    expected = np.maximum(x, 0).mean((2, 3)) @ weight.T + bias
    np.testing.assert_allclose(small.run({"x": x})["y"], expected, rtol=2e-5, atol=2e-6)


def test_half_precision_before_an_output_of_single_precision() -> None:
    text = "(float16[n,4] x) => (float[n,7] y) { r = Relu(x)  h = MatMul(r, w)  y = Cast<to=1>(h) }"
    model = net(text, {"w": np.ones((4, 7), np.float16)})
    small = gm.new_head(model, 3)
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float16)
    weight, bias = (small.initializer(name) for name in ("head.weight", "head.bias"))
    assert weight.dtype == np.float16
    found = small.run({"x": x})["y"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.maximum(x, 0) @ weight.T + bias, rtol=1e-2, atol=1e-2)


def test_an_output_that_another_operator_reads_is_still_made() -> None:
    text = "(float[n,4] x) => (float[n,7] y, float[n,7] z) { r = Tanh(x)  y = MatMul(r, w)  z = Relu(y) }"
    model = net(text, {"w": (4, 7)})
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_array_equal(gm.new_head(model, 2).run({"x": x})["z"], model.run({"x": x})["z"])


@pytest.mark.parametrize(
    ("text", "weights", "n_classes", "message"),
    [
        ("(float[n,4] x) => (float[n,4] y) { y = Relu(x) }", {}, 3, "no operator multiplies activations"),
        ("(float[n,4] x) => (float[n,k] y) { y = MatMul(x, w) }", {"w": (4, 7)}, 3, "no boundary before the final"),
        (ROWS, {"w": (4, 7)}, 1, "n_classes=1 is out of range; it is a whole number from 2 on"),
        (ROWS, {"w": (4, 7)}, 2.5, "n_classes=2.5 is out of range"),
    ],
)
def test_what_cannot_be_is_refused(
    text: str, weights: dict[str, tuple[int, ...]], n_classes: int, message: str
) -> None:
    with pytest.raises(RefusedError, match=message):
        gm.new_head(net(text, weights), n_classes)
