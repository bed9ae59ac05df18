r"""Where a network learns most in a second: regions ranked by the gain that a step of training promises.

A step of gradient descent at the rate :math:`\eta` lessens the loss by :math:`\eta \langle g, g' \rangle` to first
order, where :math:`g` is the gradient on the samples of the step and :math:`g'` that on those on which the loss is
taken. They are two halves of the samples here, so that a region which would learn samples by heart promises nothing.
Regions that promise less than 90 % of the best of their size are out, as they would soon have no more to give (that
inputs which look different are best met by early layers, and new labels by late ones, is what Lee et al., ICLR 2023,
found); the others are ranked by their gain over the seconds that a step takes, from their entry to the output and back,
of which multiply-accumulates tell one half and the number of operators the other.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from time import process_time

import networkx as nx
import numpy as np
import torch

from graphmod.data import Data
from graphmod.errors import RefusedError
from graphmod.graph import Block, blocks, boundaries, cost, data_flow, logits, primary_input, subgraph
from graphmod.methods.tuning import Candidate
from graphmod.model import Model
from graphmod.pytorch import META, to_torch
from graphmod.pytorch.dtypes import to_tensor
from graphmod.train.losses import cross_entropy
from graphmod.train.objective import Loss
from graphmod.train.weights import constant_roots, weights_read

_MOST = 256
"""Samples that gradients are taken of, at most."""

_ENOUGH = 0.9
"""Share of the largest gain that a region must promise."""


@dataclass(frozen=True)
class _Step:
    """What lies between two neighbouring boundaries: its weights, and its share of the time that all takes."""

    weights: frozenset[str]
    time: float


def rank_regions(model: Model, data: Data, share: float = 0.2, *, loss: Loss | None = None) -> tuple[Candidate, ...]:
    """Rank the runs of the trunk by what a second of training them promises.

    From every boundary on, the longest run is a candidate that has no more than a given share of the weights.

    Parameters
    ----------
    model : Model
        Takes any number of samples.
    data : Data
        What is to be learnt, with targets; at least two samples, of which the first 256 are used.
    share : float
        Of the model's weights, above 0 and at most 1.
    loss : callable, optional
        ``loss(outputs, targets) -> scalar tensor``; cross-entropy if None.

    Returns
    -------
    tuple of Candidate
        Best first; those that promise too little have score 0. Figures: "gain", the fall of the loss a unit of
        learning rate; "seconds" of a step of 64 samples.

    Raises
    ------
    RefusedError
        The share is out of range, or no run of the trunk has so few weights; there is but one sample; or the model has
        no weights that a gradient reaches.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods.gain import rank_regions
    >>> m = gm.load(gm.demo.model_path())
    >>> best = rank_regions(m, gm.demo.splits().train)[0]
    >>> best.weights <= 0.2 * m.n_weights
    True
    """
    if not 0 < share <= 1:
        raise RefusedError(f"share={share} is out of range; it is a share of the weights above 0 and at most 1")
    if len(data) < 2:
        raise RefusedError("one sample does not tell where a network learns; at least two are needed")
    trunk, steps = _trunk(model)
    tree = blocks(model)
    gains, seconds = _gains(model, data[: min(_MOST, len(data))], loss)
    sizes = {name: model.tensors[name].size for step in steps for name in step.weights if name in model.constants}
    found = []
    behind = [*accumulate((step.time for step in reversed(steps)), initial=0.0)][::-1]
    for start, stop in _runs(steps, sizes, share * model.n_weights):
        names = frozenset[str]().union(*(step.weights for step in steps[start:stop]))
        gain = sum(gains.get(name, 0.0) for name in names)
        inside = behind[start] - behind[stop]
        time = seconds * (2 * behind[start] + inside) / 3  # forward, to inputs and to weights take as long
        weights = sum(sizes.get(name, 0) for name in names)
        paths = _paths(tree, trunk[start : stop + 1])
        figures = {"gain": gain, "seconds": time}
        found.append(Candidate(paths, trunk[start], trunk[stop], weights, gain / max(time, 1e-9), figures))
    enough = _ENOUGH * max((one.figures["gain"] for one in found), default=0.0)
    found = [one if one.figures["gain"] >= enough else replace(one, score=0.0) for one in found]
    if not enough > 0:
        raise RefusedError(
            f"no part of the trunk with at most share={share:g} of the weights promises to learn anything; allow more"
        )
    return tuple(sorted(found, key=lambda one: (-one.score, -one.figures["gain"])))


def _trunk(model: Model) -> tuple[list[str], list[_Step]]:
    """Return the input and the boundaries, and what lies between every two neighbours."""
    source = primary_input(model)
    trunk = [source, *boundaries(model)]
    flow = data_flow(model, source, trunk[-1])
    place = {tensor: i for i, tensor in enumerate(nx.topological_sort(flow))}
    ends = [place[tensor] for tensor in trunk[1:]]
    names: dict[int, dict[str, None]] = defaultdict(dict)
    for _, tensor, operator in flow.edges(data="operator"):
        names[bisect_left(ends, place[tensor])][operator] = None
    roots = constant_roots(model)
    macs = [cost(model, names[i]).macs for i in range(len(ends))]
    n_macs, n_operators = sum(macs) or 1, sum(map(len, names.values()))
    return trunk, [
        _Step(
            weights_read(model, (model.position[name] for name in names[i]), roots),
            (macs[i] / n_macs + len(names[i]) / n_operators) / 2,
        )
        for i in range(len(ends))
    ]


def _runs(steps: Sequence[_Step], sizes: dict[str, int], most: float) -> list[tuple[int, int]]:
    """Return the longest run from every step with weights on, as positions of boundaries, none within another."""
    found: list[tuple[int, int]] = []
    stop, held = 0, dict[str, int]()
    for start, step in enumerate(steps):
        stop = max(stop, start)
        while stop < len(steps) and sum(sizes.get(name, 0) for name in {*held, *steps[stop].weights}) <= most:
            for name in steps[stop].weights:
                held[name] = held.get(name, 0) + 1
            stop += 1
        if step.weights and stop > start and (not found or stop > found[-1][1]):
            last = max(i for i in range(start, stop) if steps[i].weights)
            found.append((start, last + 1))
        for name in step.weights if stop > start else ():
            held[name] -= 1
            if not held[name]:
                del held[name]
    return found


def _gains(model: Model, data: Data, loss: Loss | None) -> tuple[dict[str, float], float]:
    """Return the first-order gain of every weight, and the seconds of a step of 64 samples through all."""
    part = subgraph(model, list(model.inputs), [model.main_output if loss else logits(model)])
    net = to_torch(part, dtype=torch.float32)
    parameters = dict(net.named_parameters())
    halves = []
    for half in (data[: len(data) // 2], data[len(data) // 2 :]):
        start = process_time()
        outputs = net(*(to_tensor(half.inputs[name]) for name in part.inputs))
        value = (loss or cross_entropy)(outputs, to_tensor(np.asarray(half.targets)))
        if not value.requires_grad:
            raise RefusedError("no gradient reaches a weight of the model, so nothing tells where it learns")
        net.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]  # torch ships this method without annotations
        seconds = (process_time() - start) * 64 / len(half)
        halves.append({path: one.grad.clone() for path, one in parameters.items() if one.grad is not None})
    first, second = halves
    gains: dict[str, float] = defaultdict(float)
    for tensor, path in {(one.tensor, one.path) for one in net.meta[META] if one.path in first}:
        gains[tensor] += float((first[path] * second[path]).sum())
    return gains, seconds


def _paths(tree: Block, tensors: Sequence[str]) -> tuple[str, ...]:
    """Return the paths of the largest blocks that make up a run of boundaries."""
    known = {tensor: i for i, tensor in enumerate(tensors)}
    found: list[str] = []
    covered = 0
    for block in tree.walk():
        start, stop = known.get(block.entry, -1), known.get(block.exit, -1)
        if block.path and start >= covered and stop > start:
            found.append(block.path)
            covered = stop
    return tuple(found)
