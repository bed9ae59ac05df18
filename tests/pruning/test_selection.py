"""Which units go: shares in closed form, ranks and budgets against brute force, costs against those of cut networks."""

from __future__ import annotations

from itertools import pairwise, product
from math import floor

import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import net
from pruned import some_units

import graphmod as gm
from graphmod.pruning import Groups, cut, groups
from graphmod.pruning.selection import STEPS, Selection
from graphmod.pruning.widths import Counted, Widths


def chain(*widths: int) -> Groups:
    """Return the groups of a chain of linear layers of some widths; each layer but the last makes one."""
    sizes, text, before = [5, *widths, 2], "", "x"
    for number in range(len(widths)):
        text += f"m{number} = MatMul({before}, w{number})  t{number} = Tanh(m{number})  "
        before = f"t{number}"
    weights = {f"w{number}": pair for number, pair in enumerate(pairwise(sizes))}
    return groups(net(f"(float[n,5] x) => (float[n,2] y) {{ {text} y = MatMul({before}, w{len(widths)}) }}", weights))


CHAIN, SMALL = chain(12, 8, 5), chain(3, 2)
HALVES = groups(
    net("(float[n,3,4,4] x) => (float[n,2,4,4] y) { a = Conv(x, w)  p, q = Split <axis=1> (a)  r = Conv(p, u)"
        "  s = Conv(q, v)  y = Add(r, s) }", {"w": (8, 3, 1, 1), "u": (2, 4, 1, 1), "v": (2, 4, 1, 1)})
)  # fmt: skip

DEEPER = groups(
    net("(float[n,3,4,4] x) => (float[n,40,4,4] y) { a = Conv(x, w)  p, q = Split <axis=1> (a)  r = Conv(p, u)"
        "  s = Conv(q, v)  t = Add(r, s)  y = Conv(t, z) }",
        {"w": (8, 3, 1, 1), "u": (7, 4, 1, 1), "v": (7, 4, 1, 1), "z": (40, 7, 1, 1)})
)  # fmt: skip


def selection(found: Groups, scores: object = None, multiple_of: int = 1) -> Selection:
    values = np.arange(found.n_units, dtype=float) if scores is None else np.asarray(scores, float)
    return Selection(found, Widths(found), values, multiple_of)


def left(chosen: Selection) -> list[int]:
    return [chosen.left(group) for group in chosen.found]


def counted(found: Groups) -> Counted:
    widths = Widths(found)
    return Counted(widths, widths.weights)


def weights(found: Groups, alive: np.ndarray) -> float:
    return counted(found)(alive)


@settings(deadline=None)
@given(st.floats(0.01, 0.99))
def test_a_share_of_every_group_rounded_to_the_nearest(share):
    chosen = selection(CHAIN)
    for group in CHAIN:
        chosen.take(group, group.n_units, share)
    assert left(chosen) == [max(1, n - floor(n * share + 0.5)) for n in (12, 8, 5)]


def test_the_least_important_go_first():
    chosen = selection(CHAIN, [*[3, 1, 2, 9, 9, 9, 9, 9, 9, 9, 9, 0], *range(8), *range(5)])
    chosen.take(CHAIN.groups[0], 12, 1 / 3)
    assert np.flatnonzero(~chosen.alive).tolist() == [0, 1, 2, 11]


@pytest.mark.parametrize(("multiple", "expected"), [(4, [8, 4, 2]), (8, [6, 4, 2]), (3, [6, 6, 2]), (6, [6, 4, 2])])
def test_widths_are_rounded_up_to_a_multiple_in_groups_of_twice_as_many(multiple, expected):
    chosen = selection(CHAIN, multiple_of=multiple)
    for group in CHAIN:
        chosen.take(group, group.n_units, 0.5)
    assert left(chosen) == expected


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.floats(0.1, 1), st.integers(0, 8))
def test_an_axis_with_a_part_of_a_group_is_never_emptied(scores, at_most, n_left):
    chosen = selection(HALVES, scores)
    chosen.reduce(HALVES.groups[0], n_left, at_most)
    assert chosen.alive[:4].any()
    assert chosen.alive[4:].any()
    cut(HALVES, ~chosen.alive)


@settings(deadline=None)
@given(st.permutations(range(25)), st.integers(0, 25), st.sampled_from([0.5, 0.75, 1.0]))
def test_by_rank_the_least_important_of_all_go(scores, n_gone, at_most):
    chosen = selection(CHAIN, scores)
    chosen.by_rank(n_gone, at_most)
    expected, spare = np.ones(25, bool), {g.name: min(g.n_units - 1, floor(g.n_units * at_most)) for g in CHAIN}
    for unit in np.argsort(scores):
        group = next(g for g in CHAIN if g.first <= unit < g.first + g.n_units)
        if (~expected).sum() < n_gone and spare[group.name]:
            spare[group.name] -= 1
            expected[unit] = False
    assert chosen.alive.tolist() == expected.tolist()


def test_a_multiple_is_the_least_that_is_left():
    chosen = selection(CHAIN, multiple_of=4)
    for group in CHAIN:
        chosen.take(group, group.n_units, 0.99)
    assert left(chosen) == [4, 4, 1]


@settings(deadline=None)
@given(st.floats(0.05, 1.0))
def test_a_common_share_is_the_least_that_meets_the_limit_and_what_is_left_of_it_is_given_back(limit):
    chosen, sizes = selection(CHAIN), (12, 8, 5)
    limit *= weights(CHAIN, np.ones(25, bool))

    def cost(widths: list[int]) -> float:
        return weights(CHAIN, np.concatenate([np.arange(n) < width for n, width in zip(sizes, widths, strict=True)]))

    shares = sorted({0.0, *((k - 0.5) / n + 1e-6 for n in sizes for k in range(1, n + 1))})
    by_share = [[max(1, n - floor(n * share + 0.5)) for n in sizes] for share in shares if share <= 0.9]
    met = chosen.by_common_share(counted(CHAIN), limit, 0.9)
    assert met == (cost(by_share[-1]) <= limit)
    if met:
        found, least = left(chosen), next(widths for widths in by_share if cost(widths) <= limit)
        assert cost(found) <= limit
        assert {more - width for more, width in zip(found, least, strict=True)} <= {0, 1}
        for place, size in enumerate(sizes):
            more = [*found[:place], found[place] + 1, *found[place + 1 :]]
            assert found[place] in (size, least[place] + 1) or cost(more) > limit


@settings(deadline=None)
@given(st.permutations(range(8)), st.floats(0.2, 1.0))
def test_a_budget_takes_no_more_of_a_part_of_a_group_than_may_go(scores, limit):
    chosen = selection(DEEPER, [*scores, *range(7)])
    chosen.by_common_share(counted(DEEPER), limit * weights(DEEPER, np.ones(15, bool)), 0.5)
    assert chosen.alive[:8].reshape(2, 4).sum(axis=1).min() >= 2


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=5, max_size=5), st.floats(0.02, 1.0))
def test_a_budget_is_met_wherever_it_can_be(scores, limit):
    """Every choice of widths of a tiny network says which limits can be met."""
    total = weights(SMALL, np.ones(5, bool))
    chosen = selection(SMALL, scores)
    met = chosen.by_budget(counted(SMALL), limit * total, 1.0)
    choices = product(range(1, 4), range(1, 3))
    costs = [weights(SMALL, np.concatenate([np.arange(3) < a, np.arange(2) < b])) for a, b in choices]
    assert met == (min(costs) <= limit * total)
    assert not met or weights(SMALL, chosen.alive) <= limit * total


def test_a_budget_takes_what_loses_least_for_what_it_saves():
    """Of two layers alike the one whose units matter alike loses none while the other has idle ones."""
    found = chain(32, 32)
    scores = np.concatenate([np.repeat([1.0, 0.001], 16), np.ones(32)])
    chosen = selection(found, scores)
    assert chosen.by_budget(counted(found), 0.75 * weights(found, np.ones(64, bool)), 0.9)
    assert chosen.alive[:16].all()
    assert chosen.alive[32:].all()


def test_a_group_that_matters_nothing_goes_first():
    found = chain(32, 32)
    chosen = selection(found, np.concatenate([np.ones(32), np.zeros(32)]))
    assert chosen.by_budget(counted(found), 0.5 * weights(found, np.ones(64, bool)), 0.9)
    assert left(chosen)[0] == 32


def test_units_that_harm_go_before_units_that_help():
    """Importances below zero, as signed estimates of the loss have them, are no reason to stay."""
    found = chain(32, 32)
    chosen = selection(found, np.concatenate([np.ones(32), np.linspace(-2, 1, 32)]))
    assert chosen.by_budget(counted(found), 0.7 * weights(found, np.ones(64, bool)), 0.9)
    assert left(chosen)[0] == 32


@pytest.mark.parametrize("multiple", [1, 4])
def test_a_budget_keeps_to_steps_and_to_the_least(multiple):
    found = chain(32, 8)
    chosen = selection(found, multiple_of=multiple)
    assert not chosen.by_budget(counted(found), 1, 0.75)
    assert left(chosen) == [max(8, multiple), max(2, multiple)]
    assert all(n % multiple == 0 for n in left(chosen))
    assert 32 // STEPS == 2


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=25, max_size=25), st.integers(0, 2))
def test_the_part_of_a_cost_that_a_group_concerns_changes_as_the_whole_does(left, place):
    group, cost, before = CHAIN.groups[place], counted(CHAIN), np.array(left)
    after = before.copy()
    after[group.first : group.first + group.n_units // 2] ^= True
    assert cost.part(place, after) - cost.part(place, before) == cost(after) - cost(before)


def test_a_budget_looks_at_a_part_of_the_network_for_every_step():
    """What is looked at for a group of a long chain is what its neighbours are, however long the chain is."""
    found = chain(*[4] * 100)
    widths = Widths(found)
    for polynomial in (widths.weights, widths.macs):
        assert max(len(polynomial.products(axes)) for axes in widths.axes_of) == 2


def test_shares_of_later_steps_are_of_the_whole():
    smaller = groups(cut(CHAIN, np.arange(25) % 2 == 0))
    chosen = Selection(smaller, Widths(smaller), np.arange(12.0), whole=CHAIN)
    assert chosen.first == {"MatMul_0": 12, "MatMul_2": 8, "MatMul_4": 5}
    assert not chosen.by_budget(counted(smaller), 0, 0.75)
    assert left(chosen) == [3, 2, 2]


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2", "vit12", "gpt2"])
def test_widths_foretell_what_a_cut_network_costs(name):
    network = zoo.network(name, "current")
    found = groups(network.model)
    for removed in (some_units(found, seed=3), np.zeros(found.n_units, bool)):
        widths = Widths(found)
        counts, cost = widths(~removed), gm.graph.cost(cut(found, removed, leftovers=False))
        assert (widths.weights(counts), widths.macs(counts)) == (cost.weights, cost.macs)


def test_what_is_unfused_for_training_costs_what_it_is_fused_to():
    model, data = gm.load(gm.demo.model_path()), gm.demo.splits().calibration[:16]
    found = groups(gm.unfuse(model, data))
    assert found.model.n_weights > model.n_weights
    widths = Widths(found)
    for removed in (some_units(found, seed=3), np.zeros(found.n_units, bool)):
        fused = gm.fuse(cut(found, removed), kinds=["unfused"])
        assert widths.weights(widths(~removed)) == fused.n_weights
