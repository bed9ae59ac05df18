"""The wheel, in an empty environment and away from the source tree: what a user gets must run."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "graphmod", "converters")


def run(*command, cwd):
    """Run a command without any trace of this environment; return what it printed."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("wheel")
    yield path
    shutil.rmtree(path)  # an environment with torch is large, and pytest would keep those of the last three runs


@pytest.fixture(scope="module")
def wheel(folder):
    source = folder / "source"  # a build leaves its folders beside the sources, and takes up stale files from there
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    options = ("-q", "--no-deps", "--no-build-isolation", "--wheel-dir", folder / "dist")
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=folder)
    (path,) = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(folder, wheel):
    """The folder of an environment's programs, in which nothing but the wheel and its dependencies is installed."""
    venv.create(folder / "env", with_pip=True)
    programs = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    run(programs / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, cwd=folder)
    return programs


def test_wheel_brings_its_files(environment, folder):
    code = "import graphmod.demo as d; print(d.model_path()); print(d.data_path())"
    for line in run(environment / "python", "-c", code, cwd=folder).splitlines():
        path = Path(line)
        assert path.is_file()
        assert path.is_relative_to(folder / "env")


def test_wheel_brings_the_converters(environment, folder):
    code = "import graphmod.converters.pytorch as c; print(c.__file__)"
    assert Path(run(environment / "python", "-c", code, cwd=folder).strip()).is_relative_to(folder / "env")


def test_demo_runs_from_the_wheel(environment, tmp_path):
    run(environment / "graphmod", "demo", "--out", tmp_path / "out", cwd=tmp_path)
    assert list((tmp_path / "out").glob("*.onnx"))
    assert list((tmp_path / "out").glob("*.html"))
