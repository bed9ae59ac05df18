"""Resizing images: Resize and Upsample, for every way of placing the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from graphmod.pytorch.operator import Operator, Size
from graphmod.pytorch.operators.shape import Sizes, as_ints
from graphmod.pytorch.registry import operator

COORDINATES = frozenset({
    "half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric", "tf_crop_and_resize",
    "tf_half_pixel_for_nn",
})  # fmt: skip
LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


@operator("Upsample", since=7)
def upsample_by_attribute(op: Operator) -> fx.Node:
    """Convert Upsample of opset 7, with its scales as an attribute."""
    return _resize(op, op.attribute("scales", [1.0]), None, coordinates="asymmetric", nearest="floor")


@operator("Upsample", since=9)
def upsample(op: Operator) -> fx.Node:
    """Convert Upsample with its scales as an input."""
    return _resize(op, _floats(op, 1), None, coordinates="asymmetric", nearest="floor")


@operator("Resize", since=10)
def resize_by_scales(op: Operator) -> fx.Node:
    """Convert Resize of opset 10, which has scales alone."""
    return _resize(op, _floats(op, 1), None, coordinates="asymmetric", nearest="floor")


@operator("Resize", since=11)
def resize(op: Operator) -> fx.Node:
    """Convert Resize to scales or sizes; to torch's own function where that places the same pixels."""
    scales = _floats(op, 2) if op.has(2) and (op.constant(2) is None or op.required(2).size) else None
    sizes = op.ints(3) if op.has(3) and scales is None else None
    coordinates = op.attribute("coordinate_transformation_mode", "half_pixel")
    if coordinates not in COORDINATES:
        raise op.unsupported(f"coordinate_transformation_mode {coordinates} has no counterpart")
    return _resize(op, scales, sizes, coordinates, op.attribute("nearest_mode", "round_prefer_floor"))


def _floats(op: Operator, index: int) -> list[float] | fx.Node:
    value = op.constant(index)
    return op.input(index) if value is None else [float(scale) for scale in value.reshape(-1)]


@dataclass(frozen=True)
class Sampling:
    """How Resize computes an element from those around it: the operator's attributes."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float
    exclude_outside: bool
    antialias: bool


def _resize(
    op: Operator,
    scales: list[float] | fx.Node | None,
    sizes: list[Size] | fx.Node | None,
    coordinates: str,
    nearest: str,
) -> fx.Node:
    mode = op.attribute("mode", "nearest")
    if mode not in ("nearest", "linear", "bilinear", "cubic"):
        raise op.unsupported(f"mode {mode} has no counterpart")
    sampling = Sampling(
        "linear" if mode == "bilinear" else mode, coordinates, nearest, op.attribute("cubic_coeff_a", -0.75),
        bool(op.attribute("exclude_outside", 0)), bool(op.attribute("antialias", 0)),
    )  # fmt: skip
    axes: list[int] | None = op.attribute("axes", None)
    policy, outside = op.attribute("keep_aspect_ratio_policy", "stretch"), op.attribute("extrapolation_value", 0.0)
    if policy == "stretch" or sizes is None:
        plain = _interpolate_arguments(op, scales, sizes, axes, sampling)
        if plain is not None:
            return op.call(F.interpolate, op.input(0), **plain)
    roi = _floats(op, 1) if coordinates == "tf_crop_and_resize" else None
    return op.call(
        resize_of, op.input(0), scales=scales, sizes=sizes, axes=axes, roi=roi, policy=policy, outside=outside,
        **vars(sampling),
    )  # fmt: skip


def _interpolate_arguments(
    op: Operator, scales: list[float] | fx.Node | None, sizes: list[Size] | fx.Node | None, axes: list[int] | None,
    sampling: Sampling,
) -> dict[str, Any] | None:  # fmt: skip
    """Return what F.interpolate is to be asked for, or None where it would not return the same.

    For sizes that are known only when the network runs two things are taken for granted: that dividing sizes does not
    round a nearest pixel to another one, and with pytorch_half_pixel that no size is one.
    """
    shape, asked = op.shape(0), sizes if scales is None else scales
    if shape is None or not 3 <= len(shape) <= 5 or not op.is_float() or isinstance(asked, fx.Node) or asked is None:
        return None
    along = list(range(len(shape))) if axes is None else [axis % len(shape) for axis in axes]
    wanted: dict[int, Any] = dict(zip(along, asked, strict=True))
    spatial = [wanted.pop(axis, None) for axis in range(2, len(shape))]
    mode = _mode(sampling, len(shape))
    if mode is None or None in spatial:
        return None
    if scales is not None:
        if any(scale != 1 for scale in wanted.values()):
            return None
        if not all(_is_exact(scale, mode, sampling) for scale in spatial):
            return None
        return _arguments("scale_factor", spatial, mode, sampling)
    if not all(_is_size_of(op, axis, size) for axis, size in wanted.items()):
        return None
    for old, new in zip(shape[2:], spatial, strict=True):
        if isinstance(new, int) and (
            (new == 1 and sampling.coordinates == "pytorch_half_pixel")
            or (mode.startswith("nearest") and not (isinstance(old, int) and _rounds_well(old, new, mode)))
        ):
            return None
    return _arguments("size", spatial, mode, sampling)


def _arguments(name: str, values: list[Any], mode: str, sampling: Sampling) -> dict[str, Any]:
    given = {name: values, "mode": mode}
    if mode.startswith("nearest"):
        return given
    return {**given, "align_corners": sampling.coordinates == "align_corners"}


def _mode(sampling: Sampling, rank: int) -> str | None:
    """Return the mode of F.interpolate that takes the same pixels."""
    if sampling.antialias or sampling.exclude_outside:
        return None
    if sampling.mode == "nearest":
        if (sampling.coordinates, sampling.nearest) == ("asymmetric", "floor"):
            return "nearest"
        half = sampling.coordinates in ("half_pixel", "pytorch_half_pixel")
        return "nearest-exact" if half and sampling.nearest == "round_prefer_ceil" else None
    if sampling.coordinates not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return None
    if sampling.mode == "linear":
        return LINEAR[rank]
    return "bicubic" if rank == 4 and sampling.cubic == -0.75 else None


def _is_exact(scale: float, mode: str, sampling: Sampling) -> bool:
    """Whether sizes and positions come out the same, whatever the input's size: not for 0.6, which is no float."""
    if mode.startswith("nearest"):
        return 1 <= scale <= 32 and scale.is_integer()
    may_be_one = scale < 2 and scale != 1 and sampling.coordinates == "pytorch_half_pixel"  # as an output's size
    return scale > 0 and (1024 * scale).is_integer() and not may_be_one


def _rounds_well(old: int, new: int, mode: str) -> bool:
    """Whether torch's nearest pixels, which single precision computes, are the right ones."""
    index, half = np.arange(new), mode == "nearest-exact"
    computed = np.floor((index + np.float32(half) / 2).astype(np.float32) * (np.float32(old) / np.float32(new)))
    return bool((computed.astype(np.int64) == (2 * index + half) * old // (2 * new)).all())


def _is_size_of(op: Operator, axis: int, size: Size) -> bool:
    """Whether a size is that which the input has already."""
    if isinstance(size, fx.Node):
        return size.op == "call_method" and size.target == "size" and size.args == (op.input(0), axis)
    shape = op.shape(0)
    return shape is not None and shape[axis] == size


def resize_of(
    x: Tensor, *, scales: Sequence[float] | Tensor | None, sizes: Sizes | None, axes: Sequence[int] | None,
    roi: Sequence[float] | Tensor | None, policy: str, outside: float, mode: str, coordinates: str, nearest: str,
    cubic: float, exclude_outside: bool, antialias: bool,
) -> Tensor:  # fmt: skip
    """Interpolate one axis after the other: each output element is a weighted sum of its neighbours."""
    along = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
    old, n = [x.shape[axis] for axis in along], len(along)
    region = [0.0] * n + [1.0] * n if roi is None else [float(bound) for bound in roi]
    if sizes is not None:
        new = as_ints(sizes)
        factors = [n / o for n, o in zip(new, old, strict=True)]
        if policy != "stretch":
            factors = [min(factors) if policy == "not_larger" else max(factors)] * n
            new = [math.floor(factor * o + 0.5) for factor, o in zip(factors, old, strict=True)]
    else:
        assert scales is not None
        factors = [float(scale) for scale in scales]
        new = [math.floor(np.float32(o) * np.float32(s)) for o, s in zip(old, factors, strict=True)]
    for k, (axis, size, factor) in enumerate(zip(along, new, factors, strict=True)):
        begin, end = region[k], region[k + n]
        if size == x.shape[axis] and factor == 1.0 and (begin, end) == (0, 1):
            continue
        at = positions(size, x.shape[axis], factor, coordinates, begin, end)
        first, weights = _neighbours(at.double(), mode, nearest, cubic, min(factor, 1.0) if antialias else 1.0)
        last = x.shape[axis] - 1
        x = _interpolate(x, axis, first, weights, exclude_outside)
        if coordinates == "tf_crop_and_resize":
            beyond = ((at < 0) | (at > last)).to(x.device)
            x = x.masked_fill(beyond.reshape([-1 if other == axis else 1 for other in range(x.ndim)]), outside)
    return x


def positions(new: int, old: int, factor: float, mode: str, begin: float = 0.0, end: float = 1.0) -> Tensor:
    """Return where in the input, or in the part of it from ``begin`` to ``end``, each output element lies.

    In single precision, as everywhere: which of two pixels is the nearest one depends on it.

    Examples
    --------
    >>> positions(4, 2, 2.0, "half_pixel").tolist()
    [-0.25, 0.25, 0.75, 1.25]
    """
    index: Tensor = torch.arange(new, dtype=torch.float32)
    if mode == "align_corners":
        return index * (old - 1) / (new - 1) if new > 1 else torch.zeros_like(index)
    if mode == "tf_crop_and_resize":
        low, high = torch.tensor(begin, dtype=torch.float32), torch.tensor(end, dtype=torch.float32)
        if new > 1:
            return low * (old - 1) + index * (high - low) * (old - 1) / (new - 1)
        return (0.5 * (low + high) * (old - 1)).expand(new)
    scale = torch.tensor(factor, dtype=torch.float32)
    if mode == "asymmetric":
        return index / scale
    if mode == "tf_half_pixel_for_nn":
        return (index + 0.5) / scale
    if mode == "pytorch_half_pixel" and new == 1:
        return torch.zeros_like(index)
    shift = 0.0
    if mode == "half_pixel_symmetric":  # the output's centre stays over the input's where its size was rounded
        shift = old / 2 * (1 - new / (factor * old))
    return shift + (index + 0.5) / scale - 0.5


def _neighbours(at: Tensor, mode: str, nearest: str, cubic: float, scale: float) -> tuple[Tensor, Tensor]:
    """Return each position's first neighbour, and the weights of that and of those after it.

    A scale below one, of an axis that shrinks, makes the filter as much wider.
    """
    if mode == "nearest":
        rounded = {
            "round_prefer_floor": (at - 0.5).ceil(),
            "round_prefer_ceil": (at + 0.5).floor(),
            "floor": at.floor(),
            "ceil": at.ceil(),
        }[nearest]
        return rounded.long(), torch.ones(len(at), 1, dtype=torch.float64)
    base = at.floor()
    begin = math.floor(-(1 if mode == "linear" else 2) / scale) + 1
    steps = torch.arange(begin, 2 - begin, dtype=torch.float64)
    distance = ((steps - (at - base)[:, None]) * scale).abs()
    if mode == "linear":
        weights = (1 - distance).clamp(min=0)
    else:
        a, d = cubic, distance
        near, far = ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        weights = torch.where(d <= 1, near, torch.where(d < 2, far, 0))
    return base.long() + begin, weights / weights.sum(1, keepdim=True)


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
    total = torch.zeros(())
    for k in range(weights.shape[1]):
        part = wide.index_select(axis, index[:, k]) * weights[:, k].to(wide).reshape(shape)
        total = part if k == 0 else total + part
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
