"""The command ``find``: which operators a selector describes, and why others nearly do."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from graphmod.cli.commands import Json, ModelFile, console
from graphmod.errors import InvalidModelError
from graphmod.graph import Match, blocks, explain, scope
from graphmod.graph import find as search
from graphmod.model import Model, load

Selector = Annotated[
    str, typer.Argument(help="Such as 'Conv[group=1] > BatchNormalization'; see docs/selectors.md.", show_default=False)
]


def find(
    model: ModelFile,
    selector: Selector,
    with_reasons: Annotated[bool, typer.Option("--explain", help="Say also why near matches do not match.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Rows to print; JSON has all.")] = 50,
    as_json: Json = False,
) -> None:
    r"""Find the operators that a selector describes.

    A step is a type with predicates, such as Conv\[kernel_shape=\[3,3],scope=layer1]; '>' leads to an operator that
    reads the one before. Quote the selector for the shell.

    [dim]Example:[/] graphmod find resnet.onnx 'Conv > Relu' --explain
    """
    loaded = load(model)
    matches = search(loaded, selector)
    misses = explain(loaded, selector) if with_reasons else []
    if as_json:
        inside = _innermost_blocks(loaded)
        rows = [{**asdict(match), "operators": _rows(loaded, match, inside)} for match in matches]
        reasons = {"near_misses": [asdict(miss) for miss in misses]} if with_reasons else {}
        typer.echo(json.dumps({"matches": rows, **reasons}, indent=2))
        return
    if matches:
        console.print(_table(loaded, matches[:limit]))
    console.print(_count(len(matches), "match", "matches", limit))
    for miss in misses[:limit]:
        console.print(f"- {escape(str(miss))}", soft_wrap=True, highlight=False)
    if with_reasons:
        console.print(_count(len(misses), "near match", "near matches", limit))
    elif not matches:
        console.print("--explain says what nearly matches, and why it does not")


def _count(number: int, one: str, many: str, limit: int) -> str:
    rest = f"; --limit {number} shows all" if number > limit else ""
    return f"{number:,} {one if number == 1 else many}{rest}"


def _table(model: Model, matches: list[Match]) -> Table:
    table = Table("operator", "type", "scope", "block", "output")
    inside = _innermost_blocks(model)
    several = any(len(match.operators) > 1 for match in matches)
    for match in matches:
        rows = _rows(model, match, inside)
        for number, row in enumerate(rows, 1):
            cells = (row["name"], row["type"], row["scope"], row["block"], row["output"])
            table.add_row(*(escape(cell) for cell in cells), end_section=several and number == len(rows))
    return table


def _rows(model: Model, match: Match, inside: dict[str, str]) -> list[dict[str, Any]]:
    """Return name, type, scope, innermost block and type of the output of a match's operators."""
    found = []
    for name in match.operators:
        operator = model.operators[model.position[name]]
        made = next((tensor for tensor in operator.output if tensor), "")
        kind = model.outputs.get(made) or model.tensors.get(made)
        op_type = f"{operator.domain}::{operator.op_type}" if operator.domain else operator.op_type
        row = {"name": name, "type": op_type, "scope": scope(operator), "block": inside.get(name, "")}
        found.append({**row, "output": str(kind) if kind else "unknown"})
    return found


def _innermost_blocks(model: Model) -> dict[str, str]:
    """Return the path of the innermost block of each operator; none for a model without a trunk."""
    try:
        tree = blocks(model)
    except InvalidModelError:
        return {}
    return {name: block.path for block in tree.walk() for name in block.operators}


COMMANDS = (find,)
