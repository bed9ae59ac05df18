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
    from graphmod.model import Model
    from graphmod.rewrite import Region


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
    each criterion's rank correlation with it. Weights are the block's share of the network's.

    [dim]Example:[/] graphmod rank resnet.onnx digits.npz --by kl
    """
    from graphmod.methods.criteria import CRITERIA, rank_blocks
    from graphmod.methods.deeparc import is_skippable, residual_blocks

    wanted, network = [by, *(criteria or CRITERIA)], load(model)
    found = rank_blocks(network, data, wanted, block, seed=seed)
    order = found.order(by)
    shares = {name: _share(network, region) for name, region in zip(found.blocks, found.regions, strict=True)}
    kept = [] if block else [one.path for one in residual_blocks(network) if not is_skippable(network, one)]
    if as_json:
        _print_json({**found.as_dict(), "by": by, "order": list(order), "weights": shares, "not_skippable": kept})
        return
    console.print(_table(found, order, shares))
    if kept:
        console.print(f"cannot be skipped, as what they make is of another type: {escape(', '.join(kept))}")


def _share(model: Model, region: Region) -> float:
    """Return a region's share of the model's weights."""
    from graphmod.train import n_trained

    return n_trained(model, [region]) / max(1, model.n_weights)


def _table(found: Ranking, order: tuple[str, ...], shares: dict[str, float]) -> Table:
    """Return the table; names of blocks take more lines where there is no room, figures are never cut."""
    table = Table(
        title="blocks, missed least first", caption="corr.: rank correlation with loss (test)",
        show_footer=True, collapse_padding=True, pad_edge=False,
    )  # fmt: skip
    table.add_column("block", "corr.", overflow="fold")
    table.add_column("weights", no_wrap=True)
    for name, correlation in found.correlation.items():
        table.add_column(name.replace("_", "_\n"), f"{correlation:.2f}", no_wrap=True)
    table.add_column("loss\n(test)", no_wrap=True)
    place = {name: i for i, name in enumerate(found.blocks)}
    for name in order:
        scores = (scores[place[name]] for scores in found.scores.values())
        figures = (
            f"{score:.4f}" if abs(score) < 10 else f"{score:.4g}" for score in (*scores, found.loss[place[name]])
        )
        table.add_row(escape(name), f"{shares[name]:.1%}", *figures)
    return table


COMMANDS = (rank,)
