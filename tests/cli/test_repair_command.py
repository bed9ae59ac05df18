"""``graphmod repair`` as a user meets it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import graphmod

import graphmod as gm
from graphmod.methods.deeparc.weaken import weaken

DEMO, DATA = gm.demo.model_path(), gm.demo.data_path()


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    path = tmp_path_factory.mktemp("repair") / "broken.onnx"
    weaken(gm.load(DEMO), DATA, 50, ["layer3.2"]).save(path)
    return path


def test_the_fault_is_told_and_mended(broken, tmp_path):
    told = graphmod("repair", broken, DATA, "--healthy", DEMO, "--out", tmp_path / "mended.onnx")
    assert told.returncode == 0, told.stderr
    assert "error: what the block makes of healthy activations" in " ".join(told.stdout.split())
    assert "repaired: layer3.2; 28,880 weights, 9.6% of all" in told.stdout
    assert gm.accuracy(gm.load(tmp_path / "mended.onnx"), gm.demo.splits().test) > 0.97


def test_json_has_everything(broken, tmp_path):
    out = tmp_path / "mended.onnx"
    told = graphmod("repair", broken, DATA, "--target", "0.9", "--out", out, "--json")
    report = json.loads(told.stdout)
    assert report["blocks"] == ["layer3.2"]
    assert report["files"] == [str(out)]
    assert report["after"]["test"] > report["before"]["test"] + 0.3


@pytest.mark.slow
def test_nothing_is_written_where_nothing_is_broken(tmp_path):
    told = graphmod("repair", DEMO, DATA, "--healthy", DEMO, "--out", tmp_path / "mended.onnx")
    assert told.returncode == 1
    assert told.stdout.startswith("nothing is broken (accuracy on test data: 9")
    assert told.stdout.endswith(", so nothing was written\n")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_where_the_target_is_reached(tmp_path):
    told = graphmod("repair", DEMO, DATA, "--target", "0.9", "--out", tmp_path / "mended.onnx")
    assert told.returncode == 1
    assert told.stdout.startswith("accuracy on calibration data is 90.0% or more (accuracy on test data: 9")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_where_nothing_is_better(tmp_path):
    some = gm.demo.splits().train[:100]
    np.savez(tmp_path / "few.npz", x=some.inputs["image"], y=some.targets)
    out = tmp_path / "mended.onnx"
    told = graphmod("repair", DEMO, tmp_path / "few.npz", "--epochs", "0", "--share", "0.1", "--out", out)
    assert told.returncode == 1, told.stdout
    assert "suspected, most likely first" in told.stdout
    assert "gradient: how steep the loss is in the block's weights" in " ".join(told.stdout.split())
    assert "nothing made it better (accuracy on test data: 100.00%), so nothing was written" in told.stdout
    assert not out.exists()


def test_a_model_at_chance_is_told(tmp_path):
    some = gm.demo.splits().train[:100]
    np.savez(tmp_path / "wrong.npz", x=some.inputs["image"], y=np.random.default_rng(0).permutation(some.targets))
    command = ["repair", DEMO, tmp_path / "wrong.npz", "--epochs", "0", "--share", "0.1"]
    told = graphmod(*command, "--out", tmp_path / "mended.onnx")
    assert "of the test data, about as often as chance among 10 classes" in told.stderr


def test_bad_input_is_one_line(broken, tmp_path):
    told = graphmod("repair", broken, DATA, "--share", "2", "--out", tmp_path / "mended.onnx")
    assert told.returncode == 2
    assert told.stderr.strip() == "error: share=2.0 is out of range; it is a share of the weights above 0 and at most 1"
