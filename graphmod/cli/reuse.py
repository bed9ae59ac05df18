"""The command ``reuse``: only what some classes need of a classifier, as a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from graphmod.cli.commands import DataFile, Json, ModelFile, Seed, _print_json, console
from graphmod.cli.destination import check_destination
from graphmod.cli.outcome import files_of
from graphmod.errors import RefusedError
from graphmod.model import load

Share = Annotated[float | None, typer.Option(help="Share of the original's that may be left.", show_default=False)]


def reuse(
    model: ModelFile,
    data: DataFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)],
    classes: Annotated[
        str | None,
        typer.Option(
            help="The target problem: '[3, 5, 8]'; '[[0, 1], 7]' makes 0 and 1 one; '[3]' is 3 against the rest.",
            show_default=False,
        ),
    ] = None,
    new_labels: Annotated[
        bool, typer.Option("--new-labels", help="The labels of the data, 0 to n - 1, are those of a new problem.")
    ] = False,
    latency: Share = None,
    weights: Share = None,
    macs: Share = None,
    granularity: Annotated[
        Literal["unit", "weight"],
        typer.Option(help="unit: channels, heads, blocks go; weight: single weights become zero, see pack."),
    ] = "unit",
    harden: Annotated[
        float | None,
        typer.Option(help="Learn samples attacked on the original, values changed by this.", show_default=False),
    ] = None,
    max_drop: Annotated[
        float,
        typer.Option(min=0, max=0.99, help="Share of accuracy that calibration data may lose, without a budget."),
    ] = 0.003,
    steps: Annotated[int, typer.Option(min=1, help="Of training while it shrinks.")] = 700,
    epochs: Annotated[
        int | None, typer.Option(min=0, help="Of training afterwards; about as many steps, if not given.")
    ] = None,
    shrink_every: Annotated[int, typer.Option(min=1, help="Steps after which what is closed is removed.")] = 100,
    learning_rate: Annotated[float, typer.Option(help="While it shrinks; half of it afterwards.")] = 2e-3,
    batch_size: Annotated[int, typer.Option(min=2, help="Samples a step of training.")] = 64,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Keep only what some classes need of a classifier: channels, heads and blocks that they do not need are removed.

    Without a budget the smallest network is found that keeps the accuracy. With --new-labels a new last layer is put on
    the features, and the original with that, fine-tuned, is what accuracy is compared with.

    [dim]Example:[/] graphmod reuse model.onnx data.npz --classes '[3, 5, 8]' --latency 0.3 --weights 0.1 -o small.onnx

    [dim]Example:[/] graphmod reuse model.onnx flowers.npz --new-labels --weights 0.1 --out flowers.onnx
    """
    from graphmod.methods.reuse import reengineer

    if (classes is None) != new_labels:
        raise RefusedError(
            "the target problem is either --classes, such as '[3, 5, 8]', or --new-labels, where the labels of the "
            "data are no classes of the model; give one of them"
        )
    check_destination(out, (".onnx",), model, data)
    found = reengineer(
        load(model), str(data), _classes(classes), latency=latency, weights=weights, macs=macs,
        granularity=granularity, harden=harden, max_drop=max_drop, steps=steps, shrink_every=shrink_every,
        epochs=epochs, learning_rate=learning_rate, batch_size=batch_size, seed=seed, progress=not as_json,
    )  # fmt: skip
    report = found.report
    found.model.save(out)
    written = [str(file) for file in files_of(out)]
    if as_json:
        _print_json({**report.as_dict(), "files": written})
        return
    table = Table("", "before", "after")
    zeros = "" if granularity == "unit" else " beside zeros, which graphmod pack leaves out"
    left = f"{report.after.weights:,} ({report.weights_left:.1%}){zeros}"
    table.add_row("weights", f"{report.before.weights:,}", left)
    if report.before.macs and report.after.macs:
        share = report.after.macs / report.before.macs
        table.add_row("multiply-accumulates", f"{report.before.macs:,}", f"{report.after.macs:,} ({share:.1%})")
    for size, before in report.before.latency.items():
        after = report.after.latency[size]
        table.add_row(f"microseconds, batch {size}", f"{before:,.0f}", f"{after:,.0f} ({after / before:.1%})")
    table.add_row("accuracy on test data", f"{report.before.test:.2%}", f"{report.after.test:.2%}")
    if report.among_all:
        table.add_row("the same, among all classes", f"{report.among_all['test']:.2%}", "")
    console.print(table)
    for label, group in enumerate(report.members):
        console.print(f"label {label}: class{'es' * (len(group) > 1)} {', '.join(map(str, group))}")
    if None in (report.settings[name] for name in report.budgets):
        for rung in report.rungs:
            shares = ", ".join(f"{name} {left:.1%}" for name, left in rung.left.items())
            console.print(f"tried: {shares} left, {rung.recovered:.2%} right on calibration data")
    console.print(f"CPU seconds: {report.seconds:.0f}")
    console.print(f"written: {', '.join(map(escape, written))}")


def _classes(text: str | None) -> Any:
    """Return what the user wrote; a number alone as a list, and what cannot be read as the text that it is."""
    if text is None:
        return None
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return [found] if isinstance(found, int) else text if found is None else found


COMMANDS = (reuse,)
