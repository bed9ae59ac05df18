"""Costs of operators: weights, bytes and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

from onnx import NodeProto

from graphmod.model import Model


@dataclass(frozen=True)
class Cost:
    """What a part of a network costs.

    Parameters
    ----------
    weights : int
        Scalars in float constants.
    bytes : int
        Bytes of those constants.
    macs : int
        Multiply-accumulates for one sample, or for as many as the model's inputs fix.
    """

    weights: int = 0
    bytes: int = 0
    macs: int = 0


def cost(model: Model, operators: Iterable[str] | None = None) -> Cost:
    """Return the cost of some operators, or of the whole model.

    A weight that several of the operators read counts once. Symbolic dimensions count as 1, so that
    multiply-accumulates are those of one sample where the batch is dynamic.

    Parameters
    ----------
    model : Model
    operators : iterable of str, optional
        Names of operators (:attr:`Model.operator_names`).

    Examples
    --------
    >>> import graphmod as gm
    >>> gm.graph.cost(gm.load(gm.demo.model_path())).weights > 250_000
    True
    """
    named = model.position if operators is None else dict.fromkeys(operators)
    chosen = [model.position[name] for name in named if name in model.position]
    read = dict.fromkeys(name for position in chosen for name in model.reads[position])
    weights = size = 0
    for name in read:
        kind = model.constants.get(name)
        if kind is not None and kind.dtype is not None and kind.is_float:
            weights += kind.size
            size += kind.size * kind.dtype.itemsize
    macs = sum(_MACS[op.op_type](model, op) for op in (model.operators[i] for i in chosen) if op.op_type in _MACS)
    return Cost(weights, size, macs)


def _dims(model: Model, tensor: str) -> tuple[int, ...]:
    kind = model.tensors.get(tensor)
    return tuple(d if isinstance(d, int) else 1 for d in kind.shape) if kind and kind.shape is not None else ()


def _convolution(model: Model, operator: NodeProto) -> int:
    return prod(_dims(model, operator.output[0])) * prod(_dims(model, operator.input[1])[1:])


def _transposed_convolution(model: Model, operator: NodeProto) -> int:
    return prod(_dims(model, operator.input[0])) * prod(_dims(model, operator.input[1])[1:])


def _matrix_product(model: Model, operator: NodeProto) -> int:
    left = _dims(model, operator.input[0])
    transposed = any(a.name == "transA" and a.i for a in operator.attribute)
    return prod(_dims(model, operator.output[0])) * (left[0 if transposed else -1] if left else 0)


_MACS: dict[str, Callable[[Model, NodeProto], int]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gemm": _matrix_product,
    "MatMul": _matrix_product,
}
