"""The search: what closes against brute force, and networks of which it is known what can go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import net
from planted_answers import clusters, idle_block, pairs

import graphmod as gm
from graphmod.errors import RefusedError
from graphmod.graph import cost
from graphmod.methods.gates import AGREE
from graphmod.methods.reuse.budget import Budget
from graphmod.methods.reuse.price import Prices
from graphmod.methods.reuse.search import Plan, cheapest, searched
from graphmod.probe import LatencyTable
from graphmod.pruning.groups import groups

PLAN = Plan({"weights": 0.55}, 60, 30, 1, 1e-3, 32, 0)


# -- what closes


@st.composite
def markets(draw: st.DrawFn) -> tuple[np.ndarray, Prices, float, np.ndarray]:
    """Draw worths, prices, what may be left, and what has to stay."""
    n, n_blocks = draw(st.integers(1, 8)), draw(st.integers(0, 3))
    few = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0])  # few values, so that some are alike
    units, blocks = (np.array(draw(st.lists(few, min_size=k, max_size=k))) for k in (n, n_blocks))
    inside = np.array(draw(st.lists(st.integers(-1, n_blocks - 1), min_size=n, max_size=n)))
    worth = np.array(draw(st.lists(few, min_size=n + n_blocks, max_size=n + n_blocks)))
    open_ = np.array(draw(st.lists(st.booleans(), min_size=n + n_blocks, max_size=n + n_blocks)))
    prices = Prices(float(units.sum() + blocks.sum() + 1), units, blocks, inside)
    return worth, prices, draw(st.floats(0, prices.total)), open_


@settings(max_examples=300, deadline=None, derandomize=True)
@given(markets())
def test_the_lowest_rates_close_and_no_more_than_needed(market):
    worth, prices, allowed, open_ = market
    price = np.append(prices.units, prices.blocks)
    may = (price > 0) & ~open_
    rate = np.where(may, worth / np.where(may, price, 1), np.inf)
    tried = [may & (rate < limit) for limit in sorted({*rate[may].tolist(), np.inf})]
    expected = next((closed for closed in tried if prices.left(closed) <= allowed), tried[-1])
    found = cheapest(worth, [prices], [allowed], open_)
    assert found.tolist() == expected.tolist()
    assert not (found & open_).any()


@st.composite
def two_costs(draw: st.DrawFn) -> tuple[np.ndarray, list[Prices], list[float]]:
    """Draw worths, two prices of each unit, and what may be left of both costs."""
    n = draw(st.integers(1, 8))
    positive = st.lists(st.floats(0.1, 5), min_size=n, max_size=n)
    worth, *units = (np.array(draw(positive)) for _ in range(3))
    prices = [Prices(float(one.sum() + 1), one, np.zeros(0), np.full(n, -1)) for one in units]
    return worth, prices, [draw(st.floats(1, one.total)) for one in prices]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(two_costs())
def test_of_two_costs_both_are_allowed_and_no_single_price_that_does_so_gives_up_less(market):
    worth, prices, allowed = market
    open_ = np.zeros(len(worth), bool)
    found = cheapest(worth, prices, allowed, open_)
    assert all(one.left(found) <= most + 1e-9 for one, most in zip(prices, allowed, strict=True))
    for one in prices:
        alone = cheapest(worth, [one], [allowed[prices.index(one)]], open_)
        if all(other.left(alone) <= most for other, most in zip(prices, allowed, strict=True)):
            assert worth[found].sum() <= worth[alone].sum() + 1e-9


def test_where_no_closing_meets_all_limits_the_one_that_is_nearest_closes():
    prices = [Prices(4.0, np.array([4.0, 0, 0]), np.zeros(0), np.full(3, -1)),
              Prices(10.0, np.array([0, 1.0, 1.0]), np.zeros(0), np.full(3, -1))]  # fmt: skip
    found = cheapest(np.array([5.0, 1.0, 1.0]), prices, [-1.0, 10.0], np.zeros(3, bool))
    assert found[0]


def test_a_budget_grows_tighter_from_what_there_is():
    model = pairs()
    found = groups(model)
    prices = Prices.of(found, [], "weights", LatencyTable())
    budget = Budget(0.55, prices.total / 0.9)
    budget.begin(model, prices)
    left = [budget.allowed(prices, PLAN.way(step)) * 0.9 / prices.total for step in range(61)]
    assert left[0] == pytest.approx(0.9)
    assert left == sorted(left, reverse=True)
    assert left[42:] == pytest.approx([0.55] * 19)
    less = Budget(0.55, prices.total / 0.4)
    less.begin(model, prices)
    assert less.allowed(prices, 0) * 0.4 / prices.total == pytest.approx(0.55)  # less is there than may be left


# -- planted answers


@pytest.mark.parametrize("budget", ["weights", "macs"])
def test_neurons_of_other_classes_go_first(budget):
    data = clusters(256, 4)
    two, part = gm.restrict(pairs(), [0, 1]), data[np.flatnonzero(data.targets < 2)]
    small, stages = searched(two, two, part, replace(PLAN, targets={budget: 0.55}))
    assert stages[0].units == 4
    kept = small.initializer("w")
    assert kept.shape == (4, 4)
    assert np.abs(kept - np.repeat(np.eye(4), 2, 1)[:, :4]).max() < 0.1
    assert gm.accuracy(small, part) > 0.99


def test_a_block_that_adds_nothing_goes_first():
    model, data = idle_block()
    small, stages = searched(model, model, data, replace(PLAN, targets={"macs": 0.6}))
    assert stages[0].blocks == 1
    assert "u1" not in small.initializers
    assert small.initializer("u2").shape == (6, 12)


def dead_channels(gone: float = -100.0) -> tuple[gm.Model, gm.Data]:
    """Return a network of 16 channels, the last 8 of which are never above 0, or have another bias."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(16, 2, 3, 3)), "c": np.repeat([1.0, gone], 8), "h": rng.normal(size=(3, 16))}
    model = net(
        "(float[n,2,5,5] x) => (float[n,3] y) { a = Conv(x, w, c)  r = Relu(a)  p = GlobalAveragePool(r)"
        "  f = Flatten(p)  y = Gemm<transB=1>(f, h) }",
        {name: value.astype(np.float32) for name, value in weights.items()},
    )
    x = rng.normal(size=(96, 2, 5, 5)).astype(np.float32)
    return model, gm.Data({"x": x}, model.run({"x": x})["y"].argmax(1))


@pytest.mark.parametrize(("multiple_of", "width"), [(1, 7), (4, 4), (8, 8)])
def test_dead_channels_go_first_and_widths_are_rounded_up(multiple_of, width):
    model, data = dead_channels()
    plan = replace(PLAN, targets={"weights": 0.5 if multiple_of == 8 else 0.49}, multiple_of=multiple_of)
    small, stages = searched(model, model, data, plan)
    kept = small.initializer("c")
    assert kept.shape == (width,)
    assert (kept > 0).all()
    left = [stage.left["weights"] for stage in stages]
    assert left == sorted(left, reverse=True)
    assert left[-1] == pytest.approx(small.n_weights / model.n_weights)
    assert stages[-1].weights == small.n_weights
    assert [stage.step for stage in stages] == [30 * (number + 1) for number in range(len(stages))]
    assert all(stage.difference <= AGREE for stage in stages)


@pytest.mark.parametrize("budget", ["weights", "macs"])
@pytest.mark.parametrize("target", [0.15, 0.3, 0.7])
def test_budgets_are_met_and_used(budget, target):
    model, data = dead_channels(gone=0.5)
    small, stages = searched(model, model, data, replace(PLAN, targets={budget: target}))
    share = getattr(cost(small), budget) / getattr(cost(model), budget)
    assert share == pytest.approx(stages[-1].left[budget])
    assert target - 1.5 / 16 < share <= target


def test_shares_are_of_the_whole_that_is_given():
    model, data = dead_channels()
    half, _ = searched(model, model, data, replace(PLAN, targets={"weights": 0.5}))
    small, stages = searched(half, model, data, replace(PLAN, targets={"weights": 0.3}), of=model)
    assert small.n_weights <= 0.3 * model.n_weights
    assert stages[-1].left["weights"] == pytest.approx(small.n_weights / model.n_weights)
    same, stages = searched(half, model, data, replace(PLAN, targets={"weights": 0.9}), of=model)
    assert same.n_weights == half.n_weights
    assert {stage.units for stage in stages} == {0}


@pytest.mark.parametrize("shrink_every", [1, 5, 60])
def test_stages_of_few_steps_remove_too(shrink_every):
    model, data = dead_channels()
    steps = 12 if shrink_every == 1 else 60
    small, _ = searched(model, model, data, replace(PLAN, steps=steps, shrink_every=shrink_every))
    assert small.n_weights <= 0.55 * model.n_weights


def test_the_same_seed_gives_the_same_network_and_the_argument_stays():
    model, data = dead_channels()
    before = model.digest, model.proto().SerializeToString()
    plan = replace(PLAN, targets={"weights": 0.4}, steps=20, shrink_every=10)
    first, second, other = (searched(model, model, data, replace(plan, seed=seed))[0] for seed in (3, 3, 4))
    assert first.digest == second.digest != other.digest
    assert (model.digest, model.proto().SerializeToString()) == before


def test_fewer_samples_than_a_batch_are_all_taken():
    model, data = dead_channels()
    small, _ = searched(model, model, data[:5], replace(PLAN, steps=20, shrink_every=10))
    assert small.n_weights <= 0.55 * model.n_weights


def test_what_cannot_be_met_is_refused():
    model, data = dead_channels()
    plan = replace(PLAN, targets={"weights": 0.01}, steps=4, shrink_every=4)
    with pytest.raises(
        RefusedError, match=r"weights=0\.01 cannot be met: 6\.\d% are left after .* as nothing more can"
    ):
        searched(model, model, data, plan)


def test_a_network_without_units_or_blocks_is_refused():
    model = net("(float[n,4] x) => (float[n,3] y) { y = MatMul(x, w) }", {"w": (4, 3)})
    data = clusters(16, 4)
    with pytest.raises(RefusedError, match="no channel, head or block of the network can be removed"):
        searched(model, model, gm.Data(data.inputs, data.targets % 3), PLAN)


def test_a_loss_that_is_no_number_is_refused():
    model, data = dead_channels()
    with pytest.raises(RefusedError, match=r"a loss of (nan|inf); give a smaller learning_rate"):
        searched(model, model, data, replace(PLAN, learning_rate=1e30))


# -- networks of other types


def test_groups_that_gates_do_not_follow_stay_whole():
    """Sigmoids of closed channels are multiplied with each other, which removed ones are not."""
    model = net(
        "(float[n,3,4] x) => (float[n,2] y) { a = MatMul(x, q)  b = Sigmoid(a)  c = MatMul(x, k)  d = Sigmoid(c)"
        "  e = Transpose<perm=[0,2,1]>(d)  f = MatMul(b, e)  g = MatMul(f, x)  m = MatMul(g, u)  r = Relu(m)"
        "  p = ReduceMean<axes=[1], keepdims=0>(r)  y = MatMul(p, v) }",
        {"q": (4, 6), "k": (4, 6), "u": (4, 16), "v": (16, 2)},
    )
    x = np.random.default_rng(0).normal(size=(64, 3, 4)).astype(np.float32)
    data = gm.Data({"x": x}, model.run({"x": x})["y"].argmax(1))
    small, _ = searched(model, model, data, replace(PLAN, targets={"weights": 0.6}))
    assert small.initializer("q").shape == small.initializer("k").shape == (4, 6)
    assert small.initializer("u").shape[1] < 16


@pytest.mark.parametrize("kind", ["float16", "uint8", "two inputs", "normalised by the batch", "dropout"])
def test_networks_of_other_types(kind):
    rng = np.random.default_rng(0)
    weights = {"w": (5, 12), "c": np.zeros(12, np.float32), "v": (12, 3)}
    text = "(float[n,5] x) => (float[n,3] y) { a = Gemm(x, w, c)  r = Relu(a)  y = Gemm(r, v) }"
    given = {"x": rng.normal(size=(64, 5)).astype(np.float32)}
    if kind == "float16":
        text = text.replace("float[", "float16[")
        weights = {
            name: rng.normal(size=shape).astype(np.float16)
            for name, shape in (("w", (5, 12)), ("c", 12), ("v", (12, 3)))
        }
        given = {"x": given["x"].astype(np.float16)}
    elif kind == "uint8":
        text = text.replace("float[n,5] x", "uint8[n,5] x").replace("{ a = Gemm(x,", "{ z = Cast<to=1>(x)  a = Gemm(z,")
        given = {"x": rng.integers(0, 9, (64, 5)).astype(np.uint8)}
    elif kind == "two inputs":
        text = text.replace("x)", "x, float[n,12] z)", 1).replace("r = Relu(a)", "b = Add(a, z)  r = Relu(b)")
        text = text.replace("b = Add(a, z)", "m = MatMul(z, t)  b = Add(a, m)")
        weights["t"] = (12, 12)
        given["z"] = rng.normal(size=(64, 12)).astype(np.float32)
    elif kind == "normalised by the batch":
        text = text.replace("r = Relu(a)", "b = BatchNormalization(a, s, c, m, t)  r = Relu(b)")
        weights |= {name: np.full(12, value, np.float32) for name, value in (("s", 1), ("m", 0.1), ("t", 1))}
    else:
        text = text.replace("r = Relu(a)", "b = Relu(a)  r = Dropout(b)")
    model = net(text, weights)
    data = gm.Data(given, model.run(given)["y"].argmax(1))
    small, _ = searched(model, model, data, PLAN)
    assert small.n_weights <= 0.55 * model.n_weights
    assert small.inputs == model.inputs
    assert small.outputs == model.outputs
