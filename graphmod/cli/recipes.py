"""The commands ``apply`` and ``recipe``: edits replayed, and edits read from a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from graphmod.cli.commands import Json, ModelFile, Out, console
from graphmod.cli.outcome import DryRun, OutFile, Verify, check_outcome, show, to_verify
from graphmod.errors import InvalidRecipeError
from graphmod.model import load
from graphmod.rewrite.recipe import Recipe, replay_parts

RecipeFile = Annotated[
    Path, typer.Argument(help="A recipe (.yaml, .json), or a model whose record is replayed.", show_default=False)
]


def apply(
    recipe: RecipeFile,
    model: ModelFile,
    out: OutFile = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="Only the first so many: undo the rest.", show_default="all")
    ] = None,
    given: Annotated[
        list[Path] | None,
        typer.Option(help="Data or a model that the recipe names by hash only; several times.", show_default=False),
    ] = None,
    dry_run: DryRun = False,
    verify: Verify = None,
    as_json: Json = False,
) -> None:
    """Replay a recipe on a model. All steps are checked before the first one runs.

    [dim]Example:[/] graphmod apply recipe.yaml in.onnx --out out.onnx
    """
    edits = Recipe.of(load(recipe)) if recipe.suffix == ".onnx" else Recipe.load(recipe)
    if steps is not None and steps > len(edits):
        raise InvalidRecipeError(f"'{recipe}' has {len(edits)} steps, not {steps}")
    chosen = edits[:steps]
    chosen.check()
    check_outcome(out, dry_run)
    before = load(model)
    samples = to_verify(before, verify)
    if dry_run and not as_json:
        for number, edit in enumerate(chosen, 1):
            console.print(f"{number}. {edit}", markup=False, highlight=False)
    show(before, replay_parts(chosen, before, given=given or ()), out, dry_run, samples, as_json)


def recipe(model: ModelFile, out: Out = None, as_json: Json = False) -> None:
    """Print the edits that made a model, as a recipe that makes them again; with --out write it as a file.

    [dim]Example:[/] graphmod recipe edited.onnx --out recipe.yaml
    """
    edits = Recipe.of(load(model))
    if out is not None:
        console.print(f"written: {edits.save(out)}", markup=False, highlight=False)
    elif as_json:
        typer.echo(json.dumps(edits.as_dict(), indent=2))
    else:
        typer.echo(yaml.safe_dump(edits.as_dict(), sort_keys=False, allow_unicode=True), nl=False)


PANEL = "Edits"
COMMANDS = (apply, recipe)
