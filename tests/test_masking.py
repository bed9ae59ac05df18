"""The reference for channel removal against networks built without the channels, and against closed forms."""

from __future__ import annotations

import masking
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def model(operators, x_shape, weights, opset=18, made="y"):
    graph = helper.make_graph(
        operators, "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
        [helper.make_tensor_value_info(made, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets)


def run(proto, x):
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def without(weights, removed):
    """Return the weights with the indices deleted by hand."""
    smaller = dict(weights)
    for (tensor, axis), indices in removed.items():
        if tensor in smaller:
            smaller[tensor] = np.delete(smaller[tensor], indices, axis)
    return smaller


def assert_same(actual, expected):
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=2e-6 * max(1, np.abs(expected).max()), rtol=1e-5)


def batch_norm_weights(c):
    return {"scale": normal(c), "shift": normal(c), "mean": normal(c), "var": np.abs(normal(c)) + np.float32(0.5)}


CONV_OPERATORS = [
    helper.make_node("Conv", ["x", "w", "b"], ["a"], pads=[1, 1, 1, 1]),
    helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["n"]),
    helper.make_node("Relu", ["n"], ["r"]),
    helper.make_node("Conv", ["r", "v"], ["y"]),
]
LOST = np.array([1, 4])
PER_CHANNEL = [("w", 0), ("b", 0), ("scale", 0), ("shift", 0), ("mean", 0), ("var", 0), ("a", 1), ("n", 1), ("r", 1)]


def test_a_channel_of_a_convolution_goes_with_its_norm_and_its_readers():
    weights = {"w": normal(6, 3, 3, 3), "b": normal(6), "v": normal(5, 6, 2, 2), **batch_norm_weights(6)}
    removed = dict.fromkeys([*PER_CHANNEL, ("v", 1)], LOST)
    x = normal(2, 3, 8, 8)
    smaller = model(CONV_OPERATORS, ["n", 3, 8, 8], without(weights, removed))
    original = model(CONV_OPERATORS, ["n", 3, 8, 8], weights)
    before = original.SerializeToString()
    assert_same(run(masking.masked(original, removed), x), run(smaller, x))
    assert original.SerializeToString() == before
    assert np.abs(run(original, x) - run(smaller, x)).max() > 0.1


def test_leftovers_are_what_a_norm_makes_of_nothing():
    weights = {"w": normal(6, 3, 3, 3), "b": normal(6), "v": normal(5, 6, 2, 2), **batch_norm_weights(6)}
    removed = dict.fromkeys([*PER_CHANNEL, ("v", 1)], LOST)
    x = normal(2, 3, 8, 8)
    constant = np.maximum(weights["shift"] - weights["scale"] * weights["mean"] / np.sqrt(weights["var"] + 1e-5), 0)
    assert constant[LOST].max() > 0.01
    bias = np.einsum("oihw,i->o", weights["v"][:, LOST], constant[LOST])
    smaller = run(model(CONV_OPERATORS, ["n", 3, 8, 8], without(weights, removed)), x)
    actual = run(masking.masked(model(CONV_OPERATORS, ["n", 3, 8, 8], weights), removed, leftovers=True), x)
    assert_same(actual, smaller + bias[:, None, None])


def layer_norm(x, scale, shift):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift


@pytest.mark.parametrize("form", ["operator", "primitives", "skip"])
def test_a_layer_norm_runs_over_the_channels_that_are_left(form):
    weights = {"embed": normal(4, 8), "scale": normal(8), "shift": normal(8), "w": normal(8, 3)}
    norms = {
        "operator": [helper.make_node("LayerNormalization", ["e", "scale", "shift"], ["n"], axis=-1)],
        "skip": [
            helper.make_node("Sub", ["e", "e"], ["zero"]),
            helper.make_node(
                "SkipLayerNormalization", ["e", "zero", "scale", "shift"], ["n", "", "", "sum"],
                domain="com.microsoft", epsilon=1e-5,
            ),
        ],
        "primitives": [
            helper.make_node("ReduceMean", ["e", "last"], ["m"]),
            helper.make_node("Sub", ["e", "m"], ["c"]),
            helper.make_node("Pow", ["c", "two"], ["s"]),
            helper.make_node("ReduceMean", ["s", "last"], ["v"]),
            helper.make_node("Add", ["v", "epsilon"], ["ve"]),
            helper.make_node("Sqrt", ["ve"], ["d"]),
            helper.make_node("Div", ["c", "d"], ["q"]),
            helper.make_node("Mul", ["q", "scale"], ["qs"]),
            helper.make_node("Add", ["qs", "shift"], ["n"]),
        ],
    }  # fmt: skip
    constants = {"last": np.array([-1]), "two": np.float32(2), "epsilon": np.float32(1e-5)}
    operators = [
        helper.make_node("MatMul", ["x", "embed"], ["e"]),
        *norms[form],
        helper.make_node("MatMul", ["n", "w"], ["y"]),
    ]
    lost = np.array([0, 3, 7])
    wide = [
        ("embed", 1),
        ("scale", 0),
        ("shift", 0),
        ("w", 0),
        *((t, 2) for t in ("e", "zero", "sum", "n", "c", "s", "q", "qs")),
    ]
    x = normal(2, 5, 4)
    actual = run(masking.masked(model(operators, ["n", 5, 4], weights | constants), dict.fromkeys(wide, lost)), x)
    left = {name: np.delete(weights[name], lost, axis) for name, axis in wide[:4]}
    assert_same(actual, layer_norm(x @ left["embed"], left["scale"], left["shift"]) @ left["w"])


def group_norm(x, groups, scale, shift):
    parts = x.reshape(len(x), groups, -1)
    parts = (parts - parts.mean(-1, keepdims=True)) / np.sqrt(parts.var(-1, keepdims=True) + 1e-5)
    return parts.reshape(x.shape) * scale[:, None, None] + shift[:, None, None]


@pytest.mark.parametrize(
    ("lost", "left"), [([2, 3], 2), ([0, 3, 4], 3), ([0, 1, 5, 2], 2)], ids=["whole group", "one each", "both"]
)
@pytest.mark.parametrize("opset", [18, 21])
def test_a_group_norm_keeps_even_groups(lost, left, opset):
    c = 6
    weights = {"w": normal(c, 2, 1, 1), "scale": normal(c), "shift": normal(c)}
    if opset == 18:  # one scale for every group
        weights |= {name: np.repeat(normal(3), 2) for name in ("scale", "shift")}
    stored = dict(weights)
    if opset == 18:
        stored |= {name: weights[name][::2] for name in ("scale", "shift")}
    operators = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("GroupNormalization", ["a", "scale", "shift"], ["y"], num_groups=3),
    ]
    lost = np.array(lost)
    removed = dict.fromkeys([("w", 0), ("a", 1), ("y", 1)], lost)
    if opset == 21:
        removed |= {("scale", 0): lost, ("shift", 0): lost}
    else:
        gone = np.array([group for group in range(3) if {2 * group, 2 * group + 1} <= set(lost)], int)
        removed |= {("scale", 0): gone, ("shift", 0): gone}
    x = normal(2, 2, 4, 4)
    actual = run(masking.masked(model(operators, ["n", 2, 4, 4], stored, opset=opset), removed), x)
    small = {name: np.delete(value, lost, 0) for name, value in weights.items()}
    expected = group_norm(np.einsum("nchw,oc->nohw", x, small["w"][:, :, 0, 0]), left, small["scale"], small["shift"])
    assert_same(np.delete(actual, lost, 1), expected)
    assert not actual[:, lost].any()


def test_a_group_norm_with_uneven_groups_is_refused():
    operators = [helper.make_node("GroupNormalization", ["x", "scale", "scale"], ["y"], num_groups=2, name="norm")]
    proto = model(operators, ["n", 4, 3, 3], {"scale": np.ones(4, np.float32)}, opset=21)
    with pytest.raises(ValueError, match="'norm' is left with"):
        masking.masked(proto, dict.fromkeys([("x", 1), ("scale", 0), ("y", 1)], np.array([0])))


def test_a_group_norm_made_of_an_instance_norm_between_reshapes():
    weights = {"w": normal(4, 2, 1, 1), "one": np.ones(2, np.float32), "zero": np.zeros(2, np.float32)}
    shapes = {"to": np.array([0, 2, -1]), "back": np.array([0, 4, 3, 3])}
    operators = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Reshape", ["a", "to"], ["g"]),
        helper.make_node("InstanceNormalization", ["g", "one", "zero"], ["i"]),
        helper.make_node("Reshape", ["i", "back"], ["y"]),
    ]
    lost, flat = np.array([1, 3]), np.arange(9, 18)
    removed = {("w", 0): lost, ("a", 1): lost, ("g", 2): flat, ("i", 2): flat, ("y", 1): lost}
    x = normal(3, 2, 3, 3)
    actual = run(masking.masked(model(operators, ["n", 2, 3, 3], weights | shapes), removed), x)
    left = np.einsum("nchw,oc->nohw", x, weights["w"][[0, 2], :, 0, 0])
    assert_same(actual[:, [0, 2]], group_norm(left, 2, np.ones(2), np.zeros(2)))


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("op_type", masking.REDUCTIONS)
def test_reductions_run_over_what_is_left(op_type, keepdims):
    weights = {"w": normal(4, 6), "last": np.array([-1])}
    operators = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Abs" if "Log" in op_type else "Identity", ["a"], ["p"]),
        helper.make_node(op_type, ["p", "last"], ["y"], keepdims=keepdims),
    ]
    removed = dict.fromkeys([("w", 1), ("a", 2), ("p", 2)], LOST)
    x = normal(2, 3, 4)
    smaller = model(operators, ["n", 3, 4], without(weights, removed))
    assert_same(run(masking.masked(model(operators, ["n", 3, 4], weights), removed), x), run(smaller, x))


def test_a_reduction_along_another_axis_keeps_zeros_where_channels_were():
    weights = {"w": normal(4, 6), "axis": np.array([1])}
    operators = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("ReduceMean", ["s", "axis"], ["y"], keepdims=0),
    ]
    removed = dict.fromkeys([("w", 1), ("a", 2), ("s", 2), ("y", 1)], LOST)
    x = normal(2, 3, 4)
    actual = run(masking.masked(model(operators, ["n", 3, 4], weights), removed), x)
    expected = (1 / (1 + np.exp(-x @ weights["w"]))).mean(1)
    expected[:, LOST] = 0
    assert_same(actual, expected)


def test_two_activations_are_multiplied_over_what_is_left():
    """A sigmoid leaves a half where its channel was, on both sides: zeroed weights alone would not do."""
    weights = {"q": normal(4, 6), "k": normal(4, 6)}
    operators = [
        *(helper.make_node("MatMul", ["x", name], [f"{name}0"]) for name in "qk"),
        *(helper.make_node("Sigmoid", [f"{name}0"], [f"{name}1"]) for name in "qk"),
        helper.make_node("Transpose", ["k1"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q1", "kt"], ["y"]),
    ]
    wide = [("q", 1), ("k", 1), *((tensor, 2) for tensor in ("q0", "q1", "k0", "k1")), ("kt", 1)]
    removed = dict.fromkeys(wide, LOST)
    x = normal(2, 3, 4)
    smaller = model(operators, ["n", 3, 4], without(weights, removed))
    assert_same(run(masking.masked(model(operators, ["n", 3, 4], weights), removed), x), run(smaller, x))


def test_a_norm_of_a_weight_that_has_nothing_left_is_not_divided_by():
    weights = {"v": normal(6, 4), "w": normal(6, 3), "axis": np.array([1])}
    operators = [
        helper.make_node("ReduceL2", ["v", "axis"], ["size"]),
        helper.make_node("Div", ["v", "size"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["turned"]),
        helper.make_node("MatMul", ["x", "turned"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    removed = dict.fromkeys([("v", 0), ("size", 0), ("unit", 0), ("turned", 1), ("a", 1), ("w", 0)], LOST)
    x = normal(5, 4)
    smaller = model(operators, ["n", 4], without(weights, removed))
    assert_same(run(masking.masked(model(operators, ["n", 4], weights), removed), x), run(smaller, x))


def test_levels_rest_at_their_zero_points():
    rng = np.random.default_rng(3)
    weights = {
        "w": rng.integers(0, 256, (6, 4), np.uint8),
        "scale": np.abs(normal(6)) / 100,
        "point": rng.integers(100, 150, 6, np.uint8),
        "v": normal(6, 3),
    }
    operators = [
        helper.make_node("DequantizeLinear", ["w", "scale", "point"], ["d"], axis=0),
        helper.make_node("Gemm", ["x", "d"], ["a"], transB=1),
        helper.make_node("MatMul", ["a", "v"], ["y"]),
    ]
    removed = dict.fromkeys([("w", 0), ("scale", 0), ("point", 0), ("d", 0), ("a", 1), ("v", 0)], LOST)
    x = normal(5, 4)
    result = masking.masked(model(operators, ["n", 4], weights), removed)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    assert (stored["w"][LOST] == weights["point"][LOST][:, None]).all()
    assert (stored["scale"] == weights["scale"]).all()
    smaller = model(operators, ["n", 4], without(weights, removed))
    assert_same(run(result, x), run(smaller, x))


def test_weights_that_operators_hold_are_zeroed_too():
    filled, held = np.array([4, 6]), normal(6, 3)
    operators = [
        helper.make_node(
            "ConstantOfShape", ["size"], ["w"], value=numpy_helper.from_array(np.array([0.5], np.float32))
        ),
        helper.make_node("Constant", [], ["v"], value=numpy_helper.from_array(held)),
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Exp", ["a"], ["e"]),
        helper.make_node("MatMul", ["e", "v"], ["y"]),
    ]
    removed = dict.fromkeys([("w", 1), ("v", 0), ("a", 1), ("e", 1)], LOST)
    x = normal(5, 4)
    actual = run(masking.masked(model(operators, ["n", 4], {"size": filled}), removed), x)
    assert_same(actual, np.exp(x @ np.full((4, 4), 0.5, np.float32)) @ np.delete(held, LOST, 0))
