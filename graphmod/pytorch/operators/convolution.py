"""Convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.padding import Window, interleaved, window_of
from graphmod.pytorch.registry import operator

CONV: dict[int, Any] = {1: (nn.Conv1d, F.conv1d), 2: (nn.Conv2d, F.conv2d), 3: (nn.Conv3d, F.conv3d)}
TRANSPOSED: dict[int, Any] = {
    1: (nn.ConvTranspose1d, F.conv_transpose1d),
    2: (nn.ConvTranspose2d, F.conv_transpose2d),
    3: (nn.ConvTranspose3d, F.conv_transpose3d),
}


def _window(op: Operator) -> Window:
    shape = op.shape(1)
    kernel = op.attribute("kernel_shape", list(shape[2:]) if shape is not None else [])
    if not 1 <= len(kernel) <= 3:
        raise op.unsupported(f"it has {len(kernel)} spatial axes; there are modules for 1 to 3")
    if not all(isinstance(size, int) for size in kernel):
        raise op.unsupported("its kernel's size is unknown")
    return window_of(op, [int(size) for size in kernel if isinstance(size, int)])


@operator("Conv")
def conv(op: Operator) -> fx.Node:
    """Convert Conv; a kernel that is computed makes it a function call."""
    window, groups = _window(op), op.attribute("group", 1)
    layer, function = CONV[len(window.kernel)]
    x, weight, bias = window.pad(op), op.weight(1), op.weight(2)
    if weight is None or (op.has(2) and bias is None):
        return op.call(function, x, op.input(1), op.optional(2), window.stride, window.padding, window.dilation, groups)
    n_out, n_in = weight.shape[:2]
    module = layer(
        n_in * groups, n_out, window.kernel, window.stride, window.padding, window.dilation, groups,
        bias=bias is not None, device="meta",
    )  # fmt: skip
    return op.module(module, x, weight=weight, bias=bias)


@operator("ConvTranspose")
def conv_transpose(op: Operator) -> fx.Node:
    """Convert ConvTranspose; what torch's padding cannot say is cut off from the full result."""
    window, groups = _window(op), op.attribute("group", 1)
    extra = tuple(op.attribute("output_padding", [0] * len(window.kernel)))
    size: list[int] | None = op.attribute("output_shape", None)
    whole = window.explicit or size is not None
    padding = tuple(0 for _ in window.kernel) if whole else window.padding
    layer, function = TRANSPOSED[len(window.kernel)]
    weight, bias = op.weight(1), op.weight(2)
    if weight is None or (op.has(2) and bias is None):
        made = op.call(
            function, op.input(0), op.input(1), op.optional(2), window.stride, padding, extra, groups, window.dilation
        )
    else:
        n_in, n_out = weight.shape[:2]
        module = layer(
            n_in, n_out * groups, window.kernel, window.stride, padding, extra, groups,
            bias=bias is not None, dilation=window.dilation, device="meta",
        )  # fmt: skip
        made = op.module(module, op.input(0), weight=weight, bias=bias)
    if not whole:
        return made
    upper = window.auto == "SAME_UPPER"
    if size is not None:
        return op.call(crop, made, size[-len(window.kernel) :], op.optional(2), upper=upper)
    if window.auto.startswith("SAME"):
        return op.call(crop_to_multiple, made, op.input(0), window.stride, op.optional(2), upper=upper)
    cut = [-pad for pad in interleaved(window.begin, window.end)]
    return op.call(F.pad, made, cut)


def crop(x: Tensor, size: Sequence[int], bias: Tensor | None, upper: bool) -> Tensor:
    """Cut the spatial axes down to a size; the odd one off the end if ``upper``, else off the beginning.

    Where the size is greater, there is nothing but the bias at the end.
    """
    pads: list[int] = []
    for old, new in zip(reversed(x.shape[2:]), reversed(size), strict=True):
        total = max(old - new, 0)
        begin = total // 2 if upper else total - total // 2
        pads += [-begin, new - old + begin]
    cut = F.pad(x, pads)
    if bias is None or max(pads) <= 0:
        return cut
    made = F.pad(torch.ones_like(x[:1, :1], dtype=torch.bool), pads)
    return torch.where(made, cut, bias.reshape(-1, *[1] * len(size)))


def crop_to_multiple(x: Tensor, source: Tensor, stride: Sequence[int], bias: Tensor | None, upper: bool) -> Tensor:
    """Cut the spatial axes down to those of ``source`` times the stride."""
    return crop(x, [size * step for size, step in zip(source.shape[2:], stride, strict=True)], bias, upper)
