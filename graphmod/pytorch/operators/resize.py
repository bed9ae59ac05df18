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
from graphmod.pytorch.operators.indexing import along
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
    """Return what F.interpolate is to be asked for, or None where it might not return the same."""
    shape, asked = op.shape(0), sizes if scales is None else scales
    if shape is None or not 3 <= len(shape) <= 5 or not op.is_float() or isinstance(asked, fx.Node) or asked is None:
        return None
    resized = list(range(len(shape))) if axes is None else [axis % len(shape) for axis in axes]
    wanted: dict[int, Any] = dict(zip(resized, asked, strict=True))
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
    if not all(_takes_the_same(old, new, mode, sampling) for old, new in zip(shape[2:], spatial, strict=True)):
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
        return "nearest-exact" if half and sampling.nearest.startswith("round") else None
    if sampling.coordinates not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return None
    if sampling.mode == "linear":
        return LINEAR[rank]
    return "bicubic" if rank == 4 and sampling.cubic == -0.75 else None


def _is_exact(scale: float, mode: str, sampling: Sampling) -> bool:
    """Whether sizes and positions come out the same, whatever the input's size: not for 0.6, which is no float."""
    if mode.startswith("nearest"):
        return 1 <= scale <= 32 and scale.is_integer()  # so no position is half way between two pixels
    may_be_one = scale < 2 and scale != 1 and sampling.coordinates == "pytorch_half_pixel"  # as an output's size
    return scale > 0 and (1024 * scale).is_integer() and not may_be_one


def _takes_the_same(old: int | str | None, new: Size, mode: str, sampling: Sampling) -> bool:
    """Whether F.interpolate to a size computes with the same pixels; the nearest ones depend on rounding."""
    if not mode.startswith("nearest"):
        return sampling.coordinates != "pytorch_half_pixel" or (isinstance(new, int) and new != 1)
    if not isinstance(old, int) or not isinstance(new, int) or not old or not new:
        return False
    taken = F.interpolate(torch.arange(old, dtype=torch.float32)[None, None], new, mode=mode)[0, 0]
    at = positions(new, old, new / old, sampling.coordinates)
    return torch.equal(taken.long(), _nearest(at, sampling.nearest).clamp(0, old - 1))


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
    resized = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
    old, n = [x.shape[axis] for axis in resized], len(resized)
    region = [0.0] * n + [1.0] * n if roi is None else [float(bound) for bound in roi]
    if sizes is not None:
        new = as_ints(sizes)
        factors = [1.0 if n == o else n / o for n, o in zip(new, old, strict=True)]
        if policy != "stretch":
            factors = [min(factors) if policy == "not_larger" else max(factors)] * n
            new = [math.floor(factor * o + 0.5) for factor, o in zip(factors, old, strict=True)]
    else:
        assert scales is not None
        factors = [float(scale) for scale in scales]
        new = [math.floor(np.float32(o) * np.float32(s)) for o, s in zip(old, factors, strict=True)]
    dtype = x.dtype
    rounded = mode != "nearest" and not dtype.is_floating_point
    if rounded:
        x = x.float() if dtype.itemsize < 4 else x.double()
    for k, (axis, size, factor) in enumerate(zip(resized, new, factors, strict=True)):
        begin, end = region[k], region[k + n]
        if size == x.shape[axis] and factor == 1.0 and (begin, end) == (0, 1):
            continue
        at, last = positions(size, x.shape[axis], factor, coordinates, begin, end, x.device), x.shape[axis] - 1
        if mode == "nearest":
            x = x.index_select(axis, _nearest(at, nearest).clamp(0, last))
        else:
            first, weights = _neighbours(at, mode, cubic, min(factor, 1.0) if antialias else 1.0)
            x = _interpolate(x, axis, first, weights, exclude_outside)
        if coordinates == "tf_crop_and_resize":
            x = x.masked_fill(along((at < 0) | (at > last), axis, x.ndim), outside)
    return x.round().clamp(torch.iinfo(dtype).min, torch.iinfo(dtype).max).to(dtype) if rounded else x


def positions(
    new: int, old: int, factor: float, mode: str, begin: float = 0.0, end: float = 1.0,
    device: torch.device | None = None,
) -> Tensor:  # fmt: skip
    """Return where in the input, or in the part of it from ``begin`` to ``end``, each output element lies.

    In single precision, as everywhere: which of two pixels is the nearest one depends on it.

    Examples
    --------
    >>> positions(4, 2, 2.0, "half_pixel").tolist()
    [-0.25, 0.25, 0.75, 1.25]
    """
    index: Tensor = torch.arange(new, dtype=torch.float32, device=device)
    numbers = torch.tensor([max(new - 1, 1), begin, end, factor], dtype=torch.float32, device=device)
    steps, low, high, scale = numbers.unbind()  # a GPU would divide by a Python number by multiplying with its inverse
    if mode == "align_corners":
        return index * (old - 1) / steps
    if mode == "tf_crop_and_resize":
        if new > 1:
            return low * (old - 1) + index * (high - low) * (old - 1) / steps
        return (0.5 * (low + high) * (old - 1)).expand(new)
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


def _nearest(at: Tensor, mode: str) -> Tensor:
    """Return each position's nearest pixel, by what is left over, which is exact."""
    base = at.floor()
    over = at - base
    if mode == "floor":
        return base.long()
    return base.long() + {"round_prefer_floor": over > 0.5, "round_prefer_ceil": over >= 0.5, "ceil": over > 0}[mode]


def _neighbours(at: Tensor, mode: str, cubic: float, scale: float) -> tuple[Tensor, Tensor]:
    """Return each position's first neighbour, and the weights of that and of those after it.

    A scale below one, of an axis that shrinks, makes the filter as much wider.
    """
    base = at.floor()
    begin = math.floor(-(1 if mode == "linear" else 2) / scale) + 1
    steps = torch.arange(begin, 2 - begin, dtype=at.dtype, device=at.device)
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
    index = first[:, None] + torch.arange(weights.shape[1], device=x.device)
    if exclude_outside:
        weights = weights * ((index >= 0) & (index < size))
        weights = weights / weights.sum(1, keepdim=True)
    index = index.clamp(0, size - 1)
    parts = [
        x.index_select(axis, index[:, k]) * along(weights[:, k].to(x), axis, x.ndim) for k in range(weights.shape[1])
    ]
    return sum(parts[1:], parts[0])
