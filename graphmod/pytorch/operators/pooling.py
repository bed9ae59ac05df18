"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.operators.shape import Sizes, as_ints
from graphmod.pytorch.padding import Window, interleaved, layer_window, same_margins
from graphmod.pytorch.registry import Outputs, operator

MAX: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
GLOBAL_AVERAGE: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
GLOBAL_MAX: dict[int, Any] = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}


def _plain(sizes: Sequence[int]) -> int | tuple[int, ...]:
    """Return one number for a square window, as one would write it."""
    return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)


@operator("MaxPool")
def max_pool(op: Operator) -> Outputs:
    """Convert MaxPool; padding that torch's module cannot do comes before it, bytes are pooled as floats."""
    window, ceil = layer_window(op), bool(op.attribute("ceil_mode", 0))
    column_major = bool(op.attribute("storage_order", 0))
    if op.uses_output(1):
        made = op.call(max_pool_with_positions, op.input(), **_arguments(window), ceil=ceil, column_major=column_major)
        return op.items(made, 2)
    x = op.input() if op.is_float() else op.method("float", op.input())
    plain = _is_plain(window)
    padding = window.padding if plain else tuple(0 for _ in window.kernel)
    if not plain:
        value = -math.inf if op.is_float() else _lowest(op)
        x = op.call(pad_windows, x, **_arguments(window), ceil=ceil, value=value)
    sizes = (_plain(sizes) for sizes in (window.kernel, window.stride, padding, window.dilation))
    made = op.module(MAX[len(window.kernel)](*sizes, ceil_mode=ceil and plain), x)
    return made if op.is_float() else op.method("type_as", made, op.input())


def _lowest(op: Operator) -> float:
    dtype = op.dtype()
    return -(2.0 ** (8 * dtype.itemsize - 1)) if dtype.kind == "i" else 0.0


def _is_plain(window: Window) -> bool:
    """Whether a module's own padding does: the same on both sides, and not over half of the kernel."""
    return not window.explicit and all(2 * pad <= size for pad, size in zip(window.begin, window.kernel, strict=True))


def _arguments(window: Window) -> dict[str, Any]:
    """Return what the functions of this file are called with."""
    return {
        "kernel": window.kernel, "stride": window.stride, "dilation": window.dilation,
        "begin": window.begin, "end": window.end, "auto": window.auto,
    }  # fmt: skip


def margins(
    sizes: Sequence[int], *, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
    begin: Sequence[int], end: Sequence[int], auto: str, ceil: bool,
) -> tuple[list[int], list[int], list[int]]:  # fmt: skip
    """Return padding before and after every axis, and what the last window has beyond that.

    With ``ceil`` a last window that is not whole counts, unless it would begin in the padding after the input.

    Examples
    --------
    >>> margins([6], kernel=[3], stride=[2], dilation=[1], begin=[0], end=[0], auto="NOTSET", ceil=True)
    ([0], [0], [1])
    """
    before, after, beyond = [], [], []
    for size, k, s, d, left, right in zip(sizes, kernel, stride, dilation, begin, end, strict=True):
        extent = (k - 1) * d + 1
        if auto.startswith("SAME"):
            left, right = same_margins(size, k, s, d, lower=auto == "SAME_LOWER")
        rest = size + left + right - extent
        n = -(-rest // s) if ceil else rest // s
        if n * s >= size + left:
            n -= 1
        before.append(left)
        after.append(right)
        beyond.append(n * s - rest)
    return before, after, beyond


def pad_windows(x: Tensor, *, ceil: bool, value: float, **window: Any) -> Tensor:
    """Pad so that all windows are whole."""
    before, after, beyond = margins(x.shape[2:], ceil=ceil, **window)
    return F.pad(x, interleaved(before, [sum(pair) for pair in zip(after, beyond, strict=True)]), value=value)


def max_pool_with_positions(
    x: Tensor, *, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], begin: Sequence[int],
    end: Sequence[int], auto: str, ceil: bool, column_major: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return maxima and where they are in the flat input, each image of which is counted by rows or by columns."""
    sizes, n = x.shape[2:], len(kernel)
    before, after, beyond = margins(
        sizes, kernel=kernel, stride=stride, dilation=dilation, begin=begin, end=end, auto=auto, ceil=ceil
    )
    wide = x if x.is_floating_point() else x.float()
    padded = F.pad(wide, interleaved(before, [sum(pair) for pair in zip(after, beyond, strict=True)]), value=-math.inf)
    pool: Any = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[n]
    maxima, flat = pool(padded, kernel, stride, 0, dilation, return_indices=True)
    strides = [math.prod(sizes[:axis] if column_major else sizes[axis + 1 :]) for axis in range(n)]
    positions = torch.zeros_like(flat)
    for axis in reversed(range(n)):
        positions = positions + (flat % padded.shape[axis + 2] - before[axis]) * strides[axis]
        flat = flat // padded.shape[axis + 2]
    images = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(x.shape[0], x.shape[1], *[1] * n)
    return maxima.to(x.dtype), positions + images * math.prod(sizes)


@operator("MaxUnpool", since=9)
def max_unpool(op: Operator) -> fx.Node:
    """Convert MaxUnpool."""
    window = layer_window(op)
    return op.call(
        max_unpool_of, op.input(0), op.input(1), op.ints(2) if op.has(2) else None, window.kernel, window.stride,
        window.begin, window.end,
    )  # fmt: skip


def max_unpool_of(
    x: Tensor, positions: Tensor, size: Sizes | None, kernel: Sequence[int], stride: Sequence[int],
    begin: Sequence[int], end: Sequence[int],
) -> Tensor:  # fmt: skip
    """Put every element at its position in zeros, which go on with zeros up to the size asked for."""
    spatial = [
        (old - 1) * s - left - right + k
        for old, s, left, right, k in zip(x.shape[2:], stride, begin, end, kernel, strict=True)
    ]
    shape = [*x.shape[:2], *spatial]
    made = x.new_zeros(math.prod(shape)).scatter(0, positions.reshape(-1), x.reshape(-1)).reshape(shape)
    if size is None:
        return made
    return F.pad(made, interleaved([0] * made.ndim, [n - o for n, o in zip(as_ints(size), shape, strict=True)]))


@operator("AveragePool")
def average_pool(op: Operator) -> fx.Node:
    """Convert AveragePool."""
    window, ceil = layer_window(op), bool(op.attribute("ceil_mode", 0))
    counted = bool(op.attribute("count_include_pad", 0))
    if not _is_plain(window) or set(window.dilation) != {1}:
        return op.call(average_pool_of, op.input(), **_arguments(window), ceil=ceil, counted=counted)
    sizes = [_plain(sizes) for sizes in (window.kernel, window.stride, window.padding)]
    module = AVERAGE[len(window.kernel)](*sizes, ceil_mode=ceil, count_include_pad=counted)
    return op.module(module, op.input())


def average_pool_of(x: Tensor, *, ceil: bool, counted: bool, **window: Any) -> Tensor:
    """Return the mean of every window, of what lies in the input, or in its padding too where that counts."""
    before, after, beyond = margins(x.shape[2:], ceil=ceil, **window)
    inside = x.new_ones(x.shape[2:])[None, None]
    inside = F.pad(inside, interleaved(before, after), value=float(counted))
    inside = F.pad(inside, interleaved([0] * len(beyond), beyond))
    return window_sums(pad_windows(x, ceil=ceil, value=0.0, **window), **window) / window_sums(inside, **window)


def window_sums(
    x: Tensor, *, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], **_: object
) -> Tensor:
    """Return the sum of every window; torch's own pooling computes it where windows have no gaps.

    Examples
    --------
    >>> window_sums(torch.arange(5.0)[None, None], kernel=[2], stride=[1], dilation=[1]).tolist()
    [[[1.0, 3.0, 5.0, 7.0]]]
    """
    if set(dilation) != {1} or not x.is_floating_point():
        return windows_of(x, kernel, stride, dilation).sum(list(range(-len(kernel), 0)))
    if len(kernel) == 1:
        return F.avg_pool2d(x.unsqueeze(2), (1, *kernel), (1, *stride), divisor_override=1).squeeze(2)
    pool = F.avg_pool2d if len(kernel) == 2 else F.avg_pool3d
    return pool(x, tuple(kernel), tuple(stride), divisor_override=1)


def windows_of(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], **_: object) -> Tensor:
    """Return a view of all windows, their own axes last.

    Examples
    --------
    >>> windows_of(torch.arange(5)[None, None], [2], [1], [2]).tolist()
    [[[[0, 2], [1, 3], [2, 4]]]]
    """
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True), 2):
        x = x.unfold(axis, (k - 1) * d + 1, s)[..., ::d]
    return x


@operator("GlobalAveragePool")
def global_average_pool(op: Operator) -> fx.Node:
    """Convert GlobalAveragePool."""
    return _global(op, GLOBAL_AVERAGE, torch.mean)


@operator("GlobalMaxPool")
def global_max_pool(op: Operator) -> fx.Node:
    """Convert GlobalMaxPool."""
    return _global(op, GLOBAL_MAX, torch.amax)


def _global(op: Operator, layers: dict[int, Any], function: Callable[..., Tensor]) -> fx.Node:
    n = op.rank() - 2
    if n in layers:
        return op.module(layers[n](1), op.input())
    return op.call(function, op.input(), tuple(range(2, n + 2)), keepdim=True)


@operator("LpPool")
def lp_pool(op: Operator) -> fx.Node:
    """Convert LpPool."""
    window, ceil = layer_window(op), bool(op.attribute("ceil_mode", 0))
    return op.call(lp_pool_of, op.input(), op.attribute("p", 2), **_arguments(window), ceil=ceil)


def lp_pool_of(x: Tensor, p: float, *, ceil: bool, **window: Any) -> Tensor:
    """Return the p-norm of every window."""
    powers = (x != 0).to(x.dtype) if p == 0 else x.abs().pow(p)
    sums = window_sums(pad_windows(powers, ceil=ceil, value=0.0, **window), **window)
    if p in (0, 1):
        return sums
    empty = sums == 0  # where a root has no gradient
    return sums.masked_fill(empty, 1).pow(1 / p).masked_fill(empty, 0)


@operator("GlobalLpPool")
def global_lp_pool(op: Operator) -> fx.Node:
    """Convert GlobalLpPool."""
    axes = tuple(range(2, op.rank()))
    return op.call(torch.linalg.vector_norm, op.input(), op.attribute("p", 2), axes, keepdim=True)
