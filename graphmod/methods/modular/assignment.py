"""Assignment: which units and blocks all modules have, and which belong to the module of one class.

Of every channel group the most relevant units are the *core*, which every module has; each of the others belongs to one
class. So a module is the core and its class's own part, and what is composed of several is the core and as many own
parts as it has classes, with some more units for all: that is what makes unions small. Blocks belong to no class: those
most relevant are core, and the more classes, the more of the others come with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from graphmod.methods.modular.relevance import Relevance
from graphmod.pruning.groups import Groups
from graphmod.pruning.selection import multiples
from graphmod.pruning.widths import Alive

SHARED = 0.3
"""Of what is not core, the share that is open for nearly all classes whoever owns it; the fewer classes the less."""


@dataclass(frozen=True, eq=False)
class Modules:
    """What the module of each class has.

    Parameters
    ----------
    found : Groups
    uses : array of bool, shape (classes, gates)
        Of units and then blocks.
    rank : array of float, shape (gates,)
        What each is worth to all classes: the units worth most fill widths up.
    multiple_of : int
        What widths are rounded up to: ONNX Runtime lays channels out in so many.
    """

    found: Groups
    uses: NDArray[np.bool_] = field(repr=False)
    rank: NDArray[np.float64] = field(repr=False)
    multiple_of: int

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.uses)

    def opened(self, classes: Sequence[int] | NDArray[np.int64]) -> Alive:
        """Return which gates are open in what is composed of some modules; all of them for all classes.

        Besides what any of the modules has these are, of every group and of the blocks, the more of what is worth most
        to all classes the more classes there are, and then what makes the width a multiple.
        """
        opened = np.asarray(self.uses[np.asarray(classes, np.int64)].any(0))
        among = (len(classes) - 1) / max(1, len(self) - 1)
        for multiple, n_core, shared, order in self._parts:
            n_shared = n_core + round((1.0 if among == 1 else shared) * among * (len(order) - n_core))
            opened[order[:n_shared]] = True
            n = int(opened[order].sum())
            missing = min(-n % multiple, len(order) - n)
            if missing:
                opened[order[~opened[order]][:missing]] = True
        return opened

    @cached_property
    def _parts(self) -> list[tuple[int, int, float, NDArray[np.int64]]]:
        """What the units of every group, and blocks, are rounded to, how many are core, and all, core ones first."""
        core = np.asarray(self.uses.all(0))
        parts = [np.arange(group.first, group.first + group.n_units) for group in self.found]
        parts.append(np.arange(self.found.n_units, len(core)))
        multiple = [*multiples(self.found, self.multiple_of), 1]
        shared = [SHARED] * len(self.found) + [1.0]
        return [
            (one, int(core[gates].sum()), share, gates[np.lexsort((-self.rank[gates], ~core[gates]))])
            for one, share, gates in zip(multiple, shared, parts, strict=True)
        ]


def assigned(
    found: Groups, relevance: Relevance, fixed: Alive, core: float, n_core_blocks: int, multiple_of: int = 1
) -> Modules:
    """Return the modules of all classes.

    Every class owns as many units of a group as any other, or one more, which those get that have least so far; which
    ones is decided so that units are, in all, most relevant for their owners among all classes.

    Parameters
    ----------
    found : Groups
    relevance : float64 array, shape (classes, gates)
    fixed : array of bool, shape (gates,)
        What has to be in all modules.
    core : float
        Share of the units of every group, of which one is core at least.
    n_core_blocks : int
    multiple_of : int
        What widths are rounded up to.

    Examples
    --------
    >>> import graphmod as gm
    >>> found = gm.groups(gm.load(gm.demo.model_path()))
    >>> rng = np.random.default_rng(0)
    >>> modules = assigned(found, rng.random((10, found.n_units + 2)), np.zeros(found.n_units + 2, bool), 0.25, 0)
    >>> group = found.groups[0]
    >>> int(modules.uses.all(0)[group.own].sum()), group.n_units, bool(modules.uses.any(0)[: found.n_units].all())
    (4, 16, True)
    """
    n_classes, n_gates = relevance.shape
    uses = np.zeros((n_classes, n_gates), bool)
    rank = np.zeros(n_gates)
    load = np.zeros(n_classes)
    parts = [(np.arange(one.first, one.first + one.n_units), max(1, round(core * one.n_units))) for one in found]
    for gates, n_core in [*parts, (np.arange(found.n_units, n_gates), n_core_blocks)]:
        if not len(gates):
            continue
        own = relevance[:, gates]
        total = own.sum(1, keepdims=True)
        shares = np.divide(own, total, out=np.full(own.shape, 1 / len(gates)), where=total > 0)
        rank[gates] = shares.mean(0) + fixed[gates]
        order = np.argsort(-rank[gates], kind="stable")
        n_core = max(n_core, int(fixed[gates].sum()))
        uses[:, gates[order[:n_core]]] = True
        if gates[0] >= found.n_units:
            continue
        left = order[n_core:]
        owner = _owners(shares[:, left], load)
        uses[owner, gates[left]] = True
        load += np.bincount(owner, minlength=n_classes) / len(gates)
    return Modules(found, uses, rank, multiple_of)


def _owners(shares: Relevance, load: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the class of every column, evenly; classes of the least load get what cannot be shared evenly."""
    n_classes, n = shares.shape
    each, more = divmod(n, n_classes)
    capacity = np.full(n_classes, each)
    capacity[np.argsort(load, kind="stable")[:more]] += 1
    slots = np.repeat(np.arange(n_classes), capacity)
    columns, taken = linear_sum_assignment(-shares[slots].T)
    owner = np.empty(n, np.int64)
    owner[columns] = slots[taken]
    return owner
