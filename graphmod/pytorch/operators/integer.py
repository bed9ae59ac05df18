"""Products and convolutions of quantized numbers.

A constant weight whose scale is known is trained as the float that it stands for, and rounded to its levels whenever
the network runs: what is trained is what the integer model will compute.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, fx

from graphmod.pytorch.levels import as_integers, levels_of, name_of
from graphmod.pytorch.operator import Array, Operator
from graphmod.pytorch.operators.convolution import CONV
from graphmod.pytorch.operators.quantization import along, limits_of, quantize, rounded
from graphmod.pytorch.padding import window_of
from graphmod.pytorch.registry import operator
from graphmod.pytorch.steps import Dequantize


@operator("QLinearConv", since=10)
def quantized_conv(op: Operator) -> fx.Node:
    """Convert QLinearConv."""
    scale, y_scale = op.call(torch.mul, op.fixed(1), op.fixed(4)), op.fixed(6)
    total = _conv(op, (0, 2), (3, 5), _weight(op, 3, 5, op.constant(4), op.fixed(4), axis=0), torch.float32)
    if op.has(8):
        left, right = op.constant(1), op.constant(4)
        product = None if left is None or right is None else np.multiply(left, right)
        total = op.call(add_channels, total, _weight(op, 8, None, product, scale, axis=0))
    return _requantized(op, total, op.call(torch.div, scale, y_scale), 7, axis=1)


@operator("ConvInteger", since=10)
def conv_integer(op: Operator) -> fx.Node:
    """Convert ConvInteger."""
    shape = op.shape(1)
    weight = _dynamic_weight(op, 1, 3, axis=0)
    total = _conv(op, (0, 2), (1, 3), weight, _exact(None if shape is None else shape[1:]))
    return op.call(as_integers, total, torch.int32)


@operator("QLinearMatMul", since=10)
def quantized_matmul(op: Operator) -> fx.Node:
    """Convert QLinearMatMul."""
    weight = _weight(op, 3, 5, op.constant(4), op.fixed(4), axis=-1)
    total = op.call(multiply, levels_of(op.input(0)), op.fixed(2), weight, op.fixed(5), torch.float32)
    scale = op.call(torch.mul, op.call(by_row, op.fixed(1)), op.fixed(4))
    return _requantized(op, total, op.call(torch.div, scale, op.call(by_row, op.fixed(6))), 7)


@operator("MatMulInteger", since=10)
def matmul_integer(op: Operator) -> fx.Node:
    """Convert MatMulInteger."""
    shape = op.shape(1)
    weight = _dynamic_weight(op, 1, 3, axis=-1)
    dtype = _exact(None if shape is None else shape[-2:-1] or shape)
    total = op.call(multiply, levels_of(op.input(0)), op.fixed(2), weight, op.fixed(3), dtype)
    return op.call(as_integers, total, torch.int32)


def _conv(op: Operator, x: tuple[int, int], w: tuple[int, int], weight: fx.Node, dtype: torch.dtype) -> fx.Node:
    """Convolve integers, given where their inputs and zero points are."""
    shape = op.shape(w[0])
    kernel = op.attribute("kernel_shape", list(shape[2:]) if shape is not None else [])
    if len(kernel) not in CONV or not all(isinstance(size, int) for size in kernel):
        raise op.unsupported("its kernel has to have a known size along 1 to 3 axes")
    window = window_of(op, [int(size) for size in kernel if isinstance(size, int)])
    image = window.pad(op, of=op.call(shifted, levels_of(op.input(x[0])), op.fixed(x[1]), 1, dtype))
    kernels = op.call(shifted, weight, op.fixed(w[1]), 0, dtype)
    groups = op.attribute("group", 1)
    _, function = CONV[len(kernel)]
    return op.call(function, image, kernels, None, window.stride, window.padding, window.dilation, groups)


def _weight(
    op: Operator, index: int, zero: int | None, scale: Array | None, scale_node: fx.Node | None, axis: int
) -> fx.Node:
    """Return the levels of an input, from a parameter where it is a weight of this operator alone."""
    value, offset = op.constant(index), None if zero is None else op.constant(zero)
    shared = op.importer.n_readers(op.proto.input[index]) > 1
    missing = zero is not None and op.has(zero) and offset is None
    if value is None or scale is None or shared or missing or not _fits(scale, value, axis):
        return levels_of(op.input(index))
    weight = op.weight_by(index, (Dequantize(scale.reshape(-1) if scale.size > 1 else scale, offset, axis, 0),))
    if weight is None:
        return levels_of(op.input(index))
    zero_node = None if zero is None else op.fixed(zero)
    parameter = op.importer.weights.parameter(weight)
    return op.call(quantize, parameter, scale_node, zero_node, axis, 0, limits_of(value.dtype))


def _fits(scale: Array, value: Array, axis: int) -> bool:
    return scale.size == 1 or (value.ndim > 0 and scale.size == max(scale.shape) == value.shape[axis])


def _dynamic_weight(op: Operator, index: int, zero: int, axis: int) -> fx.Node:
    """Return the levels of a weight whose scale multiplies the result later."""
    name = _scale_after(op)
    if name is None:
        return levels_of(op.input(index))
    node = op.method("reshape", op.importer.weights.buffer(name), -1)
    return _weight(op, index, zero, op.importer.constants.value(name), node, axis)


def _scale_after(op: Operator) -> str | None:
    """Return the constant that scales a product of integers, as ONNX Runtime's quantize_dynamic writes it.

    The product is cast, then multiplied by the constant, or by what multiplies the constant and the input's scale.
    """
    cast = op.sole_reader()
    factor = cast.sole_reader() if cast is not None and cast.type == "Cast" else None
    if cast is None or factor is None or factor.type != "Mul":
        return None
    scales = [name for name in factor.proto.input if name != cast.proto.output[0]]
    maker = op.importer.maker(scales[0]) if scales else None
    if maker is not None and maker.type == "Mul":
        scales += maker.proto.input
    constant = [name for name in scales if name in op.importer.constants]
    return constant[0] if len(constant) == 1 else None


def _requantized(op: Operator, total: fx.Node, factor: fx.Node, zero: int, axis: int = -1) -> fx.Node:
    dtype = op.dtype(zero)
    levels = op.call(requantize, total, factor, op.fixed(zero), axis, limits_of(dtype))
    return op.call(as_integers, levels, name_of(dtype))


def _exact(summed: tuple[int | str | None, ...] | None) -> torch.dtype:
    """Return the type in which sums of products of eight-bit numbers are exact, given the axes that they go along."""
    sizes = [size for size in summed or ("?",) if isinstance(size, int)]
    known = summed is not None and len(sizes) == len(summed)
    return torch.float32 if known and math.prod(sizes) * 255 * 255 < 2**24 else torch.float64


def shifted(levels: Tensor, zero: Tensor | None, axis: int, dtype: torch.dtype) -> Tensor:
    """Subtract the zero point, one number or one an index of an axis."""
    wide = levels.to(dtype)
    return wide if zero is None else wide - along(zero, wide, axis).to(dtype)


def multiply(a: Tensor, a_zero: Tensor | None, b: Tensor, b_zero: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Multiply matrices of integers, whose zero points are one number, one a row of a, or one a column of b."""
    left, right = a.to(dtype), b.to(dtype)
    if a_zero is not None:
        left = left - by_row(a_zero).to(dtype)
    if b_zero is not None:
        right = right - _plain(b_zero).to(dtype)
    return left @ right


def by_row(parameter: Tensor) -> Tensor:
    """Shape a scale or a zero point, one number or one a row, so that it broadcasts with a matrix.

    Examples
    --------
    >>> by_row(torch.ones(3)).shape, by_row(torch.ones(1)).shape
    (torch.Size([3, 1]), torch.Size([]))
    """
    return parameter.unsqueeze(-1) if parameter.ndim == 1 and parameter.numel() > 1 else _plain(parameter)


def _plain(parameter: Tensor) -> Tensor:
    return parameter.reshape(()) if parameter.numel() == 1 else parameter


def add_channels(x: Tensor, bias: Tensor) -> Tensor:
    """Add one number a channel, axis 1."""
    return x + along(bias, x, 1).to(x.dtype)


def requantize(total: Tensor, factor: Tensor, zero: Tensor, axis: int, limits: tuple[float, float]) -> Tensor:
    """Scale sums of products to the output's levels: multiply, round, shift and cut off; see :func:`quantize`."""
    scaled = total * (along(factor, total, axis) if factor.ndim < 2 else factor)
    return (rounded(scaled) + by_row(zero)).clamp(*limits)
