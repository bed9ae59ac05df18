"""Emptying: the layers that end a broken unit, set to zero where that already brings the loss down.

A unit that adds to the trunk does least harm if it adds nothing; training then starts from there.
"""

from __future__ import annotations

from graphmod.data import Data
from graphmod.graph import data_flow
from graphmod.methods.repair.fits import layers, without_weights
from graphmod.methods.repair.patching import Values, between
from graphmod.methods.repair.suspicion import loss_of
from graphmod.methods.repair.units import Unit
from graphmod.model import Model
from graphmod.train.retrain import Loss


def emptied(model: Model, data: Data, unit: Unit, output: str, loss: Loss, known: Values) -> Model:
    """Return the model with a unit's last layers at zero, or as it is where the loss is not lower then.

    ``known`` is what the model makes of the data at the unit's entry and in the output.
    """
    last = _last(model, unit)
    if not last:
        return model
    tried = without_weights(model, last)
    empty = between(tried, unit.entry, [output], data, known[unit.entry])[output]
    return tried if loss_of(empty, data, loss) < loss_of(known[output], data, loss) else model


def _last(model: Model, unit: Unit) -> list[str]:
    """Return the layers of a unit behind which there is no other on the way to its exit."""
    found = {layer.exit: layer.name for layer in layers(model, unit.operators)}
    flow = data_flow(model, unit.entry, unit.exit)
    reached, pending, last = {unit.exit}, [unit.exit], []
    while pending:
        tensor = pending.pop()
        if tensor in found:
            last.append(found[tensor])
            continue
        fresh = [name for name in flow.pred[tensor] if name not in reached]
        reached.update(fresh)
        pending.extend(fresh)
    return last
