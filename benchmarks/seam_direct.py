"""Direct reuse: one class against the rest, three classes, and two groups of five, by SeaM as published and by ours.

The classes are drawn, other ones for every seed. *Among all* is the original's accuracy by its argmax over all classes,
the published baseline; *restricted* that of its logits of the target problem alone, the fair one. Noisy mnist1d is
there as networks have little room between the two on the others. SeaM keeps its share as zeros in a file of the same
size, and its latency is measured with its head; ours is asked for a tenth of the weights and 30 % of the latency, or 40
% where the network cannot have that. On digits and mnist1d it is given copies of the training samples, too, changed as
for training; SeaM, which trains masks and a head alone, has the samples. Choices are made on calibration data;
accuracies are those on test data. Only digits have all three problems, the others that of three classes. Training from
scratch is that of the same architecture on the three classes, by the recipe of the original.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from datasets import ByData
from markdown import spread
from markdown import table as as_table
from trained_networks import EPOCHS, augment, n_classes, network, splits, train

import graphmod as gm
from graphmod.errors import RefusedError
from graphmod.methods import seam
from graphmod.methods.reuse import BudgetError, Task

LATENCIES = (0.3, 0.4)
WEIGHTS = 0.1
BATCH_SIZES = (1, 16)
STEPS = ByData({"digits": 1500, "mnist1d": 2500, "mnist": 1500, "cifar10": 6000})
"""Of SeaM's search: what its curves need to become flat."""

VIEWS = ByData({"digits": 16, "mnist1d": 4, "mnist": 1, "cifar10": 1})
"""How often ours is given every training sample: as it is, and in copies."""

ALSO = ("mnist1d_noisy",)
ALL_PROBLEMS = ("digits",)
"""Data on which all three problems are measured; on the others that would take too long."""

BATCH = 64


def problems(data: gm.Data, seed: int) -> dict[str, list[Any]]:
    """Return the target problems of a seed."""
    order = np.random.default_rng(seed).permutation(n_classes(data.targets)).tolist()
    return {
        "one": [order[0]],
        "three": sorted(order[1:4]),
        "groups": [sorted(order[:5]), sorted(order[5:10])],
    }


def cell(architecture: str, data: str, seed: int, quick: bool) -> dict[str, Any]:
    """Return what each way comes to, on each problem."""
    model, parts = network(architecture, data, seed, tell=lambda _: None), splits(data)
    shown = viewed(parts, data, seed)
    found: dict[str, Any] = {}
    for name, classes in problems(parts.train, seed).items():
        if name != "three" and (quick or data not in ALL_PROBLEMS):
            continue
        task = Task.of(model, classes)
        own = task.data(parts)
        among_all = {part: task.accuracy_among_all(model, getattr(own, part)) for part in ("calibration", "test")}
        found[name] = {
            "classes": classes,
            "among all": among_all["test"],
            "published": published(model, own, among_all["calibration"], data, seed, quick),
            "ours": ours(model, shown, classes, seed, quick),
        }
        if name == "three":
            found[name]["scratch"] = scratch(architecture, data, own, seed, quick)
    return {"problems": found}


def viewed(parts: gm.Splits, data: str, seed: int) -> gm.Splits:
    """Return the parts, that for training with copies of its samples, each changed as for training."""
    x = torch.from_numpy(parts.train.inputs["x"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed = [augment(data, x) for _ in range(VIEWS[data] - 1)]
    train = gm.Data({"x": torch.cat([x, *changed]).numpy()}, np.tile(parts.train.targets, VIEWS[data]))
    return gm.Splits(train, parts.calibration, parts.test)


def published(
    model: gm.Model, own: gm.Splits, accuracy: float, data: str, seed: int, quick: bool
) -> dict[str, float | bool]:
    """Search masks as published."""
    start = time.process_time()
    epochs = max(5, -(-STEPS[data] * BATCH // len(own.train)))
    run = seam.search(model, own, accuracy=accuracy, mask_rate=0.05, epochs=epochs // 5 if quick else epochs, seed=seed)
    return {
        "reached": run.reached, "kept": run.kept, "test": gm.accuracy(run.model, own.test),
        "seconds": time.process_time() - start,
        **{f"latency {size}": share for size, share in shares(model, run.model, own.test).items()},
    }  # fmt: skip


def ours(model: gm.Model, parts: gm.Splits, classes: list[Any], seed: int, quick: bool) -> dict[str, float]:
    """Re-engineer, at the least share of the latency that can be had."""
    start = time.process_time()
    for latency in LATENCIES:
        try:
            more = {"steps": 200, "shrink_every": 40, "epochs": 3} if quick else {}
            small = gm.reengineer(model, parts, classes, latency=latency, weights=WEIGHTS, seed=seed, **more)
        except BudgetError:
            continue
        report = small.report
        return {
            "asked": latency, "weights": report.weights_left, "restricted": report.before.test,
            "test": report.after.test, "seconds": time.process_time() - start,
            **{f"latency {size}": 1 / faster for size, faster in report.speedup.items()},
        }  # fmt: skip
    raise RefusedError(f"no share of {LATENCIES} can be had")


def scratch(architecture: str, data: str, own: gm.Splits, seed: int, quick: bool) -> dict[str, float]:
    """Train the architecture on the target problem alone."""
    start = time.process_time()
    arrays = {
        name: (getattr(own, name).inputs["x"], np.asarray(getattr(own, name).targets, np.int64))
        for name in ("train", "calibration", "test")
    }
    net = train(architecture, data, arrays, seed, epochs=EPOCHS[architecture][data] // (10 if quick else 1))
    seconds = time.process_time() - start
    x, y = arrays["test"]
    with torch.no_grad():
        right = net(torch.from_numpy(x)).argmax(1).numpy() == y
    return {"seconds": seconds, "test": float(right.mean())}


def shares(model: gm.Model, other: gm.Model, data: gm.Data) -> dict[int, float]:
    """Return the latency of a model as a share of the original's, by batch size."""
    found = {}
    for size in BATCH_SIZES:
        times = gm.latency({"before": model, "after": other}, data[np.arange(size) % len(data)].inputs)
        found[size] = times["after"].median / times["before"].median
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Return every network's and problem's figures, over seeds."""
    rows: list[tuple[str, ...]] = [
        ("network", "problem", "SeaM keeps, as zeros", "its latency at 1, 16", "its points over among all", "reached",
         "weights left", "latency at 1", "at 16", "points over among all", "over restricted", "CPU seconds: SeaM, ours",
         "from scratch: s, points over restricted")
    ]  # fmt: skip
    for name in dict.fromkeys(f"{one['architecture']}, {one['data']}" for one in found):
        cells = [one["problems"] for one in found if f"{one['architecture']}, {one['data']}" == name]
        for problem in cells[0]:
            some = [one[problem] for one in cells]
            seams, own = [one["published"] for one in some], [one["ours"] for one in some]
            fresh = [one["scratch"] for one in some if "scratch" in one]
            rows.append((
                name, problem, spread([100 * one["kept"] for one in seams], unit=" %"),
                ", ".join(spread([one[f"latency {size}"] for one in seams], ".2f", "x") for size in BATCH_SIZES),
                spread([100 * (run["test"] - one["among all"]) for run, one in zip(seams, some, strict=True)], "+.2f"),
                f"{sum(one['reached'] for one in seams)} of {len(seams)}",
                spread([100 * one["weights"] for one in own], unit=" %"),
                *(spread([one[f"latency {size}"] for one in own], ".2f", "x") for size in BATCH_SIZES),
                spread([100 * (run["test"] - one["among all"]) for run, one in zip(own, some, strict=True)], "+.2f"),
                spread([100 * (run["test"] - run["restricted"]) for run in own], "+.2f"),
                ", ".join(spread([one["seconds"] for one in runs], ".0f") for runs in (seams, own)),
                ", ".join((spread([one["seconds"] for one in fresh], ".0f"),
                           spread([100 * (one["test"] - run["restricted"])
                                   for one, run in zip(fresh, own, strict=True)], "+.2f"))) if fresh else "",
            ))  # fmt: skip
    return as_table(rows)
