"""``graphmod reuse`` as a user meets it."""

from __future__ import annotations

import json
import sys

import pytest
from command_line import graphmod

import graphmod as gm

DEMO, DATA = gm.demo.model_path(), gm.demo.data_path()
QUICK = ("--weights", "0.3", "--steps", "100", "--epochs", "1")


def test_a_small_model_is_written_and_told_of(tmp_path):
    out = tmp_path / "small.onnx"
    done = graphmod("reuse", DEMO, DATA, "--classes", "[[0, 1], 7]", *QUICK, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "label 0: classes 0, 1" in done.stdout
    assert "label 1: class 7" in done.stdout
    assert "the same, among all classes" in done.stdout
    assert "multiply-accumulates" in done.stdout
    assert "tried" not in done.stdout  # it had a budget
    small = gm.load(out)
    assert small.outputs["logits"].shape[1] == 2
    assert f"{small.n_weights:,}" in done.stdout
    assert small.n_weights <= 0.3 * gm.load(DEMO).n_weights


def test_json_has_everything(tmp_path):
    out = tmp_path / "zeros.onnx"
    done = graphmod(
        "reuse", DEMO, DATA, "--classes", "7", "--granularity", "weight", *QUICK, "--batch-size", "32",
        "--learning-rate", "0.001", "--shrink-every", "50", "--out", out, "--json",
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["members"] == [[0, 1, 2, 3, 4, 5, 6, 8, 9], [7]]
    assert report["files"] == [str(out)]
    assert report["weights_left"] <= 0.3
    given = {"granularity": "weight", "batch_size": 32, "learning_rate": 0.001, "shrink_every": 50}
    assert {name: report["settings"][name] for name in given} == given


def test_without_a_budget_what_was_tried_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["graphmod.methods.reuse.reengineer"], "LADDER", (0.6,))
    out = tmp_path / "zeros.onnx"
    done = graphmod(
        "reuse", DEMO, DATA, "--classes", "[3, 5]", "--granularity", "weight", "--steps", "40", "--epochs", "1",
        "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tried: weights 60.0% left, " in done.stdout
    assert "(60.0%) beside zeros" in done.stdout


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ("[3, x]", "is no list of classes"),
        ("[3, 12]", "no class 12"),
        ("{3: 4}", "is no list"),
        ("[", "is no list"),
    ],
)
def test_wrong_classes_are_told_in_a_line_and_nothing_is_written(tmp_path, classes, told):
    out = tmp_path / "small.onnx"
    done = graphmod("reuse", DEMO, DATA, "--classes", classes, "--out", out)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())
    assert not out.exists()
