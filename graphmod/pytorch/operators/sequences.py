"""Sequences, which are Python lists, and optionals, which are a value or None."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.registry import operator
from graphmod.pytorch.values import Value


@operator("SequenceEmpty", since=11)
def sequence_empty(op: Operator) -> fx.Node:
    """Convert SequenceEmpty; a list has no element type."""
    op.ignore("dtype")
    return op.call(list)


@operator("SequenceConstruct", since=11)
def sequence_construct(op: Operator) -> fx.Node:
    """Convert SequenceConstruct."""
    return op.call(listed, *op.inputs())


def listed(*values: Value) -> list[Value]:
    """Return values as a list."""
    return list(values)


@operator("SequenceAt", since=11)
def sequence_at(op: Operator) -> fx.Node:
    """Convert SequenceAt."""
    return op.call(element, op.input(0), op.scalar(1, 0))


def element(values: Sequence[Value], index: int | Tensor) -> Value:
    """Return one element of a list; a negative index counts from the end."""
    return values[int(index)]


@operator("SequenceInsert", since=11)
def sequence_insert(op: Operator) -> fx.Node:
    """Convert SequenceInsert."""
    return op.call(inserted, op.input(0), op.input(1), op.scalar(2, None))


def inserted(values: Sequence[Value], value: Value, index: int | Tensor | None) -> list[Value]:
    """Return a list with one more value, at its end if there is no index."""
    made = list(values)
    made.insert(len(made) if index is None else int(index), value)
    return made


@operator("SequenceErase", since=11)
def sequence_erase(op: Operator) -> fx.Node:
    """Convert SequenceErase."""
    return op.call(erased, op.input(0), op.scalar(1, -1))


def erased(values: Sequence[Value], index: int | Tensor) -> list[Value]:
    """Return a list without one of its values."""
    made = list(values)
    del made[int(index)]
    return made


@operator("SequenceLength", since=11)
def sequence_length(op: Operator) -> fx.Node:
    """Convert SequenceLength."""
    return op.call(length, op.input())


def length(values: Sequence[Value]) -> Tensor:
    """Return the number of values as a tensor."""
    return torch.tensor(len(values), dtype=torch.int64)


@operator("SplitToSequence", since=11)
def split_to_sequence(op: Operator) -> fx.Node:
    """Convert SplitToSequence."""
    axis, keepdims = op.attribute("axis", 0), bool(op.attribute("keepdims", 1))
    sizes = op.constant(1)
    if not op.has(1):
        return op.call(split_one_by_one, op.input(0), axis, keepdims)
    if sizes is not None:
        return op.call(split_by, op.input(0), sizes.tolist(), axis)
    return op.call(split_by, op.input(0), op.input(1), axis)


def split_one_by_one(x: Tensor, axis: int, keepdims: bool) -> list[Tensor]:
    """Split into slices of size one, with or without the axis."""
    return list(torch.split(x, 1, axis)) if keepdims else list(torch.unbind(x, axis))


def split_by(x: Tensor, sizes: int | list[int] | Tensor, axis: int) -> list[Tensor]:
    """Split into parts of one size, of which the last may be smaller, or of given sizes."""
    given: int | list[int] = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    return list(torch.split(x, given, axis))


@operator("ConcatFromSequence", since=11)
def concat_from_sequence(op: Operator) -> fx.Node:
    """Convert ConcatFromSequence."""
    return op.call(torch.stack if op.attribute("new_axis", 0) else torch.cat, op.input(), op.attribute("axis", 0))


@operator("Optional", since=15)
def optional(op: Operator) -> fx.Node:
    """Convert Optional: the value itself, or None."""
    op.ignore("type")
    return op.input() if op.has(0) else op.call(nothing)


def nothing() -> None:
    """Return an empty optional."""
    return None


@operator("OptionalHasElement", since=15)
def optional_has_element(op: Operator) -> fx.Node:
    """Convert OptionalHasElement."""
    return op.call(is_there, op.optional(0))


def is_there(value: Value) -> Tensor:
    """Return whether an optional has a value, as a tensor."""
    return torch.tensor(value is not None)


@operator("OptionalGetElement", since=15)
def optional_get_element(op: Operator) -> fx.Node:
    """Convert OptionalGetElement."""
    return op.input()
