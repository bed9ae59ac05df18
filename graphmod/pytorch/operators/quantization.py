"""Quantization to few bits and back, per tensor, per axis or in blocks.

What quantizes makes levels, see :mod:`graphmod.pytorch.levels`. Rounding hands gradients straight on, cutting off at
the type's limits does not (Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, CVPR 2018, section 3), so that everything before a quantization can be trained.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, fx

from graphmod.pytorch.dtypes import numpy_dtype
from graphmod.pytorch.levels import as_integers, levels_of, name_of
from graphmod.pytorch.operator import Operator
from graphmod.pytorch.registry import operator

FLOATS: dict[str, torch.dtype] = {
    name: getattr(torch, name) for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
}
"""Small floats to which PyTorch can round."""


@operator("QuantizeLinear", since=10)
def quantize_linear(op: Operator) -> fx.Node:
    """Convert QuantizeLinear."""
    code, precision = op.attribute("output_dtype", 0), op.attribute("precision", 0)
    dtype = op.dtype(2) if op.has(2) else numpy_dtype(code or 2)
    if dtype is None or not (dtype.name in FLOATS or "int" in dtype.name):
        raise op.unsupported(f"rounding to {dtype} has no counterpart")
    small = FLOATS.get(dtype.name)
    if small is not None:
        op.requires(saturate=1)
    op.ignore("saturate")  # of integers, which always do
    levels = op.call(
        quantize, levels_of(op.input(0)), op.fixed(1), op.fixed(2), op.attribute("axis", 1),
        op.attribute("block_size", 0), limits_of(dtype), small, op.torch_dtype(precision) if precision else None,
    )  # fmt: skip
    return op.call(as_integers, levels, name_of(dtype))


def limits_of(dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return the least and the greatest number of a type.

    Examples
    --------
    >>> limits_of(np.dtype(ml_dtypes.int4)), limits_of(np.dtype(ml_dtypes.float8_e5m2))
    ((-8.0, 7.0), (-57344.0, 57344.0))
    """
    info: Any = ml_dtypes.iinfo if "int" in dtype.name else ml_dtypes.finfo
    limits = info(dtype)
    return float(limits.min), float(limits.max)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero: Any = None,
    axis: int = 1,
    block: int = 0,
    limits: tuple[float, float] = (0.0, 255.0),
    small: torch.dtype | None = None,
    precision: torch.dtype | None = None,
) -> Tensor:
    """Divide by the scale, round, shift by the zero point and cut off at the limits.

    Parameters
    ----------
    x, scale, zero : Tensor
        A scale and a zero point are one number, one an index of ``axis``, or one a block of ``block`` indices.
    axis, block : int
    limits : tuple of float
    small : torch.dtype, optional
        A type of eight-bit floats to round to, rather than to integers, half to even.
    precision : torch.dtype, optional
        In which to divide, rather than in the scale's type.

    Returns
    -------
    Tensor
        Levels in single precision, or double where ``x`` has that.
    """
    precision = precision or scale.dtype
    levels = x.to(precision) / along(scale, x, axis, block).to(precision)
    if levels.dtype in (torch.float16, torch.bfloat16):
        levels = levels.float()
    if small is not None:
        return rounded(levels.clamp(*limits), small)
    levels = rounded(levels)
    if zero is not None:
        levels = levels + along(_tensor(zero, scale), x, axis, block)
    return levels.clamp(*limits)


def rounded(x: Tensor, small: torch.dtype | None = None) -> Tensor:
    """Round to integers, half to even, or to small floats; the gradient is that of no rounding.

    Examples
    --------
    >>> x = torch.tensor([0.5, 1.7], requires_grad=True)
    >>> rounded(x), *torch.autograd.grad(rounded(x).sum(), x)
    (tensor([0., 2.], grad_fn=<_RoundedBackward>), tensor([1., 1.]))
    """
    made: Tensor = _Rounded.apply(x, small)  # type: ignore[no-untyped-call]  # torch's
    return made


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, small: torch.dtype | None) -> Tensor:
        return torch.round(x) if small is None else x.to(small).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # noqa: ARG004 - autograd's signature
        return grad, None


@operator("DequantizeLinear", since=10)
def dequantize_linear(op: Operator) -> fx.Node:
    """Convert DequantizeLinear."""
    code = op.attribute("output_dtype", 0)
    return op.call(
        dequantize, levels_of(op.input(0)), op.fixed(1), op.fixed(2), op.attribute("axis", 1),
        op.attribute("block_size", 0), op.torch_dtype(code) if code else None,
    )  # fmt: skip


def dequantize(
    x: Any, scale: Tensor, zero: Any = None, axis: int = 1, block: int = 0, dtype: torch.dtype | None = None
) -> Tensor:
    """Subtract the zero point and multiply by the scale; ``x`` holds integers, or levels of them."""
    x = _tensor(x, scale)
    wide = x if x.is_floating_point() else x.to(torch.float64 if x.dtype == torch.int32 else torch.float32)
    if zero is not None:
        wide = wide - along(_tensor(zero, scale), x, axis, block)
    dtype = dtype or scale.dtype
    made: Tensor = wide.to(dtype) * along(scale, x, axis, block).to(dtype)
    return made


@operator("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(op: Operator) -> tuple[fx.Node, ...]:
    """Convert DynamicQuantizeLinear; the scale and the zero point count as constant for gradients."""
    levels, scale, zero = op.items(op.call(dynamic_quantize, op.input()), 3)
    return op.call(as_integers, levels, torch.uint8), scale, zero


def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize to levels from 0 to 255 by the range of the values, in which 0 has to lie."""
    low, high = x.detach().min().clamp(max=0), x.detach().max().clamp(min=0)
    scale = torch.where(high > low, (high - low) / 255, 1.0)
    zero = torch.round((-low / scale).clamp(0, 255)).to(torch.uint8)
    return quantize(x, scale, zero), scale, zero


def _tensor(x: Any, like: Tensor) -> Tensor:
    """Return numbers that PyTorch has no type for, which are an array, as floats."""
    return x if isinstance(x, Tensor) else torch.from_numpy(np.asarray(x).astype(np.float32)).to(like.device)


def along(parameter: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """Shape a scale or a zero point so that it broadcasts along an axis."""
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if parameter.numel() == 1:
        return parameter.reshape(())
    if parameter.ndim != 1:
        raise ValueError("a scale has to be one number, one an index of the axis, or one a block")
    shape = [1] * x.ndim
    shape[axis] = -1
    return parameter.reshape(shape)
