"""Time of LAMP, global magnitude, Uniform+ and ERK to one target, with and without restructuring before them.

The target is a share of the original's parameters, and an accuracy at most a point below the original's on calibration
data. The loop is the same for all (``prune_retrain``): a fifth of the parameters left goes, what is left is trained
until the accuracy is back or the steps of an iteration are over. Ways to begin it:

- original: with the network as it is
- DeepArc: four random blocks within modules skipped, the most that the paper skips; CKA and the choice counted in
- ours: blocks skipped by the divergence of the output, down to twice the target (``shorten``), which is counted in
- random: as many blocks as ours, drawn at random; LAMP alone, to tell what is due to the choice

Seconds are of CPU time. Nothing is seen of the test data but the accuracy at the end.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from datasets import ByData
from markdown import spread
from markdown import table as as_table
from trained_networks import drawn, network, splits

import graphmod as gm
from graphmod.methods import deeparc
from graphmod.methods.deeparc.sparsity import n_parameters, prune_retrain, shorten
from graphmod.methods.skipping import skip

NAME = "sparsity"
WAYS = ("DeepArc", "ours", "random")
SCHEDULES = ("lamp", "global", "uniform_plus", "erk")
REMAINING = {"resnet44": 0.1, "vit12": 0.2}
MAY_LOSE = 0.01
SKIPPED = 4
THRESHOLD = 0.95
ANALYSED = 2048
"""Samples that DeepArc's similarity is measured on, at most, five times over: more only make it slower."""
SHORTER = 2.0
"""Ours goes down to so many times the target; the schedule does the rest."""
MOST = {"train": 4000, "calibration": 500, "test": 2000}
EPOCHS = ByData({"digits": 10, "mnist1d": 4, "mnist": 3, "cifar10": 3})
CHECK_EVERY = {"digits": 5}
ATTEMPTS = 3

Found = dict[str, Any]
Way = Callable[[gm.Model, gm.Splits, int], gm.Model]


def _deeparc(model: gm.Model, data: gm.Splits, seed: int) -> gm.Model:
    """Skip four random blocks within modules, or all where there are fewer."""
    modules = deeparc.decompose(deeparc.similarity(model, data.train[:ANALYSED], seed=seed), THRESHOLD)
    inside = sum(module is not None for module in deeparc.module_of(model, modules).values())
    return deeparc.restructure(model, modules, min(SKIPPED, inside), seed)


def _random(model: gm.Model, n_skipped: int, seed: int) -> gm.Model:
    """Skip so many random blocks."""
    blocks = _skippable(model)
    chosen = np.sort(np.random.default_rng(seed).choice(len(blocks), n_skipped, replace=False))
    return skip(model, [blocks[place] for place in chosen])


def _skippable(model: gm.Model) -> list[gm.Block]:
    return [block for block in deeparc.residual_blocks(model) if deeparc.is_skippable(model, block)]


def cell(architecture: str, data: str, seed: int, quick: bool) -> Found:
    """Measure all ways and schedules on one network."""
    model, parts = network(architecture, data, seed), drawn(splits(data), MOST, seed)
    remaining = REMAINING[architecture]
    few = gm.Splits(*(part[:64] for part in (parts.train, parts.calibration, parts.test)))
    prune_retrain(model, few, remaining=0.9, accuracy=1.0, epochs=1, attempts=1)  # what is imported once is not timed
    ways: dict[str, Way] = {
        "original": lambda model, *_: model,
        "DeepArc": _deeparc,
        "ours": lambda model, data, seed: shorten(model, data, SHORTER * remaining, seed=seed),
    }
    whole = gm.accuracy(model, parts.calibration)
    runs = []
    for way, begin in ways.items():
        start = time.process_time()
        shorter = begin(model, parts, seed)
        analysis = time.process_time() - start
        names = SCHEDULES[:1] if quick else SCHEDULES
        runs += [_run(model, shorter, parts, way, name, analysis, data, seed, remaining, whole) for name in names]
    n_skipped = len(_skippable(model)) - len(_skippable(shorter))
    at_random = _random(model, n_skipped, seed)
    runs.append(_run(model, at_random, parts, "random", "lamp", 0.0, data, seed, remaining, whole))
    return {
        "remaining": remaining,
        "calibration": whole,
        "test": gm.accuracy(model, parts.test),
        "skipped": n_skipped,
        "runs": runs,
    }


def _run(
    model: gm.Model,
    shorter: gm.Model,
    parts: gm.Splits,
    way: str,
    schedule: str,
    analysis: float,
    data: str,
    seed: int,
    remaining: float,
    whole: float,
) -> Found:
    run = prune_retrain(
        shorter, parts, schedule, of=model, remaining=remaining, accuracy=whole - MAY_LOSE, epochs=EPOCHS[data],
        attempts=ATTEMPTS, check_every=CHECK_EVERY.get(data, 16), seed=seed,
    )  # fmt: skip
    return {
        "way": way,
        "schedule": schedule,
        "reached": run.reached,
        "iterations": len(run.iterations),
        "analysis": analysis,
        "seconds": analysis + run.seconds,
        "begins with": shorter.n_weights / model.n_weights,
        "remaining": n_parameters(run.model) / model.n_weights,
        "calibration": run.iterations[-1].retrained,
        "test": gm.accuracy(run.model, parts.test),
    }


def table(found: list[Found]) -> str:
    """Return a line a network and schedule, and the mean of all runs that reached the target."""
    rows = [
        ["network", "schedule", "original: time (iterations)", *(one for way in WAYS for one in (way, "change"))],
    ]
    told: dict[str, list[float]] = {way: [] for way in WAYS}
    for architecture, data in dict.fromkeys((one["architecture"], one["data"]) for one in found):
        cells = [one for one in found if (one["architecture"], one["data"]) == (architecture, data)]
        test = statistics.fmean(one["test"] for one in cells)
        network_ = f"{architecture}, {data}: {cells[0]['remaining']:.0%}, test {test:.1%}"
        for schedule in dict.fromkeys(run["schedule"] for one in cells for run in one["runs"]):
            by_way = {way: _of(cells, way, schedule) for way in ("original", *WAYS)}
            columns = [_side(by_way["original"])]
            for way in WAYS:
                changes = _changes(by_way["original"], by_way[way])
                columns += [_side(by_way[way]), _percent(changes)]
                told[way] += changes
            rows.append([network_, schedule, *columns])
            network_ = ""
    missed = {way: [run["reached"] for one in found for run in one["runs"] if run["way"] == way].count(False)
              for way in ("original", *told)}  # fmt: skip
    sides = [side for way, changes in told.items() for side in (f"{missed[way]} missed it", _percent(changes))]
    return as_table([*rows, ["all", "", f"{missed['original']} missed it", *sides]])


def _of(cells: list[Found], way: str, schedule: str) -> list[Found]:
    return [run for one in cells for run in one["runs"] if (run["way"], run["schedule"]) == (way, schedule)]


def _changes(before: list[Found], after: list[Found]) -> list[float]:
    """Return the relative change of time, seed by seed, of runs that reached the target.

    Where the original's did not, what it took until it was given up counts: the least that it would have taken. How
    many of the others did not is told beside.
    """
    pairs = zip(before, after, strict=bool(after))  # random blocks go with one schedule alone
    return [own["seconds"] / other["seconds"] - 1 for other, own in pairs if own["reached"]]


def _side(runs: list[Found]) -> str:
    if not runs:
        return ""
    seconds, iterations = (statistics.median(run[key] for run in runs) for key in ("seconds", "iterations"))
    missed = sum(not run["reached"] for run in runs)
    note = f", {missed} of {len(runs)} missed it" if missed else ""
    return f"{seconds:.1f} s ({iterations:g}), {statistics.fmean(run['test'] for run in runs):.1%}{note}"


def _percent(changes: list[float]) -> str:
    return spread([100 * change for change in changes], "+.0f", " %")
