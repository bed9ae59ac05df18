"""Re-engineering as a whole: physically smaller networks of the signature that was asked for, and what is refused."""

from __future__ import annotations

import importlib
import json
from functools import cache
from math import prod

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from planted import net
from planted_answers import images, pairs, splits, trained

import graphmod as gm
from graphmod.errors import InvalidDataError, InvalidModelError, RefusedError
from graphmod.graph import cost
from graphmod.methods.reuse import Reengineered, Task
from graphmod.methods.reuse.start import among_classes
from graphmod.probe import LatencyTable, share_correct

verb = importlib.import_module("graphmod.methods.reuse.reengineer")

QUICK = {"steps": 60, "shrink_every": 30, "epochs": 2, "batch_sizes": (1,)}


@cache
def digits() -> Reengineered:
    """Return what 0, 1 and 7 need of the demo's network."""
    model = gm.load(gm.demo.model_path())
    return gm.reengineer(model, gm.demo.splits(), [0, 1, 7], weights=0.2, steps=80, shrink_every=40, epochs=2)


def scores(model: gm.Model, part: gm.Data) -> np.ndarray:
    """Run a model in a session of its own."""
    session = ort.InferenceSession(model.proto().SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([model.main_output], dict(part.inputs))[0]


def test_digits_in_a_fifth_of_the_weights():
    whole, found = gm.load(gm.demo.model_path()), digits()
    small, report = found.model, found.report
    onnx.checker.check_model(small.proto(), full_check=True)
    assert small.n_weights == report.after.weights <= 0.2 * whole.n_weights
    assert report.weights_left == small.n_weights / whole.n_weights
    part = Task.of(whole, [0, 1, 7]).data(gm.demo.splits()).test
    made = scores(small, part)
    assert made.shape == (len(part), 3)
    assert share_correct(made, part.targets) == report.after.test > 0.9
    assert small.inputs == whole.inputs
    assert small.outputs["logits"].shape == (whole.outputs["logits"].shape[0], 3)
    assert not any(operator.op_type == "BatchNormalization" for operator in small.operators)  # as in the original


@pytest.mark.parametrize(
    ("classes", "granularity"), [([0, 1, 7], "unit"), ([0, 1, 7], "weight"), ([[0, 2], [1, 7]], "unit")]
)
def test_what_labels_say_is_wrong_in_the_original_is_not_learnt(classes, granularity):
    whole, digits = gm.load(gm.demo.model_path()), gm.demo.splits()
    other = np.array([1, 0, *range(2, 10)])  # 0 and 1 are called by each other's name
    parts = (gm.Data(part.inputs, other[part.targets]) for part in (digits.train, digits.calibration, digits.test))
    report = gm.reengineer(whole, gm.Splits(*parts), classes, weights=0.5, granularity=granularity, **QUICK).report
    assert report.before.test < 0.5
    assert report.after.test > 0.9


def test_the_report_has_both_baselines_and_the_file_its_manifest():
    whole, found = gm.load(gm.demo.model_path()), digits()
    report = found.report
    assert found.original.digest == whole.digest
    assert (report.before.weights, report.before.macs) == (whole.n_weights, cost(whole).macs)
    task = Task.of(whole, [0, 1, 7])
    parts = task.data(gm.demo.splits())
    assert report.before.test == gm.accuracy(gm.restrict(whole, [0, 1, 7]), parts.test)
    assert report.among_all["test"] == task.accuracy_among_all(whole, parts.test)
    assert report.samples == {"train": len(parts.train), "calibration": len(parts.calibration), "test": len(parts.test)}
    assert set(report.speedup) == {1, 16}
    manifest = json.loads(next(e.value for e in found.model.proto().metadata_props if e.key == "graphmod.reuse"))
    assert manifest["original"] == whole.digest
    assert manifest["classes"] == [[0], [1], [7]]
    assert manifest["seed"] == 0
    assert manifest["settings"]["weights"] == 0.2
    assert len(manifest["data"]) == 64
    assert manifest["versions"]["onnxruntime"] == ort.__version__
    assert json.loads(json.dumps(report.as_dict()))["manifest"] == manifest


def test_one_class_against_the_rest():
    found = gm.reengineer(trained(), images(), [2], weights=0.4, **QUICK)
    assert found.report.members == ((0, 1, 3, 4), (2,))
    assert found.model.n_weights <= 0.4 * trained().n_weights
    assert found.report.after.test > 0.95
    test = images().test
    made = scores(found.model, test)
    assert made.shape == (len(test), 2)
    assert share_correct(made, (test.targets == 2).astype(int)) == found.report.after.test


def test_several_classes_as_one_and_the_same_seed_the_same_network():
    found, again = (
        gm.reengineer(trained(), images(), [[4, 0], 1], weights=np.float32(0.4), seed=np.int64(5), **QUICK)
        for _ in range(2)
    )
    assert found.model.digest == again.model.digest
    test = Task.of(trained(), [[4, 0], 1]).data(images()).test
    made = scores(found.model, test)
    assert made.shape == (len(test), 2)
    assert share_correct(made, test.targets) == found.report.after.test > 0.95


@pytest.mark.parametrize("classes", [[1, 3], [[0, 2], 3]])
def test_a_softmax_at_the_end_stays(classes):
    """What is learnt of merged classes is the logarithm of their probability, not the probability."""
    model = pairs("b = Gemm(r, v)  y = Softmax<axis=1>(b)")
    before = model.digest
    found = gm.reengineer(model, splits(), classes, weights=0.7, **QUICK)
    assert model.digest == before
    made = scores(found.model, splits().test)
    assert made.sum(1) == pytest.approx(1, abs=1e-5)
    assert found.model.operators[-1].op_type == "Softmax"
    assert found.report.after.test > 0.95
    plan = verb.Plan({"weights": 0.7}, 1, 1, 1, 1e-3, 2, 0)
    task = Task.of(model, classes)
    begun = among_classes(model, task, task.data(splits()), plan, 1)
    learnt = scores(begun.teacher, splits().test)
    learnt = np.exp(learnt) / np.exp(learnt).sum(1, keepdims=True) if begun.teacher.main_output != "y" else learnt
    assert learnt == pytest.approx(scores(begun.baseline, splits().test), abs=1e-5)


def test_a_model_of_four_samples_at_a_time_stays_one():
    fixed = gm.rebatch(trained(), 4)
    found = gm.reengineer(fixed, images(), [0, 3], weights=0.4, **QUICK)
    assert found.model.inputs == fixed.inputs
    assert found.model.outputs["y"].shape == (4, 2)
    part = images().test[:4]
    assert scores(found.model, part).shape == (4, 2)
    assert found.report.before.macs == cost(trained()).macs


def test_a_network_of_half_precision():
    """It is searched in single precision; what rounding makes of the weights is no fault of the gates."""
    rng = np.random.default_rng(0)
    model = net(
        "(float16[n,4] x) => (float16[n,4] y) { a = Gemm(x, w, c)  r = Relu(a)  y = Gemm(r, v) }",
        {"w": np.repeat(np.eye(4), 4, 1).astype(np.float16), "c": np.full(16, -0.5, np.float16),
         "v": (np.repeat(np.eye(4), 4, 0) + 0.1 * rng.normal(size=(16, 4))).astype(np.float16)},
    )  # fmt: skip
    parts = [gm.Data({"x": one.inputs["x"].astype(np.float16)}, one.targets)
             for one in (splits().train, splits().calibration, splits().test)]  # fmt: skip
    found = gm.reengineer(model, gm.Splits(*parts), [0, 1], weights=0.4, **QUICK)
    assert found.model.outputs["y"].dtype == np.float16
    assert found.model.n_weights <= 0.4 * model.n_weights
    assert found.report.after.test > 0.9


# -- budgets


def test_without_a_budget_it_goes_down_while_accuracy_is_kept(monkeypatch, planted):
    planted()
    monkeypatch.setattr(verb, "LADDER", (0.6, 0.4))
    with pytest.warns(UserWarning, match="80 calibration samples cannot show a drop of 1"):
        found = gm.reengineer(trained(), images(), [0, 3], max_drop=0.01, **{**QUICK, "epochs": 3})
    report = found.report
    assert report.budgets == ("latency",)
    assert all(rung.left["latency"] <= limit for rung, limit in zip(report.rungs, (0.6, 0.4), strict=True))
    assert report.after.calibration >= report.before.calibration - 0.01
    assert found.model.n_weights == report.rungs[1].weights
    assert found.model.n_weights < 0.5 * trained().n_weights


def test_without_a_budget_the_part_of_the_original_is_what_is_left_where_nothing_keeps_the_accuracy(
    monkeypatch, planted
):
    planted()
    monkeypatch.setattr(verb, "LADDER", (0.02, 0.01, 0.005))
    monkeypatch.setattr(verb, "accuracy", lambda model, _: float(model.n_weights == part.n_weights))
    part = gm.restrict(trained(), [0, 3])
    found = gm.reengineer(trained(), images(), [0, 3], max_drop=0.02, **QUICK)
    assert found.model.n_weights == part.n_weights
    assert len(found.report.rungs) <= 2


@pytest.fixture
def planted(monkeypatch):
    """Plant times: of operators their weights, of networks those and an overhead."""

    def work(model: gm.Model) -> float:
        return float(sum(prod(one.dims) for one in model.initializers.values() if len(one.dims) > 1))

    def many(_, signatures, **__):
        return [
            sum(float(prod(o.shape)) for o in one.operands if o.constant and len(o.shape) > 1) for one in signatures
        ]

    def plant(overhead: float = 0.0) -> None:
        monkeypatch.setattr(LatencyTable, "many", many)
        monkeypatch.setattr(verb, "least_latency", lambda models, _: {
            name: work(one) + overhead for name, one in models.items()
        })  # fmt: skip

    plant.work = work
    return plant


@pytest.mark.parametrize("overhead", [0.0, 500.0])
def test_the_network_as_a_whole_meets_a_budget_of_time(planted, overhead):
    planted(overhead)
    found = gm.reengineer(trained(), images(), [0, 3], latency=0.5, **QUICK)
    left = (planted.work(found.model) + overhead) / (planted.work(trained()) + overhead)
    assert left <= 0.5
    assert found.report.settings["latency"] == 0.5
    assert found.model.initializer("u").shape[0] % 8 == 0


def test_several_budgets_are_all_met(planted):
    planted(0.0)
    found = gm.reengineer(trained(), images(), [0, 3], latency=0.7, weights=0.2, macs=0.6, **QUICK)
    small, report = found.model, found.report
    assert planted.work(small) <= 0.7 * planted.work(trained())
    assert small.n_weights <= 0.2 * trained().n_weights
    assert cost(small).macs <= 0.6 * cost(trained()).macs
    assert report.budgets == ("latency", "weights", "macs")
    assert [report.settings[name] for name in report.budgets] == [0.7, 0.2, 0.6]
    assert len(report.rungs) == 1  # what is left is trained on once


def test_a_budget_of_time_that_cannot_be_met_is_refused(planted):
    planted(1e6)
    with pytest.raises(RefusedError, match="cannot be met"):
        gm.reengineer(trained(), images(), [0, 3], latency=0.5, **QUICK)


# -- what is refused, and when


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"weights": 0.0}, "weights=0.0 is out of range"),
        ({"latency": 1.0}, "latency=1.0 is out of range"),
        ({"macs": float("nan")}, "macs=nan is out of range"),
        ({"weights": "0.5"}, "weights='0.5' is out of range"),
        ({"harden": "a"}, "harden='a' is out of range"),
        ({"harden": True}, "harden=True is out of range"),
        ({"max_drop": "a"}, "max_drop='a' is out of range"),
        ({"max_drop": -0.1}, "max_drop=-0.1 is out of range"),
        ({"steps": 0}, "steps=0 is out of range"),
        ({"steps": 10.5}, "steps=10.5 is out of range"),
        ({"shrink_every": 0}, "shrink_every=0 is out of range"),
        ({"epochs": -1}, "epochs=-1 is out of range"),
        ({"batch_size": 1}, "batch_size=1 is out of range; it is a whole number from 2 on"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 is out of range"),
        ({"learning_rate": "a"}, "learning_rate='a' is out of range"),
        ({"learning_rate": float("nan")}, "learning_rate=nan is out of range"),
        ({"batch_sizes": ()}, "is no list of numbers of samples"),
        ({"batch_sizes": 4}, "batch_sizes=4 is no list of numbers of samples"),
        ({"batch_sizes": (0,)}, "batch_sizes=0 is out of range"),
        ({"seed": -1}, "seed=-1 is out of range"),
        ({"seed": "a"}, "seed='a' is out of range"),
    ],
)
def test_arguments_out_of_range_are_refused_before_any_work(monkeypatch, more, told):
    for name in ("as_splits", "among_classes", "searched", "retrain"):
        monkeypatch.setattr(verb, name, None)
    with pytest.raises(RefusedError, match=told):
        gm.reengineer(trained(), images(), [0, 3], **more)


def test_data_without_labels_are_refused(monkeypatch):
    monkeypatch.setattr(verb, "searched", None)
    bare = gm.Data(images().train.inputs)
    with pytest.raises(InvalidDataError, match="targets"):
        gm.reengineer(trained(), bare, [0, 3], weights=0.5)
    with pytest.raises(InvalidDataError, match="also of the rest where one class stands against it"):
        gm.reengineer(trained(), (bare.inputs["x"], np.full(len(bare), 3)), [3], weights=0.5)


def test_what_is_no_classifier_is_refused():
    model = net("(float[n,3,4,4] x) => (float[n,2,4,4] y) { y = Conv(x, w) }", {"w": (2, 3, 1, 1)})
    with pytest.raises(RefusedError, match="not the logits of a classifier"):
        gm.reengineer(model, images(), [0, 1], weights=0.5)


@pytest.mark.parametrize("classes", [[0, 1], None])
@pytest.mark.parametrize("others", ["int64[n] label, float[n,4] y", "float[n,4] y, int64[n] label"])
def test_another_output_is_refused(classes, others):
    body = "a = Gemm(x, w, c)  r = Relu(a)  y = Gemm(r, v)  label = ArgMax<axis: int = 1, keepdims: int = 0>(y)"
    model = net(f"(float[n,4] x) => ({others}) {{ {body} }}", {"w": (4, 8), "c": (8,), "v": (8, 4)})
    names = ", ".join(model.outputs)
    with pytest.raises(RefusedError, match=rf"outputs {names}, and only 'y' would be trained.*gm\.extract"):
        gm.reengineer(model, splits(), classes, weights=0.5)


def test_what_is_no_model_is_refused():
    with pytest.raises(InvalidModelError, match=r"reengineer takes a graphmod\.Model, not a str"):
        gm.reengineer("model.onnx", splits(), [0, 1], weights=0.5)


def test_without_a_budget_a_network_that_gets_no_faster_is_told_of(monkeypatch):
    def searched(*_, **__):
        raise verb.BudgetError("latency=0.6 cannot be met: 91% are left")

    monkeypatch.setattr(verb, "searched", searched)
    with pytest.raises(RefusedError, match=r"without a budget it begins with 60%, .* give weights= or macs="):
        gm.reengineer(pairs(), splits(), [1, 3], **QUICK)


def test_single_weights_become_zero_in_a_network_of_the_same_shape():
    whole = gm.load(gm.demo.model_path())
    options = {"weights": 0.1, "granularity": "weight", "epochs": 4, "batch_sizes": (1,)}
    found = gm.reengineer(whole, gm.demo.splits(), [0, 1, 7], **options)
    part = gm.restrict(whole, [0, 1, 7])
    values = {name: found.model.initializer(name) for name in found.model.initializers}
    assert {name: value.shape for name, value in values.items()} == {n: part.initializer(n).shape for n in values}
    floats = [value for value in values.values() if value.dtype == np.float32]
    left = sum(np.count_nonzero(value) if value.ndim > 1 else value.size for value in floats)
    assert left == found.report.after.weights <= 0.1 * whole.n_weights
    assert left > 0.099 * whole.n_weights
    assert found.report.after.test > 0.95
    assert found.report.stages == ()
    packed = gm.pack(found.model)
    assert packed.n_bytes < 0.3 * whole.n_bytes
    test = Task.of(whole, [0, 1, 7]).data(gm.demo.splits()).test
    np.testing.assert_array_equal(scores(packed, test), scores(found.model, test))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"granularity": "weight", "latency": 0.5}, "save neither time nor operations"),
        ({"granularity": "layer"}, "is neither unit nor weight"),
        ({"granularity": "weight", "weights": 0.001}, "are biases and normalisations, which stay"),
    ],
)
def test_budgets_that_single_weights_cannot_meet(options, told):
    with pytest.raises(RefusedError, match=told):
        gm.reengineer(gm.load(gm.demo.model_path()), gm.demo.splits(), [0, 1], **options)


def test_only_a_budget_ends_the_ladder(monkeypatch):
    """Any other refusal is one of the whole."""

    def refuse(*_, **__):
        raise RefusedError("training cannot go on")

    monkeypatch.setattr(verb, "searched", refuse)
    with pytest.raises(RefusedError, match="training cannot go on"):
        gm.reengineer(gm.load(gm.demo.model_path()), gm.demo.splits(), [0, 1], **QUICK)
