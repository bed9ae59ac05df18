"""Element-wise arithmetic, comparison and logic."""

from __future__ import annotations

import operator as python
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from graphmod.pytorch.operator import Operand, Operator
from graphmod.pytorch.registry import operator

UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}

BINARY: dict[str, Callable[..., Any]] = {
    "Add": python.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": python.eq,
    "Greater": python.gt,
    "GreaterOrEqual": python.ge,
    "Less": python.lt,
    "LessOrEqual": python.le,
    "Mul": python.mul,
    "Or": torch.logical_or,
    "Sub": python.sub,
    "Xor": torch.logical_xor,
}

NEEDS_TENSORS = frozenset({"And", "Or", "Xor"})


def _check(op: Operator) -> None:
    op.ignore("consumed_inputs")
    if op.dtype().kind == "u" and op.dtype().itemsize > 1 and op.type not in ("Equal", "BitwiseAnd"):
        raise op.unsupported(f"torch does not compute with {op.dtype()}")


def _unary(op: Operator) -> fx.Node:
    _check(op)
    return op.call(UNARY[op.type], op.input())


def _binary(op: Operator) -> fx.Node:
    _check(op)
    if op.type in NEEDS_TENSORS:
        return op.call(BINARY[op.type], op.input(0), _right(op))
    return op.call(BINARY[op.type], *_operands(op))


def _operands(op: Operator) -> tuple[Operand, Operand]:
    return op.operand(0, other=1), op.operand(1, other=0) if not op.attribute("broadcast", 0) else _right(op)


def _right(op: Operator) -> fx.Node:
    """Return the right operand, its axes where opset 6 and before wanted them."""
    node, axis = op.input(1), op.attribute("axis", -1)
    if not op.attribute("broadcast", 0) or axis == -1:
        return node
    missing = op.rank(0) - axis - op.rank(1)
    return op.call(python.getitem, node, (..., *[None] * missing)) if missing else node


operator(*UNARY)(_unary)
operator(*BINARY)(_binary)


@operator("Div")
def div(op: Operator) -> fx.Node:
    """Convert Div; integers are divided towards zero."""
    _check(op)
    left, right = _operands(op)
    if op.is_float():
        return op.call(python.truediv, left, right)
    return op.call(torch.div, op.input(0), right, rounding_mode="trunc")


@operator("Pow")
def power(op: Operator) -> fx.Node:
    """Convert Pow; the result has the type of the base."""
    base, exponent = _operands(op)
    if op.is_float(0):
        node = op.call(torch.pow, base, exponent)
        return node if op.dtype(0) == op.dtype(1) or not isinstance(exponent, fx.Node) else _like(op, node)
    if op.is_float(1):
        return _like(op, op.call(torch.pow, op.method("double", op.input(0)), exponent))
    return _like(op, op.call(torch.pow, base, op.input(1)))


def _like(op: Operator, node: fx.Node) -> fx.Node:
    return op.method("to", node, op.call(getattr, op.input(0), "dtype"))


@operator("Mod")
def mod(op: Operator) -> fx.Node:
    """Convert Mod: with fmod, the sign is the dividend's; without, the divisor's."""
    _check(op)
    function = torch.fmod if op.attribute("fmod", 0) else torch.remainder
    return op.call(function, op.input(0), op.operand(1, other=0))


@operator("BitShift")
def bit_shift(op: Operator) -> fx.Node:
    """Convert BitShift."""
    _check(op)
    left = op.attribute("direction", "") == "LEFT"
    return op.call(torch.bitwise_left_shift if left else torch.bitwise_right_shift, op.input(0), op.input(1))


@operator("IsInf", since=10)
def is_inf(op: Operator) -> fx.Node:
    """Convert IsInf, for either sign or both."""
    negative, positive = op.attribute("detect_negative", 1), op.attribute("detect_positive", 1)
    if negative and positive:
        return op.call(torch.isinf, op.input())
    if not negative and not positive:
        return op.call(torch.zeros_like, op.input(), dtype=torch.bool)
    return op.call(torch.isposinf if positive else torch.isneginf, op.input())


@operator("Where", since=9)
def where(op: Operator) -> fx.Node:
    """Convert Where."""
    left, right = op.operand(1, other=2), op.operand(2, other=1)
    if not isinstance(left, fx.Node) and not isinstance(right, fx.Node):  # two numbers would lose their type
        left, right = op.input(1), op.input(2)
    if not isinstance(left, fx.Node) and op.rank(0) == 0 and op.rank(2) == 0:
        left = op.input(1)
    return op.call(torch.where, op.input(0), left, right)


@operator("Max", "Min", "Sum", "Mean")
def variadic(op: Operator) -> fx.Node:
    """Convert an operator of any number of inputs."""
    _check(op)
    if len(op.proto.input) == 1:
        return op.input()
    pairwise = {"Max": torch.maximum, "Min": torch.minimum}.get(op.type, python.add)
    total = reduce(lambda left, right: op.call(pairwise, left, right), op.inputs())
    return op.call(python.truediv, total, len(op.proto.input)) if op.type == "Mean" else total


@operator("CumSum", since=11)
def cumsum(op: Operator) -> fx.Node:
    """Convert CumSum."""
    exclusive, reverse = bool(op.attribute("exclusive", 0)), bool(op.attribute("reverse", 0))
    axis = op.scalar(1, 0)
    if not isinstance(axis, fx.Node) and not exclusive and not reverse:
        return op.call(torch.cumsum, op.input(), axis, dtype=op.call(getattr, op.input(), "dtype"))
    return op.call(cumulative_sum, op.input(), axis, exclusive, reverse)


def cumulative_sum(x: Tensor, axis: int | Tensor, exclusive: bool, reverse: bool) -> Tensor:
    """Sum along an axis, from its end if ``reverse``, without the element itself if ``exclusive``."""
    axis = int(axis)
    source = x.flip(axis) if reverse else x
    total = source.cumsum(axis, dtype=x.dtype)
    total = total - source if exclusive else total
    return total.flip(axis) if reverse else total
