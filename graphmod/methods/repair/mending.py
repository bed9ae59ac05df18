"""Mending in closed form: layer after layer, a broken unit is made to compute what a healthy network computes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, prod

from graphmod.data import Data
from graphmod.methods.repair.fits import SAME, Layer, layers, refit, rows_needed
from graphmod.methods.repair.patching import between, first, gap, values
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
    errors : dict of str to float
        What is left of the error at the exit of each unit, on its own inputs.
    """

    model: Model = field(repr=False)
    touched: int
    errors: dict[str, float]

    def left(self, broken: Sequence[Unit]) -> list[Unit]:
        """Return the units that weights in closed form did not bring close enough."""
        return [unit for unit in broken if not self.errors[unit.path] <= _CLOSE]


def mend(model: Model, healthy: Model, data: Data, broken: Sequence[Unit]) -> Mended:
    """Fit the layers of broken units, in the order of the trunk, to what a healthy network makes there.

    Every layer is fitted from the inputs that it gets in the network as far as that is mended, so that errors that are
    left do not add up. A layer needs its output to be a tensor of the healthy network too.

    Parameters
    ----------
    model, healthy : Model
    data : Data
        As many of its samples are used as the layers have unknowns to find. Targets are not needed.
    broken : sequence of Unit
        In the order of the trunk.
    """
    touched = 0
    errors: dict[str, float] = {}
    for unit in broken:
        found = [layer for layer in layers(model, unit.operators) if _shared(model, healthy, layer)]
        some = first(model, data, _samples(model, found))
        wanted = values(healthy, some, [layer.exit for layer in found] + [unit.exit])
        at_entry = values(model, some, [unit.entry])[unit.entry]
        for layer in found:
            own = between(model, unit.entry, [layer.entry, layer.exit], some, at_entry)
            if gap(own[layer.exit], wanted[layer.exit]) <= SAME:
                continue
            fitted = refit(model, layer, own[layer.entry], wanted[layer.exit])
            if fitted is not None:
                model, fresh = fitted
                touched += fresh
        made = between(model, unit.entry, [unit.exit], some, at_entry)[unit.exit]
        errors[unit.path] = gap(made, wanted[unit.exit])
    return Mended(model, touched, errors)


def _shared(model: Model, healthy: Model, layer: Layer) -> bool:
    """Whether the healthy network makes a layer's output too."""
    return layer.exit in healthy.producer and _shape(model, layer.exit) == _shape(healthy, layer.exit)


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
