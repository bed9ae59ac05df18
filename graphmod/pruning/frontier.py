"""The frontier: how far a network has run on some batches, and what it has made that is still to be read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data
from graphmod.graph import subgraph
from graphmod.model import Model

Array = NDArray[np.generic]


class Frontier:
    """What a network has made so far of some batches, so that no part of it runs twice.

    Parameters
    ----------
    batches : sequence of Data
    """

    def __init__(self, batches: Sequence[Data]):
        self._inputs = [dict(batch.inputs) for batch in batches]
        self._held: list[dict[str, Array]] = [{} for _ in batches]

    def values(self, model: Model, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Yield the values of tensors, batch by batch; those that are not held are computed from what is."""
        known = {*self._inputs[0], *self._held[0]}
        missing = [name for name in names if name not in known]
        starts = [name for name in self._held[0] if name in model.producer]
        part = subgraph(model, starts, missing) if missing else None
        for inputs, held in zip(self._inputs, self._held, strict=True):
            own = inputs | held
            made = {} if part is None else part.run({name: own[name] for name in part.inputs}, missing)
            yield {name: made[name] if name in made else own[name] for name in names}

    def advance(self, model: Model, names: Collection[str]) -> None:
        """Hold the values of some tensors, and no others; none that the model does not have, or not as arrays."""
        some = [name for name in names if name in model.producer and (kind := model.tensors.get(name)) and kind.dtype]
        for i, values in enumerate(self.values(model, some)):
            self._held[i] = values


class Depths:
    """How many places lie on the way to a tensor, at most: what follows one place changes no other of its depth.

    Parameters
    ----------
    model : Model
    places : collection of str
        Tensors.
    """

    def __init__(self, model: Model, places: Collection[str]):
        self._of = dict.fromkeys(model.inputs, 0)  # and what follows from them; constants stay with what reads them
        self._reads: list[tuple[int, tuple[str, ...]]] = []
        for operator, names in zip(model.operators, model.reads, strict=True):
            reads = tuple(name for name in names if name in self._of)
            own = max((self._of[name] + (name in places) for name in reads), default=0)
            if reads:
                self._of.update(dict.fromkeys(operator.output, own))
            self._reads.append((own, reads))
        self._leads_on = self._on_the_way(model, places)

    def _on_the_way(self, model: Model, places: Collection[str]) -> list[bool]:
        """Return which operators a place depends on."""
        live = set(places)
        leads_on = []
        for operator, (_, names) in zip(reversed(model.operators), reversed(self._reads), strict=True):
            leads_on.append(not live.isdisjoint(operator.output))
            if leads_on[-1]:
                live.update(names)
        return leads_on[::-1]

    def of(self, tensor: str) -> int:
        """Return the depth of a tensor; that of constants is 0."""
        return self._of.get(tensor, 0)

    def crossing(self, depth: int) -> list[str]:
        """Return the tensors up to a depth that are read behind it, on the way to a place."""
        crossing: dict[str, None] = {}
        for (own, names), leads_on in zip(self._reads, self._leads_on, strict=True):
            if own > depth and leads_on:
                crossing.update(dict.fromkeys(name for name in names if self._of[name] <= depth))
        return list(crossing)
