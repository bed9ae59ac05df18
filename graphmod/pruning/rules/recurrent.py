"""Recurrent operators: a hidden unit has a row in the weights of every gate, and a place in every state."""

from __future__ import annotations

import numpy as np

from graphmod.pruning.change import Change, adapts
from graphmod.pruning.labels import Labels
from graphmod.pruning.registry import MICROSOFT, couples
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
    site.tie(data[2], weight[2])
    for whole in (weight[1], recurrence[1]):
        site.tie(whole, np.tile(hidden, n_gates))
    return _run(site, data, weight[0], hidden, n_gates)


def _run(site: Site, data: Axes, directions: Labels, hidden: Labels, n_gates: int) -> list[Axes]:
    """Tie biases and states to the hidden units, and return the labels of what the operator makes."""
    site.keep([directions, data[0]], f"directions and steps of {site}")
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


@couples("DynamicQuantizeLSTM", domain=MICROSOFT)
def quantised_lstm(site: Site) -> list[Axes]:
    """Tie a hidden unit through all gates, along the last axis of weights, and of their scales and zero points."""
    data, weight, recurrence = (site.labels(place) for place in range(3))
    directions, hidden = weight[0], recurrence[1]
    gates = np.tile(hidden, 4)
    site.tie(data[2], weight[1])
    for place in (1, 2):
        site.tie(site.labels(place)[2], gates)
    for place in range(8, 12):
        if len(site.shape(place)) == 2:
            site.tie(site.labels(place)[1], gates)
    return _run(site, data, directions, hidden, 4)


@adapts(*GATES)
@adapts("DynamicQuantizeLSTM", domain=MICROSOFT)
def fewer_units(site: Site, change: Change) -> None:
    """Count the hidden units that are left."""
    if site.attribute("hidden_size") is not None:
        change.set("hidden_size", change.count(site.notes["hidden"]))
