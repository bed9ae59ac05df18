"""The figures of surgery: every exact verb on real networks, and what approximate ones cost.

    python benchmarks/surgery.py                      # all of it: about half an hour on two cores
    python benchmarks/surgery.py --only exact --list  # one section, a line a network
    python benchmarks/surgery.py --table              # the table of the docs, from the results that are there

``exact`` takes every network of ``tests/architectures`` from both of torch's exporters, and the light models that the
onnx package brings: operators before and after each verb, and how far the outputs are from the original's, as a share
of their largest value, on inputs that are not random noise where the network reads tokens. ``digits`` takes the network
that graphmod ships: accuracy on test data, size and latency of approximate verbs, fitted on training data.

Results go to ``benchmarks/results/surgery.json``, one entry a section, with machine and versions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

import graphmod as gm
from graphmod.rewrite.split import run_parts

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

import architectures  # noqa: E402  # the folders hold scripts and tests, not packages
from machine import machine  # noqa: E402  # the same

RESULTS = ROOT / "benchmarks" / "results" / "surgery.json"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

Feeds = dict[str, np.ndarray]

EXACT: dict[str, Callable[[gm.Model], gm.Model]] = {
    "fuse": gm.fuse,
    "simplify": gm.simplify,
    "outline": gm.outline,
    "outline, inline": lambda model: gm.inline(gm.outline(model)),
    "rename from scopes": lambda model: gm.rename(model, from_scopes=True),
    "split in 3, compose": lambda model: _joined(gm.split(model, 3), list(model.outputs)),
    "expose, hide": lambda model: _exposed_and_hidden(model),
    "simplify, fuse, outline": lambda model: gm.outline(gm.fuse(gm.simplify(model))),
}


def _joined(parts: list[gm.Model], outputs: list[str]) -> gm.Model:
    return gm.compose(parts[0], parts[1:], outputs=outputs)


def _exposed_and_hidden(model: gm.Model) -> gm.Model:
    tensor = next(name for name in gm.boundaries(model) if name not in model.outputs)
    return gm.hide(gm.expose(model, [tensor]), [tensor])


def exact(listed: bool) -> dict[str, Any]:
    """Apply every exact verb to every network, and compare outputs in ONNX Runtime."""
    rows: dict[str, Any] = {}
    for name, model, feeds in _networks():
        expected = model.run(feeds)
        row: dict[str, Any] = {"operators": len(model.operators)}
        for verb, edit in EXACT.items():
            row[verb] = _try(edit, model, feeds, expected)
        row["parts at all boundaries"] = _parts(model, feeds, expected)
        rows[name] = row
        if listed:
            print(name, json.dumps(row), flush=True)
    return {"summary": {verb: _summary(rows, verb) for verb in (*EXACT, "parts at all boundaries")}, "networks": rows}


def _networks() -> Iterator[tuple[str, gm.Model, Feeds]]:
    for name, exporter in architectures.exports():
        model = gm.load(architectures.export(name, exporter))
        inputs = architectures.examples(name, exporter)[0]
        yield f"{name}, {exporter}", model, {k: v.numpy() for k, v in zip(model.inputs, inputs, strict=True)}
    for path in sorted(LIGHT.glob("*.onnx")):
        model = gm.load(path)
        yield path.stem, model, dict(gm.data.noise(model, 1).inputs)


def _try(edit: Callable[[gm.Model], gm.Model], model: gm.Model, feeds: Feeds, expected: Feeds) -> dict[str, Any]:
    start = time.perf_counter()
    try:
        made = edit(model)
    except (gm.GraphmodError, StopIteration) as error:
        return {"refused": f"{type(error).__name__}: {error}"[:200]}
    seconds = time.perf_counter() - start
    found = made.run({name: feeds[name] for name in made.inputs})
    return {"operators": len(made.operators), "error": _error(expected, found), "seconds": round(seconds, 3)}


def _parts(model: gm.Model, feeds: Feeds, expected: Feeds) -> dict[str, Any]:
    cuts = [name for name in gm.boundaries(model) if name not in model.outputs]
    try:
        parts = gm.split(model, cuts)
    except gm.GraphmodError as error:
        return {"refused": f"{type(error).__name__}: {error}"[:200]}
    return {"operators": len(parts), "error": _error(expected, run_parts(parts, feeds))}


def _error(expected: Feeds, found: Feeds) -> float:
    """Return the largest difference of any output, over the output's largest value."""
    worst = 0.0
    for name, wanted in expected.items():
        a, b = np.asarray(wanted, np.float64), np.asarray(found[name], np.float64)
        scale = np.abs(a[np.isfinite(a)]).max(initial=0.0) or 1.0
        worst = max(
            worst, float(np.abs(np.subtract(a, b, where=a != b, out=np.zeros_like(a))).max(initial=0.0) / scale)
        )
    return worst


def _summary(rows: dict[str, Any], verb: str) -> dict[str, Any]:
    done = [(row["operators"], row[verb]) for row in rows.values() if "error" in row[verb]]
    return {
        "networks": len(rows),
        "done": len(done),
        "within 1e-5": sum(cell["error"] <= 1e-5 for _, cell in done),
        "largest error": max(cell["error"] for _, cell in done),
        "median share of operators": statistics.median(cell["operators"] / before for before, cell in done),
    }


def digits(listed: bool) -> dict[str, Any]:
    """Apply approximate verbs to the network that ships; accuracy on test data, latency interleaved, one thread."""
    model, data = gm.load(gm.demo.model_path()), gm.demo.splits()
    edits: dict[str, Callable[[], gm.Model]] = {
        "remove a block (layer1.3)": lambda: gm.remove(model, "layer1.3"),
        "replace it by a linear layer": lambda: gm.replace(model, "layer1.3", data.train, "linear"),
        "collapse layer3.2, layer3.3": lambda: gm.collapse(model, ["layer3.2", "layer3.3"], data.train),
        "low_rank, 90 % of energy": lambda: gm.low_rank(model, energy=0.9),
        "retype to float16": lambda: gm.retype(model, "float16"),
        "quantize, static int8": lambda: gm.quantize(model, data.train),
        "quantize, dynamic int8": lambda: gm.quantize(model, mode="dynamic"),
        "every Relu to HardSwish": lambda: gm.replace(model, "Relu", by="HardSwish"),
    }
    rows: dict[str, Any] = {"as shipped": {"accuracy": gm.accuracy(model, data.test), "bytes": model.n_bytes}}
    for name, edit in edits.items():
        made = edit()
        ratios = _ratios(model, made, dict(data.test[slice(0, 64)].inputs))
        rows[name] = {
            "accuracy": gm.accuracy(made, data.test),
            "bytes": made.n_bytes,
            "speedup": statistics.median(ratios),
        }
        if listed:
            print(name, rows[name], flush=True)
    return rows


def _ratios(before: gm.Model, after: gm.Model, feeds: Feeds) -> list[float]:
    sides = [model.session(threads=1) for model in (before, after)]
    ratios = []
    for _ in range(40):
        times = []
        for side in sides:
            start = time.process_time()
            side.run(None, feeds)
            times.append(time.process_time() - start)
        ratios.append(times[0] / times[1])
    return ratios[5:]


def table(results: dict[str, Any]) -> str:
    """Return the figures as the docs show them."""
    lines = [
        "| verb | done | within 1e-5 | largest error | operators left, median |",
        "| --- | --- | --- | --- | --- |",
    ]
    for verb, row in results["exact"]["summary"].items():
        share = "" if verb == "parts at all boundaries" else f"{row['median share of operators']:.0%}"
        done = f"{row['done']} of {row['networks']}"
        lines.append(f"| {verb} | {done} | {row['within 1e-5']} | {row['largest error']:.1g} | {share} |")
    return "\n".join(lines)


SECTIONS: dict[str, Callable[[bool], dict[str, Any]]] = {"exact": exact, "digits": digits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--list", action="store_true", help="a line a network")
    parser.add_argument("--table", action="store_true", help="print the table of the docs and measure nothing")
    chosen = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if chosen.table:
        print(table(results))
        return
    torch.set_num_threads(1)
    for name in [chosen.only] if chosen.only else SECTIONS:
        results[name] = {"machine": machine(), **SECTIONS[name](chosen.list)}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps(results[name].get("summary", results[name]), indent=1))


if __name__ == "__main__":
    main()
