"""Accuracy when 1, 2, ... blocks go and nothing is retrained: DeepArc's rule, random blocks, and ours.

- *random*: blocks drawn among all that keep the type.
- *DeepArc*: drawn among those within modules. Its threshold is the one, of three, that does best on calibration data at
  that number of blocks. A block within a module has both what it reads and what it makes in it, which serves the rule.
- *ours*: skipped greedily, measured anew after each: by the divergence of the predictions, which needs no labels, or by
  the margin of the labels.
- *replaced*: the same by divergence, but an affine or linear layer, fitted in closed form to the original's
  activations, takes each block's place. What stays is no longer nothing: a comparison beside the fair one.

Choices are made on calibration data, figures are of test data: changes in points, means over draws.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import mean
from typing import Any

import numpy as np
from markdown import spread
from markdown import table as as_table
from trained_networks import drawn, network, splits

import graphmod as gm
from graphmod.graph import Block
from graphmod.graph.channels import channel_axis
from graphmod.methods import deeparc
from graphmod.methods.criteria import skip_greedily
from graphmod.methods.criteria.kl import divergence
from graphmod.methods.criteria.registry import log_softmax
from graphmod.methods.skipping import StandIn, outputs_without, skip
from graphmod.probe import moments
from graphmod.rewrite import Proposal, Region, proposals
from graphmod.rewrite.replacements import Fit

NAME = "removal"
COUNTS = 8
DRAWS = 5
THRESHOLDS = (0.90, 0.95, 0.98)
MOST = {"train": 1000, "calibration": 500, "test": 2000}
RULES = ("random", "deeparc", "ours (divergence)", "ours (margin)", "replaced (affine)", "replaced (linear)")


def cell(architecture: str, data: str, seed: int, quick: bool) -> dict[str, Any]:
    """Return the change of accuracy by rule and number of blocks, and what each took."""
    model, parts = network(architecture, data, seed), drawn(splits(data), MOST, seed)
    counts, draws = (3, 3) if quick else (COUNTS, DRAWS)
    blocks = [block for block in deeparc.residual_blocks(model) if deeparc.is_skippable(model, block)]
    before = gm.accuracy(model, parts.test)
    rng = np.random.default_rng(seed)
    rules = {
        "random": lambda: _random(model, parts, blocks, counts, draws, rng),
        "deeparc": lambda: _deeparc(model, parts, counts, draws, rng, seed),
        "ours (divergence)": lambda: _greedy(model, parts, "kl", counts),
        "ours (margin)": lambda: _greedy(model, parts, "margin", counts),
        "replaced (affine)": lambda: _replaced(model, parts, blocks, "affine", counts),
        "replaced (linear)": lambda: _replaced(model, parts, blocks, "linear", counts),
    }
    changes, seconds = {}, {}
    for name, rule in rules.items():
        start = time.process_time()
        changes[name] = [None if score is None else score - before for score in rule()]
        seconds[name] = time.process_time() - start
    return {"skippable": len(blocks), "before": before, "changes": changes, "seconds": seconds}


def _random(
    model: gm.Model, parts: gm.Splits, blocks: Sequence[Block], counts: int, draws: int, rng: np.random.Generator
) -> list[float | None]:
    return [
        mean(gm.accuracy(chosen, parts.test) for chosen in _subsets(model, blocks, k, draws, rng))
        for k in range(1, min(counts, len(blocks)) + 1)
    ]


def _deeparc(
    model: gm.Model, parts: gm.Splits, counts: int, draws: int, rng: np.random.Generator, seed: int
) -> list[float | None]:
    """Return accuracies; None where no threshold has so many blocks in modules."""
    sim = deeparc.similarity(model, parts.train, seed=seed)
    inside: dict[tuple[Block, ...], None] = {}  # thresholds that leave the same blocks are drawn from once
    for threshold in THRESHOLDS:
        found = deeparc.module_of(model, deeparc.decompose(sim, threshold))
        inside[tuple(block for block, module in found.items() if module is not None)] = None
    scores: list[float | None] = []
    for k in range(1, counts + 1):
        subsets = [list(_subsets(model, own, k, draws, rng)) for own in inside if len(own) >= k]
        if not subsets:
            scores.append(None)
            continue
        best = max(subsets, key=lambda models: mean(gm.accuracy(one, parts.calibration) for one in models))
        scores.append(mean(gm.accuracy(one, parts.test) for one in best))
    return scores


def _subsets(
    model: gm.Model, blocks: Sequence[Block], k: int, draws: int, rng: np.random.Generator
) -> Iterator[gm.Model]:
    for _ in range(draws):
        yield skip(model, [blocks[place] for place in np.sort(rng.choice(len(blocks), k, replace=False))])


def _greedy(model: gm.Model, parts: gm.Splits, by: str, counts: int) -> list[float | None]:
    steps = islice(skip_greedily(model, parts.calibration, by), counts)
    return [gm.accuracy(step.model, parts.test) for step in steps]


def _replaced(model: gm.Model, parts: gm.Splits, blocks: Sequence[Block], kind: str, counts: int) -> list[float | None]:
    """Replace one block after the other, each time the one whose stand-in moves the predictions least."""
    sums = dict(zip(deeparc.residual_blocks(model), deeparc.residual_sums(model), strict=True))
    left = {block: Region(block.entry, sums[block]) for block in blocks}
    wanted = log_softmax(outputs_without(model, [], parts.calibration)[0])
    now, scores = model, list[float | None]()
    for _ in range(min(counts, len(blocks))):
        pairs = [(region.entry, region.exit) for region in left.values()]
        seen = moments(now, parts.train, pairs, reference=model)
        fitted: dict[Block, Proposal] = {}
        for block, region in left.items():
            found = proposals(region, seen[region.entry, region.exit])
            fitted[block] = next(one for one in found if one.kind == kind)
        stand_ins = [_stand_in(model, one.region.exit, one.fit) for one in fitted.values()]
        _, without = outputs_without(now, list(left.values()), parts.calibration, stand_ins=stand_ins)
        damage = [divergence(wanted, log_softmax(one)) for one in without]
        block = list(left)[int(np.argmin(damage))]
        del left[block]
        now = fitted[block].apply(now)
        scores.append(gm.accuracy(now, parts.test))
    return scores


def _stand_in(model: gm.Model, tensor: str, fit: Fit) -> StandIn:
    axis = channel_axis(model, tensor)

    def compute(activations: Any) -> Any:
        made = np.moveaxis(activations, axis, -1) @ fit.weight + fit.bias
        return np.moveaxis(made, -1, axis).astype(activations.dtype)

    return compute


def table(found: list[dict[str, Any]]) -> str:
    """Return a table a network: rules by number of blocks."""
    counts = max(len(changes) for cell in found for changes in cell["changes"].values())
    rows = [["network", "rule", *(str(k) for k in range(1, counts + 1)), "CPU s"]]
    for name in dict.fromkeys((cell["architecture"], cell["data"]) for cell in found):
        own = [cell for cell in found if (cell["architecture"], cell["data"]) == name]
        for rule in RULES:
            columns = [_points([cell["changes"][rule][k : k + 1] for cell in own]) for k in range(counts)]
            rows.append([" ".join(name), rule, *columns, f"{mean(cell['seconds'][rule] for cell in own):.0f}"])
    return f"Change of accuracy on test data in points when so many blocks go.\n\n{as_table(rows)}\n\n{_verdict(found)}"


def _points(changes: list[list[float | None]]) -> str:
    """Return mean and deviation over seeds, in points."""
    return spread([100 * value for one in changes for value in one if value is not None], "+.2f")


def _verdict(found: list[dict[str, Any]]) -> str:
    """Say at how many numbers of blocks ours, by its mean over seeds, is better than, or equal to, DeepArc's rule."""
    better = dict.fromkeys(("ours (divergence)", "ours (margin)"), 0)
    equal, n = dict(better), 0
    for name in dict.fromkeys((cell["architecture"], cell["data"]) for cell in found):
        own = [cell["changes"] for cell in found if (cell["architecture"], cell["data"]) == name]
        for k in range(max(len(changes["deeparc"]) for changes in own)):
            shared = [changes for changes in own if changes["deeparc"][k : k + 1] not in ([], [None])]
            if not shared:
                continue
            n += 1
            for rule in better:
                ahead = mean(changes[rule][k] - changes["deeparc"][k] for changes in shared)
                better[rule] += ahead > 1e-9
                equal[rule] += abs(ahead) <= 1e-9
    told = (f"{rule} is better than DeepArc's rule at {better[rule]} and equal at {equal[rule]}" for rule in better)
    return f"Of {n} comparisons (a network and a number of blocks), {', '.join(told)}."
