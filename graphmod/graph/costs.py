"""Costs of operators: weights, bytes and multiply-accumulates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod

from onnx import NodeProto

from graphmod.model import Model, check_model


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
    check_model(model)
    named = model.position if operators is None else dict.fromkeys(operators)
    chosen = [model.position[name] for name in named if name in model.position]
    read = dict.fromkeys(name for position in chosen for name in model.reads[position])
    weights = size = 0
    for name in read:
        kind = model.constants.get(name)
        if kind is not None and kind.dtype is not None and kind.is_float:
            weights += kind.size
            size += kind.size * kind.dtype.itemsize
    macs = sum(
        prod(prod(_dims(model, tensor)[place]) for tensor, place in product)
        for position in chosen
        for product in mac_products(model.operators[position])
    )
    return Cost(weights, size, macs)


def _dims(model: Model, tensor: str) -> tuple[int, ...]:
    kind = model.tensors.get(tensor)
    return tuple(d if isinstance(d, int) else 1 for d in kind.shape) if kind and kind.shape is not None else ()


Product = tuple[tuple[str, slice], ...]
"""Lengths that are multiplied: tensors, and which of their axes."""


def mac_products(operator: NodeProto) -> tuple[Product, ...]:
    """Return what an operator's multiply-accumulates are the sum of: products of lengths of axes.

    Nothing is returned for operators that do not multiply and accumulate.

    Examples
    --------
    >>> from onnx import helper
    >>> mac_products(helper.make_node("MatMul", ["x", "w"], ["y"]))
    ((('y', slice(None, None, None)), ('x', slice(-1, None, None))),)
    """
    rule = _MACS.get(operator.op_type)
    return () if rule is None else rule(operator)


_ALL, _KERNEL, _LAST, _LAST_BUT_ONE = slice(None), slice(1, None), slice(-1, None), slice(-2, -1)


def _convolution(operator: NodeProto, weight: int = 1) -> tuple[Product, ...]:
    return (((operator.output[0], _ALL), (operator.input[weight], _KERNEL)),)


def _transposed_convolution(operator: NodeProto) -> tuple[Product, ...]:
    return (((operator.input[0], _ALL), (operator.input[1], _KERNEL)),)


def _matrix_product(operator: NodeProto) -> tuple[Product, ...]:
    is_transposed = any(a.name == "transA" and a.i for a in operator.attribute)
    return (((operator.output[0], _ALL), (operator.input[0], _LAST_BUT_ONE if is_transposed else _LAST)),)


def _recurrent(operator: NodeProto) -> tuple[Product, ...]:
    steps = (operator.input[0], slice(0, 2))
    return tuple((steps, (weight, _ALL)) for weight in operator.input[1:3])


def _attention(operator: NodeProto) -> tuple[Product, ...]:
    if operator.op_type == "Attention" and operator.domain == "com.microsoft":  # reads all in one, and projects it
        return (((operator.input[0], slice(0, 2)), (operator.input[1], _ALL)),)
    keys = (operator.input[1], _LAST_BUT_ONE)
    return ((operator.input[0], _ALL), keys), ((operator.output[0], _ALL), keys)


def _einsum(operator: NodeProto) -> tuple[Product, ...]:
    """Return one length for every letter of the equation."""
    equation = next((a.s.decode() for a in operator.attribute if a.name == "equation"), "").replace(" ", "")
    terms, arrow, made = equation.partition("->")
    sides = [*zip(operator.input, terms.split(","), strict=False), *([(operator.output[0], made)] if arrow else [])]
    lengths: dict[str, tuple[str, slice]] = {}
    for tensor, term in sides:
        head, dots, tail = term.partition("...")
        own = {letter: slice(i, i + 1) for i, letter in enumerate(head)}
        own |= {letter: slice(-i, 1 - i or None) for i, letter in enumerate(reversed(tail), 1)}
        own |= {dots: slice(len(head), -len(tail) or None)} if dots else {}
        lengths = {letter: (tensor, place) for letter, place in own.items()} | lengths
    return (tuple(lengths.values()),)


_MACS: dict[str, Callable[[NodeProto], tuple[Product, ...]]] = {
    **dict.fromkeys(("Conv", "FusedConv", "ConvInteger"), _convolution),
    **dict.fromkeys(("Gemm", "MatMul", "FusedGemm", "FusedMatMul", "MatMulInteger", "QLinearMatMul"), _matrix_product),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("Attention", "MultiHeadAttention"), _attention),
    "ConvTranspose": _transposed_convolution,
    "Einsum": _einsum,
    "QLinearConv": lambda operator: _convolution(operator, weight=3),
}
