"""The commands that edit: made from the verbs, they write, show what would change, verify, and refuse."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import onnx
import pytest
from command_line import graphmod

import graphmod as gm
from graphmod.rewrite.verb import VERBS

MODEL = gm.demo.model_path()


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_every_verb_has_a_command_with_an_example(verb):
    told = graphmod(verb.name.replace("_", "-"), "--help")
    assert told.returncode == 0
    assert verb.example in " ".join(told.stdout.split())
    for name in verb.parameters:
        assert name.replace("_", "-") in told.stdout or name in told.stdout


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_the_example_parses(verb):
    """Its options exist: the model, of course, does not."""
    told = graphmod(*shlex.split(verb.example)[1:])
    assert told.returncode == 2
    assert told.stderr.startswith("error: ")


def test_a_verb_writes_what_python_makes(tmp_path):
    told = graphmod("remove", MODEL, "layer1.3", "--out", tmp_path / "a.onnx")
    assert told.returncode == 0
    gm.remove(gm.load(MODEL), "layer1.3").save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_dry_run_shows_what_would_change_and_writes_nothing(tmp_path):
    told = graphmod("remove", MODEL, "layer1.3", "--dry-run", "--out", tmp_path / "a.onnx")
    assert told.returncode == 0
    assert "operators removed: 5" in told.stdout
    assert not list(tmp_path.iterdir())
    asked = json.loads(graphmod("remove", MODEL, "layer1.3", "--dry-run", "--json").stdout)
    assert asked["before"]["operators"] - asked["after"][0]["operators"] == 5
    assert asked["files"] == []
    assert len(asked["differences"][0]["removed"]) == 5


def test_a_verb_verifies_on_random_samples_and_on_data(tmp_path):
    out = tmp_path / "a.onnx"
    told = json.loads(graphmod("remove", MODEL, "layer1.3", "--out", out, "--verify", "random", "--json").stdout)
    assert told["errors"]["logits"]["rms"] > 0
    told = graphmod("remove", MODEL, "layer1.3", "--out", out, "--verify", gm.demo.data_path())
    assert "logits: largest difference" in told.stdout
    assert "accuracy" in told.stdout


def test_data_to_verify_on_is_read_before_anything_runs(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setitem(VERBS["remove"].__dict__, "function", lambda model, **_: ran.append(model) or model)
    np.savez(tmp_path / "other.npz", x=np.zeros((3, 2, 8, 8), np.float32))
    (tmp_path / "recipe.yaml").write_text("- remove: layer1.3\n")
    for asked in (("remove", MODEL, "layer1.3"), ("apply", tmp_path / "recipe.yaml", MODEL)):
        for data, told in (("none.npz", "no data file 'none.npz'"), (tmp_path / "other.npz", "'image'")):
            found = graphmod(*asked, "--dry-run", "--verify", data)
            assert found.returncode == 2
            assert told in found.stderr
            assert not ran
        assert graphmod(*asked, "--dry-run", "--verify", "random").returncode == 0
        assert ran.pop()


def test_verifying_on_labelled_data_tells_the_accuracy(tmp_path):
    asked = ("remove", MODEL, "layer1.3", "--out", tmp_path / "a.onnx", "--verify")
    told = json.loads(graphmod(*asked, gm.demo.data_path(), "--json").stdout)
    test = gm.demo.splits().test
    assert told["accuracy"] == [gm.accuracy(gm.load(one), test) for one in (MODEL, tmp_path / "a.onnx")]
    samples = {"image": test.inputs["image"]}
    for targets in ({}, {"y": np.arange(len(test)) + 50}, {"y": samples["image"]}):
        np.savez(tmp_path / "unlabelled.npz", **samples, **targets)
        told = json.loads(graphmod(*asked, tmp_path / "unlabelled.npz", "--json").stdout)
        assert told["errors"]
        assert "accuracy" not in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["remove", MODEL, "layer9", "--dry-run"], "there is no block or operator 'layer9'"),
        (["remove", MODEL, "layer1.3"], "nowhere to write the result; say --out FILE, or --dry-run"),
        (["remove", MODEL, "layer1.3", "--out", "no/where.onnx"], "cannot write 'no/where.onnx'"),
        (["remove", "none.onnx", "layer1.3", "--dry-run"], "cannot read 'none.onnx'"),
        (["apply", "none.yaml", MODEL, "--dry-run"], "cannot read a recipe from 'none.yaml'"),
        (["verify", MODEL, MODEL, "none.npz"], "there is no data file 'none.npz'"),
    ],
)
def test_one_line_and_exit_code_2(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = graphmod(*arguments)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert told in found.stderr
    assert not list(tmp_path.iterdir())


def test_recipes_from_the_record_from_a_file_and_in_part(tmp_path):
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    graphmod("remove", MODEL, "layer1.3", "--out", once)
    graphmod("remove", once, "layer2.3", "--out", twice)
    assert graphmod("recipe", twice, "--out", tmp_path / "recipe.yaml").returncode == 0
    assert graphmod("recipe", twice).stdout == (tmp_path / "recipe.yaml").read_text()
    for source, steps, expected in ((tmp_path / "recipe.yaml", 2, twice), (twice, 2, twice), (twice, 1, once)):
        again = tmp_path / "again.onnx"
        assert graphmod("apply", source, MODEL, "--steps", steps, "--out", again).returncode == 0
        assert again.read_bytes() == expected.read_bytes()
    told = graphmod("apply", twice, MODEL, "--dry-run").stdout
    assert "1. remove(place='layer1.3')" in told
    assert graphmod("apply", twice, MODEL, "--steps", 3, "--dry-run").stderr.count("has 2 steps, not 3") == 1


def test_verify_exits_with_1_where_outputs_differ(tmp_path):
    graphmod("remove", MODEL, "layer1.3", "--out", tmp_path / "a.onnx")
    assert graphmod("verify", MODEL, MODEL).returncode == 0
    assert graphmod("verify", MODEL, tmp_path / "a.onnx", gm.demo.data_path()).returncode == 1
    assert graphmod("verify", MODEL, tmp_path / "a.onnx", "--tolerance", 10).returncode == 0
    told = json.loads(graphmod("verify", MODEL, tmp_path / "a.onnx", "--json").stdout)
    assert told["logits"]["relative"] > 1e-5


def test_verify_takes_what_is_no_number_for_a_difference(tmp_path):
    model = gm.load(MODEL)
    proto = model.proto()
    name = next(name for name, kind in model.tensors.items() if name in model.initializers and kind.is_float)
    (weight,) = (one for one in proto.graph.initializer if one.name == name)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.full_like(model.initializer(name), np.nan), name))
    (tmp_path / "nan.onnx").write_bytes(proto.SerializeToString())
    assert graphmod("verify", MODEL, tmp_path / "nan.onnx").returncode == 1
    assert graphmod("verify", tmp_path / "nan.onnx", tmp_path / "nan.onnx").returncode == 0


def test_a_folder_is_refused_before_anything_is_computed(tmp_path):
    told = graphmod("remove", "none.onnx", "layer1.3", "--out", tmp_path)
    assert told.returncode == 2
    assert "it is a folder" in told.stderr


def test_nothing_to_do_is_said(tmp_path):
    told = graphmod("inline", MODEL, "--out", tmp_path / "a.onnx")
    assert "there was nothing to do" in told.stdout
    assert (tmp_path / "a.onnx").read_bytes() == MODEL.read_bytes()


@pytest.mark.parametrize("arguments", [["inline"], ["fuse"], ["simplify"], ["remove", "layer1.3"]])
def test_a_model_that_was_invalid_before_is_said_to_be(tmp_path, arguments):
    proto = gm.load(MODEL).proto()
    proto.graph.node[5].input[0] = "typo"
    (tmp_path / "bad.onnx").write_bytes(proto.SerializeToString())
    told = graphmod(arguments[0], tmp_path / "bad.onnx", *arguments[1:], "--out", tmp_path / "out.onnx")
    assert told.returncode == 2
    assert "the model is invalid: " in told.stderr
    assert "typo" in told.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_mappings_and_lists_are_yaml(tmp_path):
    first, second = tmp_path / "part.0.onnx", tmp_path / "part.1.onnx"
    assert graphmod("split", MODEL, "layer2", "--out", tmp_path / "part.onnx").returncode == 0
    graphmod("rename", second, "--names", "{relu_28: features}", "--out", second)
    told = graphmod("compose", first, second, "--connect", "{features: relu_28}", "--out", tmp_path / "whole.onnx")
    assert told.returncode == 0, told.stderr
    assert graphmod("verify", MODEL, tmp_path / "whole.onnx").returncode == 0
    told = graphmod("extract", MODEL, "image", "[layer1, layer2]", "--out", tmp_path / "two.onnx", "--verify", "random")
    assert told.returncode == 0, told.stderr
    assert list(gm.load(tmp_path / "two.onnx").outputs) == ["relu_14", "relu_28"]
    assert "relu_28: largest difference 0" in told.stdout


def test_a_wrong_parameter_of_a_command_says_nothing_of_recipes():
    told = graphmod("reorder", MODEL, "layer1.1", "layer1.2", "1,0", "--dry-run")
    assert told.stderr.startswith("error: 'order' is ")


def test_without_a_terminal_nothing_is_cut():
    code = "import sys; sys.argv = ['graphmod', 'blocks', sys.argv[1]]; from graphmod.cli import main; main()"
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    told = subprocess.run([sys.executable, "-c", code, str(MODEL)], capture_output=True, text=True, env=environment)
    assert "…" not in told.stdout
