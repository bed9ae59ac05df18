"""Every example runs as it stands, in an empty folder, and writes models that load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import graphmod as gm

FOLDER = Path(__file__).parent.parent / "examples" / "surgery"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.stem for script in SCRIPTS])
def test_the_example_runs(script, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout
    for path in tmp_path.glob("*.onnx"):
        assert gm.load(path).outputs


def test_the_readme_lists_every_example():
    text = (FOLDER / "README.md").read_text()
    assert all(f"]({script.name})" in text for script in SCRIPTS)
