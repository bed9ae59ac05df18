"""Units and blocks: the core is in all modules, every other one in one, evenly and by relevance."""

from __future__ import annotations

import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import net
from planted_answers import pairs, splits

from graphmod.methods.gates import Gated, skippable_blocks, without
from graphmod.methods.modular.assignment import assigned
from graphmod.methods.modular.relevance import relevance
from graphmod.methods.modular.size import Size
from graphmod.pruning import groups

WIDE = net(
    "(float[n,4] x) => (float[n,3] y) { a = MatMul(x, w)  r = Relu(a)  b = MatMul(r, v)  s = Relu(b)"
    "  y = MatMul(s, h) }",
    {"w": (4, 32), "v": (32, 20), "h": (20, 3)},
)


def drawn(n_gates: int, n_classes: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((n_classes, n_gates))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 12), st.floats(0, 1), st.integers(0, 5))
def test_what_is_not_core_has_one_owner_and_owners_share_evenly(seed, n_classes, core, n_core_blocks):
    found, n_blocks = groups(WIDE), 5
    fixed = np.zeros(found.n_units + n_blocks, bool)
    modules = assigned(found, drawn(len(fixed), n_classes, seed), fixed, core, n_core_blocks)
    owners = modules.uses.sum(0)
    assert set(owners[: found.n_units].tolist()) <= {1, n_classes}
    assert set(owners[found.n_units :].tolist()) <= {0, n_classes}, "blocks are core, or come with more classes"
    for group in found:
        own = modules.uses[:, group.own]
        n_core = int((owners[group.own] == n_classes).sum())
        assert n_core == max(1, round(core * group.n_units))
        assert np.ptp(own.sum(1)) <= 1
    assert (owners[found.n_units :] == n_classes).sum() == n_core_blocks
    assert np.ptp(modules.uses.sum(1)) <= 3, "who has one more in a group has none more in the next"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.data())
def test_more_classes_open_more_and_all_of_them_everything(seed, data):
    found = groups(WIDE)
    modules = assigned(found, drawn(found.n_units, 6, seed), np.zeros(found.n_units, bool), 0.2, 0, 8)
    some = data.draw(st.sets(st.integers(0, 5), min_size=1))
    more = some | data.draw(st.sets(st.integers(0, 5)))
    opened = modules.opened(sorted(some))
    assert opened.sum() <= modules.opened(sorted(more)).sum()
    assert (modules.uses.all(0) <= opened).all()
    assert (modules.uses[sorted(some)].any(0) <= opened).all()
    assert modules.opened(range(6)).all()
    first, second = found
    assert opened[first.own].sum() % 8 == 0
    assert opened[second.own].sum() in (8, 16, 20), "rounded up, but to no more than there is"


def test_the_most_relevant_units_are_core_and_fixed_ones_before_them():
    found = groups(WIDE)
    told = np.tile(np.arange(1.0, found.n_units + 1), (3, 1))
    fixed = np.zeros(found.n_units, bool)
    fixed[2] = True
    core = assigned(found, told, fixed, 0.25, 0).uses.all(0)
    first, second = (np.flatnonzero(core[group.own]).tolist() for group in found)
    assert first == [2, *range(25, 32)]
    assert second == [*range(15, 20)]


def test_units_go_to_the_classes_that_they_are_relevant_for():
    model, parts = pairs(), splits()
    found = groups(model)
    gated = Gated(found, [])
    told = relevance(gated, parts.train, 4, 0)
    assert told.shape == (4, 8)
    assert (told.argmax(0) == np.repeat(np.arange(4), 2)).all(), "two neurons tell each class"
    modules = assigned(found, told, np.zeros(8, bool), 0.0, 0)
    owned = modules.uses.sum(0) == 1
    assert owned.sum() == 7, "one unit of a group is core"
    assert (modules.uses[np.repeat(np.arange(4), 2), np.arange(8)][owned]).mean() > 0.7


def test_a_class_without_relevance_gets_its_share():
    found = groups(WIDE)
    told = drawn(found.n_units, 4, 0)
    told[2] = 0
    modules = assigned(found, told, np.zeros(found.n_units, bool), 0.25, 0)
    assert modules.uses[2].sum() >= modules.uses[0].sum() - 2


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2", "vgg", "vit12"])
def test_sizes_are_those_of_what_is_left(name):
    model = zoo.network(name, "torchscript").model
    found = groups(model)
    gated = Gated(found, skippable_blocks(found))
    size = Size(found, gated.blocks)
    whole = np.ones(gated.n_gates, bool)
    assert size(whole) == gated.model.n_weights
    told = np.random.default_rng(0).random((3, gated.n_gates))
    for n_core_blocks in (0, len(gated.blocks)):
        gates = assigned(found, told, ~whole, 0.3, n_core_blocks).opened([0])
        small = without(gated.model, gated.blocks, gates)
        assert size(gates) == pytest.approx(small.n_weights, abs=24), "scalars that blocks share are counted for each"
        assert small.n_weights < gated.model.n_weights
