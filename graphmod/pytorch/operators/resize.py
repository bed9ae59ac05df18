"""Resizing images: Resize and Upsample, for every way of placing the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from graphmod.pytorch.operator import Operator, Size
from graphmod.pytorch.registry import operator

COORDINATES = frozenset({"half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"})


@operator("Upsample", since=7)
def upsample_by_attribute(op: Operator) -> fx.Node:
    """Convert Upsample of opset 7, with its scales as an attribute."""
    return _resize(op, op.attribute("scales", [1.0]), None, None, "asymmetric", "floor")


@operator("Upsample", since=9)
def upsample(op: Operator) -> fx.Node:
    """Convert Upsample with its scales as an input."""
    return _resize(op, _floats(op, 1), None, None, "asymmetric", "floor")


@operator("Resize", since=10)
def resize_by_scales(op: Operator) -> fx.Node:
    """Convert Resize of opset 10, which has scales alone."""
    return _resize(op, _floats(op, 1), None, None, "asymmetric", "floor")


@operator("Resize", since=11)
def resize(op: Operator) -> fx.Node:
    """Convert Resize to scales or sizes."""
    op.requires(antialias=0)
    op.ignore("extrapolation_value")  # of a coordinate mode that is refused
    scales = _floats(op, 2) if op.has(2) and (op.constant(2) is None or op.required(2).size) else None
    sizes = op.ints(3) if op.has(3) else None
    coordinates = op.attribute("coordinate_transformation_mode", "half_pixel")
    if coordinates not in COORDINATES:
        raise op.unsupported(f"coordinate_transformation_mode {coordinates} has no counterpart")
    policy = op.attribute("keep_aspect_ratio_policy", "stretch")
    nearest = op.attribute("nearest_mode", "round_prefer_floor")
    return _resize(op, scales, sizes, op.attribute("axes", None), coordinates, nearest, policy)


def _floats(op: Operator, index: int) -> list[float] | fx.Node:
    value = op.constant(index)
    return op.input(index) if value is None else [float(scale) for scale in value.reshape(-1)]


def _resize(
    op: Operator,
    scales: list[float] | fx.Node | None,
    sizes: list[Size] | fx.Node | None,
    axes: list[int] | None,
    coordinates: str,
    nearest: str,
    policy: str = "stretch",
) -> fx.Node:
    mode = op.attribute("mode", "nearest")
    if mode not in ("nearest", "linear", "bilinear", "cubic"):
        raise op.unsupported(f"mode {mode} has no counterpart")
    cubic, outside = op.attribute("cubic_coeff_a", -0.75), bool(op.attribute("exclude_outside", 0))
    return op.call(
        resize_of, op.input(0), scales=scales, sizes=sizes, axes=axes, mode=mode, coordinates=coordinates,
        nearest=nearest, cubic=cubic, exclude_outside=outside, policy=policy,
    )  # fmt: skip


def resize_of(
    x: Tensor,
    *,
    scales: Sequence[float] | Tensor | None,
    sizes: Sequence[int] | Tensor | None,
    axes: Sequence[int] | None,
    mode: str,
    coordinates: str,
    nearest: str,
    cubic: float,
    exclude_outside: bool,
    policy: str,
) -> Tensor:
    """Interpolate one axis after the other: each output element is a weighted sum of its neighbours."""
    along = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
    old = [x.shape[axis] for axis in along]
    if sizes is not None:
        new = [int(size) for size in sizes]
        factors = [n / o for n, o in zip(new, old, strict=True)]
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * len(old)
            new = [math.floor(factor * o + 0.5) for o in old]
    else:
        assert scales is not None
        factors = [float(scale) for scale in scales]
        new = [math.floor(o * s) for o, s in zip(old, factors, strict=True)]
    for axis, size, factor in zip(along, new, factors, strict=True):
        if size == x.shape[axis] and factor == 1.0:
            continue
        at = positions(size, x.shape[axis], factor, coordinates)
        first, weights = _neighbours(at, mode, nearest, cubic)
        x = _interpolate(x, axis, first, weights, exclude_outside)
    return x


def positions(new: int, old: int, factor: float, mode: str) -> Tensor:
    """Return where in the input each output element lies, in float64.

    Examples
    --------
    >>> positions(4, 2, 2.0, "half_pixel").tolist()
    [-0.25, 0.25, 0.75, 1.25]
    """
    index = torch.arange(new, dtype=torch.float64)
    if mode == "align_corners":
        return index * (old - 1) / (new - 1) if new > 1 else torch.zeros_like(index)
    if mode == "asymmetric":
        return index / factor
    if mode == "pytorch_half_pixel" and new == 1:
        return torch.zeros_like(index)
    shift = 0.0
    if mode == "half_pixel_symmetric":  # the output's centre stays over the input's where its size was rounded
        shift = old / 2 * (1 - new / (factor * old))
    return shift + (index + 0.5) / factor - 0.5


def _neighbours(at: Tensor, mode: str, nearest: str, cubic: float) -> tuple[Tensor, Tensor]:
    """Return each position's first neighbour, and the weights of that and of those after it."""
    if mode == "nearest":
        rounded = {
            "round_prefer_floor": (at - 0.5).ceil(),
            "round_prefer_ceil": (at + 0.5).floor(),
            "floor": at.floor(),
            "ceil": at.ceil(),
        }[nearest]
        return rounded.long(), torch.ones(len(at), 1, dtype=torch.float64)
    base = at.floor()
    t = at - base
    if mode != "cubic":
        return base.long(), torch.stack([1 - t, t], 1)
    a = cubic
    weights = [
        ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
        ((a + 2) * t - (a + 3)) * t * t + 1,
        ((a + 2) * (1 - t) - (a + 3)) * (1 - t) ** 2 + 1,
        ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a,
    ]
    return base.long() - 1, torch.stack(weights, 1)


def _interpolate(x: Tensor, axis: int, first: Tensor, weights: Tensor, exclude_outside: bool) -> Tensor:
    size = x.shape[axis]
    index = first[:, None] + torch.arange(weights.shape[1])
    if exclude_outside:
        weights = weights * ((index >= 0) & (index < size))
        weights = weights / weights.sum(1, keepdim=True)
    index = index.clamp(0, size - 1).to(x.device)
    if weights.shape[1] == 1:
        return x.index_select(axis, index[:, 0])
    shape = [-1 if n == axis else 1 for n in range(x.ndim)]
    wide = x if x.is_floating_point() else x.float()
    parts = [
        wide.index_select(axis, index[:, k]) * weights[:, k].to(wide).reshape(shape) for k in range(weights.shape[1])
    ]
    total = torch.stack(parts).sum(0)
    return total if x.is_floating_point() else total.round().to(x.dtype)


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
