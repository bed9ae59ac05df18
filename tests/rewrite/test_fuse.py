"""Fusing networks built by hand, the zoo with its BatchNormalizations, and models that others exported."""

import io
import logging
import time
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import zoo
from handmade import model
from onnx import TensorProto, helper

import graphmod as gm
from graphmod.rewrite import candidates, why_not

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
RNG = np.random.default_rng(4)
SHAPE = ["n", 4, 7, 7]


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32) / np.float32(max(1, np.prod(shape[1:])) ** 0.5)


def norm(prefix, n):
    """Return the constants of a BatchNormalization."""
    variance = RNG.uniform(0.5, 2, n).astype(np.float32)
    return {f"{prefix}{i}": v for i, v in enumerate((normal(n), normal(n), normal(n), variance))}


def node(op_type, reads, made, **attributes):
    return helper.make_node(op_type, reads.split(), made.split(), name=f"{op_type}_{made}", **attributes)


def types(network):
    return Counter(op.op_type for op in network.operators)


def fused(network, expected, **kwargs):
    """Check that fusing gives operators of these types and the same outputs, and return the result."""
    found = gm.fuse(network, **kwargs)
    assert types(found) == Counter(expected.split())
    feeds = {
        name: RNG.normal(size=[3 if isinstance(d, str) else d for d in kind.shape]).astype(kind.dtype)
        for name, kind in network.inputs.items()
    }
    before, after = network.run(feeds), found.run(feeds)
    for name in before:
        scale = np.abs(before[name]).max()
        assert np.abs(before[name] - after[name]).max() <= (1e-5 if before[name].dtype != np.float16 else 1e-2) * scale
        assert after[name].dtype == before[name].dtype
    return found


# -- BatchNormalization and arithmetic


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15, 17])
def test_a_norm_goes_into_what_is_before_it(opset):
    weights = {"w": normal(6, 4, 3, 3), **norm("b", 6)}
    operators = [node("Conv", "x w", "c"), node("BatchNormalization", "c b0 b1 b2 b3", "y", epsilon=0.1)]
    found = fused(model(operators, {"x": SHAPE}, {"y": ["n", 6, 5, 5]}, weights, opset), "Conv")
    assert found.operators[0].name == "Conv_c"
    assert list(found.initializers) == ["w", "w_bias"]


@pytest.mark.parametrize(("pads", "left"), [([0] * 4, "Relu Conv"), ([1] * 4, "Relu BatchNormalization Conv")])
def test_a_norm_goes_into_what_is_after_it_unless_that_pads(pads, left):
    weights = {"w": normal(6, 4, 3, 3), "b": normal(6), **norm("b", 4)}
    operators = [
        node("Relu", "x", "r"),
        node("BatchNormalization", "r b0 b1 b2 b3", "n"),
        node("Conv", "n w b", "y", pads=pads),
    ]
    size = 5 + pads[0] * 2
    network = model(operators, {"x": SHAPE}, {"y": ["n", 6, size, size]}, weights)
    fused(network, left)
    if any(pads):
        (one,) = why_not(network)
        assert one.operator == "BatchNormalization_n"
        assert "Relu 'Relu_r' is no linear map" in one.reason
        assert "Conv 'Conv_y' pads with zeros where the shift would be" in one.reason


def test_a_scale_alone_goes_into_a_conv_that_pads_and_a_difference_stays():
    weights = {"w": normal(6, 4, 3, 3), "mean": normal(4, 1, 1), "std": normal(4, 1, 1) ** 2 + np.float32(0.5)}
    operators = [node("Sub", "x mean", "a"), node("Div", "a std", "b"), node("Conv", "b w", "y", auto_pad="SAME_UPPER")]
    fused(model(operators, {"x": SHAPE}, {"y": ["n", 6, 7, 7]}, weights), "Sub Conv")


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_groups(kind, group):
    weights = {"w": normal(8 if kind == "Conv" else 4, (4 if kind == "Conv" else 8) // group, 3, 3), **norm("b", 8)}
    weights |= {"s": normal(4, 1, 1), "t": normal(1, 8, 1, 1), "u": normal(8, 1, 1)}
    operators = [
        node("Mul", "x s", "m"),
        node(kind, "m w", "c", group=group),
        node("Add", "c t", "d"),
        node("BatchNormalization", "d b0 b1 b2 b3", "e"),
        node("Sub", "u e", "y"),
    ]
    size = 5 if kind == "Conv" else 9
    fused(model(operators, {"x": SHAPE}, {"y": ["n", 8, size, size]}, weights), kind)


def test_what_is_read_elsewhere_stays_and_the_reason_says_where():
    weights = {"w": normal(4, 4, 1, 1), **norm("b", 4)}
    operators = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c b0 b1 b2 b3", "bn3"),
        node("Add", "bn3 c", "add_2"),
        node("Relu", "add_2", "y"),
    ]
    network = model(operators, {"x": SHAPE}, {"y": SHAPE}, weights)
    reasons = {one.operator: one.reason for one in why_not(network)}
    wanted = "'c' is read by BatchNormalization 'BatchNormalization_bn3' and Add 'Add_add_2'"
    assert wanted in reasons["BatchNormalization_bn3"]
    fused(network, "Conv Relu", kinds=["sum", "batchnorm"])  # the norm and the identity are one, then it goes
    assert gm.fuse(network, kinds=["batchnorm"]) is network
    outer = model(operators, {"x": SHAPE}, {"y": SHAPE, "c": SHAPE}, weights)
    assert any("'c' is an output of the model" in one.reason for one in why_not(outer))
    fused(outer, "Conv BatchNormalization Relu")


def test_norms_in_training_mode_and_of_computed_values_stay():
    weights = {"w": normal(4, 4, 1, 1), **norm("b", 4)}
    trained = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c b0 b1 b2 b3", "y mean var", training_mode=1),
    ]
    network = model(trained, {"x": SHAPE}, {"y": SHAPE}, weights)
    assert gm.fuse(network) is network
    assert "training mode" in why_not(network)[0].reason
    computed = [
        node("Conv", "x w", "c"),
        node("ReduceMean", "x", "m", axes=[0, 2, 3], keepdims=0),
        node("BatchNormalization", "c b0 b1 m b3", "y"),
    ]
    network = model(computed, {"x": SHAPE}, {"y": SHAPE}, weights)
    assert gm.fuse(network) is network
    assert "'m', which BatchNormalization 'BatchNormalization_y' reads, is no constant" in why_not(network)[0].reason


def test_tensors_of_unknown_rank():
    weights = {"w": normal(4, 4), "t": np.float32(3), "u": normal(4), **norm("b", 4)}
    for kind, left in (("BatchNormalization", "BatchNormalization Mul"), ("MatMul", "MatMul")):
        reads = "r b0 b1 b2 b3" if kind == "BatchNormalization" else "r w"
        operators = [
            node("Reshape", "x shape", "r"),
            node(kind, reads, "c"),
            node("Mul", "c t", "d"),
            node("Mul", "d u", "y"),
        ]
        network = model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, weights)
        proto = network.proto()
        proto.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [None]))
        found = gm.fuse(gm.load(proto))
        assert types(found) == Counter(f"Reshape {left}".split())
        feeds = {"x": normal(3, 4), "shape": np.array([3, 4])}
        np.testing.assert_allclose(found.run(feeds)["y"], gm.load(proto).run(feeds)["y"], atol=1e-5)


def test_constants_that_broadcast_beyond_channels_stay():
    weights = {"w": normal(1, 4, 1, 1), "wide": normal(3, 1, 1), "tall": normal(7, 1), "v": normal(2, 3, 1, 1)}
    for constant, shape, after in (("wide", ["n", 3, 7, 7], "v"), ("tall", ["n", 1, 7, 7], "")):
        operators = [node("Conv", "x w", "c"), node("Mul", f"c {constant}", "y")]
        if after:
            operators += [node("Conv", "y v", "z")]
        made = {"z": ["n", 2, 7, 7]} if after else {"y": shape}
        used = {name: weights[name] for name in ("w", constant, *([after] if after else []))}
        network = model(operators, {"x": SHAPE}, made, used)
        fused(network, "Conv Mul Conv" if after else "Conv Mul")


def test_shared_weights_are_copied_and_large_ones_are_not():
    for width, left in ((4, "Conv Conv"), (520, "Conv BatchNormalization Conv")):
        weights = {"w": normal(width, width, 1, 1), **norm("b", width)}
        operators = [
            node("Conv", "x w", "c"),
            node("BatchNormalization", "c b0 b1 b2 b3", "d"),
            node("Conv", "z w", "e"),
        ]
        shape = ["n", width, 2, 2]
        network = model(operators, {"x": shape, "z": shape}, {"d": shape, "e": shape}, weights)
        found = fused(network, left)
        np.testing.assert_array_equal(found.initializer("w"), weights["w"])
        if width > 4:
            assert "its weight 'w' of 1.1 MB is shared with Conv 'Conv_e'" in why_not(network)[0].reason


def test_a_tensor_that_a_subgraph_captures_stays():
    weights = {"w": normal(4, 4, 1, 1), "flag": np.array(True), **norm("b", 4)}
    bodies = {
        branch: helper.make_graph(
            [helper.make_node(kind, ["c"], [f"{kind}_c"])], branch, [],
            [helper.make_tensor_value_info(f"{kind}_c", TensorProto.FLOAT, None)],
        )
        for branch, kind in (("then_branch", "Tanh"), ("else_branch", "Relu"))
    }  # fmt: skip
    operators = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c b0 b1 b2 b3", "d"),
        node("If", "flag", "e", **bodies),
    ]
    network = model(operators, {"x": SHAPE}, {"d": SHAPE, "e": SHAPE}, weights)
    assert gm.fuse(network) is network
    assert "'c' is read by BatchNormalization 'BatchNormalization_d' and If 'If_e'" in why_not(network)[0].reason


def test_half_precision_and_overflow():
    weights = {"w": normal(4, 4, 1, 1), "s": np.full((4, 1, 1), 3e4, np.float32)}
    weights = {name: value.astype(np.float16) for name, value in weights.items()}
    weights["w"][0] = 10

    def network(scale):
        operators = [node("Conv", "x w", "c"), node("Mul", "c s", "y")]
        half = model(operators, {"x": SHAPE}, {"y": SHAPE}, weights | {"s": weights["s"] * np.float16(scale)}).proto()
        for value in (*half.graph.input, *half.graph.output):
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
        return gm.load(half)

    found = fused(network(1e-4), "Conv")
    assert found.initializer("w").dtype == np.float16
    large = network(1)
    assert gm.fuse(large) is large


# -- chains


def test_a_norm_whose_scale_would_overflow_stays_as_it_is():
    n, half = 3, np.float16
    weights = {"s": np.full((n, 1), 100, half), "b0": np.full(n, 1000, half), "b3": np.full(n, 10000, half)}
    weights |= {"b1": np.zeros(n, half), "b2": np.zeros(n, half)}
    proto = model(
        [node("Mul", "x s", "m"), node("BatchNormalization", "m b0 b1 b2 b3", "y")],
        *({name: [2, n, 4]} for name in "xy"),
        weights,
    ).proto()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    network = gm.load(proto)
    assert gm.fuse(network) is network


def test_conv_norm_conv_is_one():
    weights = {"w": normal(8, 4, 1, 1), "v": normal(5, 8, 3, 3), "b": normal(5), **norm("b", 8)}
    operators = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c b0 b1 b2 b3", "d"),
        node("Conv", "d v b", "y", strides=[2, 2]),
    ]
    fused(model(operators, {"x": SHAPE}, {"y": ["n", 5, 3, 3]}, weights), "Conv")
    padded = [*operators[:2], node("Conv", "d v b", "y", pads=[1] * 4)]
    network = model(padded, {"x": SHAPE}, {"y": ["n", 5, 7, 7]}, weights)
    fused(network, "Conv Conv")
    assert any("pads with zeros where the bias of Conv" in one.reason for one in why_not(gm.fuse(network)))


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("strides", [[1, 1], [2, 1]])
def test_a_pointwise_conv_behind_a_large_one(group, strides):
    weights = {"w": normal(8, 4 // group, 3, 3), "a": normal(8), "v": normal(4, 8 // group, 1, 1)}
    attributes = {"group": group, "pads": [1, 0, 1, 0], "dilations": [1, 2], "strides": strides}
    operators = [
        node("Conv", "x w a", "c", **attributes),
        node("Conv", "c v", "y", group=group, strides=[2, 2]),
    ]
    shape = ["n", 4, {1: 4, 2: 2}[strides[0]], 2]
    found = fused(model(operators, {"x": SHAPE}, {"y": shape}, weights), "Conv")
    assert found.initializer("w" if "w" in found.initializers else next(iter(found.initializers))).ndim == 4


def test_matrices_in_a_row_unless_that_is_more_work():
    weights = {"a": normal(6, 9), "b": normal(9), "c": normal(9, 4), "d": normal(4), "e": normal(5, 4)}
    operators = [
        node("MatMul", "x a", "p"),
        node("Add", "b p", "q"),
        node("MatMul", "q c", "r"),
        node("Add", "r d", "y"),
    ]
    fused(model(operators, {"x": ["n", 3, 6]}, {"y": ["n", 3, 4]}, weights), "MatMul Add")
    fused(model(operators[:3], {"x": ["n", 3, 6]}, {"r": ["n", 3, 4]}, weights), "MatMul Add")
    fused(model(operators, {"x": ["n", 6]}, {"y": ["n", 4]}, weights), "Gemm")
    gemm = node("Gemm", "r e d2", "y", transB=1, alpha=0.5, beta=2.0)
    weights["d2"] = normal(1, 5)
    fused(model([*operators[:3], gemm], {"x": ["n", 6]}, {"y": ["n", 5]}, weights), "Gemm")
    thin = {"a": normal(16, 2), "c": normal(2, 16)}
    network = model([node("MatMul", "x a", "p"), node("MatMul", "p c", "y")], {"x": ["n", 16]}, {"y": ["n", 16]}, thin)
    assert gm.fuse(network) is network
    reason = why_not(network)[0].reason
    assert reason == "one map would take 256 multiply-accumulates a position, and the two take 64"


def test_a_norm_behind_a_linear_layer():
    weights = {"w": normal(6, 4), **norm("b", 6)}
    operators = [
        node("Gemm", "x w", "g", transB=1),
        node("BatchNormalization", "g b0 b1 b2 b3", "h"),
        node("Relu", "h", "y"),
    ]
    fused(model(operators, {"x": ["n", 4]}, {"y": ["n", 6]}, weights), "Gemm Relu")
    weights["w"] = normal(4, 6)
    operators[0] = node("MatMul", "x w", "g")
    fused(model(operators, {"x": ["n", 4]}, {"y": ["n", 6]}, weights), "Gemm Relu")


def test_products_of_computed_matrices_take_a_bias():
    operators = [node("MatMul", "x z", "p"), node("Add", "p b", "y")]
    fused(model(operators, {"x": ["n", 4], "z": [4, 5]}, {"y": ["n", 5]}, {"b": normal(5)}), "Gemm")
    rows = model(operators, {"x": [3, 4], "z": [4, 5]}, {"y": [3, 5]}, {"b": normal(3, 1)})
    assert gm.fuse(rows) is rows


# -- side by side


def test_a_product_that_scales_no_bias_does_not_scale_the_one_that_it_gets():
    operators = [node("Gemm", "x w", "p", alpha=2.0, beta=0.5), node("Add", "p b", "y")]
    network = model(operators, {"x": ["n", 4]}, {"y": ["n", 3]}, {"w": normal(4, 3), "b": normal(3)})
    fused(network, "Gemm", kinds=["gemm"])


def repvgg(deep=True):
    """Return a block of RepVGG: a 3x3 branch, a 1x1 branch and the identity, each with its norm."""
    weights = {"w3": normal(4, 4, 3, 3), "w1": normal(4, 4, 1, 1)}
    for branch in "abc":
        weights |= norm(f"n{branch}", 4)
    norms = [" ".join(f"n{branch}{i}" for i in range(4)) for branch in "abc"]
    operators = [
        node("Conv", "x w3", "c3", pads=[1, 1, 1, 1]),
        node("BatchNormalization", f"c3 {norms[0]}", "n3"),
        node("Conv", "x w1", "c1"),
        node("BatchNormalization", f"c1 {norms[1]}", "n1"),
        node("BatchNormalization", f"x {norms[2]}", "n0"),
    ]
    if deep:
        operators += [node("Add", "n1 n0", "s"), node("Add", "s n3", "t")]
    else:
        operators += [node("Sum", "n0 n1 n3", "t")]
    return model([*operators, node("Relu", "t", "y")], {"x": SHAPE}, {"y": SHAPE}, weights)


@pytest.mark.parametrize("deep", [True, False])
def test_a_block_of_repvgg_is_one_conv(deep):
    network = repvgg(deep)
    found = fused(network, "Conv Relu")
    w, b = found.initializer("w3"), found.initializer("w3_bias")
    held = {name: network.initializer(name).astype(np.float64) for name in network.initializers}
    scales = {k: held[f"n{k}0"] / np.sqrt(held[f"n{k}3"] + 1e-5) for k in "abc"}
    kernel = held["w3"] * scales["a"].reshape(-1, 1, 1, 1)
    kernel[:, :, 1, 1] += held["w1"][:, :, 0, 0] * scales["b"][:, None] + np.diag(scales["c"])
    np.testing.assert_allclose(w, kernel, atol=1e-6)
    np.testing.assert_allclose(b, sum(held[f"n{k}1"] - held[f"n{k}2"] * scales[k] for k in "abc"), atol=1e-6)


def test_kernels_are_laid_over_each_other_where_they_look_at_the_same_positions():
    weights = {"w": normal(4, 2, 3, 3), "v": normal(4, 2, 1, 3), "u": normal(4, 2, 1, 1), "b": normal(4)}
    operators = [
        node("Conv", "x w", "a", group=2, pads=[2, 2, 2, 2], dilations=[2, 2]),
        node("Conv", "x v b", "c", group=2, pads=[0, 2, 0, 2], dilations=[1, 2]),
        node("Conv", "x u", "d", group=2),
        node("Sum", "a c d x z", "y"),
    ]
    network = model(operators, {"x": SHAPE, "z": SHAPE}, {"y": SHAPE}, weights)
    found = fused(network, "Conv Sum")
    assert sorted(found.operators[-1].input)[1] == "z" or "z" in found.operators[-1].input
    dilated = [
        node("Conv", "x w", "a", group=2, pads=[2, 2, 2, 2], dilations=[2, 2]),
        node("Conv", "x w", "b2", group=2, pads=[1, 1, 1, 1]),
        node("Add", "a b2", "y"),
    ]
    apart = model(dilated, {"x": SHAPE}, {"y": SHAPE}, weights)
    assert gm.fuse(apart) is apart
    assert "differ in dilation" in why_not(apart)[0].reason


def test_a_cross_of_kernels_is_no_square():
    weights = {"w": normal(4, 4, 1, 5), "v": normal(4, 4, 5, 1)}
    operators = [
        node("Conv", "x w", "a", pads=[0, 2, 0, 2]),
        node("Conv", "x v", "b", pads=[2, 0, 2, 0]),
        node("Add", "a b", "y"),
    ]
    network = model(operators, {"x": SHAPE}, {"y": SHAPE}, weights)
    assert gm.fuse(network) is network
    assert "would take more multiply-accumulates" in why_not(network)[0].reason


def test_matrices_that_are_added_or_concatenated():
    weights = {"a": normal(6, 6), "b": normal(6), "c": normal(6, 6), "d": normal(6, 2)}
    branches = [node("MatMul", "x a", "p"), node("Add", "p b", "q"), node("MatMul", "x c", "r")]
    added = [*branches, node("Add", "q r", "s"), node("Add", "x s", "y")]
    found = fused(model(added, {"x": ["n", 3, 6]}, {"y": ["n", 3, 6]}, weights), "MatMul Add")
    np.testing.assert_allclose(
        next(v for n in found.initializers if (v := found.initializer(n)).ndim == 2),
        weights["a"] + weights["c"] + np.eye(6, dtype=np.float32), atol=1e-6,
    )  # fmt: skip
    joined = [*branches, node("MatMul", "x d", "t"), node("Concat", "q z r t", "y", axis=-1)]
    network = model(joined, {"x": ["n", 3, 6], "z": ["n", 3, 6]}, {"y": ["n", 3, 20]}, weights)
    found = fused(network, "MatMul Add MatMul Concat")
    assert found.operators[-1].input[1] == "z"
    whole = model([*branches, node("Concat", "q r", "y", axis=2)], {"x": ["n", 3, 6]}, {"y": ["n", 3, 12]}, weights)
    fused(whole, "MatMul Add")
    samples = model([*branches, node("Concat", "q r", "y", axis=0)], {"x": [2, 3, 6]}, {"y": [4, 3, 6]}, weights)
    fused(samples, "MatMul Add MatMul Concat")


def test_a_norm_beside_a_matrix_has_other_channels():
    weights = {"w": normal(6, 6), **norm("b", 6)}
    operators = [
        node("MatMul", "x w", "p"),
        node("BatchNormalization", "x b0 b1 b2 b3", "q"),
        node("Add", "p q", "y"),
    ]
    network = model(operators, {"x": ["n", 6, 6]}, {"y": ["n", 6, 6]}, weights)
    assert gm.fuse(network) is network
    assert any("have channels on different axes" in one.reason for one in why_not(network))
    fused(model(operators, {"x": ["n", 6]}, {"y": ["n", 6]}, weights), "Gemm")


def test_convs_that_are_concatenated():
    weights = {"w": normal(2, 4, 3, 3), "v": normal(5, 4, 3, 3), "b": normal(5)}
    operators = [
        node("Conv", "x w", "p", pads=[1] * 4),
        node("Conv", "x v b", "q", auto_pad="SAME_LOWER"),
        node("Concat", "p q", "y", axis=1),
    ]
    fused(model(operators, {"x": SHAPE}, {"y": ["n", 7, 7, 7]}, weights), "Conv")


def test_a_long_chain_of_sums_takes_linear_time():
    n = 3000
    operators = [node("Add", f"t{i} z", f"t{i + 1}") for i in range(n)]
    operators[0] = node("Add", "x z", "t1")
    network = model(operators, {"x": ["n", 2], "z": ["n", 2]}, {f"t{n}": ["n", 2]})
    assert gm.fuse(network) is network


def test_a_linear_map_far_below_the_sum_that_it_is_part_of():
    operators = [node("MatMul", "x w", "t0"), *(node("Add", f"t{i} z", f"t{i + 1}") for i in range(40))]
    network = model(operators, {"x": [4, 4], "z": [4, 4]}, {"t40": [4, 4]}, {"w": normal(4, 4)})
    assert gm.fuse(network) is network


def test_annotations_stay_true():
    weights = {"v": normal(8, 8), "w": normal(8, 8), "a": normal(8), "b": normal(8)}
    small, large = [1, 3, 8], [4, 3, 8]

    def check(operators, shapes, made, expected):
        network = model(operators, {"x": small, "few": small, "many": large}, {"y": made}, weights)
        proto = network.proto()
        tensor = helper.make_tensor_value_info
        proto.graph.value_info.extend(tensor(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
        found = fused(gm.load(proto), expected)
        values = found.run({name: normal(*kind.shape) for name, kind in found.inputs.items()}, list(found.producer))
        assert {name: value.shape for name, value in values.items()} == {
            name: found.tensors[name].shape for name in values
        }

    products = [node("MatMul", "x v", "p"), node("MatMul", "x w", "q")]
    sums = [node("Add", "few many", "r"), node("Add", "r p", "s"), node("Add", "s q", "y")]
    check([*products, *sums], {"p": small, "q": small, "r": large, "s": large}, large, "MatMul Add Add")
    both = [node("Add", "p a", "r"), node("Add", "q b", "s"), node("Concat", "r s", "y", axis=-1)]
    check([*products, *both], {"p": small, "q": small, "r": small, "s": small}, [1, 3, 16], "MatMul Add")


# -- padding and layout


@pytest.mark.parametrize("opset", [9, 11, 17, 18])
def test_pad_into_conv(opset):
    sizes = [0, 0, 1, 0, 0, 0, 2, 1]
    weights = {"w": normal(4, 4, 3, 3)}
    if opset < 11:
        pad = node("Pad", "x", "p", pads=sizes)
    elif opset < 18:
        pad, weights["s"] = node("Pad", "x s", "p"), np.array(sizes)
    else:
        pad = helper.make_node("Pad", ["x", "s", "", "axes"], ["p"], name="Pad_p")
        weights |= {"s": np.array([1, 0, 2, 1]), "axes": np.array([-2, 3])}
    network = model(
        [pad, node("Conv", "p w", "y", pads=[0, 1, 0, 1])], {"x": SHAPE}, {"y": ["n", 4, 8, 8]}, weights, opset
    )
    found = fused(network, "Conv")
    assert helper.get_attribute_value(next(a for a in found.operators[0].attribute if a.name == "pads")) == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [({"mode": "reflect"}, "does not pad with zeros"), ({"value": 1.0}, "does not pad with zeros"),
     ({"pads": [0, 0, -1, 0, 0, 0, 1, 1]}, "crops"), ({"pads": [0, 1, 0, 0, 0, 0, 0, 0]}, "pads samples or channels")],
)  # fmt: skip
def test_other_pads_stay(attributes, reason):
    operators = [node("Pad", "x", "p", **({"pads": [0, 0, 1, 1, 0, 0, 1, 1]} | attributes)), node("Conv", "p w", "y")]
    width = 5 if "channels" in reason else 4
    network = model(operators, {"x": SHAPE}, {"y": ["n", 4, None, None]}, {"w": normal(4, width, 3, 3)}, 10)
    assert gm.fuse(network) is network
    assert reason in why_not(network)[0].reason


@pytest.mark.parametrize(("own", "counts", "left"), [(0, 0, ""), (1, 1, ""), (1, 0, "Pad"), (0, 1, "")])
def test_pad_into_average_pool(own, counts, left):
    operators = [
        node("Pad", "x", "p", pads=[0, 0, 1, 0, 0, 0, 0, 1]),
        node("AveragePool", "p", "y", kernel_shape=[3, 3], pads=[own] * 4, count_include_pad=counts),
    ]
    size = 6 + 2 * own
    fused(model(operators, {"x": SHAPE}, {"y": ["n", 4, size, size]}, opset=10), f"AveragePool {left}")


def test_transposes_and_reshapes():
    operators = [
        node("Transpose", "x", "a", perm=[0, 2, 3, 1]),
        node("Transpose", "a", "b", perm=[0, 3, 1, 2]),
        node("Relu", "b", "c"),
        node("Transpose", "c", "d", perm=[0, 2, 3, 1]),
        node("Identity", "d", "e"),
        node("Transpose", "e", "f"),
        node("Flatten", "f", "g"),
        node("Reshape", "g s", "h"),
        node("Dropout", "h", "y"),
    ]
    network = model(operators, {"x": SHAPE}, {"y": [None, 14]}, {"s": np.array([-1, 14])})
    found = fused(network, "Relu Transpose Reshape")
    assert list(found.outputs) == ["y"]
    kept = model(operators[:2], {"x": SHAPE}, {"b": SHAPE})
    fused(kept, "Transpose")  # of which nothing is left, but the output cannot be the input


def test_many_operators_that_change_nothing_beside_each_other_take_linear_time():
    n = 2000
    operators = [node("Relu", "x", "r")]
    operators += [one for i in range(n) for one in (node("Identity", "r", f"i{i}"), node("Tanh", f"i{i}", f"t{i}"))]
    operators.append(node("Sum", " ".join(f"t{i}" for i in range(n)), "y"))
    network = model(operators, {"x": [2]}, {"y": [2]})
    begun = time.process_time()
    assert types(gm.fuse(network)) == {"Relu": 1, "Tanh": n, "Sum": 1}
    assert time.process_time() - begun < 5


def test_dropout_by_opset():
    for opset in (7, 10, 12, 13):
        operators = [node("Relu", "x", "r"), node("Dropout", "r", "y")]
        found = gm.fuse(model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, opset=opset))
        assert types(found) == {"Relu": 1}
        assert list(found.outputs) == ["y"]
    operators = [node("Relu", "x", "r"), node("Dropout", "r  t", "y")]
    operators[1] = helper.make_node("Dropout", ["r", "", "t"], ["y"])
    network = model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, {"t": np.array(True)})
    assert gm.fuse(network) is network
    assert "training mode" in why_not(network)[0].reason


# -- what is asked of it


def test_where_and_kinds():
    weights = {"w": normal(4, 4, 1, 1), **norm("b", 4)}
    norms = ["b0 b1 b2 b3"] * 2
    operators = [
        node("Conv", "x w", "c"), node("BatchNormalization", f"c {norms[0]}", "d"), node("Relu", "d", "e"),
        node("Conv", "e w", "f"), node("BatchNormalization", f"f {norms[1]}", "y"),
    ]  # fmt: skip
    network = model(operators, {"x": SHAPE}, {"y": SHAPE}, weights)
    fused(network, "Conv Relu Conv BatchNormalization", where="Conv[name=Conv_c]")
    fused(network, "Conv BatchNormalization Relu Conv", where="BatchNormalization[name=BatchNormalization_y]")
    fused(network, "Conv Relu Conv", kinds=["batchnorm"])
    assert gm.fuse(network, kinds=["chain", "pad"]) is network
    assert [one.kind for one in candidates(network)] == ["batchnorm", "batchnorm"]
    with pytest.raises(gm.RefusedError, match="there is no kind of fusion 'nothing'"):
        gm.fuse(network, kinds=["nothing"])
    old = network.proto()
    old.opset_import[0].version = 6
    with pytest.raises(gm.RefusedError, match="opset 6"):
        gm.fuse(gm.load(old))


def test_unknown_operators_and_quantised_weights_stay():
    weights = {"q": RNG.integers(-9, 9, (4, 4, 1, 1)).astype(np.int8), "s": np.float32(0.1), **norm("b", 4)}
    operators = [
        node("DequantizeLinear", "q s", "w"),
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c b0 b1 b2 b3", "y"),
    ]
    network = model(operators, {"x": SHAPE}, {"y": SHAPE}, weights)
    assert gm.fuse(network) is network
    assert "the weight 'w' of Conv 'Conv_c' is no constant" in why_not(network)[0].reason


def function(name, op_type, n_inputs=1):
    """Return a function that has the name of one operator and does what another does."""
    reads = list("ab"[:n_inputs])
    body = [helper.make_node(op_type, reads, ["c"])]
    return helper.make_function("my", name, reads, ["c"], body, [helper.make_opsetid("", 17)], attributes=["perm"])


@pytest.mark.parametrize(
    ("name", "op_type", "operators"),
    [
        ("Transpose", "Neg", [("Transpose", "x", "t"), ("Transpose", "t", "y")]),
        ("Identity", "Neg", [("Identity", "w", "z"), ("MatMul", "x z", "p"), ("MatMul", "p w", "y")]),
        ("Sum", "Mul", [("MatMul", "x w", "p"), ("MatMul", "x u", "q"), ("Add", "p q", "r"), ("MatMul", "x v", "s"),
                        ("Sum", "r s", "y")]),
    ],
)  # fmt: skip
def test_functions_that_are_called_like_operators_of_the_standard(name, op_type, operators):
    nodes = [node(*one) for one in operators]
    foreign = next(one for one in nodes if one.op_type == name)
    foreign.domain = "my"
    tensor = helper.make_tensor_value_info
    weights = [onnx.numpy_helper.from_array(normal(4, 4), letter) for letter in "uvw"]
    outer = [tensor(letter, TensorProto.FLOAT, [4, 4]) for letter in "xyr"]
    graph = helper.make_graph(nodes, "graph", outer[:1], outer[1:2], weights, value_info=outer[2:])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    functions = [function(name, op_type, len(foreign.input))]
    network = gm.load(helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=8))
    found, x = gm.fuse(network), {"x": normal(4, 4)}
    np.testing.assert_allclose(found.run(x)["y"], network.run(x)["y"], atol=1e-5)


# -- networks


@cache
def unfused(name, exporter):
    """Return a network of the zoo whose exporter was told to fuse nothing."""
    module, inputs = zoo.build(name)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "current":
            shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs)
            program = torch.onnx.export(
                module, inputs, dynamo=True, verbose=False, optimize=False, dynamic_shapes=shapes
            )
            return gm.load(program.model_proto)
        file, names = io.BytesIO(), [f"input{i}" for i in range(len(inputs))]
        torch.onnx.export(
            module, inputs, file, dynamo=False, opset_version=17, do_constant_folding=False, input_names=names,
            training=torch.onnx.TrainingMode.PRESERVE, dynamic_axes={name: {0: "batch"} for name in names},
        )  # fmt: skip
        return gm.load(file.getvalue())


def left_by_onnxruntime(network, folder):
    """Return the types of the operators that ONNX Runtime's own fusions leave."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(network.proto().SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(op.op_type for op in onnx.load(options.optimized_model_filepath).graph.node)


def check_network(name, exporter, folder):
    """Fuse a network whose float64 outputs torch tells: a deep one of float32 is itself not exact to 1e-5."""
    network = unfused(name, exporter)
    found = gm.fuse(network)
    module, inputs = zoo.build(name)
    feeds = {key: value.numpy() for key, value in zip(network.inputs, inputs, strict=True)}
    with torch.no_grad():
        truth = module.double()(*(x.double() if x.is_floating_point() else x for x in inputs))
    module.float()
    truths = [value.numpy() for value in (truth if isinstance(truth, tuple) else (truth,))]
    for true, before, after in zip(truths, network.run(feeds).values(), found.run(feeds).values(), strict=True):
        scale = np.abs(true).max()
        assert np.abs(after - true).max() <= 1e-5 * scale + 2 * np.abs(before - true).max()
    counts = types(found)
    assert counts["BatchNormalization"] == 0 <= left_by_onnxruntime(network, folder)["BatchNormalization"]
    assert sum(counts.values()) <= sum(types(network).values())
    assert gm.fuse(found) is found
    assert found.outputs == network.outputs


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", ["vgg", "branching"])
def test_networks(name, exporter, tmp_path):
    check_network(name, exporter, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", sorted({*zoo.NETWORKS} - {"vgg", "branching"}))
def test_more_networks(name, exporter, tmp_path):
    check_network(name, exporter, tmp_path)


@pytest.mark.parametrize(("name", "norms"), [("light_shufflenet", 0), ("light_resnet50", 0)])
def test_models_of_others(name, norms):
    network = gm.load(LIGHT / f"{name}.onnx")
    found = gm.fuse(network)
    assert types(found)["BatchNormalization"] == norms < types(network)["BatchNormalization"]
    ((source, kind),) = network.inputs.items()
    x = RNG.normal(size=kind.shape).astype(np.float32)
    before, after = (next(iter(one.run({source: x}).values())) for one in (network, found))
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


@pytest.mark.slow
@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", list(zoo.NETWORKS))
def test_networks_that_exporters_fused_stay_equal(name, exporter):
    one = zoo.network(name, exporter)
    found = gm.fuse(one.model)
    for before, after in zip(one.model.run(one.feeds).values(), found.run(one.feeds).values(), strict=True):
        assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
