"""Vision: regions of interest, boxes, deformable convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, fx

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.padding import window_of
from graphmod.pytorch.registry import operator


@operator("RoiAlign")
def roi_align_by_corners(op: Operator) -> fx.Node:
    """Convert RoiAlign as it was before opset 16: pixels are where their corners are."""
    return _roi_align(op, half_pixel=False)


@operator("RoiAlign", since=16)
def roi_align(op: Operator) -> fx.Node:
    """Convert RoiAlign."""
    mode = op.attribute("coordinate_transformation_mode", "half_pixel")
    return _roi_align(op, half_pixel=mode == "half_pixel")


def _roi_align(op: Operator, *, half_pixel: bool) -> fx.Node:
    return op.call(
        roi_align_of, op.input(0), op.input(1), op.input(2),
        size=(op.attribute("output_height", 1), op.attribute("output_width", 1)),
        n_samples=op.attribute("sampling_ratio", 0), scale=op.attribute("spatial_scale", 1.0), half_pixel=half_pixel,
        largest=op.attribute("mode", "avg").lower() == "max",
    )  # fmt: skip


def roi_align_of(
    x: Tensor, regions: Tensor, images: Tensor, *, size: tuple[int, int], n_samples: int, scale: float,
    half_pixel: bool, largest: bool,
) -> Tensor:  # fmt: skip
    """Pool regions (x1, y1, x2, y2) of images into grids of one size, from samples between pixels.

    He et al., Mask R-CNN, 2017. As in ONNX, the largest is that of the samples' four weighted neighbours.
    """
    corners = regions * scale - (0.5 if half_pixel else 0.0)
    begin, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not half_pixel:
        extent = extent.clamp(min=1)
    along = [_samples(begin[:, k], extent[:, k], size[1 - k], n_samples, x.shape[3 - k]) for k in (1, 0)]
    (rows, row_weights, row_there), (columns, column_weights, column_there) = along
    flat = x.permute(1, 0, 2, 3).reshape(x.shape[1], -1)
    there = row_there[:, :, :, None, None] & column_there[:, None, None]  # region, y, sample, x, sample
    made = []
    for k, m in product(range(2), range(2)):
        places = (images.long()[:, None, None] * x.shape[2] + rows[k])[:, :, :, None, None] * x.shape[3]
        places = places + columns[m][:, None, None]
        weights = row_weights[k][:, :, :, None, None] * column_weights[m][:, None, None]
        made.append(flat[:, places] * weights)
    if largest:
        best = torch.stack(made).amax(0).masked_fill(~there, -math.inf).amax((3, 5))
        pooled = best.masked_fill(best.isneginf(), 0)
    else:
        total = sum(made[1:], made[0]).masked_fill(~there, 0).sum((3, 5))
        pooled = total / there.sum((2, 4)).clamp(min=1)
    return pooled.transpose(0, 1)


def _samples(begin: Tensor, extent: Tensor, n_bins: int, n_samples: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels on both sides of every sample (region, bin, sample), their weights, and which samples are."""
    width = extent / n_bins
    counts = torch.full_like(begin, n_samples) if n_samples > 0 else width.detach().ceil()
    most = max(n_samples, 1) if n_samples > 0 or not len(counts) else max(int(counts.max()), 1)
    steps = torch.arange(most, device=begin.device, dtype=begin.dtype)
    bins = torch.arange(n_bins, device=begin.device, dtype=begin.dtype)[:, None]
    offsets = (steps + 0.5) / counts.clamp(min=1)[:, None, None]
    at = begin[:, None, None] + (bins + offsets) * width[:, None, None]
    inside = (at >= -1) & (at <= size)
    at = at.clamp(0, size - 1)
    low = at.detach().long()
    high = (low + 1).clamp(max=size - 1)
    share = at - low
    weights = torch.stack([1 - share, share]) * inside
    return torch.stack([low, high]), weights, (steps < counts[:, None, None]).expand_as(at)


@operator("MaxRoiPool")
def max_roi_pool(op: Operator) -> fx.Node:
    """Convert MaxRoiPool."""
    shape = op.attribute("pooled_shape", [1, 1])
    return op.call(max_roi_pool_of, op.input(0), op.input(1), shape, op.attribute("spatial_scale", 1.0))


def max_roi_pool_of(x: Tensor, regions: Tensor, shape: Sequence[int], scale: float) -> Tensor:
    """Return the largest pixels of the cells of regions (image, x1, y1, x2, y2), whose corners are whole pixels."""
    corners = (regions[:, 1:] * scale + 0.5).floor()
    pooled = x[regions[:, 0].long()]
    for axis, n_cells in enumerate(shape):
        size = pooled.shape[2 + axis]
        cells, pixels = (torch.arange(n, device=x.device) for n in (n_cells, size))
        first, last = corners[:, 1 - axis, None], corners[:, 3 - axis, None]
        extent = (last - first + 1).clamp(min=1) / n_cells
        begin = (first + (cells * extent).floor()).clamp(0, size)
        end = (first + ((cells + 1) * extent).ceil()).clamp(0, size)
        inside = (pixels >= begin[..., None]) & (pixels < end[..., None])  # region, cell, pixel
        spread = inside[:, None, :, :, None] if axis == 0 else inside[:, None, None]
        pooled = pooled.unsqueeze(2 + axis).masked_fill(~spread, -math.inf).amax(3 + axis)
    return pooled.masked_fill(pooled.isneginf(), 0)


@operator("NonMaxSuppression", since=10)
def non_max_suppression(op: Operator) -> fx.Node:
    """Convert NonMaxSuppression."""
    return op.call(
        suppress, op.input(0), op.input(1), op.scalar(2, 0), op.scalar(3, 0.0), op.scalar(4, None),
        centred=bool(op.attribute("center_point_box", 0)),
    )  # fmt: skip


def suppress(
    boxes: Tensor, scores: Tensor, most: int | Tensor, overlap: float | Tensor, least: float | Tensor | None, *,
    centred: bool,
) -> Tensor:  # fmt: skip
    """Return (batch, class, box) of the boxes that no better one of their class covers by more than ``overlap``."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if centred:
        first, second = first - second / 2, first + second / 2
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    rows = []
    for batch, kind in product(range(scores.shape[0]), range(scores.shape[1])):
        values, order = scores[batch, kind].sort(descending=True, stable=True)
        if least is not None:
            order = order[values > least]
        kept: list[Tensor] = []
        while len(order) and len(kept) < int(most):
            best, order = order[0], order[1:]
            kept.append(best)
            order = order[_overlap(low[batch], high[batch], best, order) <= overlap]
        rows += [torch.stack([torch.full_like(best, batch), torch.full_like(best, kind), best]) for best in kept]
    return torch.stack(rows) if rows else torch.zeros(0, 3, dtype=torch.int64, device=scores.device)


def _overlap(low: Tensor, high: Tensor, one: Tensor, others: Tensor) -> Tensor:
    """Return the intersection of a box with others over their union."""
    shared = (torch.minimum(high[one], high[others]) - torch.maximum(low[one], low[others])).clamp(min=0).prod(-1)
    union = (high[one] - low[one]).prod(-1) + (high[others] - low[others]).prod(-1) - shared
    return torch.where(shared > 0, shared / union, 0)


@operator("DeformConv", since=19)
def deform_conv(op: Operator) -> fx.Node:
    """Convert DeformConv."""
    shape = op.shape(1)
    kernel = op.attribute("kernel_shape", [size for size in (shape or ())[2:] if isinstance(size, int)])
    if len(kernel) != op.rank(1) - 2:
        raise op.unsupported("its kernel's size is unknown")
    window = window_of(op, kernel)
    return op.call(
        deformed_convolution, op.input(0), op.input(1), op.input(2), op.optional(3), op.optional(4),
        stride=window.stride, begin=window.begin, dilation=window.dilation, groups=op.attribute("group", 1),
        offset_groups=op.attribute("offset_group", 1),
    )  # fmt: skip


def deformed_convolution(
    x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, mask: Tensor | None, *, stride: Sequence[int],
    begin: Sequence[int], dilation: Sequence[int], groups: int, offset_groups: int,
) -> Tensor:  # fmt: skip
    """Convolve with what lies between pixels, moved by an offset for every place of the kernel and of the output.

    Dai et al., Deformable convolutional networks, 2017; the mask is that of Zhu et al., 2018. Any number of axes.
    """
    kernel, out, sizes, n = weight.shape[2:], offset.shape[2:], x.shape[2:], weight.ndim - 2
    n_places = math.prod(kernel)
    moved = offset.reshape(x.shape[0], offset_groups, n_places, n, *out).movedim(3, 0)  # axis, batch, group, place
    at = []
    for axis in range(n):
        inner = torch.arange(kernel[axis], device=x.device) * dilation[axis]
        inner = inner.reshape([-1 if k == axis else 1 for k in range(n)]).expand(kernel).reshape(-1, *[1] * n)
        outer = torch.arange(out[axis], device=x.device) * stride[axis] - begin[axis]
        at.append(moved[axis] + (inner + outer.reshape([-1 if k == axis else 1 for k in range(n)])))
    values = x.reshape(x.shape[0], offset_groups, -1, math.prod(sizes))
    columns = values.new_zeros(())
    for corner in product(range(2), repeat=n):
        place, share = torch.zeros_like(at[0], dtype=torch.int64), torch.ones_like(at[0])
        for side, position, size in zip(corner, at, sizes, strict=True):
            low = position.detach().floor()
            index = low.long() + side
            part = position - low
            share = share * (part if side else 1 - part) * ((index >= 0) & (index < size))
            place = place * size + index.clamp(0, size - 1)
        flat = place.flatten(2)[:, :, None].expand(-1, -1, values.shape[2], -1)
        columns = columns + values.gather(3, flat) * share.flatten(2)[:, :, None]
    if mask is not None:
        columns = columns * mask.reshape(x.shape[0], offset_groups, 1, -1)
    columns = columns.reshape(x.shape[0], groups, -1, math.prod(out))
    made = (weight.reshape(groups, weight.shape[0] // groups, -1) @ columns).reshape(x.shape[0], -1, *out)
    return made if bias is None else made + bias.reshape(-1, *[1] * n)
