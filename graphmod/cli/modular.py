"""The commands ``modular ...``: libraries of a module a class, and classifiers composed of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape
from rich.table import Table

from graphmod.cli.commands import DataFile, Json, ModelFile, Seed, _print_json, console
from graphmod.cli.destination import check_apart, check_destination
from graphmod.cli.outcome import files_of
from graphmod.data import as_splits
from graphmod.errors import RefusedError
from graphmod.model import check_folder, load
from graphmod.probe import accuracy

GROUP = typer.Typer(
    name="modular",
    help="A module for every class of a classifier, and classifiers composed of modules without training.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Folder = Annotated[Path, typer.Option("--out", "-o", help="The folder of the library.", show_default=False)]
LibraryFolder = Annotated[Path, typer.Argument(help="A folder that train or extract wrote.", show_default=False)]
Weights = Annotated[float, typer.Option(help="Share of the weights that the module of one class may have.")]
Latency = Annotated[float | None, typer.Option(help="The same of the latency of one sample.", show_default=False)]
Rate = Annotated[float, typer.Option(help="Learning rate at first.")]
BatchSize = Annotated[int, typer.Option(min=2, help="Samples a step.")]


@GROUP.command()
def train(
    model: ModelFile,
    data: DataFile,
    out: Folder,
    weights: Weights = 0.1,
    latency: Latency = None,
    epochs: Annotated[int, typer.Option(min=2, help="Half of them for the whole network.")] = 30,
    learning_rate: Rate = 2e-3,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train a network modular, from the weights that it has.

    [dim]Example:[/] graphmod modular train untrained.onnx digits.npz --out library
    """
    from graphmod.methods.modular import build

    _write(build.train, model, data, out, as_json, weights=weights, latency=latency, epochs=epochs,
           learning_rate=learning_rate, batch_size=batch_size, seed=seed)  # fmt: skip


@GROUP.command()
def extract(
    model: ModelFile,
    data: DataFile,
    out: Folder,
    weights: Weights = 0.1,
    latency: Latency = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of training the modules.")] = 10,
    learning_rate: Rate = 1e-3,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make a trained network modular, by what is relevant for its classes.

    [dim]Example:[/] graphmod modular extract model.onnx digits.npz --latency 0.25 --out library
    """
    from graphmod.methods.modular import build

    _write(build.extract, model, data, out, as_json, weights=weights, latency=latency, epochs=epochs,
           learning_rate=learning_rate, batch_size=batch_size, seed=seed)  # fmt: skip


@GROUP.command()
def compose(
    library: LibraryFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)],
    classes: Annotated[
        str | None, typer.Option(help="'[3, 5, 8]', columns in this order; '[3]' is a detector.", show_default=False)
    ] = None,
    without: Annotated[
        str | None, typer.Option(help="All classes but these, and no unit of theirs alone.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a classifier of some classes, made of their modules.

    [dim]Example:[/] graphmod modular compose library --classes '[3, 5, 8]' --out three.onnx

    [dim]Example:[/] graphmod modular compose library --without '[4]' --out forgotten.onnx
    """
    from graphmod.methods.modular import Library

    if (classes is None) == (without is None):
        raise RefusedError("a classifier is composed of --classes, such as '[3, 5, 8]', or --without some; give one")
    check_destination(out, (".onnx",), *_files_in(library))
    modules = Library.load(library)
    found = modules.compose(_classes(classes)) if classes is not None else modules.without(_classes(without))
    found.save(out)
    written = [str(file) for file in files_of(out)]
    share = found.n_weights / modules.model.n_weights
    if as_json:
        _print_json({"weights": found.n_weights, "share": share, "outputs": _told(found.outputs), "files": written})
        return
    console.print(f"{escape(repr(found))}: {share:.1%} of the weights of all classes")
    console.print(f"written: {', '.join(map(escape, written))}")


@GROUP.command()
def patch(
    library: LibraryFolder,
    strong: Annotated[Path, typer.Argument(help="The library of which modules are taken.", show_default=False)],
    data: DataFile,
    classes: Annotated[str, typer.Option(help="The classes whose modules are replaced: '[4]'.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Write the classifier of all classes, with the modules of weak ones replaced by those of another library.

    [dim]Example:[/] graphmod modular patch weak strong digits.npz --classes '[4]' --out patched.onnx
    """
    from graphmod.methods.digests import digest
    from graphmod.methods.modular import Library

    check_destination(out, (".onnx",), data, *_files_in(library), *_files_in(strong))
    weak = Library.load(library)
    found = weak.patch(Library.load(strong), _classes(classes), str(data))
    found.save(out)
    parts = as_splits(found, str(data), weak.manifest["seed"], labels=True)
    right = {name: accuracy(model, parts.test) for name, model in (("before", weak.model), ("after", found))}
    written = [str(file) for file in files_of(out)]
    same_data = digest(parts) == weak.manifest["data"]
    if as_json:
        _print_json({**right, "weights": found.n_weights, "same data": same_data, "files": written})
        return
    _tell_data(same_data)
    console.print(f"right on {right['before']:.2%} of the test data before, {right['after']:.2%} after")
    console.print(f"written: {', '.join(map(escape, written))}")


@GROUP.command()
def report(
    library: LibraryFolder,
    model: ModelFile,
    data: DataFile,
    sizes: Annotated[str, typer.Option(help="How many modules are composed.")] = "[1, 2, 3]",
    draws: Annotated[int, typer.Option(min=1, help="Sets of classes that are drawn of each size.")] = 3,
    epochs: Annotated[int, typer.Option(min=0, help="Of fine-tuning what is composed, to see what it brings.")] = 0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure what is composed of one, two, ... modules, on test data, beside the model that the library is of.

    [dim]Example:[/] graphmod modular report library model.onnx digits.npz --sizes '[1, 3, 5]'
    """
    from graphmod.methods.digests import digest
    from graphmod.methods.modular import Library, measuring

    original, modules = load(model), Library.load(library)
    parts = as_splits(original, str(data), modules.manifest["seed"], labels=True)
    same_data = digest(parts) == modules.manifest["data"]
    found = measuring.report(modules, original, parts, _classes(sizes), draws, epochs, seed=seed)
    if as_json:
        _print_json({**found.as_dict(), "same data": same_data})
        return
    _tell_data(same_data)
    table = Table(
        "modules", "weights", "MACs", "latency at 1", "at 16", "accuracy", "of the model among these", "tuned"
    )
    for size in dict.fromkeys(len(one.classes) for one in found.composed):
        some = [one for one in found.composed if len(one.classes) == size]
        table.add_row(
            str(size), f"{found.mean(size, 'weights'):.1%}", f"{found.mean(size, 'macs'):.1%}",
            *(f"{sum(one.latency[batch] for one in some) / len(some):.2f}x" for batch in (1, 16)),
            f"{found.mean(size, 'accuracy'):.2%}", f"{found.mean(size, 'whole'):.2%}",
            f"{found.mean(size, 'tuned'):.2%}" if all(one.tuned is not None for one in some) else "",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"whole: right on {found.accuracy:.2%}, the model on {found.original:.2%}; two modules have "
        f"{found.coupling:.0%} in common (Jaccard)"
    )


def _tell_data(are_same: bool) -> None:
    """Say so where figures are of other data than a library was made of."""
    if not are_same:
        console.print(
            "these are not the data that the library was made of: what it has learnt may be among the test data"
        )


@GROUP.command()
def ls(library: LibraryFolder, as_json: Json = False) -> None:
    """Show what a library has: classes, the weights of their modules, accuracy, and what it was made of.

    [dim]Example:[/] graphmod modular ls library
    """
    from graphmod.methods.modular import Library

    found = Library.load(library)
    whole, accuracy = found.model.n_weights, found.manifest["accuracy"]
    sizes = [found.compose([label]).n_weights for label in range(found.n_classes)]
    if as_json:
        modules = [
            {"class": label, "weights": size, "accuracy": right}
            for label, (size, right) in enumerate(zip(sizes, accuracy, strict=True))
        ]
        _print_json({"weights": whole, "modules": modules, "manifest": found.manifest})
        return
    table = Table("class", "weights of its module", "right in the whole classifier, test data")
    for label, (size, right) in enumerate(zip(sizes, accuracy, strict=True)):
        table.add_row(str(label), f"{size:,} ({size / whole:.1%})", "" if right is None else f"{right:.2%}")
    console.print(table)
    settings = ", ".join(f"{name} {value}" for name, value in found.manifest["settings"].items() if value is not None)
    console.print(f"made of the model {found.manifest['original'][:12]} with {settings}, seed {found.manifest['seed']}")


def _write(make: Any, model: Path, data: Path, out: Path, as_json: bool, **settings: Any) -> None:
    """Make a library, and write it."""
    from graphmod.methods.modular.library import MODULES

    check_folder(out, MODULES)
    for file in _files_in(out):
        check_apart(file, model, data)
    made = make(load(model), str(data), progress=not as_json, **settings)
    made.save(out)
    manifest = made.manifest
    if as_json:
        _print_json({"classes": made.n_classes, "weights": made.model.n_weights, "manifest": manifest})
        return
    known = [one for one in manifest["accuracy"] if one is not None]
    console.print(f"{made.n_classes} modules; classes are told right on {sum(known) / len(known):.2%} of test samples")
    console.print(f"CPU seconds: {manifest['seconds']:.0f}")
    console.print(
        f"written: {escape(str(out))}; graphmod modular compose {escape(str(out))} --classes '[0, 1]' goes on"
    )


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a library."""
    from graphmod.methods.modular.library import BACKBONE, MODULES, TABLES

    backbone = folder / BACKBONE
    return [folder / MODULES, folder / TABLES, *(files_of(backbone) if backbone.is_file() else [backbone])]


def _classes(text: str | None) -> Any:
    """Return what the user wrote; a number alone as a list, and what cannot be read as the text that it is."""
    try:
        found = yaml.safe_load(text or "")
    except yaml.YAMLError:
        return text
    return [found] if isinstance(found, int) else text if found is None else found


def _told(outputs: Any) -> dict[str, str]:
    return {name: str(kind) for name, kind in outputs.items()}
