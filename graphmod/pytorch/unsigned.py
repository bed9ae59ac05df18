"""Arithmetic of unsigned integers of 16, 32 and 64 bits, with which PyTorch does not compute, in signed ones.

Addition, subtraction, multiplication and bits are the same for both; what depends on the order of numbers is computed
on ``x - 2**63`` where 64 bits are needed for ``x`` itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LEAST = -(2**63)


def bits(x: Tensor) -> Tensor:
    """Return 64 bit integers that are equal modulo 2**64."""
    return x.view(torch.int64) if x.dtype == torch.uint64 else x.long()


def ordered(x: Tensor) -> Tensor:
    """Return 64 bit integers in the same order."""
    return bits(x) ^ LEAST if x.dtype == torch.uint64 else x.long()


def to_unsigned(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 64 bit integers modulo the range of an unsigned type."""
    if dtype == torch.uint64:
        return x.view(torch.uint64)
    return (x & (torch.iinfo(dtype).max)).to(dtype)


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return the sum.

    Examples
    --------
    >>> add(torch.tensor([2**64 - 1, 3], dtype=torch.uint64), torch.tensor([2, 4], dtype=torch.uint64)).tolist()
    [1, 7]
    """
    return to_unsigned(bits(x) + bits(y), x.dtype)


def subtract(x: Tensor, y: Tensor) -> Tensor:
    """Return the difference."""
    return to_unsigned(bits(x) - bits(y), x.dtype)


def multiply(x: Tensor, y: Tensor) -> Tensor:
    """Return the product."""
    return to_unsigned(bits(x) * bits(y), x.dtype)


def divide(x: Tensor, y: Tensor) -> Tensor:
    """Return the quotient, rounded down."""
    return to_unsigned(_quotient(bits(x), bits(y)), x.dtype)


def remainder(x: Tensor, y: Tensor) -> Tensor:
    """Return what division leaves over."""
    left, right = bits(x), bits(y)
    return to_unsigned(left - _quotient(left, right) * right, x.dtype)


def _quotient(x: Tensor, y: Tensor) -> Tensor:
    """Divide unsigned 64 bit integers: half of the dividend fits the signed type, and is at most one too little."""
    half = x >> 1 & ~LEAST
    quotient = torch.div(half, y, rounding_mode="trunc") << 1
    quotient = quotient + ((x - quotient * y ^ LEAST) >= (y ^ LEAST))
    return torch.where(y < 0, ((x ^ LEAST) >= (y ^ LEAST)).long(), quotient)


def maximum(x: Tensor, y: Tensor) -> Tensor:
    """Return the greater of each pair."""
    return torch.where(greater(x, y), x, y)


def minimum(x: Tensor, y: Tensor) -> Tensor:
    """Return the lesser of each pair."""
    return torch.where(less(x, y), x, y)


def greater(x: Tensor, y: Tensor) -> Tensor:
    """Whether the first of each pair is greater."""
    return ordered(x) > ordered(y)


def greater_or_equal(x: Tensor, y: Tensor) -> Tensor:
    """Whether the first of each pair is not less."""
    return ordered(x) >= ordered(y)


def less(x: Tensor, y: Tensor) -> Tensor:
    """Whether the first of each pair is less."""
    return ordered(x) < ordered(y)


def less_or_equal(x: Tensor, y: Tensor) -> Tensor:
    """Whether the first of each pair is not greater."""
    return ordered(x) <= ordered(y)


def equal(x: Tensor, y: Tensor) -> Tensor:
    """Whether both of each pair are equal."""
    return bits(x) == bits(y)


def bitwise_and(x: Tensor, y: Tensor) -> Tensor:
    """Return the bits that both have."""
    return to_unsigned(bits(x) & bits(y), x.dtype)


def bitwise_or(x: Tensor, y: Tensor) -> Tensor:
    """Return the bits that either has."""
    return to_unsigned(bits(x) | bits(y), x.dtype)


def bitwise_xor(x: Tensor, y: Tensor) -> Tensor:
    """Return the bits that one of both has."""
    return to_unsigned(bits(x) ^ bits(y), x.dtype)


def bitwise_not(x: Tensor) -> Tensor:
    """Return the bits that are not set."""
    return to_unsigned(~bits(x), x.dtype)


def shift_left(x: Tensor, n: Tensor) -> Tensor:
    """Shift bits up."""
    return to_unsigned(bits(x) << bits(n), x.dtype)


def shift_right(x: Tensor, n: Tensor) -> Tensor:
    """Shift bits down; zeros come in at the top."""
    places = bits(n)
    sign = torch.full_like(places, LEAST) >> places << 1
    return to_unsigned(bits(x) >> places & ~sign, x.dtype)


UNARY: dict[str, Callable[[Tensor], Tensor]] = {"BitwiseNot": bitwise_not}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": add,
    "BitwiseAnd": bitwise_and,
    "BitwiseOr": bitwise_or,
    "BitwiseXor": bitwise_xor,
    "Div": divide,
    "Equal": equal,
    "Greater": greater,
    "GreaterOrEqual": greater_or_equal,
    "Less": less,
    "LessOrEqual": less_or_equal,
    "Max": maximum,
    "Min": minimum,
    "Mod": remainder,
    "Mul": multiply,
    "Sub": subtract,
}
"""The functions of element-wise operators, by type."""
