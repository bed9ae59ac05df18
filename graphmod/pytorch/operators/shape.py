"""Shapes: reading them, and giving a tensor another one without moving its elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import getitem

import torch
from torch import Tensor, fx, nn

from graphmod.pytorch.operator import Operator, Size
from graphmod.pytorch.registry import operator
from graphmod.pytorch.sizes import sliced
from graphmod.pytorch.values import Value, device_of

Sizes = Sequence[int] | Tensor
FAR = 2**31 - 1
"""A bound that is beyond any axis."""


def as_ints(sizes: Sizes | fx.Node) -> list[int]:
    """Return a list of integers, whether it comes as a list or as a tensor."""
    if isinstance(sizes, fx.Node):
        raise TypeError("sizes that are computed at run time are not known while importing")
    if isinstance(sizes, Tensor):
        return [int(size) for size in sizes.reshape(-1).tolist()]
    return list(sizes)


@operator("Shape")
def shape(op: Operator) -> fx.Node:
    """Convert Shape."""
    return op.call(shape_of, op.input(), op.attribute("start", 0), op.attribute("end", None))


def shape_of(x: Value, start: int = 0, end: int | None = None) -> Tensor:
    """Return sizes as a tensor, beside ``x`` so that they can be computed with."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64, device=device_of(x))


@operator("Size")
def size(op: Operator) -> fx.Node:
    """Convert Size."""
    return op.call(n_elements, op.input())


def n_elements(x: Value) -> Tensor:
    """Return the number of elements as a tensor."""
    return torch.tensor(math.prod(x.shape), dtype=torch.int64, device=device_of(x))


@operator("Reshape")
def reshape(op: Operator) -> fx.Node:
    """Convert Reshape; a zero keeps the axis of the input, unless the operator allows sizes of zero."""
    sizes = op.ints(1) if op.has(1) else op.attribute("shape", [0])
    allow = bool(op.attribute("allowzero", 0))
    if isinstance(sizes, fx.Node):
        return op.call(reshape_to, op.input(0), sizes, allow)
    x = op.input(0)
    if allow or 0 not in sizes:
        return op.call(torch.reshape, x, sizes)
    return op.call(torch.reshape, x, [op.method("size", x, i) if n == 0 else n for i, n in enumerate(sizes)])


def reshape_to(x: Tensor, sizes: Sizes, allow_zero: bool = False) -> Tensor:
    """Reshape to computed sizes."""
    wanted = as_ints(sizes)
    if not allow_zero:
        wanted = [x.shape[axis] if n == 0 else n for axis, n in enumerate(wanted)]
    return x.reshape(wanted)


@operator("Flatten")
def flatten(op: Operator) -> fx.Node:
    """Convert Flatten; ONNX flattens the axes before ``axis`` too."""
    axis = op.attribute("axis", 1)
    if axis == 1:
        return op.module(nn.Flatten(), op.input()) if op.rank() > 1 else op.call(torch.reshape, op.input(), [-1, 1])
    return op.call(to_matrix, op.input(), axis)


def to_matrix(x: Tensor, axis: int) -> Tensor:
    """Return the axes before ``axis`` as rows and the others as columns."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Squeeze")
def squeeze(op: Operator) -> fx.Node:
    """Convert Squeeze; its axes are an attribute or, since opset 13, an input."""
    axes, shape = op.axes(1), op.shape(0)
    if axes is None:
        return op.call(torch.squeeze, op.input())
    if isinstance(axes, list) and shape is not None and all(shape[axis] == 1 for axis in axes):
        return op.method("squeeze", op.input(), axes[0] if len(axes) == 1 else tuple(axes))
    return op.call(drop_axes, op.input(), axes)


def drop_axes(x: Tensor, axes: Sizes) -> Tensor:
    """Drop axes of size one; unlike torch.squeeze, complain of any other size."""
    axes = as_ints(axes)
    if any([x.shape[axis] != 1 for axis in axes]):
        raise ValueError(f"cannot squeeze axes {list(axes)} of a tensor of shape {list(x.shape)}")
    return x.squeeze(tuple(axes))


@operator("Unsqueeze")
def unsqueeze(op: Operator) -> fx.Node:
    """Convert Unsqueeze; its axes are an attribute or, since opset 13, an input."""
    axes = op.axes(1)
    if isinstance(axes, list) and len(axes) == 1:
        return op.call(torch.unsqueeze, op.input(), axes[0])
    return op.call(add_axes, op.input(), axes)


def add_axes(x: Tensor, axes: Sizes) -> Tensor:
    """Add axes of size one at positions of the result."""
    added = as_ints(axes)
    rank = x.ndim + len(added)
    for axis in sorted([axis % rank for axis in added]):
        x = x.unsqueeze(axis)
    return x


@operator("Expand", since=8)
def expand(op: Operator) -> fx.Node:
    """Convert Expand, which broadcasts both ways."""
    return op.call(expand_to, op.input(0), op.ints(1))


def expand_to(x: Tensor, sizes: Sizes) -> Tensor:
    """Broadcast to sizes; where a size is 1, the tensor's own stays."""
    return x.expand(_broadcast(x.shape, as_ints(sizes)))


def _broadcast(left: Sequence[int], right: Sequence[int]) -> list[int]:
    n = max(len(left), len(right))
    pairs = zip([1] * (n - len(left)) + list(left), [1] * (n - len(right)) + list(right), strict=True)
    return [b if a == 1 else a for a, b in pairs]


@operator("Identity")
def identity(op: Operator) -> fx.Node:
    """Convert Identity."""
    return op.module(nn.Identity(), op.input())


@operator("Transpose")
def transpose(op: Operator) -> fx.Node:
    """Convert Transpose."""
    order: list[int] | None = op.attribute("perm", None)
    return op.method("permute", op.input(), *(order if order is not None else reversed(range(op.rank()))))


@operator("Split")
def split(op: Operator) -> tuple[fx.Node, ...]:
    """Convert Split into given or into equal parts; of equal ones the last may be smaller."""
    axis, n = op.attribute("axis", 0), len(op.proto.output)
    sizes = op.ints(1) if op.has(1) else op.attribute("split", None)
    if isinstance(sizes, fx.Node):
        return op.items(op.call(split_into, op.input(0), sizes, axis), n)
    if sizes is None:
        return op.items(op.call(split_evenly, op.input(0), op.attribute("num_outputs", n), axis), n)
    return op.items(op.call(torch.split, op.input(0), sizes, axis), n)


def split_into(x: Tensor, sizes: Sizes, axis: int) -> tuple[Tensor, ...]:
    """Split into parts of computed sizes."""
    return torch.split(x, as_ints(sizes), axis)


def split_evenly(x: Tensor, n: int, axis: int) -> tuple[Tensor, ...]:
    """Split into ``n`` parts of equal size; the last takes what is left."""
    size = x.shape[axis]
    return torch.split(x, -(-size // n), axis) if size else (x,) * n


@operator("Concat")
def concat(op: Operator) -> fx.Node:
    """Convert Concat."""
    return op.call(torch.cat, op.inputs(), op.attribute("axis", 1))


@operator("Slice")
def slice_by_attributes(op: Operator) -> fx.Node:
    """Convert Slice as it was before opset 10."""
    starts, ends = op.attribute("starts", [0]), op.attribute("ends", [0])
    return _slice(op, starts, ends, op.attribute("axes", list(range(len(starts)))), [1] * len(starts))


@operator("Slice", since=10)
def slice_by_inputs(op: Operator) -> fx.Node:
    """Convert Slice; constant bounds with positive steps are an ordinary index."""
    starts, ends = op.ints(1), op.ints(2)
    axes = op.plain_ints(3) if op.has(3) else None
    steps = op.plain_ints(4) if op.has(4) else None
    if (
        isinstance(starts, fx.Node)
        or isinstance(ends, fx.Node)
        or isinstance(axes, fx.Node)
        or isinstance(steps, fx.Node)
    ):
        return op.call(slice_of, op.input(0), starts, ends, axes, steps)
    along = list(range(len(starts))) if axes is None else axes
    return _slice(op, starts, ends, along, [1] * len(starts) if steps is None else steps)


def _slice(op: Operator, starts: Sequence[Size], ends: Sequence[Size], axes: list[int], steps: list[int]) -> fx.Node:
    if min(steps, default=1) < 1 or (min(axes, default=0) < 0 and op.shape(0) is None):
        return op.call(slice_of, op.input(0), starts, ends, axes, steps)
    index = [slice(None)] * (op.rank() if min(axes, default=0) < 0 else max(axes, default=-1) + 1)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first = None if not isinstance(start, fx.Node) and (start == 0 or start <= -FAR) else start
        last = end if isinstance(end, fx.Node) else None if end >= FAR else max(end, -FAR)
        index[axis] = slice(first, last, step if step > 1 else None)
    return op.call(getitem, op.input(0), tuple(index))


def slice_of(x: Tensor, starts: Sizes, ends: Sizes, axes: Sizes | None = None, steps: Sizes | None = None) -> Tensor:
    """Slice by computed bounds; a negative step runs backwards, which torch's index cannot."""
    first, last = as_ints(starts), as_ints(ends)
    along = list(range(len(first))) if axes is None else as_ints(axes)
    by = [1] * len(first) if steps is None else as_ints(steps)
    for start, end, axis, step in zip(first, last, along, by, strict=True):
        positions = sliced(x.shape[axis], start, end, step)
        if step == 1:
            x = x.narrow(axis, positions.start, len(positions))
        else:
            x = x.index_select(axis, torch.tensor(positions, dtype=torch.int64, device=x.device))
    return x
