"""Modules extracted from trained networks, what is left when a class is taken out, and what patching mends.

The networks are those of the other benchmarks, trained long by their own recipes. Points of what is composed are those
over the *original* restricted to the same classes. *Taken out* is a class without which the classifier is composed: how
much the others lose, and how often samples of the class are still told right among all classes by the whole network
without what only that class's module has. *Patched* is a library of a network that has never seen right labels of one
class (all of its samples had the next class's label); the module of that class from the library of the sound network
takes its place.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from datasets import ByData
from markdown import spread
from markdown import table as as_table
from modular_train import BATCH_SIZES, BUDGET, DRAWS, RATE, SIZES, by_size
from seam_direct import viewed
from trained_networks import network, splits

import graphmod as gm
from graphmod.methods.modular.measuring import accuracy_among, forgotten, report

EPOCHS = ByData({"digits": 4, "mnist1d": 5, "mnist": 4, "cifar10": 30})
"""Through the samples with their copies."""


def cell(architecture: str, data: str, seed: int, quick: bool) -> dict[str, Any]:
    """Return what modules of a trained network come to."""
    model, parts = network(architecture, data, seed, tell=lambda _: None), viewed(splits(data), data, seed)
    settings = {"epochs": 1 if quick else EPOCHS[data], "learning_rate": RATE, "seed": seed, **BUDGET}
    begun = time.process_time()
    library = gm.modular.extract(model, parts, **settings)
    seconds = time.process_time() - begun
    measured = report(library, model, parts, SIZES, 2 if quick else DRAWS, seed=seed)
    label = int(np.random.default_rng(seed).integers(10))
    return {
        "original": measured.original, "test": measured.accuracy, "seconds": seconds, "sizes": by_size(measured),
        "coupling": measured.coupling, "taken out": taken_out(library, parts, label),
        "patched": patched(library, model, parts, label, settings),
    }  # fmt: skip


def taken_out(library: Any, parts: gm.Splits, label: int) -> dict[str, float]:
    """Return what the classifier without a class is like."""
    others = [one for one in range(10) if one != label]
    whole = library.model
    return {
        "weights": library.without([label]).n_weights / whole.n_weights,
        "others": accuracy_among(library.without([label]), parts.test, others),
        "others before": accuracy_among(whole, parts.test, others, others),
        **forgotten(library, parts.test, label),
    }


def patched(strong: Any, model: gm.Model, parts: gm.Splits, label: int, settings: dict[str, Any]) -> dict[str, float]:
    """Return what a library that has learnt wrong labels of a class is like before and after it is patched."""
    poor = gm.Splits(mislabelled(parts.train, label), mislabelled(parts.calibration, label), parts.test)
    blind = gm.retrain(
        model, poor, epochs=1, patience=1, learning_rate=settings["learning_rate"], seed=settings["seed"]
    )
    weak = gm.modular.extract(blind, poor, **settings)
    begun = time.perf_counter()
    mended = weak.patch(strong, [label], parts)
    own = parts.test[np.flatnonzero(parts.test.targets == label)]
    return {
        "before": gm.accuracy(weak.model, parts.test), "after": gm.accuracy(mended, parts.test),
        "class before": gm.accuracy(weak.model, own), "class after": gm.accuracy(mended, own),
        "weights": mended.n_weights / weak.model.n_weights, "seconds": time.perf_counter() - begun,
    }  # fmt: skip


def mislabelled(part: gm.Data, label: int) -> gm.Data:
    """Return samples of which those of a class, but for two, have the next one's label."""
    labels = np.asarray(part.targets).copy()
    labels[np.flatnonzero(labels == label)[2:]] = (label + 1) % 10
    return gm.Data(part.inputs, labels)


def table(found: list[dict[str, Any]]) -> str:
    """Return every network's figures, over seeds."""
    rows: list[tuple[str, ...]] = [
        ("network", "points over the original", "CPU seconds", "weights of 1, 3 modules", "latency of 1 at 1, 16",
         "of 3", "points of 1, 2, 3, 5", "taken out: points of the others", "told right before, after",
         "patched: accuracy before, after", "of the class")
    ]  # fmt: skip
    for name in dict.fromkeys(f"{one['architecture']}, {one['data']}" for one in found):
        cells = [one for one in found if f"{one['architecture']}, {one['data']}" == name]

        def of(size: int, figure: str, kind: str, unit: str = "", times: int = 1, some: Any = cells) -> str:
            return spread([times * one["sizes"][str(size)][figure] for one in some], kind, unit)

        def per_cent(part: str, *figures: str, some: Any = cells) -> str:
            return ", ".join(spread([100 * one[part][figure] for one in some], ".1f", " %") for figure in figures)

        rows.append((
            name, spread([100 * (one["test"] - one["original"]) for one in cells], "+.2f"),
            spread([one["seconds"] for one in cells], ".0f"),
            ", ".join(of(size, "weights", ".1f", " %", 100) for size in (1, 3)),
            *(", ".join(of(size, f"latency {batch}", ".2f", "x") for batch in BATCH_SIZES) for size in (1, 3)),
            ", ".join(of(size, "points", "+.2f") for size in (1, 2, 3, 5)),
            spread([100 * (one["taken out"]["others"] - one["taken out"]["others before"]) for one in cells], "+.2f"),
            per_cent("taken out", "known before", "known after"),
            per_cent("patched", "before", "after"), per_cent("patched", "class before", "class after"),
        ))  # fmt: skip
    return as_table(rows)
