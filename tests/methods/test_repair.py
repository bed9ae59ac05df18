"""Repair finds the part that was broken on purpose, and mends it."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from planted import net
from small_networks import KINDS, samples, trained

import graphmod as gm
from graphmod.methods.deeparc.weaken import matrices, weaken
from graphmod.methods.repair import faults, units
from graphmod.methods.repair.finite import finite
from graphmod.methods.repair.patching import FAR, between, gap, sound_values, values
from graphmod.methods.tuning import Tuned
from graphmod.rewrite.draft import Draft

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
    done = gm.repair(weak, samples(kind), epochs=3, share=0.5)  # some of the units are more than a fifth of the weights
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


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    "wrong", [{"seed": -1}, {"epochs": -1}, {"patience": 0}, {"learning_rate": 0}, {"learning_rate": np.nan}]
)
def test_arguments_are_refused_also_where_nothing_is_trained(beside, wrong):
    with pytest.raises(gm.RefusedError, match=r"at least 0|out of range"):
        gm.repair(M, DATA, healthy=M if beside else None, **wrong)


def with_values(model, name, odd, n=1):
    """Return a model with the first scalars of a weight replaced."""
    draft, value = Draft(model), model.initializer(name).copy()
    value.flat[:n] = odd
    draft.set_initializer(name, value)
    return draft.finish()


def kernel(model, path):
    """Return the name of a unit's kernel or matrix."""
    unit = next(unit for unit in units(model) if unit.path == path)
    return max(sorted(unit.tensors), key=lambda name: model.tensors[name].size)


@pytest.mark.filterwarnings("ignore:the model is right on")
@pytest.mark.parametrize(("odd", "n"), [(np.nan, 1), (np.inf, 1), (-np.inf, 1), (np.nan, 10**6), (3e38, 100)])
def test_a_healthy_network_tells_weights_that_are_no_numbers(odd, n):
    healthy = trained("plain")
    bad = with_values(healthy, kernel(healthy, "4"), odd, n)
    done = gm.repair(bad, samples("plain"), healthy=healthy)
    assert done.report.blocks == ("4",)
    assert 0 < done.report.weights_trained <= done.report.ranking[0].weights
    assert done.report.after["test"] >= gm.accuracy(healthy, samples("plain").test) - 0.01
    json.dumps(done.report.as_dict(), allow_nan=False)


@pytest.mark.filterwarnings("ignore:the model is right on")
@pytest.mark.parametrize(("odd", "n"), [(np.nan, 1), (np.inf, 1), (-np.inf, 1), (np.nan, 10**6)])
def test_labels_alone_tell_weights_that_are_no_numbers(odd, n):
    healthy = trained("plain")
    bad = with_values(healthy, kernel(healthy, "4"), odd, n)
    done = gm.repair(bad, samples("plain"), epochs=2)
    assert done.report.ranking[0].blocks == ("4",)
    assert "4" in done.report.blocks
    assert done.report.after["test"] >= gm.accuracy(healthy, samples("plain").test) - 0.05
    assert all(np.isfinite(done.model.initializer(name)).all() for name in done.model.initializers)
    json.dumps(done.report.as_dict(), allow_nan=False)


@pytest.mark.filterwarnings("ignore:the model is right on")
def test_all_units_with_weights_that_are_no_numbers_are_repaired_or_none():
    bad = with_values(with_values(M, kernel(M, "layer1.1"), np.nan, 9), kernel(M, "layer3.1"), -np.inf)
    for target in (None, 0.9):
        report = gm.repair(bad, DATA, epochs=0, target=target).report
        assert {one.blocks[0] for one in report.ranking[:2]} == {"layer1.1", "layer3.1"}
        assert {"layer1.1", "layer3.1"} <= set(report.blocks)
        assert report.trained_share <= 0.2
        assert report.after["test"] > 0.9
    with pytest.raises(gm.RefusedError, match=r"layer1.1, layer3.1 are not finite, and share=0.1 is too little"):
        gm.repair(bad, DATA, share=0.1)


@pytest.mark.filterwarnings("ignore:the model is right on")
def test_any_metric_is_better_than_one_that_is_no_number():
    healthy, data = trained("plain"), samples("plain")
    bad = with_values(healthy, kernel(healthy, "4"), np.nan)

    def error(outputs, targets):
        return (outputs.softmax(1) - torch.eye(10)[targets.long()]).square().mean()

    done = gm.repair(bad, data, loss=error, epochs=0)
    assert "4" in done.report.blocks
    assert np.isfinite(done.report.after["test"])


def test_overflow_is_seen_by_what_skipping_saves():
    """Weights are finite and outputs are not: no gradient tells anything, but the loss is a number without the unit."""
    done = gm.repair(with_values(M, "layer3.3.conv2.weight", 3e38, 100), DATA, epochs=0, target=0.9)
    assert done.report.ranking[0].blocks == ("layer3.3",)
    assert done.report.after["test"] > 0.9
    json.dumps(done.report.as_dict(), allow_nan=False)


MASKED = """(float[n,4] x) => (float[n,4] y) {
    a = MatMul(x, w)  s = Add(a, mask)  p = Softmax(s)  r = Mul(p, v)  y = MatMul(r, q) }"""


def test_infinite_values_that_are_meant_stay():
    mask = np.array([[0, 0, -np.inf, 0]], np.float32)
    rng = np.random.default_rng(0)
    w, q = (rng.normal(size=(4, 4)).astype(np.float32) for _ in range(2))
    model = net(MASKED, {"w": w, "mask": mask, "v": np.array([1, 2, 3, 9], np.float32), "q": q})
    x = rng.normal(size=(20, 4)).astype(np.float32)

    def works(one):
        return bool(np.isfinite(one.run({"x": x})["y"]).all())

    parts = units(model)
    assert finite(model, parts, works) == (model, {})
    for odd in (np.nan, np.inf, -np.inf):
        bad = with_values(with_values(model, "w", odd, 2), "v", np.nan)
        found, counts = finite(bad, parts, works)
        assert works(found)
        assert sum(counts.values()) == (4 if odd == -np.inf else 3)
        assert found.initializer("v")[0] == 3
        assert np.array_equal(found.initializer("w").flat[:2], [np.median(w.flat[2:])] * 2)
        assert np.array_equal(found.initializer("w").flat[2:], w.flat[2:])
        assert np.isinf(found.initializer("mask")[0, 2]) == (odd != -np.inf)
    whole = finite(with_values(model, "w", np.nan, 16), parts, works)[0]
    assert not whole.initializer("w").any()


def test_a_healthy_model_that_is_broken_too_is_refused():
    bad = with_values(trained("plain"), kernel(trained("plain"), "4"), np.nan)
    with pytest.raises(gm.RefusedError, match=r"broken too: tensor '.+' is not finite"):
        gm.repair(trained("plain"), samples("plain"), healthy=bad)


@pytest.mark.parametrize(("beside", "batch"), [(True, 50), (False, 150)])
def test_a_model_that_takes_more_samples_than_are_looked_at(beside, batch):
    _, weak = broken("plain", "6")
    whole = samples("plain")
    data = gm.Splits(whole.train, whole.calibration[:300], whole.test[:300])
    healthy = gm.rebatch(trained("plain"), batch) if beside else None
    done = gm.repair(gm.rebatch(weak, batch), data, healthy=healthy, epochs=1)
    assert done.report.ranking[0].blocks == ("6",)
    assert done.report.after["test"] > done.report.before["test"] + 0.2
    few = gm.Splits(whole.train[:40], data.calibration, data.test)
    with pytest.raises(gm.InvalidDataError, match=f"takes {batch} samples at a time, and the data has 40"):
        gm.repair(gm.rebatch(weak, batch), few, healthy=healthy)


def test_labels_tell_nothing_where_no_gradient_flows():
    proto = trained("plain").proto()
    proto.graph.node.append(onnx.helper.make_node("Hardmax", ["logits"], ["best"], "best"))
    proto.graph.output[0].name = "best"
    with pytest.raises(gm.RefusedError, match="no gradient reaches a weight"):
        gm.repair(gm.load(proto), samples("plain"))


def test_a_model_without_weights_has_nothing_to_repair():
    model = net("(float[n,3] x) => (float[n,3] y) { y = Relu(x) }", {})
    part = gm.Data({"x": np.eye(3, dtype=np.float32)}, np.arange(3))
    with pytest.raises(gm.RefusedError, match=r"no weights .* nothing to repair"):
        gm.repair(model, gm.Splits(part, part, part))


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
    for odd in (np.nan, np.inf, 1e30):
        assert gap(np.full((50, 4), odd), wanted) == FAR


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


def test_a_constant_that_is_no_number_is_named_where_it_is_no_weight_of_a_unit():
    """A scale in an operator of its own: labels alone cannot tell what it should be."""
    scaled = gm.insert(M, "image", "Mul(B=0.5)")
    proto = scaled.proto()
    name = next(n for n, kind in scaled.constants.items() if kind.is_float and not kind.shape)
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            tensor.raw_data = np.float32(np.nan).tobytes()
    with pytest.raises(gm.RefusedError, match=f"constant '{name}' has values that are no numbers"):
        gm.repair(gm.load(proto), DATA)
