"""Pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.padding import Window, window_of
from graphmod.pytorch.registry import operator

MAX: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
GLOBAL_AVERAGE: dict[int, Any] = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
GLOBAL_MAX: dict[int, Any] = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}


def _window(op: Operator) -> Window:
    kernel: list[int] = op.attribute("kernel_shape", [])
    if not 1 <= len(kernel) <= 3:
        raise op.unsupported(f"it has {len(kernel)} spatial axes; there are modules for 1 to 3")
    return window_of(op, kernel)


def _plain(sizes: Sequence[int]) -> int | tuple[int, ...]:
    """Return one number for a square window, as one would write it."""
    return sizes[0] if len(set(sizes)) == 1 else tuple(sizes)


@operator("MaxPool")
def max_pool(op: Operator) -> fx.Node:
    """Convert MaxPool; its indices, which count otherwise than torch's, are not supported."""
    op.requires_single_output()
    op.ignore("storage_order")  # of the indices
    window, ceil = _window(op), bool(op.attribute("ceil_mode", 0))
    padding = window.padding
    if any(2 * pad > size for pad, size in zip(padding, window.kernel, strict=True)):  # more than torch allows
        raise op.unsupported(f"padding {list(padding)} is over half of the kernel {list(window.kernel)}")
    x = window.pad(op, -math.inf) if op.is_float() else window.pad(op, _lowest(op) if window.explicit else 0)
    module = MAX[len(window.kernel)](
        *(_plain(sizes) for sizes in (window.kernel, window.stride, padding, window.dilation)), ceil_mode=ceil
    )
    return op.module(module, x)


def _lowest(op: Operator) -> float:
    dtype = op.dtype()
    return -(2.0 ** (8 * dtype.itemsize - 1)) if dtype.kind == "i" else 0.0


@operator("AveragePool")
def average_pool(op: Operator) -> fx.Node:
    """Convert AveragePool; padding that differs by side and does not count is divided out again."""
    window, ceil = _window(op), bool(op.attribute("ceil_mode", 0))
    counted = bool(op.attribute("count_include_pad", 0))
    if set(window.dilation) != {1}:
        raise op.unsupported("a dilated average has no counterpart")
    if ceil and window.explicit:
        raise op.unsupported("ceil_mode together with padding that differs by side has no counterpart")
    if any(2 * pad > size for pad, size in zip(window.padding, window.kernel, strict=True)):
        raise op.unsupported(f"padding {list(window.padding)} is over half of the kernel {list(window.kernel)}")
    padded = window.pad(op)
    sizes = [_plain(sizes) for sizes in (window.kernel, window.stride, window.padding)]
    module = AVERAGE[len(window.kernel)](*sizes, ceil_mode=ceil, count_include_pad=counted)
    mean = op.module(module, padded)
    if counted or not window.explicit:
        return mean
    inside = op.call(torch.ones_like, op.input(0))
    return op.call(torch.div, mean, _share(op, window, inside))


def _share(op: Operator, window: Window, inside: fx.Node) -> fx.Node:
    """Return which share of each window lies inside the input."""
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(window.kernel)]
    return op.call(pool, window.pad(op, of=inside), window.kernel, window.stride)


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
    op.requires(ceil_mode=0)
    window, p = _window(op), op.attribute("p", 2)
    if set(window.dilation) != {1}:
        raise op.unsupported("a dilated window has no counterpart")
    if any(window.padding):
        raise op.unsupported("padding has no counterpart")
    return op.call(lp_pool_of, window.pad(op), p, window.kernel, window.stride)


def lp_pool_of(x: Tensor, p: float, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Return the p-norm of every window."""
    pool: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    total: Tensor = pool(x.abs() ** p, kernel, stride) * math.prod(kernel)
    return total ** (1 / p)


@operator("GlobalLpPool")
def global_lp_pool(op: Operator) -> fx.Node:
    """Convert GlobalLpPool."""
    axes = tuple(range(2, op.rank()))
    return op.call(torch.linalg.vector_norm, op.input(), op.attribute("p", 2), axes, keepdim=True)
