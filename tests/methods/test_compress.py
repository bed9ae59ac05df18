"""Compression of a small residual network, half of whose blocks hardly do anything."""

import dataclasses
import importlib
import itertools

import numpy as np
import pytest
import torch
from counted_clock import set_clock
from handmade import model
from onnx import helper
from torch.nn import functional

import graphmod as gm
from graphmod.methods import measuring

torch.set_num_threads(1)
WIDTH, HIDDEN, BLOCKS, CLASSES = 24, 96, 6, 5
IDLE = {2, 3, 5}
"""The blocks whose branch adds next to nothing, counted from 1."""


def network():
    """Return x -> MatMul, Relu (h0) -> residual blocks (h1, h2, ...) -> MatMul (logits)."""
    rng = np.random.default_rng(4)

    def normal(n_in, n_out, gain):
        return (gain * rng.normal(size=(n_in, n_out)) / np.sqrt(n_in)).astype(np.float32)

    weights = {"stem": normal(16, WIDTH, 1.5)}
    operators = [helper.make_node("MatMul", ["x", "stem"], ["s"]), helper.make_node("Relu", ["s"], ["h0"])]
    for i in range(1, BLOCKS + 1):
        weights[f"up{i}"] = normal(WIDTH, HIDDEN, 1.5)
        weights[f"down{i}"] = normal(HIDDEN, WIDTH, 1e-4 if i in IDLE else 1.5)
        operators += [
            helper.make_node("MatMul", [f"h{i - 1}", f"up{i}"], [f"u{i}"]),
            helper.make_node("Tanh", [f"u{i}"], [f"t{i}"]),
            helper.make_node("MatMul", [f"t{i}", f"down{i}"], [f"d{i}"]),
            helper.make_node("Add", [f"h{i - 1}", f"d{i}"], [f"h{i}"]),
        ]
    weights["head"] = normal(WIDTH, CLASSES, 1)
    operators.append(helper.make_node("MatMul", [f"h{BLOCKS}", "head"], ["logits"]))
    return model(operators, {"x": ["n", 16]}, {"logits": ["n", CLASSES]}, weights)


@pytest.fixture(scope="module")
def original():
    return network()


@pytest.fixture(scope="module")
def data(original):
    """Labels are what the network says, so that it is right on every sample."""
    rng = np.random.default_rng(5)
    parts = []
    for size in (400, 200, 150):
        x = rng.normal(size=(size, 16)).astype(np.float32)
        parts.append(gm.Data({"x": x}, original.run({"x": x})["logits"].argmax(axis=1)))
    return gm.Splits(*parts)


@pytest.fixture(scope="module", autouse=True)
def clock():
    """Let blocks take as long as they have multiply-accumulates, so that no choice depends on the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patched(patch)
        yield


def patched(monkeypatch):

    def ratios(clock, models):
        whole = gm.graph.cost(clock.line.original).macs + 20.0 * BLOCKS
        blocks = [sum(operator.op_type == "Tanh" for operator in one.operators) for one in models]
        return [(gm.graph.cost(one).macs + 20.0 * n) / whole for one, n in zip(models, blocks, strict=True)]

    set_clock(monkeypatch, 20.0, ratios, spread=6)
    monkeypatch.setattr(measuring, "ROUNDS", 3)
    monkeypatch.setattr(importlib.import_module("graphmod.methods.compress.verb"), "POINTS", 5)


def compress(original, data, **options):
    return gm.compress(original, data, **{"target": 0.6, "epochs": 2, "batch_sizes": (1, 16), **options})


@pytest.fixture(scope="module")
def result(original, data, clock):  # noqa: ARG001  # the clock must be there first
    return compress(original, data)


@pytest.fixture(scope="module")
def shuffled(data):
    labels = np.random.default_rng(0).permutation(data.test.targets)
    return gm.Splits(data.train, data.calibration, gm.Data(data.test.inputs, labels))


def share(network, part):
    logits = network.run(dict(part.inputs))["logits"]
    return sum(int(row.argmax() == label) for row, label in zip(logits, part.targets, strict=True)) / len(logits)


def test_the_idle_blocks_go_and_the_report_says_so(result, original, data, tmp_path):
    report = result.report
    replaced = {
        block for change in report.changes for block in range(int(change.entry[1:]) + 1, int(change.exit[1:]) + 1)
    }
    assert replaced == IDLE
    path = result.model.save(tmp_path / "small.onnx")
    loaded = gm.load(path)
    assert (loaded.inputs, loaded.outputs) == (original.inputs, original.outputs)
    for measured, one in ((report.before, original), (report.after, loaded)):
        weights = [np.asarray(one.initializer(name)) for name in one.initializers]
        assert measured.weights == sum(w.size for w in weights if w.dtype.kind == "f")
        assert measured.bytes == len(one.proto().SerializeToString())
        assert measured.calibration == pytest.approx(share(one, data.calibration))
        assert measured.test == pytest.approx(share(one, data.test))
        assert set(measured.latency) == {1, 16}
        assert min(measured.latency.values()) > 0
    assert report.after.bytes == path.stat().st_size
    dense = {"before": BLOCKS, "after": BLOCKS - len(IDLE)}
    products = {key: 16 * WIDTH + n * 2 * WIDTH * HIDDEN + WIDTH * CLASSES for key, n in dense.items()}
    assert report.before.macs == products["before"]
    assert products["after"] <= report.after.macs < products["before"]
    assert report.after.weights < report.before.weights
    assert report.after.calibration >= report.before.calibration - report.max_drop
    assert report.samples == {"train": 400, "calibration": 200, "test": 150}
    paths = {block.path for block in gm.blocks(original).walk()} | set(original.tensors)
    for change in report.changes:
        assert {change.entry, change.exit} <= set(original.tensors)
        assert set(change.blocks) <= paths
        assert change.damage >= 0
        assert change.saving > 0
    assert result.original is original
    result.module_map.check(original)
    assert report.as_dict()["changes"]


def test_untouched_weights_are_the_same_bytes(result, original):
    kept = [name for name in result.model.initializers if name in original.initializers]
    same = [
        name
        for name in kept
        if result.model.initializers[name].SerializeToString() == original.initializers[name].SerializeToString()
    ]
    differing = sum(original.tensors[name].size for name in set(kept) - set(same))
    assert "stem" in same
    assert differing <= result.report.trained_weights <= result.model.n_weights


def test_test_labels_decide_nothing(result, original, shuffled):
    other = compress(original, shuffled)
    assert result.model.proto().SerializeToString() == other.model.proto().SerializeToString()
    assert result.report.changes == other.report.changes
    assert result.report.after.test > other.report.after.test == pytest.approx(share(other.model, shuffled.test))


def test_what_may_not_be_lost_is_not_lost(original, data):
    for max_drop, epochs in ((0.0, 0), (0.05, 1)):
        result = compress(original, data, max_drop=max_drop, target=None, epochs=epochs)
        assert share(result.model, data.calibration) >= share(original, data.calibration) - max_drop - 1e-9


def test_a_module_map_made_before(result, original, data):
    sim = gm.similarity(original, data.train)
    one = gm.modularize(sim, n_modules=len(sim.boundaries))
    alone = compress(original, data, module_map=one)
    kinds = {change.kind.split()[0] for change in alone.report.changes}
    assert kinds <= {"pruned", "factored"}  # every boundary is a module of its own: steps stay, if with fewer channels
    assert alone.module_map is one
    whole = compress(original, data, module_map=gm.modularize(sim, threshold=0.8))
    assert whole.model.digest == result.model.digest
    other = gm.remove(original, ("h1", "h2"))
    with pytest.raises(gm.RefusedError, match="another model"):
        compress(other, data, module_map=one)


def test_a_metric_and_a_loss_of_ones_own(original, data):
    called = {"metric": 0, "loss": 0}

    def targets(part):
        return gm.Data(part.inputs, original.run(dict(part.inputs))["logits"])

    def metric(outputs, wanted):
        called["metric"] += 1
        assert outputs.shape == wanted.shape
        return 1 - float(np.abs(np.asarray(outputs) - wanted).mean())

    def loss(outputs, wanted):
        called["loss"] += 1
        return functional.mse_loss(outputs, wanted)

    parts = gm.Splits(*(targets(part) for part in (data.train, data.calibration, data.test)))
    result = compress(original, parts, metric=metric, loss=loss, max_drop=0.05)
    assert min(called.values()) > 0
    report = result.report
    assert report.before.test == pytest.approx(1, abs=1e-5)
    x = parts.test.inputs["x"]
    expected = 1 - np.abs(result.model.run({"x": x})["logits"] - parts.test.targets).mean()
    assert report.after.test == pytest.approx(expected, abs=1e-5)
    assert report.changes


def test_a_model_with_a_record_of_edits_keeps_it_as_it_was(data):
    edited = gm.rename(network(), {"h1": "first"})
    before = [(entry.key, entry.value) for entry in edited.proto().metadata_props]
    after = compress(edited, data, epochs=1, max_drop=0.5).model
    assert before
    assert [(entry.key, entry.value) for entry in after.proto().metadata_props] == before


def test_refusals(original, data):
    for options, match in [
        ({"max_drop": -0.1}, "max_drop"),
        ({"max_drop": 1.0}, "max_drop"),
        ({"target": 0.0}, "target"),
        ({"target": 1.5}, "target"),
        ({"threshold": 1.5}, "threshold"),
    ]:
        with pytest.raises(gm.RefusedError, match=match):
            compress(original, data, **options)
    parts = (data.train, data.calibration, data.test)
    for wrong, shift in itertools.product(range(3), (-1, 1)):
        moved = [gm.Data(p.inputs, p.targets + shift * CLASSES) if i == wrong else p for i, p in enumerate(parts)]
        with pytest.raises(gm.InvalidDataError, match="out of range"):
            compress(original, gm.Splits(*moved))
    with pytest.raises(gm.InvalidDataError, match="no targets"):
        compress(original, gm.Splits(gm.Data(data.train.inputs), data.calibration, data.test))


@pytest.mark.slow
def test_the_demo():
    original, parts = gm.load(gm.demo.model_path()), gm.demo.splits()
    result = gm.compress(original, parts, target=0.85, epochs=3)
    assert result.report.changes
    assert result.model.n_bytes < 0.95 * original.n_bytes
    assert gm.accuracy(result.model, parts.test) == pytest.approx(result.report.after.test)
    assert result.report.after.calibration >= result.report.before.calibration - 0.005


def test_a_model_of_a_fixed_batch(data):
    fixed = gm.rebatch(network(), 1)
    parts = [part[:40] for part in (data.train, data.calibration, data.test)]
    with pytest.warns(UserWarning, match="40 calibration samples"):
        result = gm.compress(fixed, gm.Splits(*parts), epochs=1, target=0.9)
    assert list(result.report.before.latency) == [1]
    assert fixed.inputs == result.model.inputs


@pytest.mark.parametrize("wrong", [{"batch_sizes": ()}, {"batch_sizes": (0,)}, {"loss": functional.mse_loss}])
def test_arguments_that_make_no_sense(original, data, wrong):
    with pytest.raises(gm.RefusedError):
        gm.compress(original, data, **wrong)


def test_a_module_map_off_the_trunk(original, data):
    found = gm.similarity(original, data.train, ["h0", "h1", "t2", "h2"])
    with pytest.raises(gm.RefusedError, match="'t2'"):
        gm.compress(original, data, module_map=gm.modularize(found, n_modules=1))


def test_little_data_and_chance_are_told(original, data):
    few = gm.Splits(data.train, data.calibration[:20], data.test)
    wrong = gm.Data(few.calibration.inputs, (np.array(few.calibration.targets) + 1) % CLASSES)
    with (
        pytest.warns(UserWarning, match="20 calibration samples cannot show a drop of 0.50%"),
        pytest.warns(UserWarning, match="about as often as chance among 5 classes"),
    ):
        gm.compress(original, gm.Splits(few.train, wrong, few.test), target=0.9, epochs=0)


def plain():
    """Return convolutions in a row, smaller towards the end, and a classifier: no block has a shortcut."""
    rng = np.random.default_rng(3)
    weights, operators, before, n_in = {}, [], "x", 1
    for i, (n_out, stride) in enumerate([(6, 1), (6, 1), (8, 2), (8, 1), (8, 1)], 1):
        weights[f"k{i}"] = (1.5 * rng.normal(size=(n_out, n_in, 3, 3)) / np.sqrt(9 * n_in)).astype(np.float32)
        conv = {"pads": [1] * 4, "strides": [stride] * 2, "name": f"conv{i}"}
        operators += [
            helper.make_node("Conv", [before, f"k{i}"], [f"c{i}"], **conv),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"),
        ]
        before, n_in = f"r{i}", n_out
    weights["head"] = rng.normal(size=(8, CLASSES)).astype(np.float32)
    operators += [
        helper.make_node("GlobalAveragePool", [before], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "head"], ["logits"], name="head"),
    ]
    return model(operators, {"x": ["n", 1, 8, 8]}, {"logits": ["n", CLASSES]}, weights)


def gated():
    """Return residual blocks on tokens whose branches are gated by another input, which is context."""
    rng = np.random.default_rng(6)
    weights, operators, before = {}, [], "x"
    for i in range(1, 5):
        weights[f"w{i}"] = (rng.normal(size=(12, 12)) / np.sqrt(12)).astype(np.float32)
        operators += [
            helper.make_node("MatMul", [before, f"w{i}"], [f"m{i}"], name=f"product{i}"),
            helper.make_node("Tanh", [f"m{i}"], [f"t{i}"], name=f"tanh{i}"),
            helper.make_node("Mul", [f"t{i}", "gate"], [f"g{i}"], name=f"gated{i}"),
            helper.make_node("Add", [before, f"g{i}"], [f"h{i}"], name=f"add{i}"),
        ]
        before = f"h{i}"
    weights["head"] = rng.normal(size=(12, CLASSES)).astype(np.float32)
    operators += [
        helper.make_node("ReduceMean", [before], ["p"], axes=[1], keepdims=0, name="mean"),
        helper.make_node("MatMul", ["p", "head"], ["logits"], name="head"),
    ]
    inputs = {"x": ["n", 4, 12], "gate": ["n", 1, 12]}
    return model(operators, inputs, {"logits": ["n", CLASSES]}, weights)


@pytest.mark.parametrize(("make", "shapes"), [(plain, {"x": (1, 8, 8)}), (gated, {"x": (4, 12), "gate": (1, 12)})])
def test_other_networks(make, shapes):
    rng, whole = np.random.default_rng(7), make()
    parts = []
    for size in (300, 150, 100):
        samples = {name: rng.random((size, *shape), np.float32) for name, shape in shapes.items()}
        parts.append(gm.Data(samples, whole.run(samples)["logits"].argmax(axis=1)))
    result = gm.compress(whole, gm.Splits(*parts), max_drop=0.1, epochs=8, batch_sizes=(4,), threshold=0.3)
    assert result.report.changes
    assert (result.model.inputs, result.model.outputs) == (whole.inputs, whole.outputs)
    assert result.report.after.calibration >= result.report.before.calibration - 0.1
    assert result.report.after.macs < gm.graph.cost(whole).macs
    assert sum(point.is_chosen for point in result.front) == 1
    chosen = next(point for point in result.front if point.is_chosen)
    assert chosen.weights == result.model.n_weights
    assert chosen.after == pytest.approx(result.report.after.calibration)
    assert chosen.trained_weights == result.report.trained_weights


def test_the_front_as_a_picture(result, tmp_path):
    result.plot_front(tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert [point.latency for point in result.front] == sorted(point.latency for point in result.front)
    nothing = dataclasses.replace(result, report=dataclasses.replace(result.report, front=()))
    with pytest.raises(gm.RefusedError, match="nothing could be replaced"):
        nothing.plot_front()
