"""Mending in closed form: the layers of a broken unit are made to compute what a healthy network computes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, prod

from graphmod.data import Data
from graphmod.graph import subgraph
from graphmod.methods.repair.fits import ROWS, SAME, Layer, layers, refit
from graphmod.methods.repair.patching import Array, Values, between, first, gap, values
from graphmod.methods.repair.units import Unit
from graphmod.model import Model

_FEWEST = 32
"""Samples that are looked at, at least."""

_MORE_ROWS = 12
"""Rows for each unknown of a layer that cannot make all that is wanted."""

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


def mend(model: Model, healthy: Model, data: Data, broken: Sequence[Unit], looked_at: Data, known: Values) -> Mended:
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
    looked_at : Data
        Samples that were looked at already; they are used if they will do.
    known : mapping of str to array
        What the healthy network makes of these at the units' boundaries.
    """
    found = _layers(model, healthy, broken)
    n, entry = _samples(model, found, ROWS), broken[0].entry
    ends = [unit.exit for unit in broken]
    names = [name for layer in found for name in (layer.entry, layer.exit)]
    if n <= len(looked_at) or len(looked_at) >= len(data):
        sound = between(healthy, entry, [*ends, *names], looked_at, known[entry]) | {entry: known[entry]}
    else:
        looked_at = first(model, data, n)
        sound = _alone(healthy, looked_at, [entry, *ends, *names])
    mended, touched = refit(model, {layer: (sound[layer.entry], sound[layer.exit]) for layer in found})
    few = first(model, looked_at, _FEWEST)
    made = between(mended, entry, ends, few, sound[entry][: len(few)])
    return Mended(mended, touched, {unit: gap(made[unit.exit], sound[unit.exit][: len(few)]) for unit in broken})


def mend_in_turn(model: Model, healthy: Model, data: Data, broken: Sequence[Unit]) -> Mended:
    """Do the same layer after layer, each from the inputs that it gets in the network as far as that is mended.

    It takes longer; errors that are left do not add up.
    """
    touched = 0
    errors: dict[Unit, float] = {}
    for unit in broken:
        found = _layers(model, healthy, [unit])
        some = first(model, data, _samples(model, found, _MORE_ROWS))
        sound = _alone(healthy, some, [unit.exit, *(layer.exit for layer in found)])
        at_entry = _alone(model, some, [unit.entry])[unit.entry]
        for layer in found:
            own = between(model, unit.entry, [layer.entry, layer.exit], some, at_entry)
            if gap(own[layer.exit], sound[layer.exit]) > SAME:
                model, fresh = refit(model, {layer: (own[layer.entry], sound[layer.exit])}, _MORE_ROWS)
                touched += fresh
        errors[unit] = gap(between(model, unit.entry, [unit.exit], some, at_entry)[unit.exit], sound[unit.exit])
    return Mended(model, touched, errors)


def _alone(model: Model, data: Data, tensors: Sequence[str]) -> dict[str, Array]:
    """Return tensors for all samples; only what they need of the model runs."""
    part = subgraph(model, [], [name for name in dict.fromkeys(tensors) if name not in model.inputs])
    return values(part, Data({name: data.inputs[name] for name in part.inputs}), tensors)


def _layers(model: Model, healthy: Model, broken: Sequence[Unit]) -> list[Layer]:
    """Return the layers of units that read and make what the healthy network has too."""
    found = layers(model, [name for unit in broken for name in unit.operators])
    return [layer for layer in found if _shared(model, healthy, layer)]


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


def _samples(model: Model, found: Sequence[Layer], rows: int) -> int:
    """Return how many samples have enough rows for every layer."""
    positions = [prod(max(size, 1) for size in _shape(model, layer.exit) or ()) // layer.channels for layer in found]
    needed = [ceil(rows * layer.unknowns / max(1, n_rows)) for layer, n_rows in zip(found, positions, strict=True)]
    return max([_FEWEST, *needed])
