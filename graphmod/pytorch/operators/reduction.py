"""Reductions over axes: sums, means, norms, extremes, and the positions of extremes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.operators.shape import as_ints
from graphmod.pytorch.registry import operator


def l1(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Return the sum of absolute values."""
    return x.abs().sum(list(axes), keepdim=keepdim, dtype=x.dtype)


def l2(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Return the root of the sum of squares."""
    if x.is_floating_point():
        norm: Tensor = torch.linalg.vector_norm(x, 2, list(axes), keepdim=keepdim)
        return norm
    return sum_square(x, axes, keepdim).double().sqrt().to(x.dtype)


def log_sum(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Return the logarithm of the sum."""
    return x.sum(list(axes), keepdim=keepdim).log().to(x.dtype)


def log_sum_exp(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Return the logarithm of the sum of exponentials."""
    return torch.logsumexp(x, list(axes), keepdim=keepdim).to(x.dtype)


def sum_square(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Return the sum of squares."""
    return (x * x).sum(list(axes), keepdim=keepdim, dtype=x.dtype)


def total(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Return the sum of integers, in their type."""
    return x.sum(list(axes), keepdim=keepdim, dtype=x.dtype)


def mean(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Return the mean of integers, in their type."""
    return x.double().mean(list(axes), keepdim=keepdim).to(x.dtype)


def largest(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Return the maximum: of nothing, the least value that the type has."""
    return x.amax(list(axes), keepdim=keepdim) if x.numel() else _of_nothing(x, axes, keepdim, least=True)


def smallest(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Return the minimum: of nothing, the greatest value that the type has."""
    return x.amin(list(axes), keepdim=keepdim) if x.numel() else _of_nothing(x, axes, keepdim, least=False)


def _of_nothing(x: Tensor, axes: Sequence[int], keepdim: bool, *, least: bool) -> Tensor:
    if x.dtype == torch.bool:
        value: float = not least
    elif x.is_floating_point():
        value = -math.inf if least else math.inf
    else:
        value = torch.iinfo(x.dtype).min if least else torch.iinfo(x.dtype).max
    shape = x.sum(list(axes), keepdim=keepdim).shape
    return torch.full(shape, value, dtype=x.dtype, device=x.device)


def product(x: Tensor, axes: Sequence[int], keepdim: bool) -> Tensor:
    """Return the product."""
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdim, dtype=x.dtype)
    return x


REDUCE: dict[str, Callable[..., Any]] = {
    "ReduceL1": l1,
    "ReduceL2": l2,
    "ReduceLogSum": log_sum,
    "ReduceLogSumExp": log_sum_exp,
    "ReduceMax": largest,
    "ReduceMean": torch.mean,
    "ReduceMin": smallest,
    "ReduceProd": product,
    "ReduceSum": torch.sum,
    "ReduceSumSquare": sum_square,
}
OF_INTEGERS: dict[str, Callable[..., Any]] = {"ReduceMean": mean, "ReduceSum": total}


UNCHANGED = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"})


@operator(*REDUCE)
def reduce(op: Operator) -> fx.Node:
    """Convert a reduction; its axes are an attribute or, in later revisions, an input."""
    op.requires_arithmetic()
    axes, keepdims, none = op.axes(1), bool(op.attribute("keepdims", 1)), bool(op.attribute("noop_with_empty_axes", 0))
    if isinstance(axes, fx.Node):
        return op.call(reduce_over, op.input(), op.type, axes, keepdims, none)
    if not axes and none:
        return op.input() if op.type in UNCHANGED else op.call(over_nothing, op.input(), op.type)
    return op.call(_function(op.type, op.is_float()), op.input(), axes or list(range(op.rank())), keepdims)


def _function(op_type: str, of_floats: bool) -> Callable[..., Any]:
    return REDUCE[op_type] if of_floats else OF_INTEGERS.get(op_type, REDUCE[op_type])


def reduce_over(x: Tensor, op_type: str, axes: Tensor, keepdim: bool, none_if_empty: bool) -> Tensor:
    """Reduce over computed axes: over all where there are none, unless these mean none."""
    along = as_ints(axes)
    if not along and none_if_empty:
        return over_nothing(x, op_type)
    reduced: Tensor = _function(op_type, x.is_floating_point())(x, along or list(range(x.ndim)), keepdim)
    return reduced


def over_nothing(x: Tensor, op_type: str) -> Tensor:
    """Reduce over no axes: what a reduction does before and after the sum is done to every element."""
    if op_type in UNCHANGED:
        return x
    reduced: Tensor = _function(op_type, x.is_floating_point())(x.unsqueeze(-1), [-1], False)
    return reduced


@operator("ArgMax", "ArgMin")
def arg_extreme(op: Operator) -> fx.Node:
    """Convert ArgMax or ArgMin; ties go to the first or the last."""
    op.requires_arithmetic()
    axis, keepdims = op.attribute("axis", 0), bool(op.attribute("keepdims", 1))
    function = torch.argmax if op.type == "ArgMax" else torch.argmin
    if op.attribute("select_last_index", 0):
        return op.call(last_extreme, op.input(), axis, keepdims, largest=op.type == "ArgMax")
    return op.call(function, op.input(), axis, keepdims)


def last_extreme(x: Tensor, axis: int, keepdim: bool, largest: bool) -> Tensor:
    """Return the last position of the extreme."""
    flipped = x.flip(axis)
    position = flipped.argmax(axis, keepdim) if largest else flipped.argmin(axis, keepdim)
    return x.shape[axis] - 1 - position


@operator("TopK")
def top_k_by_attribute(op: Operator) -> tuple[fx.Node, ...]:
    """Convert TopK of opset 1, with k as an attribute."""
    return op.items(op.call(first_k, op.input(), op.attribute("k", 1), op.attribute("axis", -1), True), 2)


@operator("TopK", since=10)
def top_k(op: Operator) -> tuple[fx.Node, ...]:
    """Convert TopK with k as an input; equal values come in the order of their positions."""
    op.ignore("sorted")  # any order would do where it is 0
    axis, largest = op.attribute("axis", -1), bool(op.attribute("largest", 1))
    return op.items(op.call(first_k, op.input(0), op.scalar(1, 1), axis, largest), 2)


def first_k(x: Tensor, k: int | Tensor, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    """Return the ``k`` extremes along an axis and their positions, sorted; of equal ones the first come first."""
    if largest and int(k) == 1:
        first = x.argmax(axis, keepdim=True)
        return x.gather(axis, first), first
    values, positions = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, int(k)), positions.narrow(axis, 0, int(k))
