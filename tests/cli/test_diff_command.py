"""``graphmod diff``: what it prints, and its exit codes."""

from __future__ import annotations

import json

import pytest
from test_commands import MODEL, graphmod

import graphmod as gm


@pytest.fixture(scope="module")
def shorter(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("diff") / "shorter[1].onnx"
    return str(gm.remove(gm.load(MODEL), "layer1.3").save(path))


def test_the_same():
    told = graphmod("diff", MODEL, MODEL)
    assert (told.returncode, told.stderr) == (0, "")
    assert "are the same" in told.stdout
    assert json.loads(graphmod("diff", MODEL, MODEL, "--json").stdout)["same"] is True


def test_a_block_less(shorter):
    told = graphmod("diff", MODEL, shorter)
    assert told.returncode == 1
    assert "shorter[1].onnx differ" in told.stdout
    assert "operators removed: 5" in told.stdout
    for name in gm.blocks(gm.load(MODEL))["layer1.3"].operators:
        assert f" {name}\n" in told.stdout
    assert "… and 3 more" in graphmod("diff", MODEL, shorter, "--limit", "2").stdout


def test_json_has_everything(shorter):
    told = graphmod("diff", MODEL, shorter, "--json")
    assert told.returncode == 1
    content = json.loads(told.stdout)
    assert content == json.loads(json.dumps(gm.diff(gm.load(MODEL), gm.load(shorter)).as_dict()))
    assert [one["op_type"] for one in content["removed"]] == ["Conv", "Relu", "Conv", "Add", "Relu"]


def test_every_kind_is_shown(tmp_path):
    from onnx import helper

    proto = gm.load(MODEL).proto()
    graph = proto.graph
    next(a for a in graph.node[0].attribute if a.name == "group").i = 7
    graph.initializer[0].raw_data = bytes(len(graph.initializer[0].raw_data))
    graph.node.append(helper.make_node("Neg", [graph.output[0].name], ["negated"], "added"))
    graph.output.append(helper.make_tensor_value_info("negated", 1, ["batch", 10]))
    proto.opset_import[0].version -= 1
    path = tmp_path / "edited.onnx"
    path.write_bytes(proto.SerializeToString())
    told = graphmod("diff", MODEL, str(path))
    assert told.returncode == 1
    for line in (
        "output added: negated: float32[batch, 10]",
        "+ Neg added",
        "group none → 7",
        "relative 1",
        "ai.onnx: ",
    ):
        assert line in told.stdout


def test_errors_stay_errors(tmp_path):
    told = graphmod("diff", MODEL, str(tmp_path / "missing.onnx"))
    assert told.returncode == 2
    assert "cannot read" in told.stderr


def test_help_has_an_example():
    told = graphmod("diff", "--help")
    assert told.returncode == 0
    assert "graphmod diff" in " ".join(told.stdout.split())
