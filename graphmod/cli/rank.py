"""The command ``rank``: which blocks a network would miss least, and which criterion tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from graphmod.cli.commands import DataFile, Json, ModelFile, Seed, _print_json, console
from graphmod.model import load

if TYPE_CHECKING:
    from graphmod.methods.criteria import Ranking


def rank(
    model: ModelFile,
    data: DataFile,
    by: Annotated[str, typer.Option(help="The criterion to sort by.")] = "kl",
    criteria: Annotated[
        list[str] | None, typer.Option("--criterion", help="One to compute; again for more; all if not given.")
    ] = None,
    block: Annotated[
        list[str] | None,
        typer.Option("--block", help="One to rank; again for more; all that can be skipped if not given."),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Rank blocks by how much the network would miss them, were they skipped, what it misses least first.

    Scores are of calibration data; loss, by how much cross-entropy rises without the block, is of test data, and so is
    each criterion's rank correlation with it.

    [dim]Example:[/] graphmod rank resnet.onnx digits.npz --by kl
    """
    from graphmod.methods.criteria import CRITERIA, rank_blocks

    wanted = [by, *(criteria or CRITERIA)]
    found = rank_blocks(load(model), data, wanted, block, seed=seed)
    order = found.order(by)
    if as_json:
        _print_json({**found.as_dict(), "by": by, "order": list(order)})
        return
    console.print(_table(found, order))


def _table(found: Ranking, order: tuple[str, ...]) -> Table:
    table = Table("block", *found.scores, "loss (test)", title="blocks, missed least first", show_footer=True)
    table.columns[0].footer = "rank correlation with loss"
    for column, correlation in zip(table.columns[1:], found.correlation.values(), strict=False):
        column.footer = f"{correlation:.2f}"
    place = {name: i for i, name in enumerate(found.blocks)}
    for name in order:
        scores = (scores[place[name]] for scores in found.scores.values())
        table.add_row(escape(name), *(f"{score:.4f}" for score in scores), f"{found.loss[place[name]]:.4f}")
    return table


COMMANDS = (rank,)
