"""``graphmod groups`` and ``graphmod prune``: tables, options, and recipes that replay."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from command_line import graphmod
from planted import net

import graphmod as gm
from graphmod.pruning import groups

SAMPLES = {"x": np.random.default_rng(0).normal(size=(8, 3, 4, 4)).astype(np.float32)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks")
    net("(float[n,3,4,4] x) => (float[n,2,4,4] y) { [conv1] a = Conv(x, w)  [act1] r = Relu(a)"
        "  [conv2] b = Conv(r, u)  [odd] d = Det(b)  [as] s = Reshape(d, k)  [add] t = Add(b, s)"
        "  [conv3] y = Conv(t, v) }",
        {"w": (8, 3, 1, 1), "u": (6, 8, 1, 1), "v": (2, 6, 1, 1),
         "k": np.array([-1, 6, 1, 1])}).save(path / "net.onnx")  # fmt: skip
    net("(float[n,3] x) => (float[n,3] y) { y = Relu(x) }", {}).save(path / "plain.onnx")
    np.savez(path / "data.npz", **SAMPLES)
    return path


def n_units(path) -> list[int]:
    return [group.n_units for group in groups(gm.load(path))]


def rows(told: str, first: str) -> list[list[str]]:
    """Return the rows of printed tables that start with a word."""
    cells = [[cell.strip() for cell in line.strip("│┃").split("│")] for line in told.splitlines()]
    return [row for row in cells if row[0] == first]


def test_a_table_of_groups_and_reasons(folder):
    done = graphmod("groups", folder / "net.onnx")
    assert done.returncode == 0, done.stderr
    assert "1 group, 8 units" in done.stdout
    assert "Det 'odd' has no coupling rule" in done.stdout
    assert "output 'y' of the network" in done.stdout
    assert rows(done.stdout, "conv1") == [["conv1", "8", "1", "conv1", "2"]]


def test_members(folder):
    told = graphmod("groups", folder / "net.onnx", "--members").stdout
    assert rows(told, "conv1")[1:] == [
        ["conv1", "w", "0", "8 of 8", "conv1", "makes units"],
        ["conv1", "u", "1", "8 of 8", "conv2", ""],
    ]


def test_units_of_unequal_widths(tmp_path):
    net("(float[n,3,4,4] x) => (float[n,2,4,4] y) { [c1] a = Conv(x, w)  [c2] b = Conv(x, u)"
        "  [join] c = Concat <axis=1> (a, b)  [all] d = Concat <axis=1> (c, a)  [c3] e = Conv(x, k)"
        "  [add] f = Add(d, e)  [c4] y = Conv(f, v) }",
        {"w": (2, 3, 1, 1), "u": (3, 3, 1, 1), "k": (7, 3, 1, 1), "v": (2, 7, 1, 1)}
        ).save(tmp_path / "n.onnx")  # fmt: skip
    told = graphmod("groups", tmp_path / "n.onnx").stdout
    assert rows(told, "c1") == [["c1", "5", "1 to 2", "c1, c2, c3", "4"]]


def test_a_constant_that_several_read_has_its_name_in_all_groups(tmp_path):
    weights = {"w": (8, 3, 1, 1), "u": (8, 8, 1, 1), "v": (2, 8, 1, 1), "k": np.ones((8, 1, 1), np.float32)}
    net("(float[n,3,4,4] x) => (float[n,2,4,4] y) { [c1] a = Conv(x, w)  b = Mul(a, k)  [c2] c = Conv(b, u)"
        "  d = Mul(c, k)  y = Conv(d, v) }", weights).save(tmp_path / "n.onnx")  # fmt: skip
    found = json.loads(graphmod("groups", tmp_path / "n.onnx", "--json").stdout)["groups"]
    assert all("k" in {member["tensor"] for member in group["members"]} for group in found)
    told = graphmod("groups", tmp_path / "n.onnx", "--members").stdout
    assert [row[:3] for name in ("c1", "c2") for row in rows(told, name) if row[1] == "k"] == [
        ["c1", "k", "0"],
        ["c2", "k", "0"],
    ]


def test_groups_for_machines(folder):
    found = json.loads(graphmod("groups", folder / "net.onnx", "--json").stdout)
    (group,) = found["groups"]
    assert (group["name"], group["units"], group["made_by"]) == ("conv1", 8, ["conv1"])
    constants = {
        (member["tensor"], member["axis"]): member["indices"] for member in group["members"] if member["constant"]
    }
    assert constants == {("w", 0): list(range(8)), ("u", 1): list(range(8))}
    assert [one["operator"] for one in found["kept"]] == ["conv2", "conv3"]


def test_a_network_without_groups(folder):
    assert "no group of channels can be removed" in graphmod("groups", folder / "plain.onnx").stdout
    refused = graphmod("prune", folder / "plain.onnx", "--ratio", 0.5, "--out", folder / "no.onnx")
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (folder / "no.onnx").exists()


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--ratio", "0.5"], 4), (["--ratio", "{conv1: 0.25}"], 6), (["--weights", "0.5"], 4), (["--macs", "500"], 3),
        (["--ratio", "0.6", "--multiple-of", "4"], 4), (["--ratio", "0.5", "--importance", "random", "--seed", "3"], 4),
        (["--ratio", "0.5", "--where", "[name=conv1]", "--ranking", "global"], 4),
        (["--ratio", "0.5", "--no-leftovers"], 4),
    ],
)  # fmt: skip
def test_options(folder, tmp_path, options, left):
    done = graphmod("prune", folder / "net.onnx", *options, "--out", tmp_path / "out.onnx")
    assert done.returncode == 0, done.stderr
    (n_left,) = n_units(tmp_path / "out.onnx")
    assert n_left <= left if options[0] in ("--weights", "--macs") else n_left == left


def test_a_recipe_with_samples_replays_from_their_file(folder, tmp_path):
    made, again = tmp_path / "out.onnx", tmp_path / "again.onnx"
    done = graphmod("prune", folder / "net.onnx", "--ratio", 0.5, "--importance", "activation_norm",
                    "--data", folder / "data.npz", "--out", made)  # fmt: skip
    assert done.returncode == 0, done.stderr
    gm.Recipe.of(gm.load(made)).save(tmp_path / "recipe.yaml")
    done = graphmod("apply", tmp_path / "recipe.yaml", folder / "net.onnx", "--out", again)
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == made.read_bytes()


def test_a_mapping_without_spaces_is_told_how_to_write_it(folder, tmp_path):
    refused = graphmod("prune", folder / "net.onnx", "--ratio", "{conv1:.5}", "--out", tmp_path / "no.onnx")
    assert refused.returncode == 2
    assert "YAML wants a space after a colon: {conv1: .5}" in " ".join(refused.stderr.split())


def test_wrong_names_are_told_in_one_line(folder, tmp_path):
    refused = graphmod("prune", folder / "net.onnx", "--ratio", "{conv7: 0.5}", "--out", tmp_path / "no.onnx")
    assert refused.returncode == 2
    assert "did you mean 'conv1'?" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_a_budget_of_latency_tells_the_time(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAPHMOD_CACHE", str(tmp_path))
    asked = ("prune", gm.demo.model_path(), "--latency", 0.9, "--dry-run")
    done = graphmod(*asked)
    assert done.returncode == 0, done.stderr
    assert re.search(r"one sample takes [\d,]+ microseconds, [\d.]+% of [\d,]+ before", done.stdout)
    before, after = json.loads(graphmod(*asked, "--data", gm.demo.data_path(), "--json").stdout)["microseconds"]
    assert 0 < after < before
    assert "microseconds" not in graphmod("prune", folder / "net.onnx", "--macs", 0.9, "--dry-run").stdout


def test_the_time_is_of_samples_that_the_budget_is_of(tmp_path):
    net("(float[4,3] x) => (float[4,2] y) { a = MatMul(x, w)  y = MatMul(a, v) }", {"w": (3, 8), "v": (8, 2)}).save(
        tmp_path / "four.onnx"
    )
    np.savez(tmp_path / "data.npz", x_train=np.ones((8, 3), np.float32), x_test=np.ones((2, 3), np.float32))
    asked = ("--latency", 1e9, "--data", tmp_path / "data.npz", "--out", tmp_path / "small.onnx")
    done = graphmod("prune", tmp_path / "four.onnx", *asked)
    assert done.returncode == 0, done.stderr
    assert "4 samples take" in done.stdout
