"""Layout: operators that move, repeat or pad elements."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphmod.pytorch.operator import Operator, Size
from graphmod.pytorch.operators.shape import Sizes, as_ints
from graphmod.pytorch.padding import interleaved
from graphmod.pytorch.registry import operator

MIRRORS = {"reflect": "reflect", "edge": "replicate"}
"""Torch's names of ways to pad."""


@operator("Tile", since=6)
def tile(op: Operator) -> fx.Node:
    """Convert Tile."""
    return op.call(repeat, op.input(0), op.ints(1))


def repeat(x: Tensor, times: Sizes) -> Tensor:
    """Repeat along every axis."""
    return x.repeat(as_ints(times))


@operator("Pad", since=2)
def pad_by_attributes(op: Operator) -> fx.Node:
    """Convert Pad as it was before opset 11."""
    return _pad(op, op.attribute("pads", [0]), op.attribute("value", 0.0), None)


@operator("Pad", since=11)
def pad_by_inputs(op: Operator) -> fx.Node:
    """Convert Pad."""
    return _pad(op, op.ints(1), op.scalar(2, 0), op.plain_ints(3) if op.has(3) else None)


def _pad(op: Operator, pads: Sequence[Size] | fx.Node, value: object, axes: list[int] | fx.Node | None) -> fx.Node:
    mode = op.attribute("mode", "constant")
    if mode == "constant" and not isinstance(pads, fx.Node) and axes is None and not isinstance(value, fx.Node):
        n = len(pads) // 2
        return op.call(F.pad, op.input(0), interleaved(pads[:n], pads[n:]), value=value)
    return op.call(pad_of, op.input(0), pads, value, axes, mode)


def pad_of(x: Tensor, pads: Sizes, value: float | Tensor, axes: Sizes | None, mode: str) -> Tensor:
    """Pad any axes, by a value, by the edge, by reflection or round the end; negative pads cut off."""
    amounts = as_ints(pads)
    along = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in as_ints(axes)]
    sides = {axis: (amounts[place], amounts[place + len(along)]) for place, axis in enumerate(along)}
    if mode in MIRRORS and (at_once := _trailing(x, sides, mode)) is not None:
        return F.pad(x, at_once, MIRRORS[mode])
    for axis, (begin, end) in sides.items():
        x = _pad_axis(x, axis, begin, end, float(value), mode)
    return x


def _trailing(x: Tensor, sides: dict[int, tuple[int, int]], mode: str) -> list[int] | None:
    """Return the pads with which F.pad mirrors or repeats edges in one go, or None where it cannot.

    It pads the last axes of a tensor, at most three, before which there are one or two others.
    """
    padded = {axis: pair for axis, pair in sides.items() if pair != (0, 0)}
    n = max(x.ndim - min(padded, default=x.ndim), x.ndim - 2, 1)
    if n > min(3, x.ndim - 1) or not x.numel() or not x.is_floating_point():
        return None
    for axis, pair in padded.items():
        if min(pair) < 0 or (mode == "reflect" and max(pair) >= x.shape[axis]):
            return None
    return [side for axis in range(x.ndim - 1, x.ndim - 1 - n, -1) for side in padded.get(axis, (0, 0))]


def _pad_axis(x: Tensor, axis: int, begin: int, end: int, value: float, mode: str) -> Tensor:
    if mode == "constant" or begin < 0 or end < 0:
        sides = (begin, end) if mode == "constant" else (min(begin, 0), min(end, 0))
        x = F.pad(x, [0, 0] * (x.ndim - 1 - axis) + list(sides), value=value)
        begin, end = max(begin, 0), max(end, 0)
    if mode == "constant" or begin == end == 0:
        return x
    size = x.shape[axis]
    positions = torch.arange(-begin, size + end, device=x.device)
    if mode == "edge":
        positions = positions.clamp(0, size - 1)
    elif mode == "wrap":
        positions = positions % size
    else:
        period = max(2 * (size - 1), 1)
        positions = positions % period
        positions = torch.where(positions >= size, period - positions, positions)
    return x.index_select(axis, positions)


@operator("DepthToSpace")
def depth_to_space(op: Operator) -> fx.Node:
    """Convert DepthToSpace; nn.PixelShuffle has the column-row-depth order."""
    block = op.attribute("blocksize", 1)
    if op.attribute("mode", "DCR") == "CRD":
        return op.module(nn.PixelShuffle(block), op.input())
    return op.call(depth_to_space_of, op.input(), block)


def depth_to_space_of(x: Tensor, block: int) -> Tensor:
    """Move blocks of channels into space, the block's position being the channels' outer index."""
    n, channels, height, width = x.shape
    x = x.reshape(n, block, block, channels // block**2, height, width)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(n, channels // block**2, height * block, width * block)


@operator("SpaceToDepth")
def space_to_depth(op: Operator) -> fx.Node:
    """Convert SpaceToDepth; nn.PixelUnshuffle has the column-row-depth order."""
    block = op.attribute("blocksize", 1)
    if op.attribute("mode", "DCR") == "CRD":
        return op.module(nn.PixelUnshuffle(block), op.input())
    return op.call(space_to_depth_of, op.input(), block)


def space_to_depth_of(x: Tensor, block: int) -> Tensor:
    """Move blocks of space into channels, the block's position being the channels' outer index."""
    n, channels, height, width = x.shape
    x = x.reshape(n, channels, height // block, block, width // block, block)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(n, channels * block**2, height // block, width // block)


@operator("Trilu", since=14)
def trilu(op: Operator) -> fx.Node:
    """Convert Trilu."""
    op.requires_arithmetic()
    function = upper if op.attribute("upper", 1) else lower
    diagonal = op.scalar(1, 0)
    if isinstance(diagonal, fx.Node):
        return op.call(function, op.input(0), diagonal)
    return op.call(torch.triu if function is upper else torch.tril, op.input(0), diagonal)


def upper(x: Tensor, diagonal: Tensor) -> Tensor:
    """Return the upper triangle from a computed diagonal on."""
    return x.triu(int(diagonal))


def lower(x: Tensor, diagonal: Tensor) -> Tensor:
    """Return the lower triangle up to a computed diagonal."""
    return x.tril(int(diagonal))


@operator("ReverseSequence", since=10)
def reverse_sequence(op: Operator) -> fx.Node:
    """Convert ReverseSequence."""
    op.requires_arithmetic()
    time, batch = op.attribute("time_axis", 0), op.attribute("batch_axis", 1)
    return op.call(reverse_sequences, op.input(0), op.input(1), time, batch)


def reverse_sequences(x: Tensor, lengths: Tensor, time: int, batch: int) -> Tensor:
    """Reverse the first ``lengths[b]`` steps of every sequence."""
    steps = torch.arange(x.shape[time], device=x.device)[:, None]
    positions = torch.where(steps < lengths, lengths - 1 - steps, steps)
    shape = [1] * x.ndim
    shape[time], shape[batch] = x.shape[time], x.shape[batch]
    positions = positions if time < batch else positions.t()
    return x.gather(time, positions.reshape(shape).expand(x.shape))


@operator("Compress", since=9)
def compress(op: Operator) -> fx.Node:
    """Convert Compress."""
    return op.call(compress_by, op.input(0), op.input(1), op.attribute("axis", None))


def compress_by(x: Tensor, keep: Tensor, axis: int | None) -> Tensor:
    """Keep the slices, or the elements of the flat tensor, that a mask selects."""
    x, along = (x.reshape(-1), 0) if axis is None else (x, axis)
    return x.index_select(along, keep.nonzero().reshape(-1))


@operator("CenterCropPad", since=18)
def center_crop_pad(op: Operator) -> fx.Node:
    """Convert CenterCropPad."""
    return op.call(center_crop_pad_to, op.input(0), op.ints(1), op.attribute("axes", None))


def center_crop_pad_to(x: Tensor, sizes: Sizes, axes: Sequence[int] | None) -> Tensor:
    """Cut or pad with zeros, at both sides alike."""
    wanted = as_ints(sizes)
    for axis, size in zip(range(x.ndim) if axes is None else axes, wanted, strict=True):
        axis = axis % x.ndim
        extra = size - x.shape[axis]
        begin = extra // 2 if extra > 0 else -(-extra // 2)
        x = F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [begin, extra - begin])
    return x
