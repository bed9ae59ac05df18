"""The trunk as a line of units: what can be at fault, and be repaired, without the rest."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from graphmod.graph import Block, blocks, boundaries, data_flow, primary_input
from graphmod.model import Model
from graphmod.train.weights import constant_roots


@dataclass(frozen=True)
class Unit:
    """The part of the trunk between two boundaries that has weights, with what follows it and has none.

    Parameters
    ----------
    path : str
        Path of the largest block that begins with it and ends in it, its exit where there is none.
    entry, exit : str
        The boundaries around it.
    operators : tuple of str
        The operators on data paths between them.
    tensors : frozenset of str
        The weights: float constants of at least one axis that its operators read.
    weights : int
        How many scalars they are.
    """

    path: str
    entry: str
    exit: str
    operators: tuple[str, ...] = field(repr=False)
    tensors: frozenset[str] = field(repr=False)
    weights: int

    @property
    def place(self) -> tuple[str, str]:
        """The unit as a pair of tensors."""
        return self.entry, self.exit


def units(model: Model, among: Iterable[str] | None = None) -> tuple[Unit, ...]:
    """Return the units of a model's trunk, in order.

    Parameters
    ----------
    model : Model
    among : iterable of str, optional
        Boundaries to cut at, and no others.

    Examples
    --------
    >>> import graphmod as gm
    >>> [unit.path for unit in units(gm.load(gm.demo.model_path()))][:3]
    ['bn', 'layer1.0', 'layer1.1']
    """
    source = primary_input(model)
    allowed = None if among is None else set(among)
    trunk = [source, *(name for name in boundaries(model) if allowed is None or name in allowed)]
    operators = _operators(model, trunk)
    roots = constant_roots(model)
    # a scalar is a constant of a formula, such as GELU's
    weights = frozenset(name for name, kind in model.constants.items() if kind.is_float and kind.shape)
    read = [
        weights.intersection(root for place in inside for name in model.reads[place] for root in roots.get(name, ()))
        for inside in operators
    ]
    steps: list[tuple[str, str, list[int], frozenset[str]]] = []
    for (entry, exit_), inside, tensors in zip(pairwise(trunk), operators, read, strict=True):
        if steps and not (tensors and steps[-1][3]):  # what has no weights joins the unit before it, or the first one
            first, _, before, held = steps.pop()
            steps.append((first, exit_, [*before, *inside], held | tensors))
        else:
            steps.append((entry, exit_, inside, tensors))
    beginning = defaultdict(list)
    for block in blocks(model).walk():
        beginning[block.entry].append(block)
    return tuple(_unit(model, *step, beginning[step[0]]) for step in steps)


def _unit(
    model: Model, entry: str, exit_: str, inside: list[int], tensors: frozenset[str], beginning: list[Block]
) -> Unit:
    names = tuple(model.operator_names[place] for place in inside)
    within = [block for block in beginning if block.path and set(block.operators).issubset(names)]
    largest = max(within, key=lambda block: len(block.operators), default=None)
    n_weights = sum(model.tensors[name].size for name in tensors)
    return Unit(exit_ if largest is None else largest.path, entry, exit_, names, tensors, n_weights)


def _operators(model: Model, trunk: list[str]) -> list[list[int]]:
    """Return the places of the operators on data paths between every two neighbours, in the graph's order.

    What is made before a boundary in the order of the file is not made behind it: all paths lead through it.
    """
    ends = [model.producer[name] for name in trunk[1:]]
    found: list[set[int]] = [set() for _ in ends]
    for _, tensor in data_flow(model, trunk[0], trunk[-1]).edges:
        place = model.producer[tensor]
        found[bisect_left(ends, place)].add(place)
    return [sorted(places) for places in found]
