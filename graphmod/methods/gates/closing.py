"""Closing: which gates may close, and the network without what they close."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphmod.data import Data
from graphmod.errors import GraphmodError, InvalidModelError, RefusedError
from graphmod.graph import Block, cost, raw_logits
from graphmod.methods.deeparc.residual_sums import is_skippable, residual_blocks
from graphmod.methods.gates.gated import Gated
from graphmod.methods.skipping import skip
from graphmod.model import Model
from graphmod.probe import predict
from graphmod.pruning.groups import Groups, groups
from graphmod.pruning.importance.gradients import widened
from graphmod.pruning.removal import cut
from graphmod.pruning.selection import Selection
from graphmod.pruning.widths import Alive, Widths
from graphmod.rewrite import Region

Array = NDArray[np.generic]

OPEN = 1e30
"""Added to the worth of what is open, so that it is the last to go where widths are rounded."""

AGREE = 1e-4
"""Of the output's scale, by which the network with closed gates may differ from the one without what they close."""

ROUNDING = 4.0
"""Times as much as networks with all gates open differ, by half precision or levels, they may where that is more."""

COMPARED = 64
"""Samples on which they are compared."""


def skippable_blocks(found: Groups, *, with_weights: bool = False) -> list[Block]:
    """Return the blocks that an identity can take the place of, the smallest ones that residual blocks are made of.

    With ``with_weights`` a residual block is one where some of what it is made of has no weights, as the ReLU behind a
    sum.
    """
    try:
        residual = residual_blocks(found.model)
    except (InvalidModelError, RefusedError):  # there is no trunk, or it has no layers left
        return []
    skippable: list[Block] = []
    for block in residual:
        parts = [child for child in block.children if _passes_through(found, child)]
        every = len(parts) > 1 and len(parts) == len(block.children)
        if with_weights:
            every = every and all(cost(found.model, part.operators).weights for part in parts)
        skippable += parts if every else [block] * _passes_through(found, block)
    return skippable


def _passes_through(found: Groups, block: Block) -> bool:
    """Whether a block has the same units at its exit as at its entry, so that they still fit when some are gone."""
    ends = [[found.units(labels) for labels in found.analysis.axes.get(one, ())] for one in (block.entry, block.exit)]
    same = len(ends[0]) == len(ends[1]) and all(map(np.array_equal, *ends))
    return same and is_skippable(found.model, block)


def always_open(gated: Gated, whole: Collection[str]) -> Alive:
    """Return which gates have to stay open: what is compared with others, and groups that are to stay whole."""
    fixed = np.append(gated.fixed, np.zeros(len(gated.blocks), bool))
    for group in gated.found:
        fixed[group.own] |= group.name in whole
    return fixed


def whole_groups(gated: Gated, data: Data) -> frozenset[str]:
    """Return the groups of which closed gates are not as if what they close were gone, by closing half of each.

    Rules of operators do not tell: a constant may be left where a channel was, and be multiplied with another one.
    """
    found, untrue = gated.found, []
    order = np.random.default_rng(0).random(found.n_units)  # scattered: an operator may look at neighbours alone
    pending = [[group.name for group in found if not gated.fixed[group.own].all()]]
    while pending:
        names = pending.pop()
        goes = np.array([name in names for name in (group.name for group in found)], bool)[found.group_of]
        alive = rounded(found, goes & ~gated.fixed, order, 1, 0.5)
        if alive.all() or _is_true(gated, alive, data):
            continue
        if len(names) == 1:
            untrue += names
        else:
            pending += [names[: len(names) // 2], names[len(names) // 2 :]]
    return frozenset(untrue)


def _is_true(gated: Gated, alive: Alive, data: Data) -> bool:
    """Whether a network with closed units computes what the one without them does."""
    gates = np.append(alive, np.ones(len(gated.blocks), bool))
    try:
        check_alike(gated, gated.model, _cut(gated.model, alive), gates, data)
    except GraphmodError:  # they differ, or the units cannot be taken out
        return False
    return True


def rounded(found: Groups, closed: Alive, worth: NDArray[np.float64], multiple_of: int, share: float = 1.0) -> Alive:
    """Return which units are left when a share of those that are closed go, and widths are rounded up.

    Those worth most stay, and whatever is not closed.
    """
    selection = Selection(found, Widths(found), worth + ~closed * OPEN, multiple_of)
    for group in found:
        n_closed = int(share * closed[group.own].sum())
        selection.reduce(group, selection.rounded(group, group.n_units - n_closed), 1.0)
    return np.asarray(selection.alive | ~closed)


def without(model: Model, blocks: Sequence[Block | Region], gates: Alive) -> Model:
    """Return a model without the units and blocks of which gates are closed.

    A group inside a block that goes, goes with it.

    Parameters
    ----------
    model : Model
    blocks : sequence of Block or Region
        Those of :class:`Gated`.
    gates : array of bool, shape (units + blocks,)
        Which are open.
    """
    alive, open_ = np.split(gates, [len(gates) - len(blocks)])
    gone = [block for block, one in zip(blocks, open_, strict=True) if not one]
    return skip(_cut(model, alive), gone, model)  # shapes of what is left can be open


def _cut(model: Model, alive: Alive) -> Model:
    return model if alive.all() else cut(groups(model), ~alive, leftovers=False)


def check_alike(gated: Gated, model: Model, small: Model, gates: Alive, data: Data) -> float:
    """Return how far a network without what is closed is from the one with closed gates; ``model`` has it all.

    Raises
    ------
    RefusedError
        It is more than rounding errors, those of the model's own types included.
    """
    some = data[: min(len(data), COMPARED)]
    made = predict(small, some, output=raw_logits(small))
    return check_equal(made, _masked(gated, gates, some), gated, model, some)


def check_equal(made: Array, masked: Array, gated: Gated, model: Model, some: Data) -> float:
    """Return how far the outputs of a network without what is closed are from those of the one with closed gates.

    Raises
    ------
    RefusedError
        It is more than rounding errors, those of the model's own types, which has all gates open, included.
    """
    difference = _difference(made, masked)
    if not difference <= AGREE:
        rounding = _difference(predict(model, some, output=gated.logits), _masked(gated, np.ones(gated.n_gates), some))
        if not difference <= ROUNDING * rounding:
            raise RefusedError(
                f"the network without what is closed differs from the one with closed gates by {difference:.1e} of the "
                "output's scale: an operator between the channels compares them in a way that gates do not follow"
            )
    return difference


def _masked(gated: Gated, gates: Alive | NDArray[np.float64], data: Data) -> Array:
    """Return what the network gives with some gates closed."""
    gated.net.eval()
    with torch.no_grad():
        made: Array = gated(feeds(gated, data), torch.from_numpy(gates.astype(np.float32))).numpy()
    return made


def feeds(gated: Gated, data: Data) -> list[Tensor]:
    """Return samples as a network with gates takes them."""
    return [torch.from_numpy(widened(data.inputs[name])) for name in gated.model.inputs]


def _difference(made: Array, masked: Array) -> float:
    """Return how far two outputs are from each other, over the scale of the first; no number where one has none."""
    expected = made.astype(np.float64)
    scale = max(np.abs(expected).max(), np.finfo(np.float32).tiny)
    return float(np.abs(expected - masked.astype(np.float64)).max() / scale)
