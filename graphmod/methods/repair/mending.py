"""Mending in closed form: the layers of a broken unit are made to compute what a healthy network computes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, prod

from graphmod.data import Data
from graphmod.methods.repair.fits import SAME, Layer, layers, refit, rows_needed
from graphmod.methods.repair.patching import Array, between, first, gap, values
from graphmod.methods.repair.units import Unit
from graphmod.model import Model

_FEWEST = 64
"""Samples that are looked at, at least."""

_CLOSE = 0.05
"""Root of the squared error over the variance at a unit's exit from which on it needs no training."""


@dataclass(frozen=True, eq=False)
class Mended:
    """What became of broken units.

    Parameters
    ----------
    model : Model
    touched : int
        Scalars that were fitted.
    errors : dict of Unit to float
        What is left of the error at the exit of each unit.
    """

    model: Model = field(repr=False)
    touched: int
    errors: dict[Unit, float]

    def left(self, broken: Sequence[Unit]) -> list[Unit]:
        """Return the units that weights in closed form did not bring close enough."""
        return [unit for unit in broken if not self.errors[unit] <= _CLOSE]


def mend(model: Model, healthy: Model, data: Data, broken: Sequence[Unit]) -> Mended:
    """Fit the layers of broken units to what a healthy network makes of its own inputs there.

    All layers are fitted at once: if that is exact, a layer's inputs are the healthy ones. A layer needs its input and
    output to be tensors of the healthy network too.

    Parameters
    ----------
    model, healthy : Model
    data : Data
        As many of its samples are used as the layers have unknowns to find. Targets are not needed.
    broken : sequence of Unit
        In the order of the trunk.
    """
    wanted: dict[Layer, tuple[Array, Array]] = {}
    checked: dict[Unit, tuple[Data, Array, Array]] = {}
    for unit in broken:
        found = [layer for layer in layers(model, unit.operators) if _shared(model, healthy, layer)]
        some = first(model, data, _samples(model, found))
        names = [name for layer in found for name in (layer.entry, layer.exit)]
        sound = values(healthy, some, [*unit.place, *names])
        wanted |= {layer: (sound[layer.entry], sound[layer.exit]) for layer in found}
        few = first(model, some, _FEWEST)
        checked[unit] = few, sound[unit.entry][: len(few)], sound[unit.exit][: len(few)]
    mended, touched = refit(model, wanted)
    return Mended(mended, touched, {unit: _error(mended, unit, *one) for unit, one in checked.items()})


def mend_in_turn(model: Model, healthy: Model, data: Data, broken: Sequence[Unit]) -> Mended:
    """Do the same layer after layer, each from the inputs that it gets in the network as far as that is mended.

    It takes longer; errors that are left do not add up.
    """
    touched = 0
    errors: dict[Unit, float] = {}
    for unit in broken:
        found = [layer for layer in layers(model, unit.operators) if _shared(model, healthy, layer)]
        some = first(model, data, _samples(model, found))
        sound = values(healthy, some, [unit.exit, *(layer.exit for layer in found)])
        at_entry = values(model, some, [unit.entry])[unit.entry]
        for layer in found:
            own = between(model, unit.entry, [layer.entry, layer.exit], some, at_entry)
            if gap(own[layer.exit], sound[layer.exit]) > SAME:
                model, fresh = refit(model, {layer: (own[layer.entry], sound[layer.exit])})
                touched += fresh
        errors[unit] = _error(model, unit, some, at_entry, sound[unit.exit])
    return Mended(model, touched, errors)


def _error(model: Model, unit: Unit, data: Data, at_entry: Array, wanted: Array) -> float:
    return gap(between(model, unit.entry, [unit.exit], data, at_entry)[unit.exit], wanted)


def _shared(model: Model, healthy: Model, layer: Layer) -> bool:
    """Whether the healthy network has what a layer reads and what it makes."""
    there = {*healthy.producer, *healthy.inputs}
    ends = (layer.entry, layer.exit)
    return all(name in there and _shape(model, name) == _shape(healthy, name) for name in ends)


def _shape(model: Model, tensor: str) -> tuple[int, ...] | None:
    """Return the sizes of a tensor but that of the batch, a size that is no number as 0."""
    kind = model.tensors.get(tensor)
    if kind is None or kind.shape is None:
        return None
    return tuple(size if isinstance(size, int) else 0 for size in kind.shape[1:])


def _samples(model: Model, found: Sequence[Layer]) -> int:
    """Return how many samples have enough rows for every layer."""
    positions = [prod(max(size, 1) for size in _shape(model, layer.exit) or ()) // layer.channels for layer in found]
    needed = [ceil(rows_needed(layer) / max(1, n_rows)) for layer, n_rows in zip(found, positions, strict=True)]
    return max([_FEWEST, *needed])
