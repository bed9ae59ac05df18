"""``graphmod lint`` as a user meets it."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from command_line import graphmod
from onnx import TensorProto, helper, numpy_helper

import graphmod as gm

DEMO = gm.demo.model_path()


@pytest.fixture(scope="module")
def smelly(tmp_path_factory):
    """A file with an Identity, a dead operator and ten channels."""
    weights = {"w": (10, 8), "v": (8, 10)}
    rng = np.random.default_rng(0)
    initializers = [
        numpy_helper.from_array(rng.normal(size=size[::-1]).astype(np.float32), name) for name, size in weights.items()
    ]
    operators = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Identity", ["b"], ["c"], "[same]"),
        helper.make_node("Exp", ["b"], ["d"], "dead"),
        helper.make_node("MatMul", ["c", "v"], ["y"], "second"),
    ]
    declared = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in ("x", "y")]
    graph = helper.make_graph(operators, "smelly", declared[:1], declared[1:], initializers)
    path = tmp_path_factory.mktemp("lint") / "smelly.onnx"
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_a_clean_model_says_so_and_ends_with_0():
    told = graphmod("lint", DEMO)
    assert (told.returncode, told.stdout.strip()) == (0, "nothing found")


def test_findings_are_a_table_by_smell_and_end_with_1(smelly):
    told = graphmod("lint", smelly)
    assert told.returncode == 1
    rows = [line.split("│")[1].strip() for line in told.stdout.splitlines() if line.startswith("│")]
    assert [row for row in rows if row] == ["odd_channels", "identity_operator", "dead_operator"]
    assert "'[same]'" in told.stdout
    assert told.stdout.splitlines()[-1] == "3 found; 2 edits mend 2 of them"
    assert "≈" not in told.stdout


def test_json_has_everything(smelly):
    told = json.loads(graphmod("lint", smelly, "--json").stdout)
    by_smell = {one["smell"]: one for one in told}
    assert by_smell["identity_operator"]["edit"] == {"fuse": {"kinds": ["identity"]}}
    assert by_smell["identity_operator"]["operators"] == ["[same]"]
    assert by_smell["dead_operator"]["exact"]
    assert by_smell["odd_channels"]["edit"] is None
    assert by_smell["odd_channels"]["reason"]
    assert json.loads(graphmod("lint", DEMO, "--json").stdout) == []


def test_only_some_smells(smelly):
    told = json.loads(graphmod("lint", smelly, "--only", "dead_operator, fixed_batch", "--json").stdout)
    assert [one["smell"] for one in told] == ["dead_operator"]
    wrong = graphmod("lint", smelly, "--only", "dead_operators")
    assert wrong.returncode == 2
    assert "did you mean 'dead_operator'?" in wrong.stderr
    assert "--only names no smell" in graphmod("lint", smelly, "--only", ",").stderr


def test_fix_writes_the_mended_model(smelly, tmp_path):
    out = tmp_path / "mended.onnx"
    assert graphmod("lint", smelly, "--fix", out).returncode == 1
    mended = gm.load(out)
    assert [operator.op_type for operator in mended.operators] == ["MatMul", "Relu", "MatMul"]
    assert gm.verify(gm.load(smelly), mended, {"x": np.ones((3, 8), np.float32)}).exact
    told = graphmod("lint", out)
    assert "1 found; no edit mends any of them" in told.stdout


def test_what_is_written_is_told_but_not_in_json(smelly, tmp_path):
    recipe, fixed = tmp_path / "[r].yaml", tmp_path / "f.onnx"
    told = graphmod("lint", smelly, "--recipe", recipe, "--fix", fixed)
    assert "".join(told.stdout.split("written: ")[1].splitlines()) == f"{recipe}, {fixed}"
    assert len(json.loads(graphmod("lint", smelly, "--recipe", recipe, "--json").stdout)) == 3
    assert "written" not in graphmod("lint", smelly).stdout


def test_fix_ends_with_0_where_an_edit_mends_all(smelly, tmp_path):
    only = ("--only", "identity_operator,dead_operator")
    assert graphmod("lint", smelly, *only, "--fix", tmp_path / "mended.onnx").returncode == 0
    assert graphmod("lint", smelly, *only, "--recipe", tmp_path / "mend.yaml").returncode == 1
    assert graphmod("lint", tmp_path / "mended.onnx", *only).returncode == 0


def test_the_recipe_makes_the_same_model(smelly, tmp_path):
    recipe, fixed, replayed = (tmp_path / name for name in ("mend.yaml", "fixed.onnx", "replayed.onnx"))
    graphmod("lint", smelly, "--recipe", recipe, "--fix", fixed)
    assert graphmod("apply", recipe, smelly, "--out", replayed).returncode == 0
    assert gm.load(fixed).digest == gm.load(replayed).digest


def test_data_finds_redundant_blocks_and_the_recipe_finds_the_data(tmp_path):
    data = tmp_path / "some.npz"
    samples = gm.demo.splits().train[:128]
    np.savez(data, x=samples.inputs["image"], y=samples.targets)
    recipe, out = tmp_path / "recipes" / "mend.yaml", tmp_path / "shorter.onnx"
    recipe.parent.mkdir()
    told = graphmod("lint", DEMO, "--data", data, "--recipe", recipe)
    assert told.returncode == 1
    assert "redundant_block" in told.stdout
    assert "≈ replace(" in told.stdout
    assert "≈ changes what the model computes" in told.stdout
    assert graphmod("apply", recipe, DEMO, "--out", out).returncode == 0
    assert gm.load(out).n_weights < gm.load(DEMO).n_weights


def test_errors_are_one_line_and_end_with_2(tmp_path):
    told = graphmod("lint", tmp_path / "none.onnx")
    assert told.returncode == 2
    assert told.stderr.startswith("error: ")
    nowhere = graphmod("lint", DEMO, "--fix", tmp_path / "no" / "folder" / "out.onnx")
    assert nowhere.returncode == 2
    assert "cannot write" in nowhere.stderr
