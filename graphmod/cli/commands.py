"""The commands. Each reads its arguments, calls one function, and prints what it gave."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from graphmod.cli.destination import check_apart, check_destination
from graphmod.errors import InvalidModelError
from graphmod.graph import Block, boundaries, cost
from graphmod.graph import blocks as block_tree
from graphmod.model import Model, check_folder, load

ModelFile = Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)]
DataFile = Annotated[
    Path,
    typer.Argument(help="An .npz (x, y, or x_train, y_train, x_test, ...) or a folder of images.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Where to write.", show_default=False)]
BatchSize = Annotated[int, typer.Option(min=4, help="Samples a batch, at least 4.")]
Threshold = Annotated[float, typer.Option(min=0, max=1, help="Similarity that every pair within a module must have.")]
Passes = Annotated[int, typer.Option(min=1, help="Passes over the samples; of several each is shuffled anew.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same result.")]

_PICTURES = (".png", ".svg", ".pdf")

console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 1000)
"""What prints: in a file or a pipe nothing is cut to the width of a terminal."""


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=2, default=str))


def info(
    model: ModelFile,
    digest: Annotated[bool, typer.Option("--digest", help="Also hash graph and weights; reads them all.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a model is: inputs, outputs, operators, parameters, costs, metadata (whole with --json).

    [dim]Example:[/] graphmod info resnet.onnx
    """
    from graphmod.report.tables import info_table

    loaded = load(model)
    n_boundaries = _count_boundaries(loaded)
    if not as_json:
        console.print(info_table(loaded, n_boundaries))
        if digest:
            console.print(loaded.digest)
        return
    whole = cost(loaded)
    _print_json(
        {
            "inputs": {name: str(kind) for name, kind in loaded.inputs.items()},
            "outputs": {name: str(kind) for name, kind in loaded.outputs.items()},
            "opset": loaded.opset,
            "ir_version": loaded.ir_version,
            "operators": dict(Counter(operator.op_type for operator in loaded.operators)),
            "boundaries": n_boundaries,
            "weights": loaded.n_weights,
            "macs": whole.macs,
            "bytes": loaded.n_bytes,
            "metadata": loaded.metadata,
            **({"digest": loaded.digest} if digest else {}),
        }
    )


def _count_boundaries(model: Model) -> int | None:
    """Return the number of boundaries, None for a model without a trunk: there is still something to tell of it."""
    try:
        return len(boundaries(model))
    except InvalidModelError:
        return None


def blocks(
    model: ModelFile,
    depth: Annotated[int, typer.Option(min=1, help="Levels of the tree.")] = 2,
    as_json: Json = False,
) -> None:
    """Show the tree of blocks, with their weights and costs.

    [dim]Example:[/] graphmod blocks resnet.onnx --depth 3
    """
    from graphmod.report.tables import blocks_tree

    loaded = load(model)
    root = block_tree(loaded)
    if not as_json:
        console.print(blocks_tree(loaded, root, depth))
        return
    _print_json([_block_row(loaded, block) for block in root.walk() if block is not root])


def _block_row(model: Model, block: Block) -> dict[str, Any]:
    row = {"path": block.path, "entry": block.entry, "exit": block.exit, "operators": list(block.operators)}
    return {**row, **asdict(cost(model, block.operators)), "children": [child.path for child in block.children]}


def similarity(
    model: ModelFile,
    data: DataFile,
    out: Out = None,
    batch_size: BatchSize = 64,
    passes: Passes = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure how similar the representations at all boundaries are, and draw them.

    --out takes .png, .svg or .pdf for a heatmap, .npz for the matrix.

    [dim]Example:[/] graphmod similarity resnet.onnx images/ --out similarity.png
    """
    from graphmod.probe import similarity as measure

    if out is not None:
        check_destination(out, (*_PICTURES, ".npz"), model, data)
    loaded = load(model)
    samples = _samples(loaded, data)
    found = measure(loaded, samples, batch_size=batch_size, passes=passes, seed=seed, progress=not as_json)
    if out is not None:
        if out.suffix == ".npz":
            found.save(out)
        else:
            found.plot(out)
    if as_json:
        _print_json({**_plain(found.matrix), "boundaries": found.boundaries, "blocks": found.blocks})
        return
    console.print(f"{len(found.boundaries)} boundaries, {found.n_samples} samples")
    if out is not None:
        console.print(f"written: {escape(str(out))}")


def _plain(matrix: Any) -> dict[str, Any]:
    """Return a matrix as JSON has it: null for NaN."""
    return {"matrix": [[None if value != value else round(float(value), 6) for value in row] for row in matrix]}


def _samples(model: Model, data: Path) -> Any:
    """Return the training samples of data with parts, all samples of data without."""
    from graphmod.data import as_data, part_of

    return as_data(model, part_of(data, "train"))


def modules(
    model: ModelFile,
    data: DataFile,
    out: Out = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw similarity and modules to this .png, .svg or .pdf.", show_default=False),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Similarity that pairs within a module must have.", show_default="0.8")
    ] = None,
    n_modules: Annotated[int | None, typer.Option(help="How many, instead of a threshold.", show_default=False)] = None,
    method: Annotated[str, typer.Option(help="'optimal', or 'greedy' (DeepArc's rule).")] = "optimal",
    floor: Annotated[
        float | None,
        typer.Option(help="With a number of modules: similarity that pairs must have.", show_default=False),
    ] = None,
    cut_shapes: Annotated[
        bool, typer.Option("--cut-shapes", help="Begin a module wherever the shape changes.")
    ] = False,
    resamples: Annotated[int, typer.Option(min=0, help="Cut anew on so many resamples of the batches.")] = 0,
    batch_size: BatchSize = 64,
    passes: Passes = 1,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Cut a model into modules of consecutive, similar boundaries, and write the module map.

    With --resamples the table tells how often a module begins there when the batches are resampled.

    [dim]Example:[/] graphmod modules resnet.onnx digits.npz --threshold 0.9 --out modules.json --plot modules.png
    """
    from graphmod.modules import modularize, shape_cuts, stability
    from graphmod.probe import similarity as measure
    from graphmod.report.tables import modules_table

    if out is not None:
        check_destination(out, (".json",), model, data)
    if plot is not None:
        check_destination(plot, _PICTURES, model, data)
    loaded = load(model)
    samples = _samples(loaded, data)
    found = measure(loaded, samples, batch_size=batch_size, passes=passes, seed=seed, progress=not as_json)
    if threshold is None and n_modules is None:
        threshold = 0.8
    cuts = shape_cuts(loaded, found.boundaries) if cut_shapes else ()
    cut = modularize(found, method, threshold=threshold, n_modules=n_modules, floor=floor, cuts=cuts)
    stable = None
    if resamples:
        stable = stability(
            found,
            method,
            threshold=threshold,
            n_modules=n_modules,
            floor=floor,
            cuts=cuts,
            resamples=resamples,
            seed=seed,
        )
    if out is not None:
        cut.save(out)
    if plot is not None:
        found.plot(plot, cut)
    if as_json:
        _print_json({**asdict(cut), **({} if stable is None else {"stability": stable.as_dict()})})
        return
    console.print(modules_table(cut, stable))
    written = [escape(str(path)) for path in (out, plot) if path is not None]
    if written:
        console.print(f"written: {', '.join(written)}")


def compress(
    model: ModelFile,
    data: DataFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model and its report.")] = Path("out"),
    max_drop: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of accuracy that calibration data may lose.")
    ] = 0.005,
    target: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=0.99, help="Stop at this share of the latency (0.5: twice as fast).", show_default=False
        ),
    ] = None,
    threshold: Threshold = 0.8,
    module_map: Annotated[
        Path | None, typer.Option("--modules", help="A module map made before.", show_default=False)
    ] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Of retraining, at most.")] = 30,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make a model smaller and faster, and write it with a report of what that cost.

    [dim]Example:[/] graphmod compress resnet.onnx digits.npz --max-drop 0.01 --out out
    """
    from graphmod.data import as_splits
    from graphmod.methods import compress as run
    from graphmod.modules import ModuleMap
    from graphmod.report.folder import FILES

    for name in FILES.values():
        check_apart(out / name, model, data)
    loaded = load(model)
    known = None if module_map is None else ModuleMap.load(module_map)
    if known is not None:
        known.check(loaded)
    splits = as_splits(loaded, data, seed, labels=True)
    check_folder(out, FILES["page"])
    result = run(
        loaded,
        splits,
        max_drop,
        target,
        threshold=threshold,
        module_map=known,
        epochs=epochs,
        seed=seed,
        progress=not as_json,
    )
    _show(result, out, model.stem, as_json)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model and its report.")] = Path("out"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Compress the network that ships with graphmod, a ResNet-44 for handwritten digits.

    [dim]Example:[/] graphmod demo --out out
    """
    from graphmod import demo as shipped
    from graphmod.methods import compress as run
    from graphmod.report.folder import FILES

    path = shipped.model_path()
    check_folder(out, FILES["page"])
    _show(run(load(path), shipped.data_path(), seed=seed, progress=not as_json), out, path.stem, as_json)


def _show(result: Any, out: Path, title: str, as_json: bool) -> None:
    from graphmod.report import changes_table, summary_table, write_report

    written = write_report(result, out, title)
    if as_json:
        _print_json({**result.report.as_dict(), "files": written})
        return
    console.print(changes_table(result.report))
    console.print(summary_table(result.report))
    trained = f"{result.report.trained_weights:,} weights trained, {result.report.trained_share:.1%} of the original's"
    console.print(trained)
    console.print(f"written: {', '.join(escape(str(path)) for path in written.values())}")


COMMANDS = (info, blocks, similarity, modules, compress, demo)
