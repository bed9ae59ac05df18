"""Importances of activations against NumPy on what ONNX Runtime computes, and planted redundant channels."""

from __future__ import annotations

import numpy as np
import pytest
from handmade import model
from onnx.helper import make_node

import graphmod as gm
from graphmod.data import Data
from graphmod.errors import RefusedError
from graphmod.pruning import groups
from graphmod.pruning.importance import Evidence, activation, registry
from graphmod.pruning.importance import similarity as similar
from graphmod.pruning.importance.scores import scores

RNG = np.random.default_rng(2)
W = {
    "w": RNG.normal(size=(6, 3, 3, 3)).astype(np.float32),
    "b": RNG.normal(size=6).astype(np.float32),
    "v": RNG.normal(size=(6, 6, 3, 3)).astype(np.float32),
    "u": RNG.normal(size=(6 * 36, 5)).astype(np.float32),
}
X = RNG.normal(size=(50, 3, 6, 6)).astype(np.float32)
DATA = Data({"x": X})


def stage(weights=W):
    """Return a residual stage: its units go into sums again, and are used up at 's', flattened, by the head."""
    operators = [
        make_node("Conv", ["x", "w", "b"], ["c"], "stem", pads=[1] * 4),
        make_node("Relu", ["c"], ["a"], "relu"),
        make_node("Conv", ["a", "v"], ["d"], "conv", pads=[1] * 4),
        make_node("Add", ["a", "d"], ["r"], "add"),
        make_node("Flatten", ["r"], ["s"], "flatten"),
        make_node("MatMul", ["s", "u"], ["y"], "head"),
    ]
    return model(operators, {"x": ["n", 3, 6, 6]}, {"y": ["n", 5]}, weights)


MODEL = stage()
FOUND = groups(MODEL)


def test_units_are_measured_where_they_are_used():
    (group,) = FOUND
    places = {(member.tensor, member.axis) for member in activation.used(group, Evidence(FOUND, DATA))}
    assert places == {("s", 1)}


@pytest.mark.parametrize("budget", [1 << 28, 1])
def test_norm_and_variance_are_those_of_the_values(budget, monkeypatch):
    monkeypatch.setattr(activation, "_BUDGET", budget)  # all at once, or sample by sample
    (group,) = FOUND
    places = [member.tensor for member in activation.used(group, Evidence(FOUND, DATA))]
    values = MODEL.run({"x": X}, places)
    norm, variance = np.zeros(6), np.zeros(6)
    for name in places:
        value = values[name].astype(np.float64)
        if name == "s":  # every position of a unit is an index of its own
            by_index = value.reshape(50, 6, 36)
            norm += (by_index**2).mean(0).sum(1)
            variance += by_index.var(0).sum(1)
        else:
            norm += (value**2).mean((0, 2, 3))
            variance += value.var((0, 2, 3))
    np.testing.assert_allclose(scores(FOUND, "activation_norm", Evidence(FOUND, DATA)) ** 2, norm, rtol=1e-6)
    np.testing.assert_allclose(scores(FOUND, "activation_variance", Evidence(FOUND, DATA)), variance, rtol=1e-6)


def chain(w, v=None):
    """Return a convolution without a bias, a nonlinearity and a convolution."""
    v = RNG.normal(size=(5, len(w), 1, 1)).astype(np.float32) if v is None else v
    operators = [
        make_node("Conv", ["x", "w"], ["c"], "stem", pads=[1] * 4),
        make_node("Relu", ["c"], ["a"], "relu"),
        make_node("Conv", ["a", "v"], ["y"], "head"),
    ]
    return model(operators, {"x": ["n", 3, 6, 6]}, {"y": ["n", 5, 6, 6]}, {"w": w, "v": v})


def test_statistics_of_values_far_from_zero_lose_no_digits():
    found = groups(chain(W["w"]))
    far = (1e3 + X * 0.1).astype(np.float32)
    values = found.model.run({"x": far}, ["a"])["a"].astype(np.float64)
    got = scores(found, "activation_variance", Evidence(found, Data({"x": far})))
    np.testing.assert_allclose(got, values.var((0, 2, 3)), rtol=1e-6)


def test_a_planted_duplicate_is_worth_nothing_but_only_one_of_both():
    w = W["w"].copy()
    w[4] = 0.5 * w[1]
    found = groups(chain(w))
    values = scores(found, "similarity", Evidence(found, DATA))
    assert values.argmin() == 4
    assert values[4] < 1e-6 * np.median(values)
    assert values[1] > 0.01 * np.median(values)


def test_a_planted_combination_of_others_is_worth_nothing():
    operators = [make_node("MatMul", ["x", "w"], ["h"], "first"), make_node("MatMul", ["h", "v"], ["y"], "second")]
    w = RNG.normal(size=(9, 6)).astype(np.float32)
    w[:, 2] = 0.1 * (w[:, 0] - w[:, 5] + w[:, 3])
    found = groups(
        model(operators, {"x": ["n", 9]}, {"y": ["n", 4]}, {"w": w, "v": RNG.normal(size=(6, 4)).astype("f")})
    )
    values = scores(found, "similarity", Evidence(found, Data({"x": RNG.normal(size=(200, 9)).astype(np.float32)})))
    assert values.argmin() == 2
    assert values[2] < 1e-6 * np.median(values)


def test_covariances_are_those_of_numpy():
    found = groups(chain(W["w"]))
    (covariance,) = similar.covariances(list(found), Evidence(found, DATA))
    rows = np.moveaxis(found.model.run({"x": X}, ["a"])["a"].astype(np.float64), 1, 0).reshape(6, -1)
    np.testing.assert_allclose(covariance, np.cov(rows, bias=True), rtol=1e-5, atol=1e-7)


def test_conditional_variances_by_regression():
    """Every unit's score is what least squares on the units above it leaves unexplained."""
    rows = RNG.normal(size=(300, 7)) @ RNG.normal(size=(7, 7))
    rows -= rows.mean(0)
    values = similar.conditional_variances(rows.T @ rows / 300)
    order = np.argsort(-values)
    for place, unit in enumerate(order):
        above = rows[:, order[:place]]
        left = rows[:, unit] - above @ np.linalg.lstsq(above, rows[:, unit], rcond=None)[0]
        assert values[unit] == pytest.approx((left**2).mean(), rel=1e-9)


def test_groups_whose_covariances_do_not_fit_at_once_are_measured_in_turn(monkeypatch):
    found = groups(gm.load(gm.demo.model_path()))
    data = gm.demo.splits().calibration[:64]
    at_once = scores(found, "similarity", Evidence(found, data))
    monkeypatch.setattr(similar, "_BUDGET", 1)
    monkeypatch.setattr(similar, "POSITIONS", 64)  # all of them: nothing is drawn
    np.testing.assert_allclose(scores(found, "similarity", Evidence(found, data)), at_once, rtol=1e-6, atol=1e-9)


def test_of_many_samples_some_are_drawn_with_the_seed(monkeypatch):
    monkeypatch.setattr(registry, "MOST", 25)
    for network, n in ((MODEL, 25), (gm.rebatch(MODEL, 10), 20), (gm.rebatch(MODEL, 50), 50)):
        found = groups(network)
        first, again, other = (Evidence(found, DATA, seed=seed).samples.inputs["x"] for seed in (0, 0, 1))
        assert len(first) == n
        np.testing.assert_array_equal(first, again)
        assert n == 50 or not np.array_equal(first, other)
        assert all(any(np.array_equal(one, x) for x in X) for one in first)


def test_dead_units_are_worth_nothing():
    w = W["w"].copy()
    w[3] = 0
    found = groups(chain(w))
    for how in ("activation_norm", "activation_variance", "similarity"):
        assert scores(found, how, Evidence(found, DATA))[3] == 0, how


def test_a_fixed_batch_is_run_as_often_as_needed():
    network = chain(W["w"])
    fixed = gm.rebatch(network, 10)
    free, same = (scores(f, "activation_norm", Evidence(f, DATA)) for f in map(groups, (network, fixed)))
    np.testing.assert_allclose(same, free, rtol=1e-5)
    found = groups(fixed)
    for how in ("activation_norm", "similarity", "taylor"):
        assert scores(found, how, Evidence(found, DATA)).all(), how
        with pytest.raises(gm.InvalidDataError, match="10 samples at a time"):
            scores(found, how, Evidence(found, DATA[:15]))


def test_a_quantised_network_is_measured_where_its_values_are_floats():
    network = stage()
    small = gm.quantize(network, DATA)
    for how in ("activation_norm", "activation_variance"):
        before, after = (scores(f, how, Evidence(f, DATA)) for f in map(groups, (network, small)))
        np.testing.assert_allclose(after, before, rtol=0.1)


def test_a_group_without_activations_of_floats_is_refused():
    one, zero = np.float32(1), np.uint8(0)
    w, v = RNG.integers(-9, 9, (3, 6)).astype(np.int8), RNG.integers(-9, 9, (6, 5)).astype(np.int8)
    weights = {"one": one, "zero": zero, "w": w, "v": v, "none": np.int8(0)}
    operators = [
        make_node("QuantizeLinear", ["x", "one"], ["q"], "quantize"),
        make_node("QLinearMatMul", ["q", "one", "zero", "w", "one", "none", "one", "zero"], ["h"], "first"),
        make_node("QLinearMatMul", ["h", "one", "zero", "v", "one", "none", "one", "zero"], ["r"], "second"),
        make_node("DequantizeLinear", ["r", "one"], ["y"], "dequantize"),
    ]
    found = groups(model(operators, {"x": ["n", 3]}, {"y": ["n", 5]}, weights))
    assert scores(found, "l2") == pytest.approx(np.sqrt(np.square(v.astype(float)).sum(1)))
    with pytest.raises(RefusedError, match="group 'first' has no activations of floats"):
        scores(found, "activation_norm", Evidence(found, Data({"x": X[:, 0, 0, :3]})))
