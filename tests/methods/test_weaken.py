"""Weakened networks have lost what they should have, in the blocks that were named."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from small_networks import samples, trained

import graphmod as gm
from graphmod.methods.deeparc import weaken as weakening
from graphmod.methods.deeparc.agreement import agreement
from graphmod.methods.deeparc.repair import locate
from graphmod.methods.deeparc.weaken import matrices, weaken

M = gm.load(gm.demo.model_path())
DATA = gm.demo.splits()


def differing(a, b):
    return {name for name in a.initializers if not np.array_equal(a.initializer(name), b.initializer(name))}


@pytest.mark.parametrize("points", [30, *(pytest.param(points, marks=pytest.mark.slow) for points in (10, 50))])
def test_accuracy_falls_by_so_many_points(points):
    weak = weaken(M, DATA, points, ["layer2.2"])
    lost = gm.accuracy(M, DATA.calibration) - gm.accuracy(weak, DATA.calibration)
    assert abs(lost - points / 100) < 0.04
    assert differing(M, weak) == set(matrices(M, ["layer2.2"]))


def test_values_keep_mean_and_deviation_of_the_weight():
    net = trained("plain")
    weak = weaken(net, samples("plain"), 20, ["4"])
    for name in matrices(net, ["4"]):
        assert weak.initializer(name).std() == pytest.approx(net.initializer(name).std(), rel=0.15)


def test_same_seed_same_values():
    net, data = trained("plain"), samples("plain")
    one, same, other = (weaken(net, data, 30, ["4"], seed=seed) for seed in (1, 1, 2))
    assert one.digest == same.digest != other.digest


def test_weakened_networks_are_not_kept_open(monkeypatch):
    alive: list[weakref.ref[gm.Model]] = []

    def watched(network, part):
        alive.append(weakref.ref(network))
        return gm.accuracy(network, part)

    monkeypatch.setattr(weakening, "accuracy", watched)
    net = trained("plain")
    weak = weaken(net, samples("plain"), 30, ["4"])
    assert len(alive) > 2
    assert {one() for one in alive} <= {net, None}
    assert differing(net, weak)


def test_several_blocks():
    net = trained("plain")
    assert differing(net, weaken(net, samples("plain"), 30, ["4", "6"])) == set(matrices(net, ["4", "6"]))


@pytest.mark.parametrize(
    ("points", "blocks", "told"),
    [(0, ["layer1.1"], "out of range"), (101, ["layer1.1"], "out of range"), (10, ["pool"], "no matrices or kernels")],
)
def test_refusals(points, blocks, told):
    with pytest.raises(gm.RefusedError, match=told):
        weaken(M, DATA, points, blocks)


def test_a_negative_seed_is_refused():
    with pytest.raises(gm.RefusedError, match="seed=-1 is out of range"):
        weaken(M, DATA, 10, ["layer1.1"], seed=-1)


def test_networks_agree_up_to_the_fault():
    near = agreement(weaken(M, DATA, 50, ["layer2.3"]), M, DATA.calibration)
    assert (near[:9] > 0.999).all()  # layer1, layer2.0 and layer2.1 lie before the fault
    assert near[10] < 0.95


@pytest.mark.slow
def test_the_published_rule_finds_the_module_that_departs():
    weak = weaken(M, DATA, 50, ["layer2.3"])
    assert "layer2.3" in [block.path for block in locate(weak, M, DATA)]
