"""Generators: tensors that are computed from a shape or from bounds."""

from __future__ import annotations

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, fx

from graphmod.pytorch.operator import Operator, Scalar, number
from graphmod.pytorch.operators.shape import Sizes, as_ints
from graphmod.pytorch.registry import operator


@operator("Constant")
def constant(op: Operator) -> fx.Node:
    """Raise: constants are folded before any conversion."""
    raise op.unsupported("it was not folded")


@operator("ConstantOfShape", since=9)
def constant_of_shape(op: Operator) -> fx.Node:
    """Convert ConstantOfShape of a computed shape."""
    value = op.attribute("value", None)
    array = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    dtype = op.torch_dtype(helper.np_dtype_to_tensor_dtype(array.dtype))
    return op.call(filled, op.ints(0), number(array), dtype, op.neighbour(0))


def filled(sizes: Sizes, value: Scalar, dtype: torch.dtype, like: Tensor | None) -> Tensor:
    """Return a tensor of computed sizes that holds one value, beside another tensor."""
    return torch.full(as_ints(sizes), value, dtype=dtype, device=None if like is None else like.device)


@operator("Range", since=11)
def arange(op: Operator) -> fx.Node:
    """Convert Range; numbers of half precision are always made in single precision."""
    op.requires_arithmetic()
    op.ignore("stash_type")
    dtype = op.torch_dtype(helper.np_dtype_to_tensor_dtype(op.dtype(0)))
    bounds = [op.scalar(index, 0) for index in range(3)]
    beside = next((node for index in range(3) if (node := op.neighbour(index)) is not None), None)
    if not dtype.is_floating_point and all(op.is_size(index) for index in range(3)):
        return op.call(counted, *bounds, dtype, beside)
    return op.call(arange_of, *bounds, dtype, beside)


def counted(start: int, limit: int, delta: int, dtype: torch.dtype, like: Tensor | None) -> Tensor:
    """Return integers from ``start`` to before ``limit``, all sizes, beside another tensor."""
    return torch.arange(start, limit, delta, dtype=dtype, device=None if like is None else like.device)


def arange_of(
    start: Scalar | Tensor, limit: Scalar | Tensor, delta: Scalar | Tensor, dtype: torch.dtype, like: Tensor | None
) -> Tensor:
    """Return numbers from ``start`` to before ``limit``, beside another tensor."""
    first, end, step = (torch.as_tensor(bound, dtype=dtype).item() for bound in (start, limit, delta))
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    return torch.arange(first, end, step, dtype=wide, device=None if like is None else like.device).to(dtype)


@operator("EyeLike", since=9)
def eye_like(op: Operator) -> fx.Node:
    """Convert EyeLike."""
    op.requires_arithmetic()
    to: int | None = op.attribute("dtype", None)
    return op.call(eye_of, op.input(), op.attribute("k", 0), None if to is None else op.torch_dtype(to))


def eye_of(x: Tensor, diagonal: int, dtype: torch.dtype | None) -> Tensor:
    """Return ones on a diagonal of a matrix as large as ``x``."""
    return torch.ones_like(x, dtype=dtype or x.dtype).tril(diagonal).triu(diagonal)


@operator("HannWindow", "HammingWindow", "BlackmanWindow", since=17)
def window(op: Operator) -> fx.Node:
    """Convert a window function."""
    dtype = op.torch_dtype(op.attribute("output_datatype", int(TensorProto.FLOAT)))
    return op.call(COSINES[op.type], op.input(), bool(op.attribute("periodic", 1)), dtype)


def hann(size: Tensor, periodic: bool, dtype: torch.dtype) -> Tensor:
    """Return a Hann window of a computed size."""
    return torch.hann_window(int(size), periodic, device=size.device).to(dtype)


def hamming(size: Tensor, periodic: bool, dtype: torch.dtype) -> Tensor:
    """Return a Hamming window of a computed size, with the constants that ONNX has."""
    return torch.hamming_window(int(size), periodic, 25 / 46, 21 / 46, device=size.device).to(dtype)


def blackman(size: Tensor, periodic: bool, dtype: torch.dtype) -> Tensor:
    """Return a Blackman window of a computed size."""
    return torch.blackman_window(int(size), periodic, device=size.device).to(dtype)


COSINES = {"HannWindow": hann, "HammingWindow": hamming, "BlackmanWindow": blackman}
