"""The command ``verify``: two models on the same data."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from graphmod.cli.commands import Json, ModelFile, console
from graphmod.cli.outcome import samples
from graphmod.model import load
from graphmod.rewrite.verify import EXACT
from graphmod.rewrite.verify import verify as compare


def verify(
    model: ModelFile,
    other: Annotated[
        Path, typer.Argument(help="Another ONNX file, with the same inputs and outputs.", show_default=False)
    ],
    data: Annotated[str, typer.Argument(help="An .npz, a folder of images, or 'random' samples.")] = "random",
    tolerance: Annotated[float, typer.Option(min=0, help="Of the output's largest value.")] = EXACT,
    as_json: Json = False,
) -> None:
    """Run two models on the same data and compare their outputs; exit with 1 where they differ.

    [dim]Example:[/] graphmod verify in.onnx out.onnx digits.npz
    """
    first, second = load(model), load(other)
    found = compare(first, second, samples(first, data))
    if as_json:
        typer.echo(
            json.dumps({name: {**asdict(e), "relative": e.relative} for name, e in found.outputs.items()}, indent=2)
        )
    else:
        for name, error in found.outputs.items():
            told = f"largest difference {error.largest:.3g}, {error.relative:.2g} of its scale"
            console.print(f"{escape(name)}: {told}; rms {error.rms:.2g} of its rms")
    if not all(error.relative <= tolerance for error in found.outputs.values()):  # so that NaN is a difference
        raise typer.Exit(1)


COMMANDS = (verify,)
