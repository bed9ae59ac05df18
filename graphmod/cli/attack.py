"""The command ``attack``: adversarial samples for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape

from graphmod.cli.commands import DataFile, Json, ModelFile, Seed, _print_json, console
from graphmod.cli.destination import check_destination
from graphmod.model import load, replace_file


def attack(
    model: ModelFile,
    data: DataFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz to write, all parts of the data in it.")],
    by: Annotated[str, typer.Option(help="fgsm, pgd, deepfool or cw.")] = "pgd",
    eps: Annotated[
        float | None,
        typer.Option(help="What a value may change by, in the data's units.", show_default="0.1 of their range"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of pgd, deepfool and cw.")] = 10,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Change samples by a little so that a model gets them wrong; for graphmod adapt, or to see how robust it is.

    [dim]Example:[/] graphmod attack resnet.onnx digits.npz --by pgd --eps 0.1 --out adversarial.npz
    """
    from graphmod.data import PARTS, as_splits
    from graphmod.methods.deeparc import attack as run
    from graphmod.probe import accuracy

    check_destination(out, (".npz",), model, data)
    loaded = load(model)
    splits = as_splits(loaded, data, seed, labels=True)
    name = next(iter(loaded.inputs))
    values = [getattr(splits, part).inputs[name] for part in PARTS]
    bounds = (min(float(x.min()) for x in values), max(float(x.max()) for x in values))
    arrays: dict[str, Any] = {}
    scores: dict[str, dict[str, float]] = {}
    for part in PARTS:
        clean = getattr(splits, part)
        found = run(loaded, clean, by, eps=eps, bounds=bounds, steps=steps, seed=seed)
        arrays[f"x_{part}"], arrays[f"y_{part}"] = found.inputs[name], np.asarray(found.targets)
        scores[part] = {"clean": accuracy(loaded, clean), "attacked": accuracy(loaded, found)}
    replace_file(out, lambda stream: np.savez_compressed(stream, **arrays))
    if as_json:
        _print_json({"attack": by, "accuracy": scores, "file": str(out)})
        return
    for part, score in scores.items():
        console.print(f"{part}: accuracy {score['clean']:.2%}, attacked {score['attacked']:.2%}")
    console.print(f"written: {escape(str(out))}")


COMMANDS = (attack,)
