"""Modular training against standard training of the same budget, and against MwT as published.

All of them begin with the same untrained network and have the same epochs on the same samples, those of digits and
mnist1d with copies, changed as for training. Standard training is :func:`graphmod.retrain`, which keeps the epoch that
is best on calibration data; figures are those on test data.
*Points* of what is composed are those over the modular network itself, restricted to the same classes, which no
training follows; and over standard training's, restricted. Weights and latency are shares of the network that standard
training gives, as ONNX Runtime runs it. MwT's kernels are those of convolutions but the first, as published; its
weights are all that are left when kernels of no class are removed wherever nothing else needs them, its points those
over the standard network restricted to the classes.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from datasets import ByData
from markdown import spread
from markdown import table as as_table
from seam_direct import viewed
from trained_networks import splits, untrained

import graphmod as gm
from graphmod.methods.measuring import latencies
from graphmod.methods.modular import mwt
from graphmod.methods.modular.conditions import with_own_scales
from graphmod.methods.modular.measuring import accuracy_among, report, right_among, samples_of, scores_of
from graphmod.pruning import cut, groups
from graphmod.pruning.recovery import trainable
from graphmod.rewrite.fuse import fuse

EPOCHS = ByData({"digits": 6, "mnist1d": 10, "mnist": 6, "cifar10": 60})
"""Through the samples with their copies."""

LONGER = {"vit12": 2}
"""Times those epochs: transformers learn more slowly from so few samples."""

RATE = 2e-3
BUDGET = {"weights": 0.12, "latency": 0.23}
SIZES = (1, 2, 3, 5, 7, 9)
BATCH_SIZES = (1, 16)
DRAWS = 6
MWT_DRAWS = 3
N_CLASSES = 10
TUNING = 2
"""Epochs for which what is composed is trained on, to see what that would bring."""


def cell(architecture: str, data: str, seed: int, quick: bool) -> dict[str, Any]:
    """Return what each way comes to."""
    start, parts = with_own_scales(untrained(architecture, data, seed)), viewed(splits(data), data, seed)
    epochs = 2 if quick else EPOCHS[data] * LONGER.get(architecture, 1)
    begun = time.process_time()
    standard = gm.retrain(
        trainable(start, parts.train), parts, epochs=epochs, patience=epochs, learning_rate=RATE, seed=seed
    )
    seconds = time.process_time() - begun
    standard = fuse(standard, kinds=["unfused"])
    found: dict[str, Any] = {"standard": {"test": gm.accuracy(standard, parts.test), "seconds": seconds}}
    found["ours"] = ours(start, standard, parts, epochs, seed, 2 if quick else DRAWS)
    if architecture != "vit12":  # has no second convolution
        found["published"] = published(start, standard, parts, epochs, seed, 1 if quick else MWT_DRAWS)
    return found


def ours(start: gm.Model, standard: gm.Model, parts: gm.Splits, epochs: int, seed: int, draws: int) -> dict[str, Any]:
    """Train modular, and measure what is composed."""
    begun = time.process_time()
    library = gm.modular.train(start, parts, epochs=epochs, learning_rate=RATE, seed=seed, **BUDGET)
    seconds = time.process_time() - begun
    begun = time.perf_counter()
    library.compose([1, 4, 7])
    took = time.perf_counter() - begun
    measured = report(library, standard, parts, SIZES, draws, seed=seed, reference=library.model)
    sizes, scores = by_size(measured), scores_of(standard, parts.test)
    for size in SIZES:
        over = [
            100 * (one.accuracy - right_among(scores, np.asarray(parts.test.targets), one.classes, one.classes))
            for one in measured.composed if len(one.classes) == size
        ]  # fmt: skip
        sizes[str(size)]["points over standard"] = float(np.mean(over))
    return {"test": measured.accuracy, "seconds": seconds, "compose": took, "coupling": measured.coupling,
            "retention": measured.retention, "sizes": sizes}  # fmt: skip


def by_size(measured: Any) -> dict[str, dict[str, float]]:
    """Return the means of what is composed of one, two, ... modules."""
    return {
        str(size): {
            "weights": measured.mean(size, "weights"),
            "macs": measured.mean(size, "macs"),
            "points": 100 * (measured.mean(size, "accuracy") - measured.mean(size, "whole")),
            **{
                f"latency {batch}": float(np.median(
                    [one.latency[batch] for one in measured.composed if len(one.classes) == size]
                ))
                for batch in BATCH_SIZES
            },
        }
        for size in SIZES
    }  # fmt: skip


def published(
    start: gm.Model, standard: gm.Model, parts: gm.Splits, epochs: int, seed: int, draws: int
) -> dict[str, Any]:
    """Train as published, and measure what is composed of three modules, as it is and after fine-tuning."""
    begun = time.process_time()
    run = mwt.train(start, parts, epochs=epochs, seed=seed)
    seconds = time.process_time() - begun
    rng = np.random.default_rng(seed)
    every = list(range(N_CLASSES))
    found: dict[str, Any] = {
        "test": run.accuracy, "seconds": seconds,
        "rate 1": float(np.mean([run.rate([label]) for label in every])), "sizes": {},
    }  # fmt: skip
    rows = []
    for _ in range(draws):
        classes = sorted(rng.choice(N_CLASSES, 3, replace=False).tolist())
        small = physically_small(run.compose(classes))
        own = gm.Splits(*(samples_of(one, classes) for one in (parts.train, parts.calibration, parts.test)))
        tuned = gm.retrain(small, own, epochs=TUNING, patience=TUNING, seed=seed)
        timing = latencies({"before": standard, "after": small}, parts.test, BATCH_SIZES)
        whole = accuracy_among(standard, parts.test, classes, classes)
        rows.append({
            "rate": run.rate(classes), "weights": small.n_weights / standard.n_weights,
            "points": 100 * (accuracy_among(small, parts.test, classes) - whole),
            "tuned": 100 * (accuracy_among(tuned, parts.test, classes) - whole),
            **{f"latency {one}": timing["after"][one] / timing["before"][one] for one in BATCH_SIZES},
        })  # fmt: skip
    found["sizes"]["3"] = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return found


def physically_small(model: gm.Model) -> gm.Model:
    """Return a network without the units whose weights are all zero, batch normalisation fused again."""
    found = groups(model)
    weights = np.zeros(found.n_units)
    for group in found:
        for member in group.members:
            if member.makes:
                value = found.weight(member.tensor)
                size = np.abs(np.moveaxis(value, member.axis, 0)).reshape(len(member.units), -1).sum(1)
                own = member.units >= 0
                np.add.at(weights, group.first + member.units[own], size[own])
    dead = weights == 0
    for group in found:
        if dead[group.own].all():
            dead[group.first] = False
    return fuse(cut(found, dead) if dead.any() else model, kinds=["unfused"])


def table(found: list[dict[str, Any]]) -> str:
    """Return every network's figures, over seeds."""
    rows: list[tuple[str, ...]] = [
        ("network", "standard, test", "points over it: ours, MwT", "time over its: ours, MwT",
         "weights of 1, 3 modules", "latency of 1 module at 1, 16", "of 3", "points of 2, 3, 5 modules", "compose, s",
         "MwT's kernels of 1, 3", "its weights of 3", "its latency of 3", "its points of 3; tuned")
    ]  # fmt: skip
    for name in dict.fromkeys(f"{one['architecture']}, {one['data']}" for one in found):
        cells = [one for one in found if f"{one['architecture']}, {one['data']}" == name]
        standard, own = [one["standard"] for one in cells], [one["ours"] for one in cells]
        other = [one["published"] for one in cells if "published" in one]
        three = [one["sizes"]["3"] for one in other]

        def points(runs: list[dict[str, Any]], base: list[dict[str, Any]] = standard) -> str:
            return spread([100 * (a["test"] - b["test"]) for a, b in zip(runs, base, strict=True)], "+.2f")

        def times(runs: list[dict[str, Any]], base: list[dict[str, Any]] = standard) -> str:
            return spread([a["seconds"] / b["seconds"] for a, b in zip(runs, base, strict=True)], ".2f", "x")

        def of(size: int, figure: str, kind: str, unit: str, times: int = 1, runs: Any = own) -> str:
            return spread([times * one["sizes"][str(size)][figure] for one in runs], kind, unit)

        rows.append((
            name, spread([100 * one["test"] for one in standard], ".1f", " %"),
            ", ".join(points(runs) for runs in (own, other) if runs),
            ", ".join(times(runs) for runs in (own, other) if runs),
            ", ".join(of(size, "weights", ".1f", " %", 100) for size in (1, 3)),
            *(", ".join(of(size, f"latency {batch}", ".2f", "x") for batch in BATCH_SIZES) for size in (1, 3)),
            ", ".join(of(size, "points", "+.2f", "") for size in (2, 3, 5)),
            spread([one["compose"] for one in own], ".1f"),
            ", ".join((spread([100 * one["rate 1"] for one in other], ".0f", " %"),
                       spread([100 * one["rate"] for one in three], ".0f", " %"))) if other else "",
            spread([100 * one["weights"] for one in three], ".0f", " %") if other else "",
            ", ".join(spread([one[f"latency {batch}"] for one in three], ".2f", "x") for batch in BATCH_SIZES)
            if other else "",
            "; ".join(spread([one[figure] for one in three], "+.1f") for figure in ("points", "tuned"))
            if other else "",
        ))  # fmt: skip
    return as_table(rows)
