"""Prices against counted costs and physical removal, and budgets of planted times."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from planted import net

import graphmod as gm
from graphmod.graph import cost
from graphmod.methods.gates import skippable_blocks
from graphmod.methods.reuse.price import Prices
from graphmod.methods.skipping import skip
from graphmod.probe import LatencyTable
from graphmod.pruning import cut, groups

PLAIN = net(
    "(float[n,3,4,4] x) => (float[n,2] y) { [one] a = Conv(x, w, c)  r = Relu(a)  [two] b = Conv(r, u)  s = Relu(b)"
    "  p = GlobalAveragePool(s)  f = Flatten(p)  y = MatMul(f, v) }",
    {"w": (6, 3, 1, 1), "c": (6,), "u": (8, 6, 3, 3), "v": (8, 2)},
)
RESIDUAL = net(
    "(float[n,4] x) => (float[n,2] y) { a = MatMul(x, w)  r = Relu(a)"
    "  b = MatMul(r, u1)  c = Relu(b)  d = MatMul(c, v1)  s = Add(r, d)"
    "  e = MatMul(s, u2)  f = Relu(e)  g = MatMul(f, v2)  t = Add(s, g)  y = MatMul(t, h) }",
    {"w": (4, 6), "u1": (6, 10), "v1": (10, 6), "u2": (6, 4), "v2": (4, 6), "h": (6, 2)},
)


def priced(model: gm.Model, budget: str) -> Prices:
    found = groups(model)
    return Prices.of(found, skippable_blocks(found), budget, LatencyTable())


@pytest.mark.parametrize("budget", ["weights", "macs"])
@pytest.mark.parametrize("model", [PLAIN, RESIDUAL, gm.load(gm.demo.model_path())], ids=["plain", "residual", "demo"])
def test_the_total_is_the_networks_cost(model, budget):
    assert priced(model, budget).total == pytest.approx(getattr(cost(model), budget))


@pytest.mark.parametrize("budget", ["weights", "macs"])
@pytest.mark.parametrize("model", [PLAIN, RESIDUAL], ids=["plain", "residual"])
def test_half_of_a_group_costs_what_its_removal_saves(model, budget):
    found, prices = groups(model), priced(model, budget)
    assert len(found) >= 2
    for group in found:
        gone = np.zeros(found.n_units, bool)
        gone[group.first : group.first + group.n_units // 2] = True
        left = getattr(cost(cut(found, gone, leftovers=False)), budget)
        closed = np.append(gone, np.zeros(len(prices.blocks), bool))
        assert prices.left(closed) == pytest.approx(left)


@pytest.mark.parametrize("budget", ["weights", "macs"])
def test_a_block_costs_what_skipping_it_saves(budget):
    found = groups(RESIDUAL)
    blocks, prices = skippable_blocks(found), priced(RESIDUAL, budget)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        closed = np.zeros(found.n_units + 2, bool)
        closed[found.n_units + number] = True
        assert prices.left(closed) == pytest.approx(getattr(cost(skip(RESIDUAL, [block])), budget))


def test_units_inside_a_closed_block_are_paid_for_with_it():
    found, prices = groups(RESIDUAL), priced(RESIDUAL, "weights")
    place = {group.n_units: group for group in found}
    assert set(place) == {6, 10, 4}
    assert prices.inside[place[10].own].tolist() == [0] * 10
    assert prices.inside[place[4].own].tolist() == [1] * 4
    assert prices.inside[place[6].own].tolist() == [-1] * 6
    closed = np.zeros(found.n_units + 2, bool)
    closed[found.n_units] = True
    alone = prices.left(closed)
    closed[place[10].own] = True
    assert prices.left(closed) == pytest.approx(alone)
    closed[place[4].own] = True  # that block is open
    assert prices.left(closed) == pytest.approx(alone - 4 * 12)


def test_units_of_weights_that_two_blocks_share_are_inside_neither():
    model = net(
        "(float[n,4] x) => (float[n,2] y) { a = MatMul(x, w)  r = Relu(a)"
        "  b = MatMul(r, u)  c = Relu(b)  d = MatMul(c, v1)  s = Add(r, d)"
        "  e = MatMul(s, u)  f = Relu(e)  g = MatMul(f, v2)  t = Add(s, g)  y = MatMul(t, h) }",
        {"w": (4, 6), "u": (6, 10), "v1": (10, 6), "v2": (10, 6), "h": (6, 2)},
    )
    assert set(priced(model, "weights").inside.tolist()) == {-1}


def test_closing_more_never_costs_more():
    """A block can be cheaper than its units, which are priced where half of them are gone."""
    prices = Prices(20.0, np.array([4.0, 4.0]), np.array([5.0]), np.array([0, 0]))
    assert prices.left(np.array([True, True, False])) == 12
    assert prices.left(np.array([True, True, True])) == 12
    assert prices.left(np.array([False, False, True])) == 15


def test_times_are_those_of_the_operators(monkeypatch):
    """Planted: a microsecond a weight, so that latency is priced as weights of operators are."""

    def many(_, signatures, **__):
        return [
            float(sum(prod(o.shape) for o in one.operands if o.constant and len(o.shape) > 1)) for one in signatures
        ]

    monkeypatch.setattr(LatencyTable, "many", many)
    for model in (PLAIN, RESIDUAL):
        timed, counted = priced(model, "latency"), priced(model, "weights")
        biases = sum(prod(one.dims) for one in model.initializers.values() if len(one.dims) == 1)
        assert timed.total == counted.total - biases
        assert timed.blocks.tolist() == counted.blocks.tolist()
        assert timed.inside.tolist() == counted.inside.tolist()
        if not biases:
            assert timed.units == pytest.approx(counted.units)
