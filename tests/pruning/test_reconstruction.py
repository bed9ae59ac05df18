"""Compensation by regression against planted dependences, numpy's least squares and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from handmade import model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from onnx.helper import make_node
from planted import net
from random_networks import network as network_of
from random_networks import seeded

import graphmod as gm
from graphmod.data import Data
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.model import load
from graphmod.pruning import compensate, cut, groups
from graphmod.pruning.estimates import means, moments
from graphmod.pruning.leftovers import Estimate, settle
from graphmod.pruning.plan import ROUNDS, WIDEST, _rounds, plan

GONE, LEFT = [1, 4], [0, 2, 3, 5]
X = np.random.default_rng(0).normal(size=(8, 3, 6, 6)).astype(np.float32)


def units(found, maker="make", indices=GONE):
    removed = np.zeros(found.n_units, bool)
    removed[next(group.first for group in found if maker in group.operators) + np.asarray(indices)] = True
    return removed


def weights(planted="linear", **shapes):
    """Draw weights; of six that ``w`` and ``b`` make, two depend on others."""
    rng = np.random.default_rng(1)
    drawn = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    w, b = drawn["w"], drawn["b"]
    if planted == "linear":
        w[1], w[4] = w[0] - 0.5 * w[3], w[2] + 2 * w[5]  # whatever the biases are, an offset tells them
    elif planted == "duplicates":
        w[1], b[1], w[4], b[4] = w[2], b[2], w[3], b[3]
    elif planted == "scaled":  # which a Relu hands on
        w[1], b[1], w[4], b[4] = 3 * w[2], 3 * b[2], 0.25 * w[3], 0.25 * b[3]
    elif planted == "constant":
        w[1], w[4] = 0, 0
    return drawn


def imaged(middle, tail, out, drawn, batch="n"):
    head = make_node("Conv", ["x", "w", "b"], ["a"], name="make")
    return model([head, *middle, *tail], {"x": [batch, 3, 6, 6]}, {"y": [batch, *out]}, drawn)


def error(network, small, feeds=None):
    feeds = {"x": X} if feeds is None else feeds
    before, after = network.run(feeds)["y"], small.run(feeds)["y"]
    return float(np.abs(before - after).max() / np.abs(before).max())


CONV = [make_node("Conv", ["a", "v", "u"], ["y"], name="read")]
RELU = [make_node("Relu", ["a0"], ["a"], name="act")]


def read_by(how):
    """Return what reads six channels of 4x4, the shapes of its weights, and that of what it makes."""
    if how == "conv":
        return CONV, {"v": (5, 6, 1, 1), "u": (5,)}, [5, 4, 4]
    if how == "kernel without bias":
        return [make_node("Conv", ["a", "v"], ["y"], name="read", strides=[2, 2])], {"v": (5, 6, 2, 2)}, [5, 2, 2]
    if how == "dilated kernel":
        return [make_node("Conv", ["a", "v", "u"], ["y"], name="read", dilations=[2, 2])], {
            "v": (5, 6, 2, 2), "u": (5,)
        }, [5, 2, 2]  # fmt: skip
    rows = [make_node("Transpose", ["a"], ["t"], name="t", perm=[0, 2, 3, 1])]
    if how == "matmul":
        tail = [make_node("MatMul", ["t", "v"], ["m"], name="read"), make_node("Add", ["m", "u"], ["y"], name="add")]
        return [*rows, *tail], {"v": (6, 5), "u": (5,)}, [4, 4, 5]
    pooled = [
        make_node("GlobalAveragePool", ["a"], ["p"], name="pool"),
        make_node("Flatten", ["p"], ["f"], name="flat"),
    ]
    flips = how == "gemm, transposed"
    gemm = make_node("Gemm", ["f", "v", "u"], ["y"], name="read", transB=int(flips), alpha=0.5, beta=2.0)
    return [*pooled, gemm], {"v": (5, 6) if flips else (6, 5), "u": (5,)}, [5]


READERS = ["conv", "kernel without bias", "dilated kernel", "matmul", "gemm", "gemm, transposed"]


@pytest.fixture(autouse=True)
def little_ridge(monkeypatch):
    monkeypatch.setattr("graphmod.pruning.leftovers.estimate.RIDGE", 1e-9)
    monkeypatch.setattr("graphmod.pruning.leftovers.estimate.PRIOR", 0)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("planted", ["linear", "duplicates", "constant"])
def test_what_depends_on_others_is_replaced_exactly(reader, planted):
    tail, shapes, out = read_by(reader)
    network = imaged([], tail, out, weights(planted, w=(6, 3, 3, 3), b=(6,), **shapes))
    found = groups(network)
    small = compensate(found, units(found), Data({"x": X}))
    assert small.n_weights < network.n_weights
    assert error(network, small) < 1e-4
    assert error(network, cut(found, units(found))) > 1e-2


@pytest.mark.parametrize("planted", ["duplicates", "scaled", "constant"])
def test_a_relu_between_is_no_hindrance(planted):
    head = [make_node("Conv", ["x", "w", "b"], ["a0"], name="make"), *RELU]
    drawn = weights(planted, w=(6, 3, 3, 3), b=(6,), v=(5, 6, 2, 2), u=(5,))
    network = model([*head, *CONV], {"x": ["n", 3, 6, 6]}, {"y": ["n", 5, 3, 3]}, drawn)
    found = groups(network)
    assert error(network, compensate(found, units(found), Data({"x": X}))) < 1e-4


def test_a_padded_conv_replaces_what_needs_no_offset():
    drawn = weights("duplicates", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 3, 3), u=(5,))
    tail = [make_node("Conv", ["a", "v", "u"], ["y"], name="read", pads=[1, 1, 1, 1])]
    network = imaged([], tail, [5, 4, 4], drawn)
    found = groups(network)
    assert error(network, compensate(found, units(found), Data({"x": X}))) < 1e-4


@pytest.mark.parametrize("reader", ["transposed conv", "matmul without bias"])
def test_what_can_take_no_offset_is_fitted_without(reader):
    if reader == "transposed conv":
        shapes, out = {"v": (6, 5, 2, 2)}, [5, 8, 8]
        tail = [make_node("ConvTranspose", ["a", "v"], ["y"], name="read", strides=[2, 2])]
    else:
        shapes, out = {"v": (6, 5)}, [4, 4, 5]
        rows = make_node("Transpose", ["a"], ["t"], name="t", perm=[0, 2, 3, 1])
        tail = [rows, make_node("MatMul", ["t", "v"], ["y"], name="read")]
    network = imaged([], tail, out, weights("duplicates", w=(6, 3, 3, 3), b=(6,), **shapes))
    found = groups(network)
    small = compensate(found, units(found), Data({"x": X}))
    assert error(network, small) < 1e-4
    assert {operator.op_type for operator in small.operators} == {operator.op_type for operator in network.operators}


def test_the_weights_are_those_of_least_squares():
    drawn = weights("", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,))
    network = imaged([], CONV, [5, 4, 4], drawn)
    found = groups(network)
    small = compensate(found, units(found), Data({"x": X}), batch_size=3)
    value = network.run({"x": X}, ["a"])["a"]
    rows = np.moveaxis(value, 1, -1).reshape(-1, 6).astype(float)
    targets = rows @ drawn["v"][:, :, 0, 0].T + drawn["u"]
    fit, *_ = np.linalg.lstsq(np.hstack([rows[:, LEFT], np.ones((len(rows), 1))]), targets, rcond=None)
    np.testing.assert_allclose(small.initializer("v")[:, :, 0, 0], fit[:-1].T, atol=1e-5)
    np.testing.assert_allclose(small.initializer("u"), fit[-1], atol=1e-5)


def test_the_ridge_pulls_to_means_and_to_the_weights_themselves(monkeypatch):
    monkeypatch.setattr("graphmod.pruning.leftovers.estimate.RIDGE", 1e9)
    network = imaged([], CONV, [5, 4, 4], weights("", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,)))
    found, data = groups(network), Data({"x": X})
    known = means(network, data, settle(found, units(found)).reads)
    only_means = cut(found, units(found), settle(found, units(found), known))
    assert error(only_means, compensate(found, units(found), data)) < 1e-5


def test_all_variables_of_a_normal_equation_are_told_from_what_is_left():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)) + 100
    y = x[:, [0, 2]] * 0.9 + rng.normal(0, 0.1, (500, 2))  # what a pruned network makes of them
    joint = np.cov(np.hstack([x, y]).T, bias=True)
    estimate = Estimate(x.mean(0), y.mean(0), joint[4:, 4:], joint[:4, 4:])
    gone = np.array([False, True, False, True])
    slopes, offsets = estimate.predicted(gone)
    fit, *_ = np.linalg.lstsq(np.hstack([y, np.ones((500, 1))]), x, rcond=None)
    np.testing.assert_allclose(slopes, fit[:2].T, atol=1e-5)
    np.testing.assert_allclose(offsets, fit[2], atol=1e-3)
    slopes, offsets = estimate.predicted(gone, offset=False)
    np.testing.assert_allclose(slopes, np.linalg.lstsq(y, x, rcond=None)[0].T, atol=1e-4)
    assert not offsets.any()


def test_what_never_varies_is_told_by_its_mean():
    estimate = Estimate(np.array([1.0, 2.0]), np.ones(1), np.zeros((1, 1)), np.zeros((2, 1)))
    slopes, offsets = estimate.predicted(np.array([False, True]))
    assert slopes.tolist() == [[1.0], [0.0]]
    assert offsets.tolist() == [0.0, 2.0]
    assert Estimate(np.ones(2)).predicted(np.array([False, True])) is None


def test_later_layers_make_up_for_errors_of_earlier_ones():
    """The second of two wide layers on the same data sees what the first lost."""
    rng = np.random.default_rng(0)
    drawn = {
        "w": rng.normal(size=(4, 32)), "v": rng.normal(size=(32, 32)) / 4, "u": rng.normal(size=(32, 32)) / 4,
        "o": rng.normal(size=(32, 3)), "z": np.zeros(3), "c": rng.normal(size=32), "e": np.zeros(32), "f": np.zeros(32),
    }  # fmt: skip
    operators = []
    for number, (reads, weight, bias) in enumerate([("x", "w", "c"), ("r0", "v", "e"), ("r1", "u", "f")]):
        operators += [
            make_node("Gemm", [reads, weight, bias], [f"g{number}"], name=f"gemm{number}"),
            make_node("Relu", [f"g{number}"], [f"r{number}"], name=f"act{number}"),
        ]
    operators.append(make_node("Gemm", ["r2", "o", "z"], ["y"], name="out"))
    drawn = {name: value.astype(np.float32) for name, value in drawn.items()}
    network = model(operators, {"x": ["n", 4]}, {"y": ["n", 3]}, drawn)
    feeds = {"x": rng.normal(size=(256, 4)).astype(np.float32)}
    data, found = Data(feeds), groups(network)
    removed = np.arange(found.n_units) % 2 == 0
    settled = settle(found, removed)
    plain = cut(found, removed)
    made = network.run(feeds, [name for name, _ in settled.mixable])
    alone = moments(found, np.zeros(found.n_units, bool), [(made, made)], settled.mixable)
    left = {place: np.flatnonzero(~removed[:32]) for place in alone}  # every group has the same units removed
    alone = {
        place: Estimate(one.mean, one.mean[left[place]], one.covariance[np.ix_(left[place], left[place])],
                        one.covariance[:, left[place]])
        for place, one in alone.items()
    }  # fmt: skip
    at_once = cut(found, removed, settle(found, removed, alone))

    def loss(small):
        return float(np.square(network.run(feeds)["y"] - small.run(feeds)["y"]).mean())

    assert loss(compensate(found, removed, data)) < 0.8 * loss(at_once) < 0.8 * loss(plain)


# -- which are not touched, which weights are


def test_grouped_convolutions_take_means_alone():
    tail = [make_node("Conv", ["a", "v", "u"], ["y"], name="read", group=6)]
    drawn = weights("", w=(6, 3, 3, 3), b=(6,), v=(6, 1, 2, 2), u=(6,))
    out = [*tail[:-1], make_node("Conv", ["a", "v", "u"], ["d"], name="each", group=6),
           make_node("Conv", ["d", "o"], ["y"], name="read")]  # fmt: skip
    drawn["o"] = np.random.default_rng(2).normal(size=(5, 6, 1, 1)).astype(np.float32)
    network = imaged([], out, [5, 3, 3], drawn)
    found = groups(network)
    small = compensate(found, units(found), Data({"x": X}))
    assert np.array_equal(small.initializer("v"), drawn["v"][LEFT])
    assert not np.array_equal(small.initializer("o"), drawn["o"][:, LEFT])


def test_weights_that_two_operators_share_stay_shared():
    drawn = weights("", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,))
    tail = [
        make_node("Neg", ["a"], ["n"], name="neg"),
        make_node("Conv", ["a", "v", "u"], ["c"], name="first"),
        make_node("Conv", ["n", "v"], ["d"], name="second"),
        make_node("Add", ["c", "d"], ["y"], name="add"),
    ]
    found = groups(imaged([], tail, [5, 4, 4], drawn))
    assert settle(found, units(found)).mixable == ()
    assert np.array_equal(compensate(found, units(found), Data({"x": X})).initializer("v"), drawn["v"][:, LEFT])


def test_weights_that_a_constant_operator_holds_are_replaced():
    drawn = weights("duplicates", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,))
    held = make_node("Constant", [], ["v"], name="held", value=numpy_helper.from_array(drawn.pop("v")))
    network = imaged([], [held, *CONV], [5, 4, 4], drawn)
    found = groups(network)
    small = compensate(found, units(found), Data({"x": X}))
    assert error(network, small) < 1e-4


def test_wide_axes_take_means(monkeypatch):
    network = imaged([], CONV, [5, 4, 4], weights("", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,)))
    found = groups(network)
    assert WIDEST >= 1024
    monkeypatch.setattr("graphmod.pruning.plan.WIDEST", 5)
    small = compensate(found, units(found), Data({"x": X}))
    assert np.array_equal(small.initializer("v"), network.initializer("v")[:, LEFT])
    assert not np.array_equal(small.initializer("u"), network.initializer("u"))


@pytest.mark.parametrize("family", ["group_norm", "other_domain"])
def test_tensors_of_unknown_type_take_means(family):
    net = network_of([family])
    found = groups(load(net.proto))
    removed = np.zeros(found.n_units, bool)
    for group in found:
        removed[group.first : group.first + group.n_units // 3] = True
    assert any(name not in found.model.tensors for name, _ in settle(found, removed).mixable)
    assert compensate(found, removed, Data(net.feeds(batch=64))).n_weights < found.model.n_weights


def test_before_training_biases_alone_take_means():
    network = imaged([], CONV, [5, 4, 4], weights("", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,)))
    found, data = groups(network), Data({"x": X})
    known = means(network, data, settle(found, units(found)).reads)
    expected = cut(found, units(found), settle(found, units(found), known))
    assert compensate(found, units(found), data, by_weights=False).digest == expected.digest


def test_rounds_follow_depth_and_are_few():
    m = gm.load(gm.demo.model_path())
    found = groups(m)
    places = settle(found, np.arange(found.n_units) % 2 == 0).mixable
    rounds = list(_rounds(found, places[::-1], dict.fromkeys(places, 8)))
    assert sorted(place for one in rounds for part in one.parts for place in part) == sorted(places)
    order = {name: i for i, operator in enumerate(m.operators) for name in operator.output}
    firsts = [min(order[name] for part in one.parts for name, _ in part) for one in rounds]
    assert firsts == sorted(firsts)
    assert list(_rounds(found, [], {})) == []
    n = 3 * ROUNDS + 5
    chain = [make_node("Neg", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(n)]
    long = groups(model(chain, {"t0": [1, 2]}, {f"t{n}": [1, 2]}))
    deep = [(f"t{i}", 1) for i in range(n)]
    rounds = list(_rounds(long, deep, dict.fromkeys(deep, 2)))
    assert len(rounds) <= ROUNDS
    assert [place for one in rounds for part in one.parts for place in part] == deep


def test_moments_that_are_held_at_a_time_are_bounded(monkeypatch):
    monkeypatch.setattr("graphmod.pruning.plan.MOMENTS", 20)
    found = groups(imaged([], CONV, [5, 4, 4], weights("", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,))))
    places = [("a", 0), ("a", 1), ("a", 2), ("a", 3)]
    (one,) = _rounds(found, places, dict(zip(places, [3, 3, 9, 2], strict=True)))
    assert one.parts == (tuple(places[:2]), tuple(places[2:3]), tuple(places[3:]))


# -- data


def test_samples_are_spread_and_fit_a_fixed_batch():
    drawn = weights("duplicates", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,))
    free, fixed = (groups(imaged([], CONV, [5, 4, 4], drawn, batch)) for batch in ("n", 3))
    data = Data({"x": np.zeros((999, 3, 6, 6), np.float32)})
    plans = [plan(found, settle(found, units(found)), data, 64, True) for found in (free, fixed)]
    assert [(len(one.samples), one.batch_sizes) for one in plans] == [(256, (64, 64)), (255, (3, 3))]
    small = compensate(fixed, units(fixed), Data({"x": X[:6]}))
    assert error(fixed.model, small, {"x": X[:3]}) < 1e-4
    with pytest.raises(InvalidDataError, match="takes 3 samples at a time"):
        compensate(fixed, units(fixed), Data({"x": X}))


def test_time_and_memory_are_bounded(monkeypatch):
    found = groups(imaged([], CONV, [5, 4, 4], weights("", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,))))
    data, settled = Data({"x": np.zeros((999, 3, 6, 6), np.float32)}), settle(found, units(found))
    macs = 16 * (6 * 27 + 5 * 6)
    for name, value, n in [("MACS", 10 * macs, 10), ("HELD", 2 * 96 * 11, 11), ("MACS", 1, 1)]:
        with monkeypatch.context() as patched:
            patched.setattr(f"graphmod.pruning.plan.{name}", value)
            assert len(plan(found, settled, data, 64, True).samples) == n
    monkeypatch.setattr("graphmod.pruning.plan.AT_ONCE", 96 * 7)
    monkeypatch.setattr("graphmod.pruning.plan.SCALARS", 37 * 6)
    assert plan(found, settled, data, 64, True).batch_sizes == (64, 7)
    assert plan(found, settled, data, 64, True).most == 6  # of each of 37 batches
    assert plan(found, settled, data, 64, False).batch_sizes[0] == 7


def test_positions_that_are_drawn_do_as_well(monkeypatch):
    drawn = weights("linear", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,))
    network = imaged([], CONV, [5, 4, 4], drawn)
    found = groups(network)
    monkeypatch.setattr("graphmod.pruning.plan.SCALARS", 6 * 20)
    assert error(network, compensate(found, units(found), Data({"x": X}))) < 1e-4
    wide = np.random.default_rng(0).normal(size=(2, 6, 500, 500)).astype(np.float32)
    one = moments(found, np.zeros(found.n_units, bool), [({"a": wide}, {"a": wide})], [("a", 1)], most=6 * 10_000)[
        "a", 1
    ]
    assert np.abs(one.covariance - np.eye(6)).max() < 0.1
    assert np.allclose(one.across, one.covariance)


def test_data_that_never_varies_are_enough():
    drawn = weights("", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,))
    network = imaged([], CONV, [5, 4, 4], drawn)
    found, data = groups(network), np.full_like(X, 0.3)
    small = compensate(found, units(found), Data({"x": data}))
    assert np.abs(small.initializer("v")).max() < 10 * np.abs(drawn["v"]).max()
    assert error(network, small, {"x": data}) < 1e-5


def dense():
    """Return a network of which no channel tells another, and samples."""
    rng = np.random.default_rng(0)
    shapes = {"w": (16, 32), "b": (32,), "v": (32, 8), "u": (8,)}
    drawn = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    operators = [
        make_node("Gemm", ["x", "w", "b"], ["g"], name="make"),
        make_node("Relu", ["g"], ["r"], name="act"),
        make_node("Gemm", ["r", "v", "u"], ["y"], name="read"),
    ]
    network = model(operators, {"x": ["n", 16]}, {"y": ["n", 8]}, drawn)
    return network, rng.normal(size=(600, 16)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_samples_tell_nothing(n):
    network, samples = dense()
    found = groups(network)
    removed = np.arange(found.n_units) % 2 == 0
    plain = cut(found, removed)
    assert compensate(found, removed, Data({"x": samples[:n]})).digest == plain.digest
    several = compensate(found, removed, Data({"x": samples[:300]}))
    assert error(network, several, {"x": samples[300:]}) < error(network, plain, {"x": samples[300:]})


def test_few_samples_are_enough_for_what_depends_on_others():
    network = imaged([], CONV, [5, 4, 4], weights("linear", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,)))
    found = groups(network)
    assert error(network, compensate(found, units(found), Data({"x": X[:2]}))) < 1e-4


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        ("q = Greater(g, t)  i = NonZero(q)  k = Transpose <perm=[1,0]> (i)  y = GatherND(g, k)", "float[k]"),
        ("a = ArgMax <axis=1, keepdims=0> (g)  y = Cast <to=8> (a)", "string[n]"),
    ],
)
def test_few_samples_do_not_fit_what_cannot_be_compared(ending, kind):
    drawn = {"w": (16, 32), "v": (32, 8), "t": np.zeros(1, np.float32)}
    network = net(
        f"(float[n,16] x) => ({kind} y) {{ m = MatMul(x, w)  r = Relu(m)  g = MatMul(r, v)  {ending} }}", drawn
    )
    found = groups(network)
    removed = np.arange(found.n_units) % 2 == 0
    small = compensate(found, removed, Data({"x": dense()[1][:8]}))
    assert small.digest == cut(found, removed).digest


def test_few_samples_pull_to_the_channels_themselves(monkeypatch):
    monkeypatch.setattr("graphmod.pruning.leftovers.estimate.PRIOR", 1)
    gone = np.array([False, False, True])
    for n, slope in ((1, 0.5), (9, 0.9)):
        estimate = Estimate(np.zeros(3), np.zeros(2), np.eye(2), np.array([[1, 0], [0, 1], [1.0, 0]]), n_samples=n)
        assert np.allclose(estimate.predicted(gone)[0], [[1, 0], [0, 1], [slope, 0]])


def test_rounding_is_no_variance():
    rng = np.random.default_rng(0)
    x = np.array([3.0, 1000.0, 0.001]) * (1 + 1e-9 * rng.normal(size=(50, 3)))
    covariance = np.cov(x.T)
    estimate = Estimate(x.mean(0), x.mean(0)[:2], covariance[:2, :2], covariance[:, :2])
    slopes, offsets = estimate.predicted(np.array([False, False, True]))
    assert slopes.tolist() == [[1, 0], [0, 1], [0, 0]]
    assert np.allclose(offsets, [0, 0, 0.001])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_told(value):
    network = imaged([], CONV, [5, 4, 4], weights("", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,)))
    found = groups(network)
    broken = X.copy()
    broken[2, 1, 3, 3] = value
    with np.errstate(invalid="ignore"), pytest.raises(InvalidDataError, match="'a' that are not finite"):
        compensate(found, units(found), Data({"x": broken}))


@pytest.mark.parametrize(
    ("planted", "told"), [("duplicates", "'v' would be"), ("constant", "a bias of Conv 'read' would be")]
)
def test_what_a_small_type_cannot_hold_is_told(planted, told):
    drawn = weights(planted, w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,))
    drawn["b"][GONE] *= 10 if planted == "constant" else 1
    drawn = {name: value.astype(np.float16) for name, value in drawn.items()}
    drawn["v"][:] = 6e4
    operators = [
        make_node("Cast", ["x"], ["h"], name="half", to=TensorProto.FLOAT16),
        make_node("Conv", ["h", "w", "b"], ["a"], name="make"),
        make_node("Conv", ["a", "v", "u"], ["d"], name="read"),
        make_node("Cast", ["d"], ["y"], name="float", to=TensorProto.FLOAT),
    ]
    network = model(operators, {"x": ["n", 3, 6, 6]}, {"y": ["n", 5, 4, 4]}, drawn)
    found = groups(network)
    with (
        np.errstate(over="ignore"),
        pytest.raises(RefusedError, match=f"{told} too large for float16; leftovers=False"),
    ):
        compensate(found, units(found), Data({"x": X}))


def test_data_that_does_not_fit_is_told():
    network = imaged([], CONV, [5, 4, 4], weights("", w=(6, 3, 3, 3), b=(6,), v=(5, 6, 1, 1), u=(5,)))
    found = groups(network)
    with pytest.raises(InvalidDataError):
        compensate(found, units(found), Data({"x": X[:, :2]}))
    with pytest.raises(InvalidDataError):
        gm.prune(network, 0.5, data=X[:, :2])


# -- random networks


@given(st.integers(0, 2**16), st.integers(0, 2**16))
@settings(max_examples=10, deadline=None)
def test_where_channels_are_first_read_the_error_is_no_larger_than_with_means(seed, choice):
    """The squared error of every prediction, and the first one's is exact: nothing before it is an estimate."""
    net = seeded(seed)
    network = load(net.proto)
    found = groups(network)
    rng = np.random.default_rng(choice)
    removed = np.zeros(found.n_units, bool)
    for group in found:
        removed[group.first : group.first + group.n_units - 1] = rng.random(group.n_units - 1) < 0.4
    data = Data(net.feeds(batch=net.batch or 6))
    settled = settle(found, removed)
    if not settled.mixable:
        return
    first = next(iter(_rounds(found, settled.mixable, dict.fromkeys(settled.mixable, 1))))
    places = [place for part in first.parts for place in part]
    try:
        plain, small = cut(found, removed), compensate(found, removed, data)
    except RefusedError:
        return  # an operator reads a few channels, all of which would go
    feeds = dict(data.inputs)
    names = [name for name, _ in places]
    made = network.run(dict(data.inputs), names), plain.run(dict(data.inputs), names)
    for (name, axis), estimate in moments(found, removed, [made], places).items():
        masks = [np.append(removed, False)[found.units(labels)] for labels in found.analysis.axes[name]]
        x, y = (one.run(feeds, [name])[name].astype(float) for one in (network, plain))
        for other, mask in enumerate(masks):
            if other != axis and mask.any():
                x = np.compress(~mask, x, other)
        x, y = np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1)
        gone = masks[axis]
        slopes, offsets = estimate.predicted(gone)
        x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        fitted = np.square(x - y @ slopes.T - offsets).sum()
        only_means = x - x.mean(0)
        only_means[:, ~gone] = x[:, ~gone] - y
        assert fitted <= np.square(only_means).sum() * (1 + 1e-6) + 1e-9
    assert all(np.isfinite(value).all() for value in small.run(feeds).values() if value.dtype.kind == "f")


def test_accuracy_stays_where_half_of_the_demo_network_goes():
    m, data = gm.load(gm.demo.model_path()), gm.demo.splits()
    small = gm.prune(m, 0.5, data=data.calibration)
    assert (small.run(dict(data.test.inputs))["logits"].argmax(1) == data.test.targets).mean() > 0.85
