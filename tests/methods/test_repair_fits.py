"""Layers fitted in closed form are the layers that made the outputs, whatever their attributes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import graphmod as gm
from graphmod.methods.repair.fits import layers, refit, without_weights

RNG = np.random.default_rng


def one_layer(op_type, shape, weights, **attributes):
    """A model of one operator, or of a MatMul and an Add."""
    names = list(weights)
    operators = [helper.make_node(op_type, ["x", *names], ["y"], "layer", **attributes)]
    if op_type == "MatMul" and len(names) == 2:
        operators = [
            helper.make_node("MatMul", ["x", names[0]], ["product"], "layer"),
            helper.make_node("Add", [names[1], "product"], ["y"], "bias"),
        ]
    graph = helper.make_graph(
        operators,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (len(shape) + 1))],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return gm.load(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]))


def check(op_type, shape, weights, seed, **attributes):
    """Break a layer's weights, fit them to what the healthy one makes, and compare on other samples."""
    rng = RNG(seed + 1000)
    healthy = one_layer(op_type, shape, weights, **attributes)
    kept = {"mean", "variance"}
    random = {name: value if name in kept else rng.normal(size=value.shape) for name, value in weights.items()}
    broken = one_layer(op_type, shape, random, **attributes)
    x, other = (rng.normal(size=(n, *shape)).astype(np.float32) for n in (600, 20))
    (layer,) = layers(broken, ["layer"])
    fitted, touched = refit(broken, {layer: (x, healthy.run({"x": x})["y"])})
    wanted = healthy.run({"x": other})["y"]
    np.testing.assert_allclose(fitted.run({"x": other})["y"], wanted, atol=1e-4 * (1 + np.abs(wanted).max()))
    assert touched == layer.channels * layer.unknowns
    assert [operator.op_type for operator in fitted.operators] == [operator.op_type for operator in broken.operators]


@st.composite
def convolutions(draw):
    n_axes = draw(st.integers(1, 2))
    groups = draw(st.sampled_from([1, 1, 2]))
    n_in, n_out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    kernel = draw(st.lists(st.integers(1, 3), min_size=n_axes, max_size=n_axes))
    attributes = {"kernel_shape": kernel, "group": groups}
    attributes["strides"] = draw(st.lists(st.integers(1, 2), min_size=n_axes, max_size=n_axes))
    padding = draw(st.sampled_from(["pads", "VALID", "SAME_UPPER", "SAME_LOWER", "dilations"]))
    if padding in ("pads", "dilations"):
        attributes["pads"] = draw(st.lists(st.integers(0, 2), min_size=2 * n_axes, max_size=2 * n_axes))
        if padding == "dilations":
            attributes["dilations"] = draw(st.lists(st.integers(1, 2), min_size=n_axes, max_size=n_axes))
    else:
        attributes["auto_pad"] = padding
    has_bias = draw(st.booleans())
    return (n_in, *[7, 6][:n_axes]), (n_out, n_in // groups, *kernel), has_bias, attributes, draw(st.integers(0, 99))


@settings(max_examples=15, deadline=None)
@given(convolutions())
def test_convolutions_are_found_exactly(case):
    shape, weight, has_bias, attributes, seed = case
    rng = RNG(seed)
    weights = {"w": rng.normal(size=weight)} | ({"b": rng.normal(size=weight[0])} if has_bias else {})
    check("Conv", shape, weights, seed, **attributes)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed):
    rng = RNG(0)
    weights = {"w": rng.normal(size=(4, 6) if transposed else (6, 4)), "b": rng.normal(size=4)}
    check("Gemm", (6,), weights, 0, transB=transposed, alpha=0.5, beta=2.0)


@pytest.mark.parametrize("has_bias", [False, True])
def test_products_of_tokens(has_bias):
    rng = RNG(1)
    weights = {"w": rng.normal(size=(6, 4))} | ({"b": rng.normal(size=4)} if has_bias else {})
    check("MatMul", (5, 6), weights, 1)


def test_batch_normalisation():
    rng = RNG(2)
    weights = {name: rng.normal(size=3) for name in ("scale", "shift", "mean")} | {"variance": rng.uniform(1, 2, 3)}
    check("BatchNormalization", (3, 5, 5), weights, 2)


def test_only_channels_that_are_wrong_change():
    rng = RNG(3)
    weights = {"w": rng.normal(size=(6, 4)), "b": rng.normal(size=4)}
    healthy = one_layer("Gemm", (6,), weights)
    wrong = {name: value.copy() for name, value in weights.items()}
    wrong["w"][:, 2] += 1
    broken = one_layer("Gemm", (6,), wrong)
    x = rng.normal(size=(500, 6)).astype(np.float32)
    fitted, touched = refit(broken, {layers(broken, ["layer"])[0]: (x, healthy.run({"x": x})["y"])})
    assert touched == 7
    assert np.array_equal(fitted.initializer("w")[:, [0, 1, 3]], broken.initializer("w")[:, [0, 1, 3]])
    np.testing.assert_allclose(fitted.initializer("w")[:, 2], weights["w"][:, 2], atol=1e-5)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_wrong(odd):
    rng = RNG(6)
    weights = {"w": rng.normal(size=(6, 4)), "b": rng.normal(size=4)}
    healthy = one_layer("Gemm", (6,), weights)
    weights["w"][3, 2] = odd
    broken = one_layer("Gemm", (6,), weights)
    x = rng.normal(size=(500, 6)).astype(np.float32)
    fitted, touched = refit(broken, {layers(broken, ["layer"])[0]: (x, healthy.run({"x": x})["y"])})
    assert touched == 7
    np.testing.assert_allclose(fitted.initializer("w"), healthy.initializer("w"), atol=1e-5)


def test_what_inputs_do_not_tell_is_left_to_held_out_samples():
    """Inputs in a plane of six dimensions: no fit finds all weights, but predictions in the plane are right."""
    rng = RNG(4)
    healthy = one_layer("Gemm", (6,), {"w": rng.normal(size=(6, 4)), "b": rng.normal(size=4)})
    broken = one_layer("Gemm", (6,), {"w": rng.normal(size=(6, 4)), "b": rng.normal(size=4)})
    plane = rng.normal(size=(2, 6))
    x, other = ((rng.normal(size=(n, 2)) @ plane).astype(np.float32) for n in (400, 50))
    fitted, _ = refit(broken, {layers(broken, ["layer"])[0]: (x, healthy.run({"x": x})["y"])})
    np.testing.assert_allclose(fitted.run({"x": other})["y"], healthy.run({"x": other})["y"], atol=1e-3)


def test_weights_that_two_layers_share_are_not_fitted():
    operators = [helper.make_node("MatMul", [a, "w"], [b], b) for a, b in (("x", "h"), ("h", "y"))]
    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y")]
    weight = numpy_helper.from_array(RNG(0).normal(size=(3, 3)).astype(np.float32), "w")
    graph = helper.make_graph(operators, "shared", declared[:1], declared[1:], [weight])
    model = gm.load(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]))
    assert layers(model, ["h", "y"]) == []


def test_without_weights_a_layer_makes_zeros():
    rng = RNG(5)
    model = one_layer("Conv", (2, 5), {"w": rng.normal(size=(3, 2, 3)), "b": rng.normal(size=3)})
    made = without_weights(model, ["layer"]).run({"x": rng.normal(size=(2, 2, 5)).astype(np.float32)})["y"]
    assert not made.any()
