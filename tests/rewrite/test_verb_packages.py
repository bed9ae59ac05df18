"""Verbs of packages above ``rewrite`` are found by recipes and the command line, though nothing imports them."""

import subprocess
import sys

PACKAGE = """
from graphmod.rewrite.verb import verb

@verb(exact=True, example="graphmod leave model.onnx")
def leave(model):
    "Leave a model as it is."
    return model
"""

CODE = """
import sys
from graphmod.rewrite import verb
verb.PACKAGES = ("graphmod.rewrite", "bringing")
import graphmod as gm
model = gm.load(gm.demo.model_path())
assert "bringing" not in sys.modules
assert gm.apply(["leave"], model) is model
from graphmod.cli.main import app
assert "leave" in {command.callback.__name__ for command in app.registered_commands}
assert "torch" not in sys.modules
"""


def test_a_package_above_brings_a_verb(tmp_path):
    (tmp_path / "bringing.py").write_text(PACKAGE)
    run = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
