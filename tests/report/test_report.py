"""The report: figures agree with the result, files are whole, the page needs nothing from outside."""

from __future__ import annotations

import importlib
import io
import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

import graphmod as gm
from graphmod.methods import measuring
from graphmod.report import blocks_tree, changes_table, page, summary_table, write_report


@pytest.fixture(scope="module")
def result():
    model, whole = gm.load(gm.demo.model_path()), gm.demo.splits()
    search, verb = (importlib.import_module(f"graphmod.methods.compress.{name}") for name in ("search", "verb"))
    with pytest.MonkeyPatch.context() as patch:  # so that it takes little time
        for name, value in {"BLOCKS": 1, "RUNS": 1, "SPREAD": 3, "FEWEST_RUNS": 60, "FITS": 0}.items():
            patch.setattr(search, name, value)
        patch.setattr(verb, "POINTS", 3)
        patch.setattr(measuring, "ROUNDS", 9)
        data = gm.Splits(whole.train[:200], whole.calibration[:100], whole.test[:100])
        return gm.compress(model, data, target=0.85, epochs=0, max_drop=0.9, batch_sizes=(1,))


def printed(renderable) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def test_summary_shows_the_figures(result):
    told = printed(summary_table(result.report))
    assert f"{result.report.before.weights:,}" in told
    assert f"{result.report.after.weights:,}" in told
    assert f"{result.report.after.test:.2%}".replace("%", " %") in told


def test_changes_are_listed(result):
    told = printed(changes_table(result.report))
    assert result.report.changes
    assert all(change.blocks[0] in told for change in result.report.changes)


def test_names_with_brackets_survive_in_the_tree():
    model = gm.load(gm.demo.model_path())
    block = gm.Block("", "in[0]", "out[1]", ())
    assert "in[0]" in printed(blocks_tree(model, block, 1))


def test_page_is_whole_and_needs_nothing_from_outside(result):
    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.outside, self.text = [], []

        def handle_starttag(self, _, attrs):
            self.outside += [value for name, value in attrs if name in ("src", "href") and value]

        def handle_data(self, data):
            self.text.append(data)

    html = page(result, "a <model>")
    tags = Tags()
    tags.feed(html)
    assert tags.outside == []
    assert "a &lt;model&gt;" in html
    assert f"{result.report.after.weights:,}" in html
    kept = len(re.findall(r'class="step"', html))
    replaced = len(re.findall(r'class="step replaced"', html))
    assert kept + replaced == len(result.similarity.boundaries)
    assert replaced >= len(result.report.changes)


def test_folder_holds_what_the_result_holds(result, tmp_path):
    written = write_report(result, tmp_path / "new" / "out")
    assert gm.load(written["model"]).digest == result.model.digest
    assert gm.ModuleMap.load(written["module map"]) == result.module_map
    assert json.loads(written["figures"].read_text())["after"]["weights"] == result.report.after.weights
    assert written["heatmap"].read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == {path.name for path in written.values()}


def test_a_file_in_the_way_is_refused(result, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(gm.NotWritableError, match="out"):
        write_report(result, tmp_path / "out")
