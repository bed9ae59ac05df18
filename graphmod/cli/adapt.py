"""The command ``adapt``: a model fitted to samples that look different."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from graphmod.cli.commands import DataFile, Json, ModelFile, Seed, _print_json, console
from graphmod.cli.destination import check_destination
from graphmod.cli.outcome import files_of
from graphmod.model import load


def adapt(
    model: ModelFile,
    data: DataFile,
    shifted: Annotated[
        Path,
        typer.Argument(help="Shifted samples with labels; best in the data's rows.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)],
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the weights that may change.")] = 0.2,
    max_drop: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of accuracy that clean calibration data may lose.")
    ] = 0.005,
    target: Annotated[
        float | None, typer.Option(help="Stop at this accuracy on shifted calibration data.", show_default=False)
    ] = None,
    epochs: Annotated[int, typer.Option(min=0, help="At most.")] = 4,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Fit a model to shifted samples (adversarial, corrupted, another sensor) by training a small part of it.

    Where no change is better, it says so, writes nothing, and ends with exit code 1.

    [dim]Example:[/] graphmod adapt model.onnx clean.npz shifted.npz --out adapted.onnx
    """
    from graphmod.methods.adapt import adapt as run

    check_destination(out, (".onnx",), model, data, shifted)
    loaded = load(model)
    tuned = run(
        loaded, str(data), str(shifted), share=share, max_drop=max_drop, target=target, epochs=epochs, seed=seed,
        progress=not as_json,
    )  # fmt: skip
    report = tuned.report
    written = []
    if report.blocks:
        tuned.model.save(out)
        written = [str(file) for file in files_of(out)]
    if as_json:
        _print_json({**report.as_dict(), "files": written})
        raise typer.Exit(0 if written else 1)
    if not written:
        told = ", ".join(f"{share:.2%} on {name} test data" for name, share in report.before.items())
        console.print(f"no change was better than the model as it is ({told}), so nothing was written")
        raise typer.Exit(1)
    console.print(f"trained: {escape(', '.join(report.blocks))}")
    console.print(f"{report.weights_trained:,} weights, {report.trained_share:.1%} of all")
    for name, before in report.before.items():
        console.print(f"accuracy on {name} test data: {before:.2%} before, {report.after[name]:.2%} after")
    console.print(f"CPU seconds: {', '.join(f'{name} {value:.1f}' for name, value in report.seconds.items())}")
    console.print(f"written: {', '.join(map(escape, written))}")


COMMANDS = (adapt,)
