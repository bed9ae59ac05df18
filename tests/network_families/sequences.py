"""Recurrent blocks over tokens (N, L, C), whose hidden width is made by several weights."""

from __future__ import annotations

import numpy as np

from network_families.build import Builder, Trunk, family


def recurrent(b: Builder, x: Trunk, op_type: str, gates: int, **attributes: int) -> Trunk:
    """Run a recurrent operator over tokens; both directions' outputs side by side."""
    hidden, directions = b.one_of(3, 4), b.one_of(1, 2)
    weights = [
        b.weight(directions, gates * hidden, x.c, fan=x.c),
        b.weight(directions, gates * hidden, hidden, fan=hidden),
        *([b.vector(directions, 2 * gates * hidden)] if b.flip() else []),
    ]
    steps = b.transpose(x.tensor, 1, 0, 2)
    direction = "forward" if directions == 1 else "bidirectional"
    made = b.op(op_type, steps, *weights, hidden_size=hidden, direction=direction, **attributes)
    if directions == 1 and b.flip():
        flat = b.transpose(b.op("Squeeze", made, b.ints(1)), 1, 0, 2)
    else:
        flat = b.reshape(b.transpose(made, 2, 0, 1, 3), x.length, directions * hidden)
    return b.project(x.to(flat, c=directions * hidden), b.width())


@family("tokens")
def lstm(b: Builder, x: Trunk) -> Trunk:
    return recurrent(b, x, "LSTM", 4)


@family("tokens")
def gru(b: Builder, x: Trunk) -> Trunk:
    return recurrent(b, x, "GRU", 3, linear_before_reset=int(b.flip()))


@family("tokens")
def rnn(b: Builder, x: Trunk) -> Trunk:
    return recurrent(b, x, "RNN", 1)


@family("tokens")
def last_state(b: Builder, x: Trunk) -> Trunk:
    """The last state of an LSTM that starts from zeros, added to every token."""
    hidden = b.one_of(3, 4)
    weights = [b.weight(1, 4 * hidden, x.c, fan=x.c), b.weight(1, 4 * hidden, hidden, fan=hidden)]
    state = b.ops("LSTM", b.transpose(x.tensor, 1, 0, 2), *weights, outputs=3, hidden_size=hidden)[1]
    projected = b.linear(b.transpose(state, 1, 0, 2), hidden, x.c)
    return x.to(b.op("Add", x.tensor, projected))


@family("tokens")
def shared_states(b: Builder, x: Trunk) -> Trunk:
    """Two layers that start from the same zeros, stored (some) or expanded to the batch."""
    hidden = b.one_of(3, 4)
    steps = b.transpose(x.tensor, 1, 0, 2)
    if b.batch and b.flip():
        states = b.constant(np.zeros((1, b.batch, hidden), np.float32))
    else:
        samples = b.op("Shape", steps, start=1, end=2)
        shape = b.op("Concat", b.ints(1), samples, b.ints(hidden), axis=0)
        states = b.op("Expand", b.number(0), shape) if b.flip() else b.op("ConstantOfShape", shape)
    op_type, gates, n_states = b.one_of(("LSTM", 4, 2), ("GRU", 3, 1))
    for reads in (x.c, hidden):
        weights = [b.weight(1, gates * hidden, reads, fan=reads), b.weight(1, gates * hidden, hidden, fan=hidden)]
        made = b.op(op_type, steps, *weights, "", "", *[states] * n_states, hidden_size=hidden)
        steps = b.op("Squeeze", made, b.ints(1))
    return b.project(x.to(b.transpose(steps, 1, 0, 2), c=hidden), b.width())
