"""What the documentation shows works as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import docstring_parser
import pytest

import graphmod as gm
from graphmod.rewrite.verb import VERBS

ROOT = Path(__file__).parent.parent


PAGES = [
    "README.md",
    "docs/compress.md",
    "docs/similarity.md",
    "docs/deeparc.md",
    "docs/importer.md",
    "docs/selectors.md",
    "docs/diff.md",
    "docs/prune.md",
    "docs/retrain.md",
    "docs/seam.md",
    "docs/modular.md",
]


@pytest.mark.parametrize("page", PAGES)
def test_snippets_run(page, tmp_path):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert snippets
    script = tmp_path / "snippets.py"
    script.write_text("\n".join(snippets))
    run = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_in_the_docs_exist():
    from graphmod.cli.main import app

    names = {command.callback.__name__ for command in app.registered_commands}
    names |= {group.typer_instance.info.name for group in app.registered_groups}
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        shown = "".join(re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL))
        assert set(re.findall(r"^graphmod ([\w-]+)", shown, re.MULTILINE)) <= names, page.name


def test_the_page_on_surgery_has_every_verb():
    page = (ROOT / "docs" / "surgery.md").read_text()
    for verb in VERBS.values():
        told = docstring_parser.parse(verb.function.__doc__).short_description
        assert f"| `{verb.name}` | {'exact' if verb.exact else 'approximate'} | {told} |" in page


def test_list_of_operators_is_true():
    benchmark = ROOT / "benchmarks" / "importer.py"
    run = subprocess.run([sys.executable, str(benchmark), "--operators"], capture_output=True, text=True, check=True)
    assert run.stdout == (ROOT / "docs" / "operators.md").read_text()


def test_every_public_name_has_a_docstring_and_is_reachable():
    for name in gm.__all__:
        assert getattr(gm, name).__doc__, name
