"""Modules and modularity over thresholds, their stability and trends; properties within modules; what criteria tell.

- *modules*: by DeepArc's greedy rule, and by the fewest that keep the threshold for every pair; modularity is
  (n + 1 - modules) / (n + 1). Stability: the adjusted Rand index of the modules with those of resampled batches.
- *properties*: how much the accuracy of a linear probe changes from one boundary to the next, within modules and
  between them; and what removing or duplicating a block costs, within modules and where two meet.
- *criteria*: Spearman's correlation of each criterion, on calibration data, with the true loss, on test data.
- *trends*: slopes of modularity by depth, amount of data and number of classes, over small ResNets on the digits that
  are trained for it with fewer epochs than the others.
"""

from __future__ import annotations

import warnings
from statistics import mean
from typing import Any

import numpy as np
import torch
from datasets import DATASETS, Parts
from markdown import spread
from markdown import table as as_table
from trained_networks import drawn, network, splits, train

import graphmod as gm
from graphmod.converters.pytorch import to_onnx
from graphmod.methods import deeparc
from graphmod.modules import stability

NAME = "segmentation"
THRESHOLD = 0.95
MOST = {"train": 2048, "calibration": 1024, "test": 1024}
EPOCHS = 15
DEPTHS = (1, 2, 3, 5, 7)
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
CLASSES = (2, 4, 6, 8, 10)


def cell(architecture: str, data: str, seed: int, quick: bool) -> dict[str, Any]:
    """Return all that is found on one network; trends on the ResNets of the digits alone."""
    model, parts = network(architecture, data, seed), drawn(splits(data), MOST, seed)
    sim = deeparc.similarity(model, parts.train, passes=2 if quick else deeparc.PASSES, seed=seed)
    modules = {method: _modules(sim, method) for method in ("greedy", "optimal")}
    chosen = deeparc.decompose(sim, THRESHOLD)
    properties = deeparc.properties(model, parts, chosen, seed=seed)
    found = {
        "boundaries": len(sim.boundaries),
        "modules": modules,
        "stability": _stability(sim),
        "properties": {name: properties.steps(name) for name in deeparc.PROPERTIES},
        "removal": _removal(model, parts, chosen),
        "correlation": gm.rank_blocks(model, parts, seed=seed).correlation,
    }
    if architecture == "resnet44" and data == "digits":
        found["trends"] = _trends(seed, quick)
    return found


def _modules(sim: gm.Similarity, method: str) -> list[dict[str, float]]:
    cuts = [(t, gm.modularize(sim, method, threshold=t)) for t in deeparc.THRESHOLDS]
    return [{"threshold": t, "modules": len(cut), "modularity": deeparc.modularity(cut)} for t, cut in cuts]


def _stability(sim: gm.Similarity) -> dict[str, float]:
    n_modules = len(deeparc.decompose(sim, THRESHOLD))
    return {
        "greedy": stability(sim, "greedy", threshold=THRESHOLD).agreement,
        "optimal": stability(sim, "optimal", threshold=THRESHOLD).agreement,
        "optimal, as many": stability(sim, "optimal", n_modules=n_modules).agreement,
    }


def _removal(model: gm.Model, parts: gm.Splits, modules: gm.ModuleMap) -> dict[str, float | None]:
    """Return the accuracy lost without a block, and with two of it, within modules and where two meet."""
    before = gm.accuracy(model, parts.test)
    effects = deeparc.removal(model, parts.test, modules)
    sides = {
        "within": [e for e in effects if e.module is not None],
        "between": [e for e in effects if e.module is None],
    }
    return {
        f"{what}, {side}": mean(getattr(one, what) for one in own) - before if own else None
        for side, own in sides.items()
        for what in ("removed", "duplicated")
    }


def _trends(seed: int, quick: bool) -> dict[str, Any]:
    parts = DATASETS["digits"]()
    made = {
        "depth": [(6 * blocks + 2, parts, blocks) for blocks in DEPTHS],
        "data": [(share, _share(parts, share, seed), 7) for share in SHARES],
        "classes": [(n, _classes(parts, n), 7) for n in CLASSES],
    }
    found = {}
    for name, networks in made.items():
        chosen = networks[::2] if quick else networks
        values = [_modularity(own, blocks, seed, 3 if quick else EPOCHS) for _, own, blocks in chosen]
        variable = [float(value) for value, _, _ in chosen]
        found[name] = {"variable": variable, "modularity": values, **deeparc.trend(variable, values).as_dict()}
    return found


def _share(parts: Parts, share: float, seed: int) -> Parts:
    x, y = parts["train"]
    rows = np.sort(np.random.default_rng(seed).permutation(len(x))[: round(share * len(x))])
    return {**parts, "train": (x[rows], y[rows])}


def _classes(parts: Parts, n: int) -> Parts:
    return {name: (x[y < n], y[y < n]) for name, (x, y) in parts.items()}


def _modularity(parts: Parts, blocks: int, seed: int, epochs: int) -> float:
    """Train a network and return its modularity, the mean over all thresholds of the paper."""
    net = train("resnet44", "digits", parts, seed, epochs=epochs, depth=blocks)
    model = to_onnx(net, torch.from_numpy(parts["train"][0][:2]), input_names=["x"], output_names=["logits"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "activations never change, or")
        sim = deeparc.similarity(model, parts["calibration"][0], passes=2, seed=seed)
    return mean(deeparc.modularity(deeparc.decompose(sim, threshold)) for threshold in deeparc.THRESHOLDS)


def table(found: list[dict[str, Any]]) -> str:
    """Return the tables: modules, properties, criteria, trends."""
    names = list(dict.fromkeys((cell["architecture"], cell["data"]) for cell in found))
    own = {" ".join(name): [c for c in found if (c["architecture"], c["data"]) == name] for name in names}
    shown = (0.90, 0.93, 0.95, 0.97, 0.99)
    modules = [["network", "modules", *(f"{t:.2f}" for t in shown), "stability at 0.95"]]
    properties = [["network", *(f"{p}, {s}" for p in deeparc.PROPERTIES for s in ("within", "between"))]]
    removal = [["network", *found[0]["removal"]]]
    criteria = [["network", *found[0]["correlation"]]]
    for name, cells in own.items():
        for method in ("greedy", "optimal"):
            rows = [
                _told([row["modularity"] for c in cells for row in c["modules"][method] if row["threshold"] == t])
                for t in shown
            ]
            modules.append([name, method, *rows, _told([c["stability"][method] for c in cells])])
        steps = [(p, side) for p in deeparc.PROPERTIES for side in (0, 1)]
        properties.append([name, *(_told([100 * c["properties"][p][side] for c in cells]) for p, side in steps)])
        removal.append([name, *(_told([_points(c["removal"][key]) for c in cells]) for key in found[0]["removal"])])
        criteria.append([name, *(_told([c["correlation"][key] for c in cells]) for key in found[0]["correlation"])])
    texts = [
        f"Modularity by threshold.\n\n{as_table(modules)}",
        f"Points of probe accuracy from one boundary to the next.\n\n{as_table(properties)}",
        f"Change of accuracy in points, a block at a time, within modules and where two meet.\n\n{as_table(removal)}",
        f"Rank correlation of each criterion with the true loss.\n\n{as_table(criteria)}",
    ]
    with_trends = [cell["trends"] for cell in found if "trends" in cell]
    if with_trends:
        trends = [["modularity by", "slope", "correlation", "p"]]
        for key in with_trends[0]:
            columns = (
                _told([one[key][what] for one in with_trends], 4) for what in ("slope", "correlation", "p_value")
            )
            trends.append([key, *columns])
        texts.append(f"Trends, ResNets on the digits.\n\n{as_table(trends)}")
    return "\n\n".join(texts)


def _points(change: float | None) -> float | None:
    return None if change is None else 100 * change


def _told(values: list[float | None], digits: int = 2) -> str:
    """Return mean and deviation over the seeds that have a value."""
    return spread([None if value is None or np.isnan(value) else value for value in values], f".{digits}f")
