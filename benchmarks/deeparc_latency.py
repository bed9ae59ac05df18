"""How much faster ``gm.compress`` makes a network in ONNX Runtime at no more than half a point lost.

Beside it: as many blocks, drawn at random, skipped as it takes to be as fast, and all that is left trained for as long,
by the same recipe. Choices are made on calibration data; the accuracies told are those on test data. A quarter of a
point is what may go on calibration data, since what is chosen there loses a little more elsewhere.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import ByData
from markdown import spread
from markdown import table as as_table
from trained_networks import network, splits

import graphmod as gm
from graphmod.graph import cost, subgraph
from graphmod.methods.compress.line import Line
from graphmod.methods.compress.part import Part
from graphmod.pruning.recovery import NORMALISED, OTHERS

NAME = "latency"

MAX_DROP = 0.0025
BATCH_SIZES = (1, 64)
EPOCHS = ByData({"digits": 40, "mnist1d": 16, "mnist": 7, "cifar10": 4})
"""Of each training: about 600 steps on the digits, 2,000 on mnist1d and 1,100 on MNIST."""


def cell(architecture: str, data: str, seed: int, quick: bool) -> dict[str, Any]:
    """Compress one network."""
    model, parts = network(architecture, data, seed, tell=lambda _: None), splits(data)
    epochs = 6 if quick else EPOCHS[data]
    start = time.process_time()
    result = gm.compress(model, parts, MAX_DROP, batch_sizes=BATCH_SIZES, epochs=epochs, seed=seed)
    report = result.report
    ours = {
        "speedup": {str(size): value for size, value in report.speedup.items()},
        "before": report.before.test,
        "after": report.after.test,
        "calibration": [report.before.calibration, report.after.calibration],
        "weights left": report.after.weights / report.before.weights,
        "weights trained": report.trained_share,
        "seconds": time.process_time() - start,
        "front": report.as_dict()["front"],
        "kinds": [change.kind for change in report.changes],
    }
    wanted = statistics.mean(1 / value for value in report.speedup.values())
    return {"compress": ours, "random": at_random(model, parts, wanted, epochs, seed)}


def at_random(model: gm.Model, data: gm.Splits, wanted: float, epochs: int, seed: int) -> dict[str, Any]:
    """Skip blocks in random order until a share of the latency is left, or no more can go, and train the rest."""
    line = Line.of(model)
    steps = [step for step in line.steps() if _can_go(model, step.entry, step.exit)]
    order = np.random.default_rng(seed).permutation(len(steps))
    low, high = 0, len(steps)
    while low < high:  # the fewest that are fast enough
        middle = (low + high) // 2
        slower = _share(model, _without(line, steps, order[:middle]), data) > wanted
        low, high = (middle + 1, high) if slower else (low, middle)
    start = time.process_time()
    short = _without(line, steps, order[:low])
    is_normalised = "Conv" in {operator.op_type for operator in short.operators[1:]}
    ready = gm.unfuse(short, data.train) if is_normalised else short
    rate = NORMALISED if is_normalised else OTHERS
    trained = gm.retrain(ready, data, teacher=model, epochs=epochs, patience=epochs, learning_rate=rate, seed=seed)
    fused = gm.fuse(trained, kinds=["unfused"])
    return {
        "speedup": {str(size): value for size, value in _speedups(model, fused, data).items()},
        "after": gm.accuracy(fused, data.test),
        "skipped": int(low),
        "of": len(steps),
        "weights trained": fused.n_weights / model.n_weights,
        "seconds": time.process_time() - start,
    }


def _can_go(model: gm.Model, entry: str, exit_: str) -> bool:
    known = {**model.tensors, **model.inputs}
    return known[entry] == known[exit_] and cost(subgraph(model, [entry], [exit_])).macs > 0


def _without(line: Line, steps: list[Any], chosen: np.ndarray) -> gm.Model:
    return line.build([Part("identity", steps[i].entry, steps[i].exit, 0.0) for i in chosen])


def _speedups(model: gm.Model, other: gm.Model, data: gm.Splits) -> dict[int, float]:
    found = {}
    for size in BATCH_SIZES:
        feeds = data.test[np.arange(size) % len(data.test)].inputs
        times = gm.latency({"before": model, "after": other}, feeds)
        found[size] = times["before"].median / times["after"].median
    return found


def _share(model: gm.Model, other: gm.Model, data: gm.Splits) -> float:
    return statistics.mean(1 / value for value in _speedups(model, other, data).values())


def table(found: list[dict[str, Any]]) -> str:
    """Return mean and deviation over seeds, a row a network."""
    columns = (
        "network", "faster at batch 1", "at batch 64", "test accuracy before", "points gained", "weights left",
        "ever trained", "CPU seconds", "random blocks skipped, all trained: faster at 1, 64", "points gained",
    )  # fmt: skip
    rows: list[Sequence[str]] = [columns]
    for name in dict.fromkeys((one["architecture"], one["data"]) for one in found):
        cells = [one for one in found if (one["architecture"], one["data"]) == name]
        ours, other = [one["compress"] for one in cells], [one["random"] for one in cells]
        before = [one["before"] for one in ours]
        values = [
            " on ".join(name),
            spread([one["speedup"]["1"] for one in ours], ".2f", "x"),
            spread([one["speedup"]["64"] for one in ours], ".2f", "x"),
            spread([100 * one for one in before], ".2f", " %"),
            spread([100 * (one["after"] - one["before"]) for one in ours], "+.2f"),
            spread([100 * one["weights left"] for one in ours], ".0f", " %"),
            spread([100 * one["weights trained"] for one in ours], ".0f", " %"),
            spread([one["seconds"] for one in ours], ".0f"),
            ", ".join(spread([one["speedup"][size] for one in other], ".2f", "x") for size in ("1", "64")),
            spread([100 * (one["after"] - was) for one, was in zip(other, before, strict=True)], "+.2f"),
        ]
        rows.append(values)
    return as_table(rows)
