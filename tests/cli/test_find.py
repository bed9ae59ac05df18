"""``graphmod find`` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys

import onnx
import pytest
import typer
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

import graphmod as gm
from graphmod.cli import main
from graphmod.cli.find import find

MODEL = str(gm.demo.model_path())


def graphmod_find(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(find)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graphmod.cli.find.console.width", 160)
        return CliRunner().invoke(app, arguments)


def test_matches_are_a_table_and_their_number():
    told = graphmod_find(MODEL, "Conv[scope=layer1.0] > Add")
    assert told.exit_code == 0
    row = next(line for line in told.stdout.splitlines() if "node_Conv_646" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "node_Conv_646", "Conv", "layer1.0.bn2", "layer1.0.bn2", "float32[batch, 16, 8, 8]",
    ]  # fmt: skip
    assert "node_add_40" in told.stdout
    assert told.stdout.splitlines()[-1] == "1 match"


def test_json_has_every_match():
    told = json.loads(graphmod_find(MODEL, "Conv > Relu", "--json", "--limit", "1").stdout)
    assert list(told) == ["matches"]
    found = [tuple(row["name"] for row in match["operators"]) for match in told["matches"]]
    assert found == [match.operators for match in gm.find(gm.load(MODEL), "Conv > Relu")]
    first = told["matches"][0]
    assert first["operators"][1]["output"] == "float32[batch, 16, 8, 8]"
    assert (first["entry"], first["exit"]) == ("image", "relu")


def test_long_lists_are_cut_and_say_so():
    told = graphmod_find(MODEL, "Conv", "--limit", "3").stdout
    assert told.count("node_Conv") == 3
    assert "45 matches; --limit 45 shows all" in told


def test_no_match_points_to_explain_which_says_why():
    nothing = graphmod_find(MODEL, "Gemm[transB=0]")
    assert nothing.exit_code == 0
    assert nothing.stdout.splitlines() == ["0 matches", "--explain says what nearly matches, and why it does not"]
    reasons = graphmod_find(MODEL, "Gemm[transB=0]", "--explain").stdout.splitlines()
    assert reasons == [
        "0 matches",
        "- step 1 of 'Gemm[transB=0]': Gemm 'node_linear' fails transB=0: it is 1",
        "1 near match",
    ]
    told = json.loads(graphmod_find(MODEL, "Gemm[transB=0]", "--explain", "--json").stdout)
    assert told["near_misses"][0]["operators"] == ["node_linear"]


def test_a_bad_selector_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["graphmod", "find", MODEL, "Conv[grup=1]"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    wanted = "in selector 'Conv[grup=1]': 'grup' is neither a predicate nor an attribute of Conv; did you mean 'group'?"
    assert capsys.readouterr().err == f"error: {wanted}\n"


def test_a_model_without_a_trunk_and_markup_in_names(tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], "[bold]i[/]")], "g", values[:1], values[1:])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    told = graphmod_find(str(tmp_path / "m.onnx"), "*", "--explain")
    assert told.exit_code == 0
    assert "[bold]i[/]" in told.stdout


def test_help_has_an_example():
    assert "graphmod find resnet.onnx 'Conv > Relu' --explain" in " ".join(graphmod_find("--help").stdout.split())


def test_it_starts_without_pytorch():
    code = "import sys, typer; from graphmod.cli.find import find\ntry: typer.run(find)\n"
    code += "finally: print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code, MODEL, "Conv"], capture_output=True, text=True, check=True)
    assert told.stdout.strip().endswith("False")
