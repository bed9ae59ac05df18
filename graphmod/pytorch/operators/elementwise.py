"""Element-wise arithmetic, comparison and logic."""

from __future__ import annotations

import operator as python
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx

from graphmod.pytorch import unsigned
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
PAIRWISE: dict[str, Callable[..., Any]] = {"Max": torch.maximum, "Min": torch.minimum}


def _is_wide_unsigned(op: Operator) -> bool:
    """Whether an operator computes with unsigned integers that torch only stores."""
    dtype = op.dtype()
    return dtype.kind == "u" and dtype.itemsize > 1


def _unary(op: Operator) -> fx.Node:
    op.ignore("consumed_inputs")
    if not _is_wide_unsigned(op):
        return op.call(UNARY[op.type], op.input())
    if op.type not in unsigned.UNARY:
        raise op.unsupported(f"torch does not compute with {op.dtype()}")
    return op.call(unsigned.UNARY[op.type], op.input())


def _binary(op: Operator) -> fx.Node:
    op.ignore("consumed_inputs")
    if _is_wide_unsigned(op):
        return op.call(unsigned.BINARY[op.type], op.input(0), _right(op))
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
    op.ignore("consumed_inputs")
    if _is_wide_unsigned(op):
        return op.call(unsigned.divide, op.input(0), _right(op))
    left, right = _operands(op)
    if op.is_float():
        return op.call(python.truediv, left, right)
    return op.call(torch.div, op.input(0), right, rounding_mode="trunc")


@operator("Pow")
def power(op: Operator) -> fx.Node:
    """Convert Pow; the result has the type of the base."""
    op.requires_arithmetic()
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
    if _is_wide_unsigned(op):
        op.ignore("fmod")  # which is the same where there are no signs
        return op.call(unsigned.remainder, op.input(0), op.input(1))
    function = torch.fmod if op.attribute("fmod", 0) else torch.remainder
    return op.call(function, op.input(0), op.operand(1, other=0))


@operator("BitShift")
def bit_shift(op: Operator) -> fx.Node:
    """Convert BitShift."""
    left = op.attribute("direction", "") == "LEFT"
    if _is_wide_unsigned(op):
        return op.call(unsigned.shift_left if left else unsigned.shift_right, op.input(0), op.input(1))
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
    op.ignore("consumed_inputs")
    if len(op.proto.input) == 1:
        return op.input()
    wide = op.type in unsigned.BINARY and _is_wide_unsigned(op)
    pairwise = unsigned.BINARY[op.type] if wide else PAIRWISE.get(op.type, python.add)
    total = reduce(lambda left, right: op.call(pairwise, left, right), op.inputs())
    return op.call(python.truediv, total, len(op.proto.input)) if op.type == "Mean" else total


@operator("CumSum", since=11)
def cumsum(op: Operator) -> fx.Node:
    """Convert CumSum."""
    op.requires_arithmetic()
    exclusive, reverse = bool(op.attribute("exclusive", 0)), bool(op.attribute("reverse", 0))
    axis = op.scalar(1, 0)
    if not isinstance(axis, fx.Node) and not exclusive and not reverse:
        return op.call(torch.cumsum, op.input(), axis, dtype=op.call(getattr, op.input(), "dtype"))
    return op.call(cumulative_sum, op.input(), axis, exclusive, reverse)


def cumulative_sum(x: Tensor, axis: int | Tensor, exclusive: bool, reverse: bool) -> Tensor:
    """Sum along an axis, from its end if ``reverse``, without the element itself if ``exclusive``."""
    return _cumulative(torch.cumsum, 0, x, int(axis), exclusive, reverse)


def _cumulative(
    function: Callable[..., Tensor], start: int, x: Tensor, axis: int, exclusive: bool, reverse: bool
) -> Tensor:
    source = x.flip(axis) if reverse else x
    if exclusive:
        first = torch.full_like(source.narrow(axis, 0, min(1, source.shape[axis])), start)
        source = torch.cat([first, source.narrow(axis, 0, max(source.shape[axis] - 1, 0))], axis)
    made = function(source, axis, dtype=x.dtype)
    return made.flip(axis) if reverse else made


@operator("CumProd", since=26)
def cumprod(op: Operator) -> fx.Node:
    """Convert CumProd."""
    exclusive, reverse = bool(op.attribute("exclusive", 0)), bool(op.attribute("reverse", 0))
    return op.call(cumulative_product, op.input(), op.scalar(1, 0), exclusive, reverse)


def cumulative_product(x: Tensor, axis: int | Tensor, exclusive: bool, reverse: bool) -> Tensor:
    """Multiply along an axis, from its end if ``reverse``, without the element itself if ``exclusive``."""
    return _cumulative(torch.cumprod, 1, x, int(axis), exclusive, reverse)


@operator("BitCast", since=26)
def bit_cast(op: Operator) -> fx.Node:
    """Convert BitCast."""
    return op.method("view", op.input(), op.torch_dtype(op.attribute("to", 0)))
