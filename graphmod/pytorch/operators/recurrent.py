"""Recurrent layers: nn.LSTM, nn.GRU and nn.RNN where these compute the same, else one step after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, fx, nn

from graphmod.pytorch.binding import Weight
from graphmod.pytorch.operator import Operator
from graphmod.pytorch.registry import operator
from graphmod.pytorch.steps import Reshape, Take

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Kind:
    """What one type of recurrent operator has: its module, its gates in torch's order, its activations."""

    module: Callable[..., nn.RNNBase]
    gates: tuple[int, ...]
    activations: tuple[str, ...]


KINDS = {
    "LSTM": Kind(nn.LSTM, (0, 2, 3, 1), ("Sigmoid", "Tanh", "Tanh")),
    "GRU": Kind(nn.GRU, (1, 0, 2), ("Sigmoid", "Tanh")),
    "RNN": Kind(nn.RNN, (0,), ("Tanh",)),
}
"""ONNX orders the gates of an LSTM input, output, forget, cell; of a GRU update, reset, hidden."""


SHAPING = frozenset({"Cast", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


@operator("LSTM", "GRU", "RNN")
def recurrent(op: Operator) -> tuple[fx.Node | None, ...]:
    """Convert LSTM, GRU or RNN."""
    kind = KINDS[op.type]
    direction, size = op.attribute("direction", "forward"), op.attribute("hidden_size", 0)
    n_directions = 2 if direction == "bidirectional" else 1
    batch_first = bool(op.attribute("layout", 0))
    activations = op.attribute("activations", list(kind.activations) * n_directions)
    alphas: list[float] = op.attribute("activation_alpha", [])
    betas: list[float] = op.attribute("activation_beta", [])
    clip = op.attribute("clip", None)
    coupled, reset_after = bool(op.attribute("input_forget", 0)), bool(op.attribute("linear_before_reset", 0))
    op.ignore("output_sequence")
    names = [name.lower() for name in activations]
    plain = names == [name.lower() for name in kind.activations] * n_directions
    plain |= op.type == "RNN" and set(names) == {"relu"}
    exact = plain and clip is None and not coupled and not op.has(7) and _whole_sequences(op)
    if exact and (op.type != "GRU" or reset_after) and direction != "reverse":
        weights = _weights(op, kind, n_directions, size)
        if weights is not None:
            return _module(op, kind, weights, n_directions, size, batch_first, names[0])
    made = op.call(
        run_recurrent, *(op.optional(index) for index in range(7)), op.optional(7),
        op_type=op.type, direction=direction, activations=activations, alphas=alphas, betas=betas, clip=clip,
        coupled=coupled, reset_after=reset_after, batch_first=batch_first,
    )  # fmt: skip
    return op.items(made, 3 if op.type == "LSTM" else 2)


def _whole_sequences(op: Operator) -> bool:
    """Whether every sequence has the full length."""
    if not op.has(4):
        return True
    lengths, shape = op.constant(4), op.shape(0)
    return lengths is not None and shape is not None and isinstance(shape[0], int) and bool(np.all(lengths == shape[0]))


def _is_zero(op: Operator, index: int) -> bool:
    """Whether an initial state is nothing but zeros, of whatever batch: then torch's module needs none."""
    value = op.constant(index)
    if value is not None:
        return not value.any()
    maker: Operator | None = op.maker(index) if op.has(index) else None
    while maker is not None and maker.type in SHAPING:
        maker = maker.maker(0)
    if maker is None or maker.type != "ConstantOfShape":
        return False
    filling = maker.attribute("value", None)
    return filling is None or not numpy_helper.to_array(filling).any()


def _weights(op: Operator, kind: Kind, n_directions: int, size: int) -> dict[str, Weight] | None:
    """Return the parameters of torch's module: each a direction's gates in torch's order."""
    n = len(kind.gates)
    rows = tuple(gate * size + row for gate in kind.gates for row in range(size))
    found: dict[str, Weight | None] = {}
    for direction, suffix in enumerate(("_l0", "_l0_reverse")[:n_directions]):
        for slot, index in (("weight_ih", 1), ("weight_hh", 2)):
            value = op.constant(index)
            if value is None:
                return None
            steps = (Take(0, (direction,)), Reshape((n * size, value.shape[2])), Take(0, rows))
            found[slot + suffix] = op.weight_by(index, steps)
        if op.has(3):
            for slot, start in (("bias_ih", 0), ("bias_hh", n * size)):
                place = tuple(start + row for row in rows)
                steps = (Take(0, (direction,)), Reshape((2 * n * size,)), Take(0, place))
                found[slot + suffix] = op.weight_by(3, steps)
    weights = {slot: weight for slot, weight in found.items() if weight is not None}
    return weights if len(weights) == len(found) else None


def _module(
    op: Operator, kind: Kind, weights: dict[str, Weight], n_directions: int, size: int, batch_first: bool,
    activation: str,
) -> tuple[fx.Node | None, ...]:  # fmt: skip
    more: dict[str, Any] = {"nonlinearity": activation} if op.type == "RNN" else {}
    module = kind.module(
        weights["weight_ih_l0"].shape[1], size, bias=op.has(3), batch_first=batch_first,
        bidirectional=n_directions == 2, device="meta", **more,
    )  # fmt: skip
    states = [None if _is_zero(op, index) else op.optional(index) for index in ((5, 6) if op.type == "LSTM" else (5,))]
    turned = [op.call(torch.transpose, node, 0, 1) if node and batch_first else node for node in states]
    if any(node is not None for node in turned):
        if op.type == "LSTM":
            known = next(node for node in turned if node is not None)
            turned = [op.call(torch.zeros_like, known) if node is None else node for node in turned]
            made = op.module(module, op.input(0), tuple(turned), **weights)
        else:
            made = op.module(module, op.input(0), turned[0], **weights)
    else:
        made = op.module(module, op.input(0), **weights)
    sequence, last = op.items(made, 2)
    split = op.method("unflatten", sequence, 2, (n_directions, size))
    y = split if batch_first else op.method("transpose", split, 1, 2)
    finals = op.items(last, 2) if op.type == "LSTM" else (last,)
    if batch_first:
        finals = tuple(op.call(torch.transpose, node, 0, 1) for node in finals)
    return (y, *finals)


def run_recurrent(
    x: Tensor, w: Tensor, r: Tensor, b: Tensor | None, lengths: Tensor | None, h: Tensor | None, c: Tensor | None,
    peepholes: Tensor | None, *, op_type: str, direction: str, activations: Sequence[str], alphas: Sequence[float],
    betas: Sequence[float], clip: float | None, coupled: bool, reset_after: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Run a recurrent operator as its definition says, one time step after the other."""
    if batch_first:
        x = x.transpose(0, 1)
        h, c = (None if state is None else state.transpose(0, 1) for state in (h, c))
    n_steps, n_batch, n_directions, size = x.shape[0], x.shape[1], w.shape[0], r.shape[2]
    lengths = torch.full((n_batch,), n_steps, device=x.device) if lengths is None else lengths.to(x.device)
    n_activations = len(activations) // n_directions
    functions = _activations(activations, alphas, betas)
    outputs, finals_h, finals_c = [], [], []
    for d in range(n_directions):
        zero = x.new_zeros(n_batch, size)
        state = (zero if h is None else h[d], zero if c is None else c[d])
        cell = Cell(
            w[d], r[d], w.new_zeros(2 * w.shape[1]) if b is None else b[d],
            functions[d * n_activations : (d + 1) * n_activations], clip,
            None if peepholes is None else peepholes[d], coupled, reset_after,
        )  # fmt: skip
        backwards = direction == "reverse" or d == 1
        rows: list[Tensor] = [zero] * n_steps
        for t in reversed(range(n_steps)) if backwards else range(n_steps):
            there = (t < lengths)[:, None]
            after = STEPS[op_type](cell, x[t], *state)
            state = (torch.where(there, after[0], state[0]), torch.where(there, after[1], state[1]))
            rows[t] = torch.where(there, after[0], zero)
        outputs.append(torch.stack(rows) if rows else x.new_zeros(0, n_batch, size))
        finals_h.append(state[0])
        finals_c.append(state[1])
    y, y_h, y_c = torch.stack(outputs, 1), torch.stack(finals_h), torch.stack(finals_c)
    if batch_first:
        y, y_h, y_c = y.permute(2, 0, 1, 3), y_h.transpose(0, 1), y_c.transpose(0, 1)
    return (y, y_h, y_c) if op_type == "LSTM" else (y, y_h)


@dataclass(frozen=True)
class Cell:
    """One direction of a recurrent operator: its weights, and what is done with them."""

    w: Tensor
    r: Tensor
    b: Tensor
    activations: Sequence[Activation]
    clip: float | None
    peephole: Tensor | None
    coupled: bool
    reset_after: bool

    def activate(self, index: int, x: Tensor) -> Tensor:
        """Apply an activation to what is clipped first."""
        return self.activations[index](x if self.clip is None else x.clamp(-self.clip, self.clip))


def lstm_step(cell: Cell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Advance an LSTM by one step."""
    wb, rb = cell.b.chunk(2)
    i, o, forget, g = (x @ cell.w.T + h @ cell.r.T + wb + rb).chunk(4, -1)
    p_i, p_o, p_f = (0.0, 0.0, 0.0) if cell.peephole is None else cell.peephole.chunk(3)
    i = cell.activate(0, i + p_i * c)
    forget = 1 - i if cell.coupled else cell.activate(0, forget + p_f * c)
    c = forget * c + i * cell.activate(1, g)
    return cell.activate(0, o + p_o * c) * cell.activations[2](c), c


def gru_step(cell: Cell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Advance a GRU by one step."""
    wb, rb = cell.b.chunk(2)
    x_z, x_r, x_h = (x @ cell.w.T + wb).chunk(3, -1)
    r_z, r_r, r_h = cell.r.chunk(3)
    b_z, b_r, b_h = rb.chunk(3)
    z = cell.activate(0, x_z + h @ r_z.T + b_z)
    reset = cell.activate(0, x_r + h @ r_r.T + b_r)
    hidden = reset * (h @ r_h.T + b_h) if cell.reset_after else (reset * h) @ r_h.T + b_h
    return (1 - z) * cell.activate(1, x_h + hidden) + z * h, c


def rnn_step(cell: Cell, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Advance a plain recurrent layer by one step."""
    wb, rb = cell.b.chunk(2)
    return cell.activate(0, x @ cell.w.T + h @ cell.r.T + wb + rb), c


STEPS: dict[str, Callable[[Cell, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "LSTM": lstm_step,
    "GRU": gru_step,
    "RNN": rnn_step,
}

PARAMETERS = {
    "affine": (1.0, 0.0), "elu": (1.0, None), "hardsigmoid": (0.2, 0.5), "leakyrelu": (0.01, None),
    "scaledtanh": (1.0, 1.0), "thresholdedrelu": (1.0, None),
}  # fmt: skip
"""The activations that have an alpha, or a beta too, with the defaults."""


def _activations(names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]) -> list[Activation]:
    """Return functions; those that have parameters take the next ones given."""
    left, right = iter(alphas), iter(betas)
    functions: list[Activation] = []
    for name in (name.lower() for name in names):
        alpha, beta = PARAMETERS.get(name, (None, None))
        if alpha is not None:
            alpha = next(left, alpha)
        if beta is not None:
            beta = next(right, beta)
        functions.append(partial(activation, name=name, alpha=alpha or 0.0, beta=beta or 0.0))
    return functions


def activation(x: Tensor, name: str, alpha: float, beta: float) -> Tensor:
    """Apply an activation by its name in ONNX."""
    match name:
        case "affine":
            return alpha * x + beta
        case "elu":
            return F.elu(x, alpha)
        case "hardsigmoid":
            return torch.clamp(alpha * x + beta, 0, 1)
        case "leakyrelu":
            return F.leaky_relu(x, alpha)
        case "scaledtanh":
            return alpha * torch.tanh(beta * x)
        case "thresholdedrelu":
            return F.threshold(x, alpha, 0.0)
        case "relu":
            return torch.relu(x)
        case "sigmoid":
            return torch.sigmoid(x)
        case "softplus":
            return F.softplus(x)
        case "softsign":
            return F.softsign(x)
        case "tanh":
            return torch.tanh(x)
    raise ValueError(f"ONNX has no recurrent activation named '{name}'")
