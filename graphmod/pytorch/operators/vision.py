"""Vision: regions of interest, boxes, deformable convolution, sampling at the points of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.operators.indexing import along
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

    He et al., Mask R-CNN, 2017. As in ONNX, the largest is that of the samples' four weighted neighbours. There are
    many samples: they are taken for a few regions at a time, where their number is each region's own for one.
    """
    at_once = 16 if n_samples > 0 else 1
    return torch.cat([
        _align(x, some, where, size, n_samples, scale, half_pixel, largest)
        for some, where in zip(torch.split(regions, at_once), torch.split(images, at_once), strict=True)
    ])  # fmt: skip


def _align(
    x: Tensor, regions: Tensor, images: Tensor, size: tuple[int, int], n_samples: int, scale: float, half_pixel: bool,
    largest: bool,
) -> Tensor:  # fmt: skip
    corners = regions * scale - (0.5 if half_pixel else 0.0)
    begin, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not half_pixel:
        extent = extent.clamp(min=1)
    sampled = [_samples(begin[:, k], extent[:, k], size[1 - k], n_samples, x.shape[3 - k]) for k in (1, 0)]
    (rows, row_weights, row_there), (columns, column_weights, column_there) = sampled
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
    spans = []  # along either axis: region, cell, beginning or end
    for axis, n_cells in enumerate(shape):
        cells = torch.arange(n_cells, device=x.device)
        first, last = corners[:, 1 - axis, None], corners[:, 3 - axis, None]
        extent = (last - first + 1).clamp(min=1) / n_cells
        ends = torch.stack([(cells * extent).floor(), ((cells + 1) * extent).ceil()], -1)
        spans.append((first[..., None] + ends).clamp(0, x.shape[2 + axis]).long().tolist())
    made = [x.new_zeros(0, x.shape[1], *shape)]
    for image, rows, columns in zip(regions[:, 0].long().tolist(), *spans, strict=True):
        made.append(_largest(_largest(x[image], rows, 1), columns, 2)[None])
    pooled = torch.cat(made)
    return pooled.masked_fill(pooled.isneginf(), 0)


def _largest(x: Tensor, spans: list[tuple[int, int]], axis: int) -> Tensor:
    """Return the maxima of parts of an axis; none in a part without elements is minus infinity."""
    nothing = x.new_full((), -math.inf).expand_as(x.select(axis, 0))
    parts = [x.narrow(axis, begin, end - begin).amax(axis) if begin < end else nothing for begin, end in spans]
    return torch.stack(parts, axis)


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
    first, second = boxes.detach()[..., :2], boxes.detach()[..., 2:]
    if centred:
        first, second = first - second / 2, first + second / 2
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    corners = torch.cat([low, high, (high - low).prod(-1, keepdim=True)], -1).transpose(1, 2).cpu().numpy()
    ranked, limit, bound = scores.detach().cpu().numpy(), int(most), float(overlap)
    rows = []
    for batch, kind in product(range(ranked.shape[0]), range(ranked.shape[1])):
        order = np.argsort(-ranked[batch, kind], kind="stable")
        if least is not None:
            order = order[ranked[batch, kind, order] > float(least)]
        rows += [(batch, kind, box) for box in _uncovered(corners[batch], order, limit, bound)]
    return torch.tensor(rows, dtype=torch.int64, device=scores.device).reshape(-1, 3)


def _uncovered(corners: NDArray[np.floating], order: NDArray[np.intp], limit: int, bound: float) -> list[int]:
    """Return the boxes to keep, in order; a box's column has both its corners and its area."""
    kept: list[int] = []
    corners = corners[:, order]
    while len(order) and len(kept) < limit:
        kept.append(int(order[0]))
        best, corners, order = corners[:, :1], corners[:, 1:], order[1:]
        height, width = np.maximum(np.minimum(best[2:4], corners[2:4]) - np.maximum(best[:2], corners[:2]), 0)
        shared = height * width
        union = best[4] + corners[4] - shared
        free = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0) <= bound
        corners, order = corners[:, free], order[free]
    return kept


@operator("DeformConv", since=19)
def deform_conv(op: Operator) -> fx.Node:
    """Convert DeformConv."""
    shape = op.shape(1)
    window = window_of(op, op.attribute("kernel_shape", list(shape[2:]) if shape is not None else [None]))
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
        inner = along(inner, axis, n).expand(kernel).reshape(-1, *[1] * n)
        outer = torch.arange(out[axis], device=x.device) * stride[axis] - begin[axis]
        at.append(moved[axis] + (inner + along(outer, axis, n)))
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


@operator("GridSample", since=16)
def grid_sample(op: Operator) -> fx.Node:
    """Convert GridSample."""
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    mode = op.attribute("mode", "bilinear")
    mode = modes.get(mode, mode)
    padding, corners = op.attribute("padding_mode", "zeros"), bool(op.attribute("align_corners", 0))
    if mode == "bicubic" and op.rank() != 4:
        raise op.unsupported("cubic interpolation of volumes has no counterpart")
    return op.call(F.grid_sample, op.input(0), op.input(1), mode, padding, corners)


@operator("AffineGrid", since=20)
def affine_grid(op: Operator) -> fx.Node:
    """Convert AffineGrid."""
    return op.call(affine_grid_of, op.input(0), op.ints(1), bool(op.attribute("align_corners", 0)))


def affine_grid_of(theta: Tensor, size: Sequence[int] | Tensor, align_corners: bool) -> Tensor:
    """Return sampling positions of an affine map."""
    return F.affine_grid(theta, [int(n) for n in size], align_corners)
