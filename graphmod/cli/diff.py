"""The command ``graphmod diff``."""

from __future__ import annotations

from typing import Annotated

import typer

from graphmod.cli.commands import Json, ModelFile, _print_json, console
from graphmod.model import load


def diff(
    before: ModelFile,
    after: ModelFile,
    limit: Annotated[int, typer.Option(min=1, help="Entries of a kind to show; JSON has all.")] = 20,
    as_json: Json = False,
) -> None:
    """Show what is different between two models, matched by structure; exit code 0: nothing, 1: something.

    Names, shapes that follow from something else, metadata and the file's format are told, but do not count.

    [dim]Example:[/] graphmod diff resnet.onnx shorter.onnx
    """
    from graphmod.report.diff_tree import diff_tree
    from graphmod.rewrite import diff as compare

    difference = compare(load(before), load(after))
    if as_json:
        _print_json(difference.as_dict())
    else:
        console.print(diff_tree(difference, f"{before.name} and {after.name}", limit))
    raise typer.Exit(int(bool(difference)))


COMMANDS = (diff,)
