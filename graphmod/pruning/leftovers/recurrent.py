"""Recurrent operators: a hidden unit without weights stays at the zero that it starts from."""

from __future__ import annotations

from graphmod.pruning.leftovers.known import Known
from graphmod.pruning.leftovers.reading import Reading
from graphmod.pruning.leftovers.registry import settles


@settles("LSTM", "GRU", "RNN")
def recurrent(reading: Reading) -> list[Known | None]:
    """Take nothing but zero in; what weights make is zero under the default activations."""
    site = reading.site
    reading.taken(0, 2, reading.gone(0, 2), f"{site} has no one bias for constants")
    for place in (5, 6):
        if site.has(place) and not site.is_constant(place):
            reading.taken(place, 2, reading.gone(place, 2), f"{site} starts from what is removed")
    if site.has(5) or site.has(6) or site.attribute("activations") is not None:
        return [None] * len(reading.operator.output)
    return [reading.made_zero(-1, output) if name else None for output, name in enumerate(reading.operator.output)]
