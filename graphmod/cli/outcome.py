"""What every editing command ends in: a file, or with ``--dry-run`` what would change, and figures before and after."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from graphmod.cli.commands import console
from graphmod.data import Data, as_data, check_labels, fixed_batch, noise, part_of
from graphmod.errors import InvalidDataError, NotWritableError, RefusedError
from graphmod.graph.costs import cost
from graphmod.model import Model, check_writable, external_files
from graphmod.probe import accuracy, least_latency
from graphmod.rewrite import Verification, diff, verify

OutFile = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="The ONNX file to write; several models get numbers.", show_default=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change, and write nothing.")]
Verify = Annotated[
    str | None,
    typer.Option(
        help="Compare the outputs, and the accuracy where there are labels, on this data, or on 'random' samples.",
        metavar="DATA",
        show_default=False,
    ),
]


def check_outcome(out: Path | None, dry_run: bool) -> None:
    """Raise NotWritableError, before anything is computed, unless the result can be written or need not be."""
    if out is not None:
        check_writable(out)
    elif not dry_run:
        raise NotWritableError("nowhere to write the result; say --out FILE, or --dry-run to see what would change")


def to_verify(model: Model, data: str | None) -> Data | None:
    """Return what ``--verify`` names, before anything is computed: the test part of data with parts, else all of it.

    Raises
    ------
    InvalidDataError
        It cannot be read, or does not fit the model.
    """
    return None if data is None else as_data(model, samples(model, data))


def show(
    before: Model,
    after: list[Model],
    out: Path | None,
    dry_run: bool,
    given: Data | None,
    as_json: bool,
    timed: str | None = None,
) -> None:
    """Write the models, and print what they are, how they differ on data, and how long a sample of ``timed`` takes."""
    if given is not None and len(after) > 1:
        raise RefusedError("several models came out, so there is no one output to verify; compose them first")
    errors = None if given is None else _verified(before, after[0], given)
    accuracies = None if given is None else _accuracies([before, *after], given)
    times = [] if timed is None else _times([before, *after], timed)
    paths = [] if out is None or dry_run else _numbered(out, len(after))
    for one, path in zip(after, paths, strict=False):
        one.save(path)
    if as_json:
        content: dict[str, Any] = {"before": _figures(before), "after": [_figures(one) for one in after]}
        if dry_run:
            content["differences"] = [diff(before, one).as_dict() for one in after]
        if errors is not None:
            content["errors"] = {name: asdict(error) for name, error in errors.outputs.items()}
        if accuracies is not None:
            content["accuracy"] = accuracies
        if times:
            content["microseconds"] = times
        typer.echo(
            json.dumps(
                {**content, "files": [str(file) for path in paths for file in files_of(path)]}, indent=2, default=str
            )
        )
        return
    if dry_run:
        from graphmod.report.diff_tree import diff_tree

        for one in after:
            console.print(diff_tree(diff(before, one), "before and after"))
    console.print(_table(before, after, accuracies))
    n_samples = fixed_batch(before) or 1
    told = "one sample takes" if n_samples == 1 else f"{n_samples} samples take"
    for time in times[1:]:
        console.print(f"{told} {time:,.0f} microseconds, {time / times[0]:.1%} of {times[0]:,.0f} before")
    for name, error in (errors.outputs if errors is not None else {}).items():
        console.print(f"{escape(name)}: largest difference {error.largest:.3g}, rms {error.rms:.3g} of its rms")
    if any(one is before for one in after):
        console.print("there was nothing to do")
    if paths:
        console.print(f"written: {', '.join(escape(str(file)) for path in paths for file in files_of(path))}")


def files_of(path: Path) -> list[Path]:
    """Return the files that a saved model is made of."""
    return [path, *external_files(path)]


def _verified(before: Model, after: Model, data: Data) -> Verification:
    """Compare the outputs that a model has now with what the tensors of their names were before."""
    shared = [name for name in after.outputs if name in before.outputs or name in before.producer]
    if not shared or not before.inputs.keys() >= after.inputs.keys():
        raise RefusedError("inputs or outputs have other names now, so there is nothing to verify")
    return verify(before, after, data, outputs=shared)


def _accuracies(models: list[Model], data: Data) -> list[float] | None:
    """Return the accuracy of every model; None where there are no labels of classes, or models have not the same."""
    first = models[0]
    if first.n_classes is None or any(
        one.main_output != first.main_output
        or one.n_classes != first.n_classes
        or one.inputs.keys() != first.inputs.keys()
        for one in models
    ):
        return None
    try:
        check_labels(first, data)
    except InvalidDataError:  # targets of another kind, which outputs are compared on all the same
        return None
    return [accuracy(one, data) for one in models]


def _times(models: list[Model], data: str) -> list[float]:
    """Return the microseconds that models take for one sample, or for as many as they fix, of those to train on."""
    given = noise(models[0]) if data == "random" else as_data(models[0], part_of(data, "train"))
    one = given[: fixed_batch(models[0]) or 1]
    found = least_latency({str(place): model for place, model in enumerate(models)}, one.inputs)
    return [found[str(place)] for place in range(len(models))]


def samples(model: Model, data: str) -> object:
    """Return random samples if asked for, the test part of data with parts, else all of the data."""
    return noise(model) if data == "random" else part_of(data, "test")


def _numbered(out: Path, count: int) -> list[Path]:
    return [out] if count == 1 else [out.with_name(f"{out.stem}.{i}{out.suffix}") for i in range(count)]


def _figures(model: Model) -> dict[str, int]:
    macs = cost(model).macs
    return {"operators": len(model.operators), "weights": model.n_weights, "macs": macs, "bytes": model.n_bytes}


def _table(before: Model, after: list[Model], accuracies: list[float] | None) -> Table:
    names = ["before", *(f"after{' ' + str(i) if len(after) > 1 else ''}" for i in range(len(after)))]
    table = Table("", "operators", "weights", "MACs", "bytes", *([] if accuracies is None else ["accuracy"]))
    shares = [[f"{one:.2%}"] for one in accuracies] if accuracies is not None else [[] for _ in names]
    for name, model, share in zip(names, [before, *after], shares, strict=True):
        table.add_row(name, *(f"{figure:,}" for figure in _figures(model).values()), *share)
    return table
