"""The command line as a user meets it: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import graphmod
from onnx import TensorProto, helper

import graphmod as gm

MODEL = str(gm.demo.model_path())
DATA = str(gm.demo.data_path())
COMMANDS = ("info", "blocks", "similarity", "modules", "compress", "demo")


def test_the_program_is_installed_and_starts_without_pytorch():
    code = "import sys; sys.argv = ['graphmod', 'info', sys.argv[1]]; from graphmod.cli import main\ntry: main()\n"
    code += "finally: print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code, MODEL], capture_output=True, text=True, check=True)
    assert told.stdout.strip().endswith("False")


def digits(folder: Path, name: str = "data.npz", **changes: np.ndarray) -> str:
    test = gm.demo.splits().test
    arrays = {"x": np.array(test.inputs["image"]), "y": np.array(test.targets), **changes}
    np.savez(folder / name, **arrays)
    return str(folder / name)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    told = graphmod(command, "--help")
    assert told.returncode == 0
    assert f"graphmod {command}" in " ".join(told.stdout.split())


def test_info_tells_what_the_model_is():
    told = json.loads(graphmod("info", MODEL, "--json").stdout)
    proto = onnx.load(MODEL)
    assert told["weights"] == sum(int(np.prod(t.dims)) for t in proto.graph.initializer if t.data_type == 1)
    assert told["bytes"] == Path(MODEL).stat().st_size
    assert told["operators"]["Conv"] == sum(node.op_type == "Conv" for node in proto.graph.node)
    assert "float32[batch, 1, 8, 8]" in graphmod("info", MODEL).stdout


def test_info_tells_metadata_in_short_and_with_json_whole(tmp_path):
    proto, long = onnx.load(MODEL), "[bold] " * 100
    onnx.helper.set_model_props(proto, {"made by": long})
    onnx.save(proto, tmp_path / "told.onnx")
    assert json.loads(graphmod("info", tmp_path / "told.onnx", "--json").stdout)["metadata"] == {"made by": long}
    lines = graphmod("info", tmp_path / "told.onnx").stdout.splitlines()
    told = [line for line in lines if "made by: [bold] [bold]" in line]
    assert len(told) == 1
    assert "..." in told[0]


def test_info_serves_a_model_without_a_trunk(tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    path = tmp_path / "strings.onnx"
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), path)
    assert json.loads(graphmod("info", str(path), "--json").stdout)["boundaries"] is None
    refused = graphmod("blocks", str(path))
    assert refused.returncode == 2
    assert "no float input" in refused.stderr


def test_blocks_shows_the_tree():
    told = graphmod("blocks", MODEL, "--depth", "2").stdout
    assert "layer1.0" in told
    assert "layer3.6" in told
    assert "layer1.0.conv1" not in told
    rows = {row["path"]: row for row in json.loads(graphmod("blocks", MODEL, "--json").stdout)}
    assert "layer1.0" in rows["layer1"]["children"]


def test_similarity_and_modules_write_what_they_found(tmp_path):
    picture, matrix, modules = tmp_path / "s.png", tmp_path / "s.npz", tmp_path / "m.json"
    assert graphmod("similarity", MODEL, DATA, "-o", str(picture)).returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = json.loads(graphmod("similarity", MODEL, DATA, "-o", str(matrix), "--json").stdout)
    np.testing.assert_allclose(told["matrix"], gm.Similarity.load(matrix).matrix, atol=1e-6)
    drawn = tmp_path / "m.svg"
    told = graphmod("modules", MODEL, DATA, "--n-modules", "4", "-o", str(modules), "--plot", str(drawn))
    assert told.stdout.split()[-3:] == ["written:", f"{modules},", str(drawn)]  # a line break may lie between them
    assert len(gm.ModuleMap.load(modules)) == 4
    assert drawn.read_bytes().startswith(b"<?xml")
    refused = graphmod("modules", MODEL, DATA, "--plot", str(modules))
    assert refused.returncode == 2
    assert ".png, .svg or .pdf" in refused.stderr


def test_modules_tell_how_stable_they_are():
    options = ["modules", MODEL, DATA, "--n-modules", "7", "--cut-shapes", "--floor", "0.3", "--passes", "2"]
    told = json.loads(graphmod(*options, "--resamples", "20", "--seed", "3", "--json").stdout)
    model, samples = gm.load(MODEL), gm.demo.splits().train
    found = gm.similarity(model, gm.Data(samples.inputs), passes=2, seed=3)
    cuts = gm.modules.shape_cuts(model, found.boundaries)
    expected = gm.modules.stability(found, n_modules=7, floor=0.3, cuts=cuts, resamples=20, seed=3)
    assert told["cuts"] == list(cuts)
    assert told["floor"] == 0.3
    assert set(told["stability"]) == {"begins", "n_modules", "agreement", "same", "resamples"}
    assert told["stability"]["n_modules"] == {"7": 1.0}
    np.testing.assert_allclose(list(told["stability"]["begins"].values()), expected.begins, atol=0.051)
    plain = json.loads(graphmod(*options, "--seed", "3", "--json").stdout)
    assert plain == {key: value for key, value in told.items() if key != "stability"}
    shown = graphmod("modules", MODEL, DATA, "--resamples", "20").stdout
    assert "begins there" in shown
    assert "20 resamples" in shown
    assert "begins there" not in graphmod("modules", MODEL, DATA).stdout
    refused = graphmod("modules", MODEL, DATA, "--n-modules", "2", "--cut-shapes")
    assert refused.returncode == 2
    assert "a module at every cut; the fewest that will do are" in refused.stderr


def test_compress_writes_everything(tmp_path, monkeypatch):
    few = {"BLOCKS": 1, "RUNS": 1, "SPREAD": 3, "FEWEST_RUNS": 60, "FITS": 0}  # so that it takes little time
    for name, value in few.items():
        monkeypatch.setattr(importlib.import_module("graphmod.methods.compress.search"), name, value)
    monkeypatch.setattr(importlib.import_module("graphmod.methods.compress.verb"), "POINTS", 3)
    out = tmp_path / "out"
    told = graphmod("compress", MODEL, DATA, "--target", "0.85", "--epochs", "1", "-o", str(out), "--json")
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    pictures = {"front.png", "similarity.png"}
    names = {"compressed.onnx", "modules.json", "report.html", "report.json", "similarity.npz"} | pictures
    assert {path.name for path in out.iterdir()} == names
    assert (out / "compressed.onnx").stat().st_size == report["after"]["bytes"]
    assert gm.load(out / "compressed.onnx").n_weights == report["after"]["weights"]
    test = gm.demo.splits().test
    assert gm.accuracy(gm.load(out / "compressed.onnx"), test) == pytest.approx(report["after"]["test"])


def bad_models(folder: Path) -> dict[str, str]:
    content = Path(MODEL).read_bytes()
    (folder / "text.onnx").write_text("no model")
    (folder / "cut.onnx").write_bytes(content[: len(content) // 2])
    proto = onnx.load(MODEL)
    onnx.save(proto, folder / "gone.onnx", save_as_external_data=True, location="gone.data", size_threshold=0)
    (folder / "gone.data").unlink()
    return {name: str(folder / f"{name}.onnx") for name in ("text", "cut", "gone", "absent")}


@pytest.mark.parametrize(
    ("name", "told"),
    [("text", "not an ONNX model"), ("cut", "only a part"), ("gone", "gone.data"), ("absent", "No such file")],
)
@pytest.mark.parametrize("command", ["info", "compress"])
def test_bad_models_are_refused(tmp_path, name, told, command):
    model, out = bad_models(tmp_path)[name], tmp_path / "out"
    refused = graphmod("info", model) if command == "info" else graphmod("compress", model, DATA, "-o", str(out))
    assert refused.returncode == 2
    assert told in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not out.exists()


def bad_data(folder: Path, name: str) -> str:
    test = gm.demo.splits().test
    x, y = np.array(test.inputs["image"]), np.array(test.targets)
    if name == "nan":
        x[3, 0, 1, 1] = np.nan
    if name == "label":
        y[5] = 10
    changes = {
        "shape": {"x": x[:, :, :7]},
        "dtype": {"x": (x * 16).astype(np.int64)},
        "nan": {"x": x},
        "label": {"y": y},
        "few": {"x": x[:3], "y": y[:3]},
    }
    return digits(folder, **changes[name])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("shape", ["[498, 1, 7, 8]", "float32[batch, 1, 8, 8]"]),
        ("dtype", ["int64", "float32[batch, 1, 8, 8]"]),
        ("nan", ["NaN"]),
        ("label", ["label 10 is out of range", "0 to 9"]),
        ("few", ["samples"]),
    ],
)
def test_bad_data_are_refused_and_nothing_is_written(tmp_path, name, told):
    out = tmp_path / "out"
    refused = graphmod("compress", MODEL, bad_data(tmp_path, name), "-o", str(out))
    assert refused.returncode == 2
    assert all(part in refused.stderr for part in told), refused.stderr
    assert "Traceback" not in refused.stderr
    assert not out.exists() or not any(out.iterdir())


def test_a_command_that_is_ended_takes_its_temporary_files_along(tmp_path):
    code = """
import os, signal, sys, tempfile, time
from importlib import import_module

def app(**_):
    with tempfile.TemporaryDirectory(dir=sys.argv[1]):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

import_module("graphmod.cli.main").app = app
import_module("graphmod.cli.main").main()
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["compress", MODEL, DATA, "--max-drop", "1.5"], "error: Invalid value for '--max-drop': "),
        (["compress"], "error: Missing "),
        (["compres"], "error: No such command 'compres'"),
        (["info", MODEL, "--jason"], "error: No such option: --jason"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, told):
    refused = graphmod(*arguments)
    assert refused.returncode == 2
    assert refused.stderr.startswith(told)
    assert refused.stderr.endswith("--help tells more\n")
    assert len(refused.stderr.splitlines()) == 1
    assert not refused.stdout


def test_help_is_shown_without_arguments():
    told = graphmod()
    assert "compress" in told.stdout + told.stderr
    assert "error" not in told.stderr


def test_an_old_result_survives_a_refusal(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "compressed.onnx").write_bytes(b"precious")
    assert graphmod("compress", MODEL, bad_data(tmp_path, "label"), "-o", str(out)).returncode == 2
    assert (out / "compressed.onnx").read_bytes() == b"precious"


def test_unwritable_paths_are_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused = graphmod("compress", MODEL, DATA, "-o", str(tmp_path / "file" / "out"))
    assert refused.returncode == 2
    assert "cannot write" in refused.stderr
    refused = graphmod("similarity", MODEL, digits(tmp_path), "-o", str(tmp_path / "absent" / "s.png"))
    assert refused.returncode == 2
    assert "cannot write" in refused.stderr


def test_a_model_is_no_module_map(tmp_path):
    refused = graphmod("compress", MODEL, DATA, "--modules", MODEL, "-o", tmp_path / "out")
    assert refused.stderr.strip().endswith("is no module map: it is no JSON; graphmod modules writes one")
    assert not (tmp_path / "out").exists()


def test_a_module_map_of_another_model_is_refused(tmp_path):
    modules, out = tmp_path / "m.json", tmp_path / "out"
    found = gm.similarity(gm.load(MODEL), gm.demo.splits().calibration)
    gm.modularize(found, threshold=0.8).save(modules)
    other = gm.remove(gm.load(MODEL), "layer1.3").save(tmp_path / "other.onnx")
    refused = graphmod("compress", str(other), DATA, "--modules", str(modules), "-o", str(out))
    assert refused.returncode == 2
    assert "another model" in refused.stderr
    assert not out.exists()
