"""Labels that are no classes of the original: a new last layer on its features, then the same search."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import graphmod
from planted_answers import trained
from sklearn.linear_model import LogisticRegression

import graphmod as gm
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import final_features
from graphmod.methods.reuse import Reengineered
from graphmod.methods.reuse.search import Plan
from graphmod.methods.reuse.start import of_features
from graphmod.probe import share_correct

PLAN = Plan({"weights": 0.3}, 80, 40, 1, 2e-3, 64, 0)


@cache
def others() -> gm.Splits:
    """Draw noisy images of three patterns that the network was not trained on."""
    rng = np.random.default_rng(7)
    patterns = rng.normal(size=(3, 1, 6, 6))

    def part(n: int) -> gm.Data:
        labels = np.arange(n) % 3
        return gm.Data({"x": (patterns[labels] + 0.5 * rng.normal(size=(n, 1, 6, 6))).astype(np.float32)}, labels)

    return gm.Splits(part(240), part(120), part(120))


@cache
def small() -> Reengineered:
    return gm.reengineer(trained(), others(), None, weights=0.3, steps=80, shrink_every=40, epochs=4, batch_sizes=(1,))


def scores(model: gm.Model, part: gm.Data) -> np.ndarray:
    session = ort.InferenceSession(model.proto().SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([model.main_output], dict(part.inputs))[0]


def test_a_new_problem_in_a_part_of_the_weights():
    whole, found = trained(), small()
    report = found.report
    onnx.checker.check_model(found.model.proto(), full_check=True)
    assert found.model.n_weights == report.after.weights <= 0.3 * whole.n_weights
    made = scores(found.model, others().test)
    assert made.shape == (120, 3)
    assert share_correct(made, others().test.targets) == report.after.test > 0.9
    assert report.before.test > 0.9
    assert report.before.weights == whole.n_weights
    assert (report.members, report.among_all) == ((), {})
    assert json.loads(found.model.metadata["graphmod.reuse"])["classes"] is None
    assert report.as_dict()["weights_left"] == report.weights_left


def test_the_new_layer_is_trained_on_the_features_as_they_are():
    begun = of_features(trained(), 3, others(), PLAN)
    features, x = final_features(trained()), others().test.inputs
    theirs, ours = (model.run(x, [features])[features] for model in (trained(), begun.student))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    parts = others()
    before, after = (trained().run(part.inputs, [features])[features] for part in (parts.train, parts.test))
    expected = LogisticRegression(max_iter=1000).fit(before, parts.train.targets).score(after, parts.test.targets)
    assert gm.accuracy(begun.student, parts.test) > expected - 0.05


def test_the_baseline_is_fine_tuned_as_a_whole():
    begun = of_features(trained(), 3, others(), PLAN)
    assert begun.teacher is begun.baseline
    moved = [
        name for name in ("w", "u") if not np.array_equal(begun.baseline.initializer(name), trained().initializer(name))
    ]
    assert moved == ["w", "u"]
    assert gm.accuracy(begun.baseline, others().calibration) >= gm.accuracy(begun.student, others().calibration)


def test_more_labels_than_the_original_has_classes():
    rng = np.random.default_rng(0)
    parts = gm.Splits(*(
        gm.Data({"x": rng.normal(size=(n, 1, 6, 6)).astype(np.float32)}, np.arange(n) % 8) for n in (80, 40, 40)
    ))  # fmt: skip
    found = gm.reengineer(trained(), parts, None, weights=0.5, steps=20, shrink_every=20, epochs=0, batch_sizes=(1,))
    assert found.model.outputs["y"].shape[1] == 8


def test_single_weights_without_a_budget():
    found = gm.reengineer(
        trained(), others(), None, granularity="weight", steps=20, epochs=4, max_drop=0.1, batch_sizes=(1,)
    )
    assert found.report.weights_left < 1
    assert found.report.after.calibration >= found.report.before.calibration - 0.1


@pytest.mark.parametrize(
    ("labels", "told"),
    [([0, 2] * 20, "none that is 1"), ([0] * 40, "all training samples are of one class"), ([-1, 0] * 20, "label -1")],
)
def test_labels_that_are_not_0_to_n_are_refused(labels, told):
    part = gm.Data({"x": np.zeros((40, 1, 6, 6), np.float32)}, np.array(labels))
    with pytest.raises(InvalidDataError, match=told):
        gm.reengineer(trained(), gm.Splits(part, part, part), None, weights=0.5)


def test_a_model_without_features_is_refused():
    model = gm.load(onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n,4] x) => (float[n,4] y) { y = Relu(x) }'
    ))  # fmt: skip
    part = gm.Data({"x": np.zeros((40, 4), np.float32)}, np.arange(40) % 2)
    with pytest.raises(RefusedError, match="no operator multiplies activations by weights"):
        gm.reengineer(model, gm.Splits(part, part, part), None, weights=0.5)


def test_the_command(tmp_path):
    trained().save(tmp_path / "m.onnx")
    parts = {name: getattr(others(), name) for name in ("train", "calibration", "test")}
    arrays = {f"x_{name}": part.inputs["x"] for name, part in parts.items()}
    arrays |= {f"y_{name}": part.targets for name, part in parts.items()}
    np.savez(tmp_path / "d.npz", **arrays)
    few = ["--weights", "0.5", "--steps", "20", "--epochs", "1"]
    shown = graphmod("reuse", tmp_path / "m.onnx", tmp_path / "d.npz", "--new-labels", *few, "-o", tmp_path / "o.onnx")
    assert shown.returncode == 0, shown.stderr
    assert "among all" not in shown.stdout
    assert gm.load(tmp_path / "o.onnx").outputs["y"].shape[1] == 3
    cases = [([], "give one of them"), (["--new-labels", "--classes", "[1, 2]"], "give one of them")]
    cases += [(["--classes", empty], "is no list of classes") for empty in ("", "null")]
    for wrong, told in cases:
        refused = graphmod("reuse", tmp_path / "m.onnx", tmp_path / "d.npz", *wrong, "-o", tmp_path / "p.onnx")
        assert refused.returncode == 2
        assert told in refused.stderr.replace("\n", " ")
        assert not (tmp_path / "p.onnx").exists()
