"""Quantization to eight bits and back."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from graphmod.pytorch.dtypes import TORCH
from graphmod.pytorch.operator import Operator
from graphmod.pytorch.registry import operator


def _check(op: Operator) -> None:
    op.requires(block_size=0, saturate=1)


@operator("QuantizeLinear", since=10)
def quantize_linear(op: Operator) -> fx.Node:
    """Convert QuantizeLinear; gradients stop here, as rounding has none."""
    _check(op)
    op.requires(precision=0)
    code = op.attribute("output_dtype", 0)
    if code and code not in TORCH:
        raise op.unsupported(f"element type {code} has no counterpart")
    dtype = TORCH[code] if code else torch.uint8
    return op.call(quantize, op.input(0), op.input(1), op.optional(2), op.attribute("axis", 1), dtype)


def quantize(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int, dtype: torch.dtype) -> Tensor:
    """Divide by the scale, round half to even, shift, and cut off at the type's limits."""
    dtype = dtype if zero is None else zero.dtype
    levels = torch.round(x / _along(scale, x, axis))
    if zero is not None:
        levels = levels + _along(zero, x, axis).to(levels.dtype)
    limits = torch.iinfo(dtype)
    return levels.clamp(limits.min, limits.max).to(dtype)


@operator("DequantizeLinear", since=10)
def dequantize_linear(op: Operator) -> fx.Node:
    """Convert DequantizeLinear."""
    _check(op)
    op.requires(output_dtype=0)
    return op.call(dequantize, op.input(0), op.input(1), op.optional(2), op.attribute("axis", 1))


def dequantize(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """Subtract the zero point and multiply by the scale."""
    wide = x.to(torch.int32)
    if zero is not None:
        wide = wide - _along(zero, x, axis).to(torch.int32)
    return wide.to(scale.dtype) * _along(scale, x, axis)


@operator("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(op: Operator) -> tuple[fx.Node, ...]:
    """Convert DynamicQuantizeLinear."""
    return op.items(op.call(dynamic_quantize, op.input()), 3)


def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize to unsigned bytes by the range of the values."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round((-low / scale).clamp(0, 255)).to(torch.uint8)
    return quantize(x, scale, zero, 0, torch.uint8), scale, zero


def _along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """Shape a scale or a zero point so that it broadcasts along an axis."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    if parameter.ndim != 1:
        raise ValueError("a scale has to be one number, or one an index of the axis")
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)
