"""Convolutions, and adding up blocks where they lie, as a transposed one does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.operators.indexing import along
from graphmod.pytorch.operators.shape import Sizes, as_ints
from graphmod.pytorch.padding import interleaved, layer_window
from graphmod.pytorch.registry import operator

CONV: dict[int, Any] = {1: (nn.Conv1d, F.conv1d), 2: (nn.Conv2d, F.conv2d), 3: (nn.Conv3d, F.conv3d)}
TRANSPOSED: dict[int, Any] = {
    1: (nn.ConvTranspose1d, F.conv_transpose1d),
    2: (nn.ConvTranspose2d, F.conv_transpose2d),
    3: (nn.ConvTranspose3d, F.conv_transpose3d),
}


@operator("Conv")
def conv(op: Operator) -> fx.Node:
    """Convert Conv; a kernel that is computed makes it a function call."""
    window, groups = layer_window(op, 1), op.attribute("group", 1)
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
    window, groups = layer_window(op, 1), op.attribute("group", 1)
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


@operator("Col2Im", since=18)
def col2im(op: Operator) -> fx.Node:
    """Convert Col2Im; nn.Fold has two spatial axes and padding that is the same on both sides."""
    image, block = op.ints(1), op.ints(2)
    dilation, stride, pads = (op.attribute(name, None) for name in ("dilations", "strides", "pads"))
    if not isinstance(image, fx.Node) and not isinstance(block, fx.Node):
        n = len(image)
        sides = pads or [0] * 2 * n
        sizes = [size for size in (*image, *block) if isinstance(size, int)]
        if n == 2 and sides[:2] == sides[2:] and len(sizes) == 4:
            fold = nn.Fold(
                tuple(sizes[:2]), tuple(sizes[2:]), tuple(dilation or (1, 1)), tuple(sides[:2]), tuple(stride or (1, 1))
            )
            return op.module(fold, op.input(0))
    return op.call(fold_of, op.input(0), image, block, dilation, stride, pads)


def fold_of(
    x: Tensor, image: Sizes, block: Sizes, dilation: Sequence[int] | None, stride: Sequence[int] | None,
    pads: Sequence[int] | None,
) -> Tensor:  # fmt: skip
    """Add up blocks (batch, channels * block, number of blocks) where they lie in images of any number of axes."""
    sizes, kernel = as_ints(image), as_ints(block)
    n = len(sizes)
    steps, gaps, sides = stride or [1] * n, dilation or [1] * n, pads or [0] * 2 * n
    padded = [size + begin + end for size, begin, end in zip(sizes, sides[:n], sides[n:], strict=True)]
    places = torch.zeros([1] * 2 * n, dtype=torch.int64, device=x.device)
    for axis in range(n):
        within = torch.arange(kernel[axis], device=x.device) * gaps[axis]
        count = (padded[axis] - gaps[axis] * (kernel[axis] - 1) - 1) // steps[axis] + 1
        begins = torch.arange(count, device=x.device) * steps[axis]
        places = places * padded[axis] + (along(within, axis, 2 * n) + along(begins, axis + n, 2 * n))
    channels = x.shape[1] // math.prod(kernel)
    flat = x.new_zeros(x.shape[0], channels, math.prod(padded))
    flat = flat.index_add(2, places.reshape(-1), x.reshape(x.shape[0], channels, -1))
    return F.pad(flat.reshape(x.shape[0], channels, *padded), [-side for side in interleaved(sides[:n], sides[n:])])
