"""Repair of weakened networks: time until 95 % of the lost accuracy is back, weights touched, and where the fault is.

Weights of one block, or of all blocks of a module, are replaced by random values until accuracy on calibration data has
fallen by 10, 30 and 50 points. Each method then trains until it holds 95 % of that loss on calibration data, at most a
fixed number of steps; what it has recovered is told of test data. Seconds are CPU time of the process, with
localisation, caching, import and checks on all calibration data counted in, of baselines every five steps, of ours
every five where it trains and once where it does not. Every run gets models of its own of which nothing is known yet,
and what Python imports at first use is imported before. The learning rate of each baseline is the best of three on the
first fault, ours is its default. Baselines that train a part give up after 40 steps without progress.

- *full*: all weights, stopped at the first of these checks that will do, as nobody could who does not know the goal;
  *full, epochs*: the same as `gm.retrain` does it, with a check after each epoch.

- *ours, healthy*: `gm.repair` with the healthy network, of which it uses activations alone. Where the graphs are the
  same one could copy the weights; that is not what is measured.
- *ours, labels*: `gm.repair` with nothing but labelled data.
- *faithful*: the module in which CKA with the healthy network falls most, retrained.
- *first*, *last*, *random*: three blocks; *layer*: the last layer; *norm*: LayerNormalizations, or the
  BatchNormalizations that `gm.unfuse` brings back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median
from typing import Any

import numpy as np
from baselines import count, last_layer, normalized
from markdown import spread
from trained_networks import drawn, network, splits

import graphmod as gm
from graphmod.graph import Block
from graphmod.methods import deeparc
from graphmod.methods.deeparc.repair import locate
from graphmod.methods.deeparc.weaken import weaken
from graphmod.methods.repair import faults, repair, units
from graphmod.methods.repair.patching import sound_values, values
from graphmod.methods.repair.suspicion import suspects
from graphmod.train import Retrained, retrained
from graphmod.train.losses import cross_entropy

NAME = "repair"
POINTS = (10, 30, 50)
RATES = (3e-4, 1e-3, 3e-3)
PATIENCE = 8
K = 3
STEPS, EVERY, BATCH = 120, 5, 64
LOCATED = 4
HELD = 0.95
MOST = {"train": 2000, "calibration": 500, "test": 2000}
BASELINES = ("full", "full, epochs", "layer", "last", "first", "random", "norm", "faithful")
OURS = ("ours, healthy", "ours, labels")


@dataclass(frozen=True, eq=False)
class Fault:
    """A weakened network: which blocks are, and by how much."""

    over: str
    points: int
    blocks: tuple[Block, ...]
    model: gm.Model
    goal: float

    def fresh(self) -> gm.Model:
        """Return the network as if it had just been loaded."""
        return gm.load(self.model.proto())


def cell(architecture: str, data: str, seed: int, quick: bool) -> dict[str, Any]:
    """Return what each method takes for each fault, and how often faults are found."""
    model, parts = network(architecture, data, seed), drawn(splits(data), MOST, seed)
    warm(model, parts)
    rng = np.random.default_rng(seed)
    points = POINTS[1:2] if quick else POINTS
    broken = [made for over in ("block", "module") for made in weakened(model, parts, over, points, rng)]
    methods = {name: method(name, model, parts, rng) for name in BASELINES}
    rates = {name: best_rate(one, broken[0], quick) for name, one in methods.items()}
    runs = []
    for fault in broken:
        for name, one in methods.items():
            runs.append(told(model, parts, fault, name, one(fault, rates[name], quick)))
        runs += [ours(model, parts, fault, name) for name in OURS]
    return {"rates": rates, "runs": runs, "located": located(model, parts, points, rng, quick)}


def warm(model: gm.Model, parts: gm.Splits) -> None:
    """Let Python import what is imported at first use."""
    few = gm.Splits(parts.train[:64], parts.calibration[:64], parts.test[:64])
    retrained(model, few, epochs=1)
    repair(model, few, healthy=model)


# -- faults


def weakened(
    model: gm.Model, parts: gm.Splits, over: str, points: Sequence[int], rng: np.random.Generator
) -> list[Fault]:
    """Return networks in which one block, or the blocks of one module, have lost so many points."""
    blocks = deeparc.residual_blocks(model)
    chosen = (blocks[int(rng.integers(len(blocks)))],) if over == "block" else module(model, parts, blocks, rng)
    whole = gm.accuracy(model, parts.calibration)
    found = []
    for lost in points:
        weak = weaken(model, parts, lost, chosen, seed=int(rng.integers(2**31)))
        left = gm.accuracy(weak, parts.calibration)
        found.append(Fault(over, lost, chosen, weak, left + HELD * (whole - left)))
    return found


def module(model: gm.Model, parts: gm.Splits, blocks: Sequence[Block], rng: np.random.Generator) -> tuple[Block, ...]:
    """Return the blocks of a module of two or more, drawn; of three neighbours where there is none."""
    sums = deeparc.residual_sums(model)
    found = deeparc.decompose(deeparc.similarity(model, parts.train, passes=1), 0.95)
    large = [one.boundaries for one in found.modules if 1 < len(one) <= len(blocks) // 2]
    if not large:
        start = int(rng.integers(len(blocks) - K + 1))
        return tuple(blocks[start : start + K])
    names = large[int(rng.integers(len(large)))]
    return tuple(block for name, block in zip(sums, blocks, strict=True) if name in names)


# -- methods

Method = Callable[[Fault, float, bool], tuple[Retrained, int, float]]
"""From a fault, a learning rate and whether it is to be quick: the training, the weights that it may change, and the
CPU seconds of what came before it."""


def method(name: str, healthy: gm.Model, parts: gm.Splits, rng: np.random.Generator) -> Method:
    """Return a baseline: from a fault and a learning rate to a training and the weights that it may change."""
    blocks = deeparc.residual_blocks(healthy)
    last = last_layer(healthy)
    places: dict[str, list[Any] | None] = {
        "full": None,
        "full, epochs": None,
        "layer": [last],
        "last": [*blocks[-K:], last],
        "first": list(blocks[:K]),
        "random": [blocks[place] for place in np.sort(rng.choice(len(blocks), K, replace=False))],
    }

    def run(fault: Fault, rate: float, quick: bool) -> tuple[Retrained, int, float]:
        steps = STEPS // 4 if quick else STEPS
        patience = steps if name.startswith("full") else PATIENCE
        training: dict[str, Any] = {
            "until": fault.goal, "epochs": epochs_of(steps, parts), "patience": patience, "learning_rate": rate,
            "batch_size": BATCH, "check_every": None if name == "full, epochs" else EVERY,
        }  # fmt: skip
        weak, found = fault.fresh(), places.get(name)
        start = time.process_time()
        if name == "faithful":
            found = list(locate(weak, gm.load(healthy.proto()), parts))
        elif name == "norm":
            weak, found = normalized(weak, parts.train)
        before = time.process_time() - start
        touched = healthy.n_weights if found is None else count(weak, found)
        return retrained(weak, parts, found, **training), touched, before

    return run


def epochs_of(steps: int, parts: gm.Splits) -> int:
    """Return epochs of so many steps or a few more."""
    return -(-steps * BATCH // len(parts.train))


def best_rate(one: Method, fault: Fault, quick: bool) -> float:
    """Return the learning rate that reaches the goal first, or comes closest."""

    def worth(rate: float) -> tuple[float, float]:
        history = one(fault, rate, quick)[0].history
        reached = history[-1].score >= fault.goal
        return (1.0, -history[-1].seconds) if reached else (0.0, max(check.score for check in history))

    return max(RATES[1:2] if quick else RATES, key=worth)


def told(
    healthy: gm.Model, parts: gm.Splits, fault: Fault, name: str, done: tuple[Retrained, int, float]
) -> dict[str, Any]:
    """Return what a training came to."""
    run, touched, before = done
    reached = next((before + check.seconds for check in run.history if check.score >= fault.goal), None)
    return figures(healthy, parts, fault, name, run.model, reached, before + run.history[-1].seconds, touched)


def ours(healthy: gm.Model, parts: gm.Splits, fault: Fault, name: str) -> dict[str, Any]:
    """Return what our repair came to."""
    with_healthy = name == "ours, healthy"
    sound = gm.load(healthy.proto()) if with_healthy else None
    done = repair(fault.fresh(), parts, healthy=sound, target=fault.goal, epochs=epochs_of(STEPS, parts))
    seconds = sum(done.report.seconds.values())
    reached = seconds if gm.accuracy(done.model, parts.calibration) >= fault.goal else None
    first = done.report.ranking[0].entry in broken_entries(fault) if done.report.ranking else False
    found = figures(healthy, parts, fault, name, done.model, reached, seconds, done.report.weights_trained)
    return {**found, "first": first, "parts": done.report.seconds}


def figures(
    healthy: gm.Model,
    parts: gm.Splits,
    fault: Fault,
    name: str,
    model: gm.Model,
    reached: float | None,
    seconds: float,
    touched: int,
) -> dict[str, Any]:
    """Return the figures that all methods have."""
    whole, weak, now = (gm.accuracy(one, parts.test) for one in (healthy, fault.model, model))
    return {
        "over": fault.over,
        "points": fault.points,
        "blocks": [block.path for block in fault.blocks],
        "method": name,
        "seconds": reached,
        "spent": seconds,
        "recovered": (now - weak) / (whole - weak),
        "touched": touched / healthy.n_weights,
    }


# -- localisation alone, on more faults


def broken_entries(fault: Fault) -> set[str]:
    """Return the entries of the units that are in weakened blocks."""
    inside = {name for block in fault.blocks for name in block.operators}
    return {unit.entry for unit in units(fault.model) if inside.intersection(unit.operators)}


def located(
    model: gm.Model, parts: gm.Splits, points: Sequence[int], rng: np.random.Generator, quick: bool
) -> list[dict[str, Any]]:
    """Return of blocks drawn anew at which rank each is found, from 0, and in how many seconds."""
    blocks = deeparc.residual_blocks(model)
    order = rng.permutation(len(blocks))[: 1 if quick else LOCATED]
    found = []
    for place, lost in product(order, points):
        fault = Fault("block", lost, (blocks[place],), model, 0.0)
        weak = weaken(model, parts, lost, fault.blocks, seed=int(rng.integers(2**31)))
        wanted, cut, some = broken_entries(fault), units(weak), parts.train[:128]
        for name in OURS:
            start = time.process_time()
            if name == "ours, healthy":
                ranking = faults(weak, some, cut, sound_values(model, some, cut))
            else:
                able, output = [unit for unit in cut if unit.weights], weak.main_output
                known = values(weak, some, [*(unit.entry for unit in able), output])
                ranking = suspects(weak, some, able, output, cross_entropy, known)
            seconds = time.process_time() - start
            rank = next((i for i, one in enumerate(ranking) if one.entry in wanted), None)
            told = {"block": blocks[place].path, "points": lost, "method": name, "rank": rank, "seconds": seconds}
            found.append(told)
    return found


# -- the tables


def table(found: list[dict[str, Any]]) -> str:
    """Return how methods compare over all networks, for all faults and by kind, then ours network by network."""
    runs = [beside_full(cell, run) for cell in found for run in cell["runs"]]
    lines = [
        "| method | lost | held again | seconds, median | of full retraining's | of that by epochs | recovered on test "
        "| weights |"
    ]
    lines.append("| --- " * 8 + "|")
    for name in (*BASELINES, *OURS):
        own = [run for run in runs if run["method"] == name]
        lines.append(f"| {name} | all | {' | '.join(cells(own))} |")
        for over, lost in dict.fromkeys((run["over"], run["points"]) for run in own):
            some = [run for run in own if (run["over"], run["points"]) == (over, lost)]
            lines.append(f"| {name} | {lost}, {over} | {' | '.join(cells(some))} |")
    lines.append("")
    lines.append(f"| network {lines[0].removesuffix('|').replace(' lost |', '')}| fault ranked first |")
    lines.append("| --- " * 9 + "|")
    for network_ in dict.fromkeys((cell["architecture"], cell["data"]) for cell in found):
        own = [cell for cell in found if (cell["architecture"], cell["data"]) == network_]
        for name in OURS:
            some = [beside_full(c, r) for c in own for r in c["runs"] if r["method"] == name]
            ranks = [one["rank"] for cell in own for one in cell["located"] if one["method"] == name]
            hits = f"{sum(rank == 0 for rank in ranks)} of {len(ranks)}"
            lines.append(f"| {' '.join(network_)} | {name} | {' | '.join(cells(some))} | {hits} |")
    return "\n".join(lines)


def beside_full(cell: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Return a run with the seconds that full retraining took for the same fault, checked often and by epochs."""
    same = {r["method"]: r["seconds"] for r in cell["runs"] if all(r[k] == run[k] for k in ("over", "points"))}
    return {**run, "full": same["full"], "by_epochs": same["full, epochs"]}


def cells(runs: list[dict[str, Any]]) -> list[str]:
    """Return the columns that both tables share."""
    held = [run for run in runs if run["seconds"] is not None]
    shares = [[run["seconds"] / run[full] for run in held if run[full] is not None] for full in ("full", "by_epochs")]
    return [
        f"{len(held)} of {len(runs)}",
        f"{median(run['seconds'] for run in held):.2f}" if held else "not reached",
        *(spread([100 * share for share in one], unit=" %") for one in shares),
        spread([100 * run["recovered"] for run in runs], unit=" %"),
        spread([100 * run["touched"] for run in runs], unit=" %"),
    ]
