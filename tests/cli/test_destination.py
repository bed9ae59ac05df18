"""No command writes over what it reads, or into a file whose name says that something else is in it."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import pytest
from command_line import graphmod

import graphmod as gm

COMMANDS = {
    "adapt": (["model.onnx", "data.npz", "shifted.npz"], ".onnx"),
    "attack": (["model.onnx", "data.npz"], ".npz"),
    "repair": (["model.onnx", "data.npz", "--healthy", "healthy.onnx"], ".onnx"),
    "modules": (["model.onnx", "data.npz"], ".json"),
    "similarity": (["model.onnx", "data.npz"], ".png, .svg, .pdf or .npz"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model.onnx", "healthy.onnx"):
        shutil.copy(gm.demo.model_path(), tmp_path / name)
    for name in ("data.npz", "shifted.npz"):
        shutil.copy(gm.demo.data_path(), tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_no_input_is_written_over(folder: Path, command: str) -> None:
    arguments = [folder / name if "." in name else name for name in COMMANDS[command][0]]
    (folder / "link.json").symlink_to(folder / "model.onnx")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for name in [*(name for name in COMMANDS[command][0] if "." in name), "link.json"]:
        refused = graphmod(command, *arguments, "--out", folder / name)
        assert refused.returncode == 2
        assert f"{name}': the command reads it" in refused.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_compress_does_not_write_over_its_model(folder: Path) -> None:
    model = (folder / "model.onnx").rename(folder / "compressed.onnx")
    before = model.read_bytes()
    refused = graphmod("compress", model, folder / "data.npz", "--out", folder)
    assert refused.returncode == 2
    assert "compressed.onnx': the command reads it" in refused.stderr
    assert model.read_bytes() == before


def test_an_interrupt_leaves_no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("graphmod.methods"), "compress", interrupted)
    out = folder / "new" / "out"
    ended = graphmod("compress", folder / "model.onnx", folder / "data.npz", "--out", out)
    assert ended.returncode != 0
    assert not out.parent.exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_name_says_what_is_in_the_file(folder: Path, command: str) -> None:
    arguments, suffixes = COMMANDS[command]
    found = graphmod(
        command, *(folder / name if "." in name else name for name in arguments), "--out", folder / "out.txt"
    )
    assert found.returncode == 2
    assert f"its name must end in {suffixes}" in found.stderr
    assert not (folder / "out.txt").exists()
