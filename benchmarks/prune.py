"""The figures of pruning: how small, how exact, how fast, on every network there is.

    python benchmarks/prune.py                         # all of it: about an hour and a half on two cores
    python benchmarks/prune.py --only networks --list  # one section, a line a network
    python benchmarks/prune.py --table                 # the table of the docs, from the results that are there
    python benchmarks/prune.py --exports folder        # keep what torch exports, for the next run

``networks`` prunes at ratio 0.5: whether the result runs with outputs of the same shape on inputs of several batch
sizes and lengths, what share of weights, multiply-accumulates and time in ONNX Runtime is left (one thread, one sample,
interleaved), and what holds the weights of those that keep more than 45 %. The networks of ``tests`` are so small that
their time is mostly what every operator costs whatever its size, so networks of real size are measured beside them.
``exact`` removes half of every group alone, and compares with the original whose slices are masked. ``speed`` is
pruning a ResNet-50 next to Torch-Pruning (what ``pruning_rival.py`` needs, this needs), and how time grows with the
number of operators. Accuracy against cost, with recovery, is ``pruning_curves.py``.

Results go to ``benchmarks/results/prune.json``, one entry a section, with machine and versions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import ArrayLike
from onnx import ModelProto

import graphmod as gm
from graphmod.errors import GraphmodError
from graphmod.model.model import _open_once

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

import pruning_networks as networks_of  # noqa: E402  # the folders hold scripts and tests, not packages
from machine import machine  # noqa: E402  # the same
from pruned import EXACT, error, some_units  # noqa: E402  # the same
from pruning_networks import Subject  # noqa: E402  # the same

RESULTS = ROOT / "benchmarks" / "results" / "prune.json"
RATIO = 0.5
SMALL = 0.45
"""Share of the weights under which a network counts as physically smaller."""

MILLISECOND = 1000.0
PASSES, ROUNDS = 3, 5
SIZES = (1_000, 3_000, 10_000, 30_000)

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What the command line asks for: a line a network, and where exports are kept."""

    listed: bool
    exports: Path | None


# -- networks


def networks(options: Options) -> Row:
    """Prune every network, run the result, and time it against the original."""
    rows: dict[str, Row] = {}
    for subject in _all(options):
        row: Row = {"kind": subject.kind, "exporter": subject.exporter, "operators": len(subject.model.operators)}
        try:
            row |= _pruned(subject)
        except (GraphmodError, onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException) as failure:
            row["fails"] = f"{type(failure).__name__}: {failure}"[:300]
        rows[_key(subject, rows)] = row
        if options.listed:
            print(_key(subject, {}), json.dumps(row), flush=True)
    return {"summary": _summary(rows), "networks": rows}


def _all(options: Options) -> Iterator[Subject]:
    return itertools.chain(networks_of.small(options.exports), networks_of.light(), networks_of.real(options.exports))


def _key(subject: Subject, taken: Iterable[str]) -> str:
    """Return the title, with the kind where two networks have the same."""
    return f"{subject.title}, {subject.kind}" if subject.title in taken else subject.title


def _pruned(subject: Subject) -> Row:
    model = subject.model
    start = time.process_time()
    small = gm.prune(model, RATIO)
    seconds = time.process_time() - start
    rounded = gm.prune(model, RATIO, multiple_of=8)
    cost, whole = gm.graph.cost(small), gm.graph.cost(model)
    row: Row = {
        "seconds": round(seconds, 3),
        "shapes intact": all(_same_shapes(model.run(feeds), small.run(feeds)) for feeds in subject.examples),
        "weights": small.n_weights / model.n_weights,
        "macs": cost.macs / whole.macs if whole.macs else None,
    }
    row |= _times({"original": model, "latency": small, "latency, multiple of 8": rounded}, subject.one)
    return row | ({"held by": _held_by(model, small)} if row["weights"] >= SMALL else {})


def _times(models: dict[str, gm.Model], feeds: networks_of.Feeds) -> Row:
    """Return the original's microseconds and the others' shares, the median of sessions opened anew."""
    found: list[Row] = []
    for _ in range(PASSES):
        medians = {name: one.median for name, one in gm.latency(models, feeds, rounds=15).items()}
        before = medians.pop("original")
        found.append({"microseconds": before, **{name: one / before for name, one in medians.items()}})
    return {what: statistics.median(one[what] for one in found) for what in found[0]}


def _same_shapes(before: networks_of.Feeds, after: networks_of.Feeds) -> bool:
    return {name: value.shape for name, value in before.items()} == {name: v.shape for name, v in after.items()}


def _held_by(model: gm.Model, small: gm.Model) -> list[str]:
    """Say what keeps axes whole, with the share of the weights left that lie along such axes; most first."""
    found = gm.groups(model)
    shares: Counter[str] = Counter()
    for tensor, kind in model.constants.items():
        if kind.is_float and tensor in small.constants:
            axes = found.analysis.axes.get(tensor, [])
            whole = [labels for labels in axes if len(labels) > 1 and (found.unit_of[labels] < 0).all()]
            for reason in {found.analysis.couplings.reason(labels) for labels in whole}:
                if reason and not reason.startswith("positions"):  # the extent of a kernel
                    shares[reason] += small.constants[tensor].size
    shares["weights that took in what was left of removed channels"] = sum(
        kind.size for tensor, kind in small.constants.items() if kind.is_float and tensor not in model.constants
    )
    return [f"{n / small.n_weights:.0%}: {reason}" for reason, n in shares.most_common(4) if n > 0.01 * small.n_weights]


def _summary(rows: dict[str, Row]) -> Row:
    done = {name: row for name, row in rows.items() if "fails" not in row}
    kinds = dict.fromkeys(row["kind"] for row in rows.values())
    return {
        "networks": len(rows),
        "run with shapes intact": sum(row["shapes intact"] for row in done.values()),
        "fail": {name: row["fails"] for name, row in rows.items() if "fails" in row},
        "all": _medians(done.values()),
        "all but real sizes": _medians(row for row in done.values() if row["kind"] != "real size"),
        "current exporter": _medians(row for row in done.values() if row["exporter"] == "current"),
        "over 1 ms before": _medians(row for row in done.values() if row["microseconds"] > MILLISECOND),
        **{kind: _medians(row for row in done.values() if row["kind"] == kind) for kind in kinds},
        f"above {SMALL:.0%}": {
            name: {"weights": round(row["weights"], 3), "held by": row["held by"]}
            for name, row in sorted(done.items(), key=lambda item: -item[1]["weights"])
            if "held by" in row
        },
    }


def _medians(rows: Iterable[Row]) -> Row:
    chosen = list(rows)
    medians: Row = {"networks": len(chosen)}
    if chosen:
        medians[f"under {SMALL:.0%}"] = sum(row["weights"] < SMALL for row in chosen)
        for what in ("weights", "macs", "latency", "latency, multiple of 8"):
            values = [row[what] for row in chosen if row[what] is not None]
            medians[what] = round(statistics.median(values), 3) if values else None
    return medians


# -- exact


def exact(options: Options) -> Row:
    """Remove half of each group of each network alone, and compare with the masked original."""
    rows: dict[str, Row] = {}
    for subject in itertools.chain(networks_of.small(options.exports), networks_of.light(filled=True)):
        reference = networks_of.light_reference(subject.name) if subject.kind == "light" else None
        rows[_key(subject, rows)] = row = _errors(subject, reference)
        if options.listed:
            print(subject.title, json.dumps(row), flush=True)
    errors = [value for row in rows.values() for value in row["errors"]]
    summary = {
        "networks": len(rows),
        "groups": len(errors) + sum(len(row["fails"]) for row in rows.values()),
        f"over {EXACT:g}": sum(value > EXACT for value in errors),
        "fail": {f"{name}: {group}": why for name, row in rows.items() for group, why in row["fails"].items()},
        "largest error": max(errors),
        "median error": statistics.median(errors),
    }
    return {"summary": summary, "networks": rows}


def _errors(subject: Subject, reference: ModelProto | None) -> Row:
    found = gm.groups(subject.model)
    row: Row = {"groups": len(found), "too small": [], "errors": [], "fails": {}}
    for group in found:
        gone = some_units(found, seed=0, share=RATIO, only=group.name)
        if not gone.any():
            row["too small"].append(group.name)
            continue
        try:
            row["errors"].append(float(error(found, gone, subject.examples[0], reference)))
        except (AssertionError, ValueError, GraphmodError, RuntimeError) as failure:
            row["fails"][group.name] = f"{type(failure).__name__}: {failure}"[:300]
    return row | {"largest error": max(row["errors"], default=0.0)}


# -- speed


def speed(options: Options) -> Row:
    """Prune a ResNet-50 of real size, in turn with Torch-Pruning, and networks of more and more operators."""
    from pruning_rival import resnet50_seconds

    model = gm.load(networks_of.exported(*networks_of.built("resnet50")))
    ours, theirs = [], []
    for _ in range(ROUNDS):
        ours.append(_seconds(lambda: gm.prune(model, RATIO)))
        theirs.append(resnet50_seconds(ratio=RATIO))
        if options.listed:
            print(ours[-1], theirs[-1], flush=True)
    medians = {
        "graphmod": {what: statistics.median(one[what] for one in ours) for what in ours[0]},
        "torch-pruning": {what: statistics.median(one[what] for one in theirs) for what in theirs[0]},
    }
    growth = {name: _growth(make, options.listed) for name, make in networks_of.GROWTH.items()}
    return {
        "torch-pruning": version("torch-pruning"),
        "summary": {
            "resnet50": medians,
            "ratio": {what: medians["torch-pruning"][what] / medians["graphmod"][what] for what in ("wall", "cpu")},
            "growth": {name: {what: row[what] for what in row if "exponent" in what} for name, row in growth.items()},
        },
        "rounds": {"graphmod": ours, "torch-pruning": theirs},
        "growth": growth,
    }


def _seconds(work: Callable[[], object]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def _growth(make: Callable[[int], gm.Model], listed: bool) -> Row:
    """Return CPU seconds by number of operators, with and without ONNX Runtime's check, and the exponents that fit."""
    row: Row = {"operators": [], "cpu": [], "cpu, session": []}
    for size in SIZES:
        model = make(size)
        row["operators"].append(len(model.operators))
        row["cpu"].append(min(_seconds(partial(gm.prune, model, RATIO))["cpu"] for _ in range(2)))
        row["cpu, session"].append(min(_seconds(partial(_open_once, model.proto(), None))["cpu"] for _ in range(2)))
        if listed:
            print(make.__name__, {what: values[-1] for what, values in row.items()}, flush=True)
    own = np.subtract(row["cpu"], row["cpu, session"])
    row["exponent"] = _exponent(row["operators"], row["cpu"])
    row["exponent, session"] = _exponent(row["operators"], row["cpu, session"])
    return row | {"exponent without the session": _exponent(row["operators"], own)}


def _exponent(sizes: ArrayLike, seconds: ArrayLike) -> float:
    """Return the power that fits best, by least squares of the logarithms."""
    return round(float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0]), 3)


# -- the table


def table(results: Row) -> str:
    """Return the figures as the docs show them."""
    lines = [
        "| networks | run, shapes intact | under 45 % of weights | weights | MACs | latency | multiple of 8 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    summary, rows = results["networks"]["summary"], results["networks"]["networks"].values()
    for name, intact in (
        ("all but real sizes", [row for row in rows if row["kind"] != "real size"]),
        *((kind, [row for row in rows if row["kind"] == kind]) for kind in dict.fromkeys(r["kind"] for r in rows)),
        ("over 1 ms before", [row for row in rows if row.get("microseconds", 0) > MILLISECOND]),
    ):
        one = summary[name]
        shares = [f"{one['weights']:.0%}", f"{one['macs']:.0%}"]
        times = [f"{one[what]:.2f}x" for what in ("latency", "latency, multiple of 8")]
        run = f"{sum(row.get('shapes intact', False) for row in intact)} of {len(intact)}"
        lines.append(f"| {' | '.join([name, run, str(one[f'under {SMALL:.0%}']), *shares, *times])} |")
    return "\n".join(lines)


SECTIONS: dict[str, Callable[[Options], Row]] = {"networks": networks, "exact": exact, "speed": speed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS)
    parser.add_argument("--list", action="store_true", help="a line a network")
    parser.add_argument("--table", action="store_true", help="print the table of the docs and measure nothing")
    parser.add_argument("--exports", type=Path, help="a folder where exports are kept between runs")
    chosen = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if chosen.table:
        print(table(results))
        return
    torch.set_num_threads(1)
    for name in [chosen.only] if chosen.only else SECTIONS:
        found = {"machine": machine(), **SECTIONS[name](Options(chosen.list, chosen.exports))}
        results = (
            json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        )  # another section may have ended meanwhile
        results[name] = found
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(json.dumps(found.get("summary", found), indent=1))


if __name__ == "__main__":
    main()
