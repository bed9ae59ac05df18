"""Recurrent operators: a hidden unit has a row in the weights of every gate, and a place in every state."""

from __future__ import annotations

import numpy as np

from graphmod.pruning.change import Change, adapts
from graphmod.pruning.registry import couples
from graphmod.pruning.site import Axes, Site, Uncoupled

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@couples(*GATES)
def recurrent(site: Site) -> list[Axes]:
    """Tie a hidden unit through all gates, states and directions."""
    if site.attribute("layout", 0):
        raise Uncoupled(f"{site} has the batch first")
    n_gates = GATES[site.operator.op_type]
    data, weight, recurrence = (site.labels(place) for place in range(3))
    hidden = recurrence[2]
    directions = weight[0]
    why = f"directions and steps of {site}"
    site.keep([directions, data[0]], why)
    site.tie(data[2], weight[2])
    for whole in (weight[1], recurrence[1]):
        site.tie(whole, np.tile(hidden, n_gates))
    for place, copies in ((3, 2 * n_gates), (7, 3)):  # biases, peepholes
        if site.has(place):
            site.tie(site.labels(place)[1], np.tile(hidden, copies))
    if site.has(4):  # lengths of sequences
        site.tie(site.labels(4)[0], data[1])
    for place in (5, 6):  # initial states
        if site.has(place):
            for labels, ours in zip(site.labels(place), [directions, data[1], hidden], strict=True):
                site.tie(labels, ours)
    site.produce(hidden)
    site.note(hidden=hidden)
    state = [directions, data[1], hidden]
    return [[data[0], *state], state, state]


@adapts(*GATES)
def fewer_units(site: Site, change: Change) -> None:
    """Count the hidden units that are left."""
    if site.attribute("hidden_size") is not None:
        change.set("hidden_size", change.count(site.notes["hidden"]))
