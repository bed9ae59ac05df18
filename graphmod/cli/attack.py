"""The command ``attack``: adversarial samples for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape

from graphmod.cli.commands import DataFile, Json, ModelFile, Seed, _print_json, console
from graphmod.cli.destination import check_destination
from graphmod.errors import RefusedError
from graphmod.model import load, replace_file


def attack(
    model: ModelFile,
    data: DataFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The .npz to write, with the parts that are attacked.")],
    by: Annotated[str, typer.Option(help="fgsm, pgd, deepfool or cw.")] = "pgd",
    eps: Annotated[
        float | None,
        typer.Option(help="What a value may change by, in the data's units.", show_default="0.1 of their range"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of pgd, deepfool and cw.")] = 10,
    parts: Annotated[
        list[str] | None,
        typer.Option("--part", help="train, calibration or test; again for more; all if not given.", metavar="PART"),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Change samples by a little so that a model gets them wrong; for graphmod adapt, or to see how robust it is.

    deepfool and cw take many times as long as fgsm and pgd; to see how robust a model is, --part test will do.

    [dim]Example:[/] graphmod attack resnet.onnx digits.npz --by pgd --eps 0.1 --out adversarial.npz
    """
    from graphmod.data import PARTS, as_splits
    from graphmod.methods.deeparc import attack as run
    from graphmod.probe import accuracy

    check_destination(out, (".npz",), model, data)
    chosen = [part for part in PARTS if part in (parts or PARTS)]
    unknown = sorted(set(parts or ()) - set(PARTS))
    if unknown:
        raise RefusedError(f"the data has no part '{unknown[0]}'; choose of {', '.join(PARTS)}")
    loaded = load(model)
    splits = as_splits(loaded, data, seed, labels=True)
    name = next(iter(loaded.inputs))
    values = [getattr(splits, part).inputs[name] for part in PARTS]
    bounds = (min(float(x.min()) for x in values), max(float(x.max()) for x in values))
    arrays: dict[str, Any] = {}
    scores: dict[str, dict[str, float]] = {}
    cut_off: dict[str, int] = {}
    for part in chosen:
        clean = getattr(splits, part)
        found = run(loaded, clean, by, eps=eps, bounds=bounds, steps=steps, seed=seed, progress=not as_json)
        arrays[f"x_{part}"], arrays[f"y_{part}"] = found.inputs[name], np.asarray(found.targets)
        scores[part] = {"clean": accuracy(loaded, clean), "attacked": accuracy(loaded, found)}
        cut_off[part] = found.n_cut
    replace_file(out, lambda stream: np.savez_compressed(stream, **arrays))
    if as_json:
        _print_json({"attack": by, "accuracy": scores, "cut_off": cut_off, "file": str(out)})
        return
    for part, score in scores.items():
        cut = f"; {cut_off[part]:,} of {len(arrays[f'y_{part}']):,} samples cut off at eps" if cut_off[part] else ""
        console.print(f"{part}: accuracy {score['clean']:.2%}, attacked {score['attacked']:.2%}{cut}")
    console.print(f"written: {escape(str(out))}")


COMMANDS = (attack,)
