"""Adapting to adversarial samples: time to the same accuracy on held-out ones, weights trained, clean accuracy lost.

Samples are made once, on the network as it is: by FGSM in even rows and PGD in odd ones, at the least strength at which
PGD leaves no more than 60 % right. Methods learn those of the training part beside the clean ones. Full retraining, at
the best of three learning rates, sets the goal: 95 % of what it has gained on adversarial calibration samples over the
last quarter of its looks at them, averaged; with no more than half a point lost on clean calibration samples, or what
full retraining has lost there over the same looks if that is more. Looks are noisy, so a method's time is that of the
look at which the mean of three in a row is at the goal, where each point that is missed on clean samples costs five:
CPU seconds of the process, with localisation, caching, import and looks counted in. *First look* is the time of the
first single one. Every baseline gets the best of several rates, stops at the goal, and is given up when it gets no
better for 8 looks, of 640 samples each; ours has its defaults and runs to its end. Test accuracies are those of the
state that is kept.

- *full, one rate*: full retraining at Adam's usual 1e-3, as one has it who does not know the best rate beforehand.
- *faithful*: DeepArc's re-adaption, `deeparc.readapt`, on adversarial samples with their clean partners.
- *first*, *last*, *random*: three blocks; *layer*: the last layer; *norm*: LayerNormalizations, or the
  BatchNormalizations that `gm.unfuse` brings back.
- *full, as ours*: the whole network by what ours does beside locality: its samples, its loss, its optimizer, for five
  passes at most.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from baselines import count, last_layer, normalized
from markdown import spread
from markdown import table as as_table
from trained_networks import drawn, network, splits

import graphmod as gm
from graphmod.graph import logits
from graphmod.methods import deeparc
from graphmod.methods.adapt import LOGITS, OPTIMIZER, _lesson
from graphmod.train import Imitation, retrained

NAME = "adapt"
STRENGTHS = (0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2)
LEFT = 0.6
RATES = (3e-4, 1e-3, 3e-3)
BASELINE_RATES = RATES[1:]
OWN_RATES, OWN_EPOCHS = (2.5e-3, 5e-3), 5
PLAIN = 1e-3
K = 3
STEPS, EVERY, BATCH = 200, 10, 64
PATIENCE = 8
HELD, LOST, PRICE, IN_A_ROW = 0.95, 0.005, 5, 3
MOST = {"train": 2000, "calibration": 500, "test": 1000}
BASELINES = ("full, as ours", "layer", "last", "first", "random", "norm", "faithful")


@dataclass(frozen=True, eq=False)
class Case:
    """A network, and its data clean, attacked and both: all for training, attacked and then clean for looks."""

    model: gm.Model
    clean: gm.Splits
    moved: gm.Splits
    joined: gm.Splits
    strength: float


@dataclass(frozen=True)
class Goal:
    """Accuracies on shifted and on clean calibration samples that a method has to show."""

    shifted: float
    clean: float

    def score(self, floor: float) -> float:
        """Return accuracy on shifted samples, less five times what clean ones miss."""
        return self.shifted - PRICE * max(0.0, floor - self.clean)


class Looks:
    """The metric: the mean score of the last looks in a row."""

    def __init__(self, n_shifted: int, floor: float) -> None:
        self._n, self._floor = n_shifted, floor
        self.seen: list[Goal] = []

    def __call__(self, outputs: Any, targets: Any) -> float:
        """Return the score of outputs for all samples."""
        right = outputs.reshape(len(targets), -1).argmax(1) == targets
        self.seen.append(Goal(float(right[: self._n].mean()), float(right[self._n :].mean())))
        return fmean(one.score(self._floor) for one in self.seen[-IN_A_ROW:])


@dataclass(frozen=True, eq=False)
class Run:
    """A training: what came out, its looks, when they were taken, and how many weights may have changed."""

    model: gm.Model
    looks: list[Goal]
    seconds: list[float]
    touched: int

    def reached(self, goal: Goal, in_a_row: int = IN_A_ROW) -> float | None:
        """Return when the mean score of so many looks in a row was first at the goal."""
        scores = [one.score(goal.clean) for one in self.looks]
        means = (fmean(scores[max(0, i + 1 - in_a_row) : i + 1]) for i in range(len(scores)))
        return next((t for mean, t in zip(means, self.seconds, strict=True) if mean >= goal.shifted - 1e-9), None)

    def settled(self) -> Goal:
        """Return the means of the last quarter of looks."""
        last = self.looks[-max(1, len(self.looks) // 4) :]
        return Goal(fmean(one.shifted for one in last), fmean(one.clean for one in last))


def cell(architecture: str, data: str, seed: int, quick: bool) -> dict[str, Any]:
    """Return what each method takes, and what it comes to."""
    case = attacked(network(architecture, data, seed), drawn(splits(data), MOST, seed), seed)
    before = {kind: gm.accuracy(case.model, one.calibration) for kind, one in kinds(case).items()}
    gm.retrain(case.model, case.joined, [last_layer(case.model)], epochs=1)  # what starts once in a process
    whole = [trained(case, "full", rate, None, seed, quick) for rate in (RATES[1:2] if quick else RATES)]
    best = max((run.settled() for run in whole), key=lambda one: one.shifted)
    gained = HELD * (best.shifted - before["shifted"])
    goal = Goal(before["shifted"] + gained, min(before["clean"] - LOST, best.clean))
    found = {}
    for name in ("full", *BASELINES):
        rates = OWN_RATES if name == "full, as ours" else RATES if name == "full" else BASELINE_RATES
        runs = {rate: trained(case, name, rate, goal, seed, quick) for rate in (rates[:2][-1:] if quick else rates)}
        found[name] = min(runs.values(), key=lambda r: worth(r, goal))
        if name == "full":
            found["full, one rate"] = runs[PLAIN]
    tell = {name: told(case, run, goal) for name, run in found.items()}
    tell["full"]["first look"] = min((t for run in whole if (t := run.reached(goal, 1))), default=None)
    tell["ours"] = ours(case, goal, before["clean"] - goal.clean, seed)
    scores = {f"{kind} before": gm.accuracy(case.model, one.test) for kind, one in kinds(case).items()}
    goals = {"shifted": goal.shifted, "clean": goal.clean, "clean allowed": before["clean"] - goal.clean}
    return {"strength": case.strength, "goal": goals, **scores, "runs": tell}


def kinds(case: Case) -> dict[str, gm.Splits]:
    """Return clean and shifted data by name."""
    return {"clean": case.clean, "shifted": case.moved}


def attacked(model: gm.Model, clean: gm.Splits, seed: int) -> Case:
    """Return adversarial samples of every part, at the least strength that counts."""
    values = [part.inputs["x"] for part in (clean.train, clean.calibration, clean.test)]
    bounds = (min(float(x.min()) for x in values), max(float(x.max()) for x in values))
    some, eps = clean.calibration[:256], 0.0
    for strength in STRENGTHS:
        eps = strength * (bounds[1] - bounds[0])
        if gm.accuracy(model, deeparc.attack(model, some, "pgd", eps=eps, bounds=bounds, seed=seed)) <= LEFT:
            break

    def both(part: gm.Data) -> gm.Data:
        pair = [
            deeparc.attack(model, part, by, eps=eps, bounds=bounds, seed=seed).inputs["x"] for by in ("fgsm", "pgd")
        ]
        pair[0][1::2] = pair[1][1::2]
        return gm.Data({"x": pair[0]}, part.targets)

    moved = gm.Splits(both(clean.train), both(clean.calibration), both(clean.test))
    train, looked = stacked(clean.train, moved.train), stacked(moved.calibration, clean.calibration)
    return Case(model, clean, moved, gm.Splits(train, looked, looked), strength)


def stacked(*parts: gm.Data) -> gm.Data:
    """Return the samples of some data, one after the other."""
    x, y = ([part.inputs["x"] for part in parts], [part.targets for part in parts])
    return gm.Data({"x": np.concatenate(x)}, np.concatenate(y))


# -- methods


def trained(case: Case, name: str, rate: float, goal: Goal | None, seed: int, quick: bool) -> Run:
    """Train a network by a baseline, until the goal if there is one."""
    start = time.process_time()
    model, data, places = case.model, case.joined, None
    blocks = deeparc.residual_blocks(model)
    n_steps = STEPS // 4 if quick else STEPS
    looks = Looks(len(case.moved.calibration), goal.clean if goal else 0.0)
    training: dict[str, Any] = {
        "metric": looks, "until": goal.shifted if goal else None, "patience": n_steps if name == "full" else PATIENCE,
        "check_every": EVERY, "learning_rate": rate, "batch_size": BATCH, "batch_statistics": False,
    }  # fmt: skip
    if name == "norm":
        model, places = normalized(model, case.clean.train)
    elif name == "full, as ours":
        lesson = _lesson(model, case.clean.train, case.moved.train, seed)
        data = gm.Splits(lesson.data, data.calibration, data.test)
        shown = gm.Splits(lesson.shown, data.calibration, data.test)
        training |= {"imitate": Imitation(logits(model), model, shown, LOGITS), "optimizer": OPTIMIZER}
        training["check_every"], training["batch_size"] = 2 * EVERY, BATCH // 2
    elif name != "full":
        chosen = np.sort(np.random.default_rng(seed).choice(len(blocks), K, replace=False))
        places = {
            "layer": [last_layer(model)],
            "last": [*blocks[-K:], last_layer(model)],
            "first": list(blocks[:K]),
            "random": [blocks[i] for i in chosen],
            "faithful": [],
        }[name]
    if name == "faithful":
        looked = stacked(case.clean.calibration, case.clean.calibration)
        pairs = gm.Splits(case.clean.train, looked, looked)
        moved = gm.Splits(case.moved.train, case.joined.calibration, case.joined.calibration)
        epochs = -(-n_steps * BATCH // len(case.moved.train))
        run = deeparc.readapt(model, pairs, {"both": moved}, epochs=epochs, **training)
        before = time.process_time() - start - sum(run.seconds.values())
        both = zip(model.proto().graph.initializer, run.model.proto().graph.initializer, strict=True)
        touched = sum(int(np.prod(old.dims)) for old, new in both if old.raw_data != new.raw_data)
    else:
        before = time.process_time() - start
        epochs = OWN_EPOCHS if name == "full, as ours" else -(-n_steps * BATCH // len(data.train))
        run = retrained(model, data, places, epochs=epochs, **training)
        touched = model.n_weights if places is None else count(model, places)
    return Run(run.model, looks.seen, [before + check.seconds for check in run.history], touched)


def worth(run: Run, goal: Goal) -> tuple[int, float]:
    """Rank trainings: those that reach the goal by when, the others by how near they come; less is better."""
    when = run.reached(goal)
    return (1, -max(one.score(goal.clean) for one in run.looks)) if when is None else (0, when)


def told(case: Case, run: Run, goal: Goal) -> dict[str, Any]:
    """Return what a training came to."""
    return {
        "seconds": run.reached(goal),
        "first look": run.reached(goal, 1),
        "spent": run.seconds[-1],
        "share": run.touched / case.model.n_weights,
        **{kind: gm.accuracy(run.model, one.test) for kind, one in kinds(case).items()},
    }


def ours(case: Case, goal: Goal, max_drop: float, seed: int) -> dict[str, Any]:
    """Return what ``gm.adapt`` comes to; its score is the same one."""
    tuned = gm.adapt(case.model, case.clean, case.moved, max_drop=max_drop, seed=seed)
    report = tuned.report
    looks = [Goal(check.score, goal.clean) for check in report.history]
    run = Run(tuned.model, looks, [check.seconds for check in report.history], report.weights_trained)
    return {**told(case, run, goal), "parts": report.seconds, "blocks": list(report.blocks)}


# -- the table


def table(found: list[dict[str, Any]]) -> str:
    """Return every network's and every method's figures, over seeds."""
    rows: list[tuple[str, ...]] = [
        ("network", "method", "weights trained", "time, of full's", "reached", "first look, of full's", "reached",
         "shifted, test", "clean lost, points")
    ]  # fmt: skip
    for name in dict.fromkeys(f"{one['architecture']}, {one['data']}" for one in found):
        cells = [one for one in found if f"{one['architecture']}, {one['data']}" == name]
        start = spread([100 * one["shifted before"] for one in cells])
        rows.append((name, "as it is", *[""] * 5, start, ""))
        for method in ("full", "full, one rate", *BASELINES, "ours"):
            runs = [one["runs"][method] for one in cells]
            rows.append((
                name, method, spread([100 * run["share"] for run in runs], unit=" %"),
                *_times(cells, method, "seconds"), *_times(cells, method, "first look"),
                spread([100 * run["shifted"] for run in runs]),
                spread([100 * (one["clean before"] - run["clean"]) for one, run in zip(cells, runs, strict=True)]),
            ))  # fmt: skip
    return as_table(rows)


def _times(cells: list[dict[str, Any]], method: str, kind: str) -> tuple[str, str]:
    """Return the time as a share of full retraining's where both have got there, and how often the method has."""
    pairs = [(one["runs"][method][kind], one["runs"]["full"][kind]) for one in cells]
    shares = [100 * own / full for own, full in pairs if own is not None and full is not None]
    n = sum(own is not None for own, _ in pairs)
    return spread(shares, unit=" %"), f"{n} of {len(pairs)}"
