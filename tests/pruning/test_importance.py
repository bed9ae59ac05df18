"""Importances of weights against sums written out by hand, and what may be given in place of an importance."""

from __future__ import annotations

import numpy as np
import pytest
import random_networks
import zoo
from handmade import model
from onnx import TensorProto, helper
from onnx.helper import make_node
from planted import net

import graphmod as gm
from graphmod.data.noise import noise
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.pruning import groups
from graphmod.pruning.importance import IMPORTANCE, Evidence, importance
from graphmod.pruning.importance.scores import normalised, scores

RNG = np.random.default_rng(0)
WEIGHTS = {
    "stem": RNG.normal(size=(6, 3, 3, 3)).astype(np.float32),
    "inner": RNG.normal(size=(4, 6, 3, 3)).astype(np.float32),
    "bias": RNG.normal(size=4).astype(np.float32),
    "outer": RNG.normal(size=(6, 4, 3, 3)).astype(np.float32),
    "gamma": RNG.normal(size=4).astype(np.float32),
    "beta": RNG.normal(size=4).astype(np.float32),
    "mean": RNG.normal(size=4).astype(np.float32),
    "var": RNG.uniform(1, 2, 4).astype(np.float32),
    "head": RNG.normal(size=(6, 5)).astype(np.float32),
}


def residual(opset=17, weights=WEIGHTS, extra=()):
    """Return a stem, one residual block with a normalised inside, and a head: groups 'stem' and 'inner'."""
    operators = [
        *extra,
        make_node("Conv", ["x", "stem"], ["a"], "stem", pads=[1] * 4),
        make_node("Conv", ["a", "inner", "bias"], ["b"], "inner", pads=[1] * 4),
        make_node("BatchNormalization", ["b", "gamma", "beta", "mean", "var"], ["c"], "norm"),
        make_node("Relu", ["c"], ["d"], "relu"),
        make_node("Conv", ["d", "outer"], ["e"], "outer", pads=[1] * 4),
        make_node("Add", ["a", "e"], ["f"], "add"),
        make_node("ReduceMean", ["f"], ["g"], "pool", axes=[2, 3], keepdims=0),
        make_node("MatMul", ["g", "head"], ["y"], "head"),
    ]
    return model(operators, {"x": ["n", 3, 8, 8]}, {"y": ["n", 5]}, weights, opset)


FOUND = groups(residual())
W = {name: value.astype(np.float64) for name, value in WEIGHTS.items()}


def by_hand(power, making, reading):
    """Return sums of powers over the weights that make and read the two groups, in the order stem, inner."""
    of = {name: np.abs(value) ** power for name, value in W.items()}
    made = of["stem"].sum((1, 2, 3)) + of["outer"].sum((1, 2, 3)), of["inner"].sum((1, 2, 3))
    read = of["inner"].sum((0, 2, 3)) + of["head"].sum(1), of["outer"].sum((0, 2, 3))
    return np.concatenate([making * made[i] + reading * read[i] for i in (0, 1)])


def test_groups_are_the_stage_and_the_inside_of_the_block():
    assert [(group.name, group.n_units) for group in FOUND] == [("stem", 6), ("inner", 4)]


def test_magnitudes_are_sums_over_weights_by_hand():
    np.testing.assert_allclose(scores(FOUND, "l1"), by_hand(1, 0, 1), rtol=1e-6)
    np.testing.assert_allclose(scores(FOUND, "l2") ** 2, by_hand(2, 0, 1), rtol=1e-6)
    np.testing.assert_allclose(scores(FOUND, "l2_making") ** 2, by_hand(2, 1, 0), rtol=1e-6)
    np.testing.assert_allclose(scores(FOUND, "l2_all") ** 2, by_hand(2, 1, 1), rtol=1e-6)


def test_sums_in_single_precision_are_precise_enough():
    big = {"w": RNG.normal(size=(64, 4096)).astype(np.float32), "v": RNG.normal(size=(4096, 2048)).astype(np.float32)}
    operators = [make_node("MatMul", ["x", "w"], ["h"], "first"), make_node("MatMul", ["h", "v"], ["y"], "second")]
    found = groups(model(operators, {"x": ["n", 64]}, {"y": ["n", 2048]}, big))
    by_square = np.square(big["v"].astype(np.float64)).sum(1)
    np.testing.assert_allclose(scores(found, "l2") ** 2, by_square, rtol=1e-5)
    np.testing.assert_allclose(
        scores(found, "l2_making") ** 2, np.square(big["w"].astype(np.float64)).sum(0), rtol=1e-5
    )


def test_where_no_weight_reads_a_unit_those_that_make_it_count():
    weights = {"w": WEIGHTS["head"], "v": RNG.normal(size=(6, 5)).astype(np.float32)}
    operators = [
        make_node("MatMul", ["x", "w"], ["q"], "queries"),
        make_node("MatMul", ["x", "v"], ["k"], "keys"),
        make_node("Transpose", ["k"], ["t"], "turn", perm=[0, 2, 1]),
        make_node("MatMul", ["q", "t"], ["y"], "compare"),
    ]
    found = groups(model(operators, {"x": ["n", 7, 6]}, {"y": ["n", 7, 7]}, weights))
    squares = sum(np.square(value.astype(np.float64)).sum(0) for value in weights.values())
    np.testing.assert_allclose(scores(found, "l2") ** 2, squares, rtol=1e-6)


def test_quantised_weights_count_by_what_they_stand_for():
    scale = RNG.uniform(0.01, 1, 6).astype(np.float32)
    levels = RNG.integers(-128, 128, (6, 3, 3, 3)).astype(np.int8)
    zero = RNG.integers(-3, 3, 6).astype(np.int8)
    weights = {**WEIGHTS, "levels": levels, "scale": scale, "zero": zero}
    del weights["stem"]
    extra = [make_node("DequantizeLinear", ["levels", "scale", "zero"], ["stem"], "dequantize", axis=0)]
    found = groups(residual(weights=weights, extra=extra))
    stored = (levels.astype(float) - zero.reshape(6, 1, 1, 1)) * scale.reshape(6, 1, 1, 1)
    expected = np.sqrt((stored**2).sum((1, 2, 3)) + np.square(W["outer"]).sum((1, 2, 3)))
    np.testing.assert_allclose(scores(found, "l2_making")[:6], expected, rtol=1e-6)


@pytest.mark.parametrize(("attributes", "axis"), [("<transB=1>", 0), ("", 1)])
def test_levels_of_a_qgemm_have_a_scale_for_every_output(attributes, axis):
    scale = np.array([0.01, 0.1, 1, 10], np.float32)
    levels = RNG.integers(-128, 128, (4, 4)).astype(np.int8)
    made = net(
        "(float[n,4] x) => (float[n,2] y) { q = QuantizeLinear(x, s, z)"
        f"  a = com.microsoft.QGemm {attributes} (q, s, z, w, ws, wz) y = MatMul(a, v) }}",
        {"s": np.float32(0.1), "z": np.uint8(128), "w": levels, "ws": scale, "wz": np.zeros(4, np.int8), "v": (4, 2)},
    )
    found = groups(made)
    stored = levels * np.expand_dims(scale, 1 - axis)
    np.testing.assert_allclose(scores(found, "l2_making"), np.sqrt(np.square(stored).sum(1 - axis)), rtol=1e-6)


def test_quantising_a_network_hardly_changes_its_magnitudes():
    network = zoo.network("vgg", "torchscript").model
    small = gm.quantize(network, noise(network, 8))
    for how in ("l1", "l2", "l2_making", "l2_all"):
        before, after = scores(groups(network), how), scores(groups(small), how)
        np.testing.assert_allclose(after, before, rtol=0.05)


def test_batch_norm_scale_is_the_absolute_scale_and_names_a_group_without():
    inner = FOUND["inner"]
    np.testing.assert_allclose(IMPORTANCE["bn_scale"](inner, Evidence(FOUND)), np.abs(W["gamma"]))
    with pytest.raises(RefusedError, match="no BatchNormalization normalises the 6 units of group 'stem'"):
        scores(FOUND, "bn_scale")


def test_random_is_of_the_seed_and_the_group():
    first, again, other = (scores(FOUND, "random", Evidence(FOUND, seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(np.concatenate([first, other]))) == 20


def test_what_is_given_is_taken_in_the_order_of_the_groups():
    values = np.arange(10.0)
    np.testing.assert_array_equal(scores(FOUND, values), values)
    np.testing.assert_array_equal(scores(FOUND, list(values)), values)
    np.testing.assert_array_equal(scores(FOUND, {"inner": values[6:], "stem": values[:6]}), values)
    np.testing.assert_array_equal(scores(FOUND, lambda group, _: group.first + np.arange(group.n_units)), values)
    np.testing.assert_array_equal(scores(FOUND, IMPORTANCE["l2"]), scores(FOUND, "l2"))


@pytest.mark.parametrize(
    ("how", "error", "told"),
    [
        ("l_2", RefusedError, "no importance 'l_2'; did you mean 'l2'"),
        ("nonsense", RefusedError, "no importance 'nonsense'.* there are activation_norm, .*taylor"),
        ("taylor", InvalidDataError, "needs samples: pass data="),
        ("similarity", InvalidDataError, "needs samples: pass data="),
        (np.zeros(9), InvalidDataError, r"has shape \[9\]; it needs one number for each of 10 units"),
        (np.zeros((10, 1)), InvalidDataError, r"has shape \[10, 1\]"),
        (3.0, InvalidDataError, r"has shape \[\]"),
        ([1.0] * 9 + [np.nan], InvalidDataError, "is nan for unit 9, and not finite for 1 of 10"),
        ({"stem": np.zeros(6)}, InvalidDataError, "for 1 of 2 groups, the first one is 'inner' with 4 units"),
        ({"stem": np.zeros(6), "iner": np.zeros(4)}, InvalidDataError, "no group 'iner'.*did you mean 'inner'"),
        ({"stem": np.zeros(6), "inner": np.zeros(5)}, InvalidDataError, r"of group 'inner' has shape \[5\].* 4 units"),
        (lambda group, _: np.full(group.n_units, np.inf), InvalidDataError, "group 'stem' is inf for unit 0"),
        (lambda *_: "much", InvalidDataError, "group 'stem' is no array of 6 numbers"),
        (lambda *_: None, InvalidDataError, "group 'stem'"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_importance_is_refused(how, error, told):
    with pytest.raises(error, match=told):
        scores(FOUND, how)


def test_a_network_without_groups_has_no_scores():
    single = model([make_node("MatMul", ["x", "head"], ["y"], "head")], {"x": ["n", 6]}, {"y": ["n", 5]}, WEIGHTS)
    found = groups(single)
    for how in ("l2", {}, np.zeros(0), "random"):
        assert normalised(found, scores(found, how)).shape == (0,)


def test_normalised_scores_have_a_mean_of_one_in_every_group():
    values = normalised(FOUND, np.arange(10.0))
    np.testing.assert_allclose(values, [*(np.arange(6) / 2.5), *(np.arange(6, 10) / 7.5)])
    np.testing.assert_array_equal(normalised(FOUND, np.zeros(10)), np.zeros(10))
    np.testing.assert_allclose(normalised(FOUND, np.array([-2.0, 2.0] * 5)), [-1, 1] * 5)


NEEDS_NO_BATCH_NORM = sorted(IMPORTANCE.keys() - {"bn_scale"})


def check_every_importance(network):
    found = groups(network.model)
    data = noise(network.model, 6)
    if "input_ids" in data.inputs:
        ones = {name: np.ones_like(value) for name, value in data.inputs.items()}
        ids = np.random.default_rng(0).integers(1, 50, ones["input_ids"].shape)
        data = gm.Data({**ones, "input_ids": ids})
    for how in NEEDS_NO_BATCH_NORM:
        values = scores(found, how, Evidence(found, data, seed=3))
        assert (values.shape, values.dtype) == ((found.n_units,), np.float64), how
        assert np.isfinite(values).all(), how
        assert (values >= 0).all(), how
        for group in found:
            assert values[group.first : group.first + group.n_units].any(), (how, group)
        np.testing.assert_array_equal(values, scores(found, how, Evidence(found, data, seed=3)), how)
        across = normalised(found, values)
        assert across.shape == values.shape, how
        assert np.isfinite(across).all(), how


@pytest.mark.parametrize("name", ["resnet18", "vgg", "branching", "two_inputs", "two_outputs"])
def test_every_importance_of_a_network(name):
    check_every_importance(zoo.network(name, "torchscript"))


@pytest.mark.slow
@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", sorted(zoo.NETWORKS))
def test_every_importance_of_every_export(name, exporter):
    check_every_importance(zoo.network(name, exporter))


GRADIENT = {"taylor", "fisher"}


def check_a_random_network(seed):
    drawn = random_networks.seeded(seed)
    found = groups(gm.load(drawn.proto))
    evidence = Evidence(found, gm.Data(drawn.feeds(batch=6)))
    for how in NEEDS_NO_BATCH_NORM:
        if how not in GRADIENT:  # rounding has none, and the importer has tests of its own
            values = scores(found, how, evidence)
            assert np.isfinite(values).all(), how
            assert (values >= 0).all(), how


def test_importances_of_random_networks():
    for seed in range(12):
        check_a_random_network(seed)


@pytest.mark.slow
def test_importances_of_many_random_networks():
    for seed in range(12, 200):
        check_a_random_network(seed)


def test_initializers_of_other_types_are_no_weights():
    weights = {**WEIGHTS, "table": np.arange(6, dtype=np.int64)}
    extra = [helper.make_node("Cast", ["table"], ["unused"], "cast", to=TensorProto.FLOAT)]
    np.testing.assert_array_equal(scores(groups(residual(weights=weights, extra=extra)), "l2"), scores(FOUND, "l2"))


def test_a_name_that_another_module_has_taken_is_refused():
    def l2(group, _):
        return np.ones(group.n_units)

    with pytest.raises(RefusedError, match=r"there is an importance 'l2' in graphmod\.pruning"):
        importance("l2")(l2)
