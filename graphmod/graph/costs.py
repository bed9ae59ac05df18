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
    macs = 0
    for operator in (model.operators[i] for i in chosen):
        axes = mac_axes(operator)
        if axes:
            macs += prod(prod(_dims(model, tensor)[place]) for tensor, place in axes)
    return Cost(weights, size, macs)


def _dims(model: Model, tensor: str) -> tuple[int, ...]:
    kind = model.tensors.get(tensor)
    return tuple(d if isinstance(d, int) else 1 for d in kind.shape) if kind and kind.shape is not None else ()


def mac_axes(operator: NodeProto) -> tuple[tuple[str, slice], ...]:
    """Return the axes whose lengths make an operator's multiply-accumulates, as their product: tensors, and which axes.

    Nothing is returned for operators that do not multiply and accumulate.

    Examples
    --------
    >>> from onnx import helper
    >>> mac_axes(helper.make_node("MatMul", ["x", "w"], ["y"]))
    (('y', slice(None, None, None)), ('x', slice(-1, None, None)))
    """
    rule = _MACS.get(operator.op_type)
    return () if rule is None else rule(operator)


_ALL, _KERNEL, _FIRST, _LAST = slice(None), slice(1, None), slice(0, 1), slice(-1, None)


def _convolution(operator: NodeProto) -> tuple[tuple[str, slice], ...]:
    return (operator.output[0], _ALL), (operator.input[1], _KERNEL)


def _transposed_convolution(operator: NodeProto) -> tuple[tuple[str, slice], ...]:
    return (operator.input[0], _ALL), (operator.input[1], _KERNEL)


def _matrix_product(operator: NodeProto) -> tuple[tuple[str, slice], ...]:
    is_transposed = any(a.name == "transA" and a.i for a in operator.attribute)
    return (operator.output[0], _ALL), (operator.input[0], _FIRST if is_transposed else _LAST)


_MACS: dict[str, Callable[[NodeProto], tuple[tuple[str, slice], ...]]] = {
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Gemm": _matrix_product,
    "MatMul": _matrix_product,
}
