"""``graphmod repair`` as a user meets it."""

from __future__ import annotations

import json

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
    assert told.returncode == 0
    assert told.stdout.strip() == "nothing is broken, so nothing was written"
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_line(broken, tmp_path):
    told = graphmod("repair", broken, DATA, "--share", "2", "--out", tmp_path / "mended.onnx")
    assert told.returncode == 2
    assert told.stderr.strip() == "error: share=2.0 is out of range; it is a share of the weights above 0 and at most 1"
