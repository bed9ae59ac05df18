"""Indexing: embeddings, gathering, scattering."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx, nn

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.registry import operator

REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@operator("Gather")
def gather(op: Operator) -> fx.Node:
    """Convert Gather; from a float matrix along axis 0 it is an embedding, which rejects negative indices."""
    axis, indices = op.attribute("axis", 0), op.constant(1)
    weight = op.weight(0) if axis == 0 and indices is None else None
    if weight is not None and len(weight.shape) == 2:
        module = nn.Embedding(*weight.shape, _weight=torch.empty(weight.shape, device="meta"))
        return op.module(module, op.input(1), weight=weight)
    if indices is not None and indices.ndim == 0:
        return op.call(torch.select, op.input(0), axis, int(indices))
    return op.call(take, op.input(0), op.input(1), axis)


def along(x: Tensor, axis: int, n_axes: int) -> Tensor:
    """Give a tensor of one axis others of size one beside it, so that it broadcasts along that axis.

    Examples
    --------
    >>> along(torch.arange(3), 1, 4).shape
    torch.Size([1, 3, 1, 1])
    """
    return x.reshape([-1 if k == axis else 1 for k in range(n_axes)])


def take(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Take slices along an axis; negative indices count from the end."""
    axis = axis % x.ndim
    indices = _positive(indices, x.shape[axis])
    flat = x.index_select(axis, indices.reshape(-1))
    return flat.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


@operator("GatherElements", since=11)
def gather_elements(op: Operator) -> fx.Node:
    """Convert GatherElements."""
    op.requires_arithmetic()
    return op.call(take_elements, op.input(0), op.input(1), op.attribute("axis", 0))


def take_elements(x: Tensor, indices: Tensor, axis: int) -> Tensor:
    """Take one element for every index; negative ones count from the end."""
    return x.gather(axis, _positive(indices, x.shape[axis]))


def _positive(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices).long()


@operator("GatherND", since=11)
def gather_nd(op: Operator) -> fx.Node:
    """Convert GatherND."""
    return op.call(take_nd, op.input(0), op.input(1), op.attribute("batch_dims", 0))


def take_nd(x: Tensor, indices: Tensor, batch_dims: int = 0) -> Tensor:
    """Take slices whose leading indices are the last axis of ``indices``."""
    if batch_dims == 0:
        return x[tuple(indices.long().unbind(-1))]
    batch = x.shape[:batch_dims]
    flat_x = x.reshape(-1, *x.shape[batch_dims:])
    flat_i = indices.reshape(-1, *indices.shape[batch_dims:])
    rows = torch.arange(flat_x.shape[0], device=x.device).reshape(-1, *[1] * (flat_i.ndim - 2))
    taken = flat_x[(rows, *flat_i.long().unbind(-1))]
    return taken.reshape(*batch, *taken.shape[1:])


@operator("Scatter", since=9)
@operator("ScatterElements", since=11)
def scatter_elements(op: Operator) -> fx.Node:
    """Convert ScatterElements and its older name Scatter."""
    op.requires_arithmetic()
    reduction = op.attribute("reduction", "none")
    return op.call(put_elements, op.input(0), op.input(1), op.input(2), op.attribute("axis", 0), reduction)


def put_elements(x: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str = "none") -> Tensor:
    """Put one element at every index, or reduce it with what is there."""
    where = _positive(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, where, updates)
    return x.scatter_reduce(axis, where, updates, REDUCTIONS[reduction])


@operator("ScatterND", since=11)
def scatter_nd(op: Operator) -> fx.Node:
    """Convert ScatterND."""
    op.requires_arithmetic()
    return op.call(put_nd, op.input(0), op.input(1), op.input(2), op.attribute("reduction", "none"))


def put_nd(x: Tensor, indices: Tensor, updates: Tensor, reduction: str = "none") -> Tensor:
    """Put slices at leading indices, or reduce them with what is there."""
    depth = indices.shape[-1]
    where = tuple(indices.long().unbind(-1))
    if reduction in ("none", "add"):
        return x.index_put(where, updates, accumulate=reduction == "add")
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for size, part in zip(x.shape[:depth], where, strict=True):
        flat = flat * size + _positive(part, size)
    size, n = math.prod(x.shape[depth:]), flat.numel()
    rows, places = x.reshape(math.prod(x.shape[:depth]), size), flat.reshape(n, 1).expand(n, size)
    return rows.scatter_reduce(0, places, updates.reshape(n, size), REDUCTIONS[reduction]).reshape(x.shape)


@operator("OneHot", since=9)
def one_hot(op: Operator) -> fx.Node:
    """Convert OneHot."""
    depth = op.scalar(1, 1)
    return op.call(one_hot_of, op.input(0), depth, op.input(2), op.attribute("axis", -1))


def one_hot_of(indices: Tensor, depth: int | Tensor, values: Tensor, axis: int) -> Tensor:
    """Write the second value where the position along a new axis is the index, else the first."""
    n = int(depth)
    indices = indices.long().unsqueeze(axis)
    positions = along(torch.arange(n, device=indices.device), axis % indices.ndim, indices.ndim)
    return torch.where(_positive(indices, n) == positions, values[1], values[0])


@operator("NonZero", since=9)
def non_zero(op: Operator) -> fx.Node:
    """Convert NonZero, whose result has the axes first."""
    op.requires_arithmetic()
    return op.method("t", op.call(torch.nonzero, op.input()))


@operator("Unique", since=11)
def unique(op: Operator) -> tuple[fx.Node, ...]:
    """Convert Unique."""
    op.requires_arithmetic()
    ordered, axis = bool(op.attribute("sorted", 1)), op.attribute("axis", None)
    return op.items(op.call(unique_of, op.input(), axis, ordered), 4)


def unique_of(x: Tensor, axis: int | None, ordered: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what differs, sorted or in the order of the first of each, where that is, where all went, their counts."""
    x, along = (x.reshape(-1), 0) if axis is None else (x, axis)
    _, where, counts = torch.unique(x.detach(), return_inverse=True, return_counts=True, dim=along)
    positions = torch.arange(len(where), device=x.device)
    first = positions.new_full(counts.shape, len(where)).scatter_reduce(0, where, positions, "amin")
    if not ordered:
        order = first.argsort()
        first, where, counts = first[order], order.argsort()[where], counts[order]
    return x.index_select(along, first), first, where, counts


@operator("TensorScatter", since=24)
def tensor_scatter(op: Operator) -> fx.Node:
    """Convert TensorScatter."""
    axis, circular = op.attribute("axis", -2), op.attribute("mode", "linear") == "circular"
    return op.call(write_from, op.input(0), op.input(1), op.optional(2), axis, circular)


def write_from(x: Tensor, update: Tensor, begins: Tensor | None, axis: int, circular: bool) -> Tensor:
    """Write along an axis from a place of its own for every sample on, round the end if ``circular``."""
    axis = axis % x.ndim
    steps = along(torch.arange(update.shape[axis], device=x.device), axis, x.ndim)
    places = steps if begins is None else steps + begins.reshape(-1, *[1] * (x.ndim - 1))
    if circular:
        places = places % x.shape[axis]
    return x.scatter(axis, places.expand(update.shape), update)
