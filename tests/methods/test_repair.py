"""Repair finds the part that was broken on purpose, and mends it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from small_networks import KINDS, samples, trained

import graphmod as gm
from graphmod.methods.deeparc.weaken import matrices, weaken
from graphmod.methods.repair import faults, units
from graphmod.methods.repair.patching import between, gap, sound_values, values
from graphmod.methods.tuning import Tuned

M = gm.load(gm.demo.model_path())
DATA = gm.demo.splits()
FAULTS = {"residual": ("2", "4"), "plain": ("2", "6"), "sequence": ("2", "6"), "transformer": ("blocks_2", "add_2")}

PLANTED = [
    pytest.param(kind, path, marks=() if (kind, path) == ("plain", "2") else pytest.mark.slow)
    for kind, paths in FAULTS.items()
    for path in paths
]


def differing(a, b):
    return {name for name in a.initializers if not np.array_equal(a.initializer(name), b.initializer(name))}


@cache
def broken(kind, path, points=40):
    unit = next(unit for unit in units(trained(kind)) if unit.path == path)
    return unit, weaken(trained(kind), samples(kind), points, [unit.place])


@pytest.mark.parametrize(("kind", "path"), PLANTED)
def test_a_healthy_network_tells_the_fault_and_its_weights(kind, path):
    unit, weak = broken(kind, path)
    done = gm.repair(weak, samples(kind), healthy=trained(kind))
    assert [one.entry for one in done.report.ranking] == [unit.entry]
    assert done.report.blocks == (path,)
    assert differing(weak, done.model) <= unit.tensors
    test = samples(kind).test
    lost, left = (gm.accuracy(trained(kind), test) - gm.accuracy(one, test) for one in (weak, done.model))
    assert left <= 0.05 * lost


@pytest.mark.parametrize(("kind", "path"), PLANTED)
def test_labels_alone_rank_the_fault_first(kind, path):
    unit, weak = broken(kind, path)
    done = gm.repair(weak, samples(kind), epochs=3)
    assert done.report.ranking[0].entry == unit.entry
    assert path in done.report.blocks
    test = samples(kind).test
    lost, left = (gm.accuracy(trained(kind), test) - gm.accuracy(one, test) for one in (weak, done.model))
    assert left <= 0.1 * lost


def test_labels_are_not_needed_beside_a_healthy_network():
    unit, weak = broken("plain", "6")
    bare = {f"x_{name}": getattr(samples("plain"), name).inputs["x"] for name in ("train", "calibration", "test")}
    done = gm.repair(weak, bare, healthy=trained("plain"))
    assert done.report.settings["metric"] == "agreement"
    assert done.report.ranking[0].entry == unit.entry
    assert done.report.before["test"] < 0.7 < 0.97 < done.report.after["test"]


@cache
def twice_broken():
    return weaken(M, DATA, 50, ["layer1.3", "layer3.1"])


def test_several_faults_are_all_found_and_mended():
    done = gm.repair(twice_broken(), DATA, healthy=M)
    assert {one.blocks[0] for one in done.report.ranking} == {"layer1.3", "layer3.1"}
    assert done.report.blocks == ("layer1.3", "layer3.1")
    assert gm.accuracy(done.model, DATA.test) > 0.97


@pytest.mark.slow
def test_a_healthy_network_of_another_precision_will_do():
    weak = weaken(M, DATA, 50, ["layer2.4"])
    done = gm.repair(weak, DATA, healthy=gm.retype(M, "float16"))
    assert done.report.ranking[0].blocks == ("layer2.4",)
    assert gm.accuracy(done.model, DATA.test) > 0.97


def test_the_share_limits_what_changes():
    weak = twice_broken()
    done = gm.repair(weak, DATA, healthy=M, share=0.05)
    assert done.report.blocks == ("layer1.3",)
    assert 0 < done.report.trained_share <= 0.05
    with pytest.raises(gm.RefusedError, match=r"smallest unit in question has"):
        gm.repair(weak, DATA, healthy=M, share=0.01)


def test_enough_is_enough():
    _, weak = broken("plain", "6")
    done = gm.repair(weak, samples("plain"), share=0.5, target=0.9)
    assert "6" in done.report.blocks
    assert gm.accuracy(done.model, samples("plain").calibration) >= 0.9
    assert isinstance(done, Tuned)
    assert set(done.report.seconds) == {"analysis", "caching", "training"}


def test_same_seed_same_result():
    _, weak = broken("plain", "6")
    one, two = (gm.repair(weak, samples("plain"), epochs=1, seed=3) for _ in range(2))
    assert one.model.digest == two.model.digest


@pytest.mark.parametrize("beside", [False, True])
def test_what_works_comes_back_as_it_is(beside):
    net = trained("plain")
    healthy = net if beside else None
    data = samples("plain")
    right = data.calibration.targets == net.run({"x": data.calibration.inputs["x"]})["logits"].argmax(1)
    easy = gm.Splits(data.train, data.calibration[np.flatnonzero(right)], data.test)
    done = gm.repair(net, easy, healthy=healthy, epochs=1)
    if beside:
        assert done.report.ranking == ()
    assert done.report.blocks == ()
    assert done.report.weights_trained == 0
    assert done.report.before == done.report.after
    assert done.model is net or done.model.digest == net.digest


def test_a_model_that_is_at_the_target_is_left_alone():
    done = gm.repair(M, DATA, target=0.9)
    assert done.model is M
    assert not done.report.ranking
    assert not done.report.blocks


def test_refusals():
    x = DATA.train.inputs["image"]
    with pytest.raises(gm.InvalidDataError, match="no labels, and there is no healthy model"):
        gm.repair(M, x)
    for share in (0, 1.5):
        with pytest.raises(gm.RefusedError, match="out of range"):
            gm.repair(M, DATA, share=share)
    for target in (0, 97):
        with pytest.raises(gm.RefusedError, match="out of range"):
            gm.repair(M, DATA, target=target)
    for wrong in ({"samples": 0}, {"batch_size": 0}):
        with pytest.raises(gm.RefusedError, match="must be at least 1"):
            gm.repair(M, DATA, **wrong)
    with pytest.raises(gm.RefusedError, match="another graph: 'image' is"):
        gm.repair(M, DATA, healthy=trained("plain"))
    with pytest.raises(gm.RefusedError, match=r"another graph: it has no tensor '.+' of type"):
        gm.repair(trained("plain"), samples("plain"), healthy=gm.rename(trained("plain"), {"logits": "other"}))


def test_patching_is_the_network_from_there_on():
    """What the outputs are with healthy activations put in is what a network glued from both computes."""
    unit, weak = broken("plain", "4")
    some = samples("plain").test[:16]
    known = values(trained("plain"), some, [unit.entry, unit.exit])
    glued = gm.compose(gm.extract(trained("plain"), "x", unit.exit), [gm.extract(weak, unit.exit, "logits")])
    put_in = between(weak, unit.exit, ["logits"], some, known[unit.exit])["logits"]
    np.testing.assert_allclose(put_in, glued.run({"x": some.inputs["x"]})[glued.main_output], atol=1e-5)
    found = faults(weak, some, units(weak), sound_values(trained("plain"), some, units(weak)))
    assert found[0].score == pytest.approx(found[0].figures["before"] - found[0].figures["behind"])
    assert found[0].figures["behind"] < 1e-5


def test_gap_is_a_root_of_unexplained_variance():
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(50, 4))
    assert gap(np.tile(wanted.mean(0), (50, 1)), wanted) == pytest.approx(1)
    assert gap(wanted + 0.1 * (wanted - wanted.mean(0)), wanted) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "plain" else pytest.mark.slow) for kind in KINDS]
)
def test_units_cover_all_weights_once(kind):
    net = trained(kind)
    found = units(net)
    assert [a.exit for a in found[:-1]] == [b.entry for b in found[1:]]
    assert len({name for unit in found for name in unit.tensors}) == sum(len(unit.tensors) for unit in found)
    large = {name for name, kind_ in net.constants.items() if kind_.is_float and kind_.shape}
    assert large == {name for unit in found for name in unit.tensors}
    assert set(matrices(net, [unit.place for unit in found if unit.weights > 64])) <= large
