"""The command ``repair``: find the part of a network that is at fault, and make it work again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from graphmod.cli.commands import DataFile, Json, ModelFile, Seed, _print_json, console
from graphmod.cli.destination import check_destination
from graphmod.cli.outcome import files_of
from graphmod.model import load

_SHOWN = 5
"""Candidates that the table shows."""

_PATCHED = (
    "error: what the block makes of healthy activations, off what it should make; before, behind: error of the output "
    "if activations are healthy up to the block, or up to behind it; score: by how much the second is less"
)
_SUSPECTED = (
    "gradient: how steep the loss is in the block's weights, 1 for the steepest; skipping: share of the loss that "
    "leaving the block out saves, tried with the steepest ones; score: their sum, savings alone"
)


def repair(
    model: ModelFile,
    data: DataFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)],
    healthy: Annotated[
        Path | None,
        typer.Option(
            help="A model that works, with the same tensors between blocks; no labels are needed then.",
            show_default=False,
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            help="The largest share of the weights that may change.",
            show_default="0.2 without a healthy model, else all",
        ),
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="Accuracy on calibration data that is enough.", show_default=False)
    ] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Of training, at most.")] = 30,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Find the part of a model that is at fault, and make it work again.

    Where nothing is found or helps, it says so, writes nothing, and ends with exit code 1.

    [dim]Example:[/] graphmod repair broken.onnx digits.npz --healthy old.onnx --out repaired.onnx
    """
    from graphmod.methods.repair import repair as run

    check_destination(out, (".onnx",), model, data, healthy)
    broken = load(model)
    sound = None if healthy is None else load(healthy)
    done = run(broken, data, healthy=sound, share=share, target=target, epochs=epochs, seed=seed, progress=not as_json)
    report, written = done.report, []
    name = report.settings["metric"]
    if report.blocks:
        done.model.save(out)
        written = [str(file) for file in files_of(out)]
    if as_json:
        _print_json({**report.as_dict(), "files": written})
        raise typer.Exit(0 if written else 1)
    if report.ranking:
        first = "at fault" if sound else "suspected"
        table = Table(title=f"{first}, most likely first", caption=_PATCHED if sound else _SUSPECTED)
        table.add_column("block", overflow="fold")
        for column in ("weights", "score", *report.ranking[0].figures):
            table.add_column(column, no_wrap=True)
        for one in report.ranking[:_SHOWN]:
            figures = (f"{value:.3f}" for value in one.figures.values())
            table.add_row(escape(", ".join(one.blocks)), f"{one.weights:,}", f"{one.score:.3f}", *figures)
        console.print(table)
    if not report.blocks:
        whole = (
            "nothing is broken" if sound or target is None else f"{name} on calibration data is {target:.1%} or more"
        )
        found = "nothing made it better" if report.ranking else whole
        console.print(f"{found} ({name} on test data: {report.before['test']:.2%}), so nothing was written")
        raise typer.Exit(1)
    took = sum(report.seconds.values())
    console.print(f"{name} on test data: {report.before['test']:.2%} before, {report.after['test']:.2%} after")
    console.print(
        f"repaired: {escape(', '.join(report.blocks))}; {report.weights_trained:,} weights, "
        f"{report.trained_share:.1%} of all; {took:.1f} s of CPU time"
    )
    console.print(f"written: {', '.join(map(escape, written))}")


COMMANDS = (repair,)
