"""Accuracy along the share of weights that is kept, from 70 to 5 %: SeaM as published and ours, on three classes.

    python benchmarks/seam_curve.py      # draws docs/seam_curve.png, from the results of seam.py that are there

The problem is the one of three classes in ``seam_direct.py``. A search of SeaM's keeps fewer weights epoch by epoch.
*SeaM* is what its network can do at the first epoch that keeps no more than a share, as its authors show it. *SeaM,
best epoch* is generous: of all epochs of two searches, by two settings, that keep no more than the share, the one that
is best on calibration data, of equals the first. A share that no epoch comes to is missing. Ours are asked for each
share by itself: *ours* has units and blocks removed, *ours, zeros* single weights at zero, as SeaM has. SeaM's shares
are of the weights and biases that it masks, its head left out; ours of all scalars of the original.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from cells import RESULTS
from datasets import DATASETS, ByData
from markdown import spread
from markdown import table as as_table
from matplotlib.axes import Axes
from seam_direct import problems, viewed
from trained_networks import network, splits

import graphmod as gm
from graphmod.graph import up_to_logits
from graphmod.methods.reuse import BudgetError, Task
from graphmod.methods.seam.choice import ByShare, Choice, Epoch
from graphmod.methods.seam.network import State, WithAddedHead
from graphmod.methods.seam.search import Settings, search_by

SHARES = (0.7, 0.5, 0.3, 0.1, 0.05)
QUICK = (0.7, 0.3, 0.05)
FALL = (0.7, 0.05)
"""Between which the fall of a curve is told, and how far its highest point is from its lowest."""

SETTINGS = ({"mask_rate": 0.05, "alpha": 1.0}, {"mask_rate": 0.02, "alpha": 1.5})
"""Of SeaM's searches; published ones are 0.01 to 0.12 and 1 to 2, by network and problem. The first is "SeaM"."""

STEPS = ByData({"digits": 2000, "mnist1d": 2500, "mnist": 1500, "cifar10": 6000})
"""Of SeaM's searches at most."""

TRAINING = ByData(
    {
        "digits": {"steps": 200, "shrink_every": 40, "epochs": 3},
        "mnist1d": {"steps": 250, "shrink_every": 50, "epochs": 2},
        "mnist": {"steps": 200, "shrink_every": 40, "epochs": 3},
        "cifar10": {"steps": 700, "shrink_every": 100, "epochs": 10},
    }
)
"""Of ours, for each share, on the samples and copies of ``seam_direct.py``."""

BATCH = 64
CURVES = ("SeaM", "SeaM, best epoch", "ours", "ours, zeros")
COLOURS = dict(zip(CURVES, ("#b0b0b0", "#4a4a4a", "#d1495b", "#2a7f9e"), strict=True))
TICKS = (-60, -30, -10, -5, -2, -1, 0, 1, 2)
"""Of the picture's points, whose scale is linear between -1 and 1 and a logarithm beyond."""

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "seam_curve.png"

Seen = dict[float, tuple[Epoch, State]]
"""By share, the epoch that stands for it and what was searched by then."""

Point = dict[str, float]
Found = dict[str, Any]


def cell(architecture: str, data: str, seed: int, quick: bool) -> Found:
    """Return the curves of one network."""
    model, parts = network(architecture, data, seed, tell=lambda _: None), splits(data)
    classes = problems(parts.train, seed)["three"]
    task, shares = Task.of(model, classes), QUICK if quick else SHARES
    own = task.data(parts)
    epochs = max(5, -(-STEPS[data] * BATCH // len(own.train)) // (16 if quick else 1))
    training = {"steps": 40, "shrink_every": 20, "epochs": 1} if quick else TRAINING[data]
    shown = viewed(parts, data, seed)
    searches = [published(model, own, shares, epochs, seed, **settings) for settings in SETTINGS]
    return {
        "classes": classes,
        "shares": shares,
        "among all": task.accuracy_among_all(model, own.test),
        "restricted": gm.accuracy(gm.restrict(model, classes), own.test),
        "curves": {
            "SeaM": {"points": searches[0]["first"], "seconds": searches[0]["seconds"]},
            "SeaM, best epoch": {
                "points": better([search["best"] for search in searches], shares),
                "seconds": sum(search["seconds"] for search in searches),
            },
            "ours": ours(model, shown, classes, shares, seed, granularity="unit", **training),
            "ours, zeros": ours(model, shown, classes, shares, seed, granularity="weight", **training),
        },
        "searches": [{**settings, **search} for settings, search in zip(SETTINGS, searches, strict=True)],
    }


class Along(ByShare[State]):
    """A search's choice that keeps what it was along the way, down to the smallest of some shares.

    Attributes
    ----------
    first, best : dict
        Of the epochs that keep no more than a share, the first, and the first of those best on calibration data.
    """

    def __init__(self, shares: Sequence[float], first: Seen, best: Seen) -> None:
        super().__init__(min(shares))
        self.first, self.best = first, best
        self._shares = shares

    def see(self, epoch: Epoch, state: State) -> None:
        """Take an epoch into account."""
        super().see(epoch, state)
        for share in self._shares:
            if epoch.kept <= share:
                self.first.setdefault(share, (epoch, state))
                if share not in self.best or epoch.accuracy > self.best[share][0].accuracy:
                    self.best[share] = epoch, state


@dataclass(frozen=True)
class SettingsAlong(Settings):
    """How is searched, and what was seen along the way."""

    shares: tuple[float, ...] = SHARES
    first: Seen = field(default_factory=dict)
    best: Seen = field(default_factory=dict)

    def choice(self) -> Choice[State]:
        """Return what looks at every epoch."""
        return Along(self.shares, self.first, self.best)


def published(
    model: gm.Model,
    own: gm.Splits,
    shares: tuple[float, ...],
    epochs: int,
    seed: int,
    *,
    mask_rate: float,
    alpha: float,
) -> Found:
    """Search masks as published, and return the points of the first and of the best epochs."""
    settings = SettingsAlong(
        accuracy=None, share=min(shares), own_head=False, head_alone=5, alpha=alpha, epochs=epochs, mask_rate=mask_rate,
        head_rate=0.1, batch_size=BATCH, patience=None, seed=seed, progress=False, shares=shares,
    )  # fmt: skip
    run = search_by(settings, model, own)
    return {
        "first": list(points(settings.first, model, own.test)),
        "best": list(points(settings.best, model, own.test)),
        "seconds": run.seconds,
    }


def points(seen: Seen, model: gm.Model, test: gm.Data) -> Iterator[Point]:
    """Yield a point for each share that was come to."""
    right: dict[int, float] = {}
    for share, (epoch, state) in seen.items():
        if epoch.epoch not in right:
            right[epoch.epoch] = gm.accuracy(written(model, state), test)
        told = {"kept": epoch.kept, "calibration": epoch.accuracy, "test": right[epoch.epoch]}
        yield {"share": share, **told, "epoch": epoch.epoch}


def written(model: gm.Model, state: State) -> gm.Model:
    """Return the model of a state of the search."""
    _, (weight, _) = state
    part = up_to_logits(model)
    return WithAddedHead(part, gm.to_torch(part), weight.shape[1], weight.shape[0]).written(model, state)


def better(curves: Sequence[Sequence[Point]], shares: Sequence[float]) -> list[Point]:
    """Return for each share that was come to the point that is best on calibration data."""
    found = []
    for share in shares:
        own = [point for curve in curves for point in curve if point["share"] == share]
        if own:
            found.append(max(own, key=lambda point: point["calibration"]))
    return found


def ours(
    model: gm.Model, parts: gm.Splits, classes: list[Any], shares: Sequence[float], seed: int, **more: Any
) -> Found:
    """Re-engineer for each share that can be had."""
    found, seconds = [], 0.0
    for share in shares:
        try:
            report = gm.reengineer(model, parts, classes, weights=share, batch_sizes=[1], seed=seed, **more).report
        except BudgetError:  # biases and normalisations are more than that
            continue
        kept, after = report.weights_left, report.after
        found.append({"share": share, "kept": kept, "calibration": after.calibration, "test": after.test})
        seconds += report.seconds
    return {"points": found, "seconds": seconds}


def over(one: Found, curve: str, share: float) -> float | None:
    """Return the points of accuracy over the original's among the three classes; None where a share is missing."""
    own = (point["test"] for point in one["curves"][curve]["points"] if point["share"] == share)
    test = next(own, None)
    return None if test is None else 100 * (test - one["restricted"])


def fall(one: Found, curve: str) -> float | None:
    """Return how many points a curve loses between the shares of ``FALL``; None where one is missing."""
    first, last = (over(one, curve, share) for share in FALL)
    return None if first is None or last is None else first - last


def span(one: Found, curve: str) -> float | None:
    """Return how many points are between a curve's highest and lowest point there; None where one is missing."""
    values = [over(one, curve, share) for share in one["shares"] if FALL[0] >= share >= FALL[1]]
    known = [value for value in values if value is not None]
    return max(known) - min(known) if len(known) == len(values) else None


def table(found: list[Found]) -> str:
    """Return the points of every network's curves over the original, by share, and those of all networks."""
    shares = found[0]["shares"]
    rows: list[tuple[str, ...]] = [
        ("network", "original: %", "points over it, with", *(f"{share:.0%}" for share in shares),
         "fall from {:.0%} to {:.0%}".format(*FALL), "highest less lowest there", "CPU seconds")
    ]  # fmt: skip
    names = list(dict.fromkeys(f"{one['architecture']}, {one['data']}" for one in found))
    for name in [*names, *["all"] * (len(names) > 1)]:
        cells = [one for one in found if name in ("all", f"{one['architecture']}, {one['data']}")]
        rows += [
            (name, spread([100 * one["restricted"] for one in cells]), curve,
             *(_known([over(one, curve, share) for one in cells]) for share in shares),
             _known([fall(one, curve) for one in cells]), _known([span(one, curve) for one in cells], ".1f"),
             spread([one["curves"][curve]["seconds"] for one in cells], ".0f"))
            for curve in CURVES
        ]  # fmt: skip
    return as_table(rows)


def _known(values: list[float | None], form: str = "+.1f") -> str:
    """Return mean and deviation of what is known, and of how many that is, if not of all."""
    n = sum(value is not None for value in values)
    return spread(values, form) + f" ({n} of {len(values)})" * (0 < n < len(values))


def draw(found: list[Found], file: Path) -> None:
    """Draw the curves, a panel a data set: thin ones for each network and seed, thick ones for their means.

    A mean is hollow where not every network comes to the share.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = [name for name in DATASETS if any(one["data"] == name for one in found)]
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names) + 0.8, 4.2), squeeze=False, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        cells = [one for one in found if one["data"] == name]
        for curve in CURVES:
            _draw(axis, cells, curve)
        axis.axhline(0, color="black", linewidth=0.8, zorder=0)
        axis.set(title=name, xlabel="weights kept, at most")
        axis.set_xticks(range(len(SHARES)), [f"{share:.0%}" for share in SHARES])
        axis.set_yscale("symlog", linthresh=1, linscale=0.6)
        axis.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS], minor=False)
        axis.set_ylim(-80, TICKS[-1])
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("test accuracy over the original\namong the three classes, points")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncols=len(CURVES), frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(file, dpi=110)


def _draw(axis: Axes, cells: list[Found], curve: str) -> None:
    """Draw one curve of a data set."""
    colour = COLOURS[curve]
    values = np.array([[over(one, curve, share) for share in SHARES] for one in cells], float)
    places = np.arange(len(SHARES))
    axis.plot(places, values.T, color=colour, alpha=0.35, linewidth=0.7)
    known = np.isfinite(values)
    means = np.nanmean(values[:, known.any(0)], 0)
    axis.plot(places[known.any(0)], means, color=colour, linewidth=2.2, label=curve, zorder=3)
    for place, mean in zip(places[known.any(0)], means, strict=True):
        face = colour if known[:, place].all() else "white"
        axis.plot(place, mean, "o", color=colour, markerfacecolor=face, markersize=5, zorder=4)


def main() -> None:
    """Draw what has been found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURE)
    file = RESULTS / "seam.json"
    found = json.loads(file.read_text()).get("curve", {}).get("found", []) if file.exists() else []
    if not found:
        raise SystemExit(f"{file} has no curves; make them with python benchmarks/seam.py --only curve")
    draw(found, parser.parse_args().out)


if __name__ == "__main__":
    main()
