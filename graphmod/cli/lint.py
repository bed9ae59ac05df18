"""The command ``lint``: what about a model costs time, space or trust for nothing, and the recipe that mends it."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from graphmod.cli.commands import Json, ModelFile, _print_json, console
from graphmod.errors import RefusedError
from graphmod.model import check_writable, load
from graphmod.rewrite.lint import lint as look
from graphmod.rewrite.lint import mending
from graphmod.rewrite.recipe import Recipe, apply
from graphmod.rewrite.smells import SMELLS, Finding
from graphmod.rewrite.verb import VERBS

Data = Annotated[
    Path | None,
    typer.Option(help="Samples, to look for blocks that hardly change what they pass on.", show_default=False),
]
Only = Annotated[
    str | None, typer.Option(help="Smells to look for, with commas between; all if left out.", show_default=False)
]
Fix = Annotated[
    Path | None, typer.Option(help="Mend what can be mended, and write the model.", metavar="OUT", show_default=False)
]
RecipeOut = Annotated[
    Path | None, typer.Option("--recipe", help="Write the edits that mend it.", metavar="OUT", show_default=False)
]
Weights = Annotated[bool, typer.Option(help="Whether to read the values of weights.")]


def lint(
    model: ModelFile,
    data: Data = None,
    only: Only = None,
    fix: Fix = None,
    recipe: RecipeOut = None,
    weights: Weights = True,
    as_json: Json = False,
) -> None:
    """Look for what costs time, space or trust for nothing; exit code 0: nothing found, 1: something.

    With --fix: 1 where something is found that no edit mends. Every smell and the edit that mends it are in
    docs/lint.md. Edits marked with ≈ change what the model computes.

    [dim]Example:[/] graphmod lint resnet.onnx --recipe mend.yaml
    """
    for path in filter(None, (fix, recipe)):
        check_writable(path)
    loaded = load(model)
    samples = data.resolve() if data is not None else None  # a recipe may be read from another folder
    findings = look(loaded, samples, only=_names(only), weights=weights)
    edits = mending(findings)
    if as_json:
        _print_json([_plain(finding) for finding in findings])
    elif findings:
        console.print(_table(findings))
        console.print(f"{len(findings)} found; {_mendable(findings, edits)}")
        if any(finding.edit is not None and not VERBS[finding.edit.verb].exact for finding in findings):
            console.print("[dim]≈ changes what the model computes; see by how much before you rely on it[/]")
    else:
        console.print("nothing found")
    if recipe is not None:
        edits.save(recipe)
    if fix is not None:
        apply(edits, loaded).save(fix)
    written = [escape(str(path)) for path in (recipe, fix) if path is not None]
    if written and not as_json:
        console.print(f"written: {', '.join(written)}")
    left = [finding for finding in findings if finding.edit is None] if fix is not None else findings
    raise typer.Exit(int(bool(left)))


def _names(only: str | None) -> list[str] | None:
    if only is None:
        return None
    names = [name.strip() for name in only.split(",") if name.strip()]
    if not names:
        raise RefusedError(f"--only names no smell; there are {', '.join(SMELLS)}")
    return names


def _mendable(findings: list[Finding], edits: Recipe) -> str:
    n_mended = sum(finding.edit is not None for finding in findings)
    if not n_mended:
        return "no edit mends any of them"
    return f"{len(edits)} edit{'' if len(edits) == 1 else 's'} mend{'s' if len(edits) == 1 else ''} {n_mended} of them"


def _plain(finding: Finding) -> dict[str, Any]:
    edit = finding.edit
    told = {**asdict(finding), "edit": None if edit is None else {edit.verb: dict(edit.parameters)}}
    return {"smell": told.pop("smell"), **told, "exact": edit is not None and VERBS[edit.verb].exact}


def _table(findings: list[Finding]) -> Table:
    table = Table("smell", "what", "mended by")
    grouped = [list(same) for _, same in groupby(sorted(findings, key=_place), key=_place)]
    for same in grouped:
        for number, finding in enumerate(same):
            cells = (finding.smell if not number else "", finding.message, _mended_by(finding))
            table.add_row(*map(escape, cells), end_section=finding is same[-1])
    return table


def _place(finding: Finding) -> int:
    return list(SMELLS).index(finding.smell)


def _mended_by(finding: Finding) -> str:
    if finding.edit is None:
        return f"– {finding.reason}"
    return f"{'' if VERBS[finding.edit.verb].exact else '≈ '}{finding.edit}"


COMMANDS = (lint,)
