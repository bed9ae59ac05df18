"""Element types: ONNX, NumPy and PyTorch names of the same thing, and arrays and tensors with the same bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

Array = NDArray[np.generic]

TORCH: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT8: torch.uint8,
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
    TensorProto.BOOL: torch.bool,
    TensorProto.COMPLEX64: torch.complex64,
    TensorProto.COMPLEX128: torch.complex128,
}
"""PyTorch's name of an ONNX element type."""

_NAMES = frozenset(helper.tensor_dtype_to_np_dtype(code).name for code in TORCH)

HALF = frozenset({"float16", "bfloat16"})
"""NumPy's names of the types of half precision."""

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def numpy_dtype(code: int) -> np.dtype[np.generic] | None:
    """Return NumPy's name of an ONNX element type, or None for a code that means none."""
    return helper.tensor_dtype_to_np_dtype(code) if code in helper.get_all_tensor_dtypes() else None


def torch_dtype(dtype: np.dtype[np.generic]) -> torch.dtype:
    """Return PyTorch's name of a NumPy type.

    Examples
    --------
    >>> torch_dtype(np.dtype("int64"))
    torch.int64
    """
    return TORCH[helper.np_dtype_to_tensor_dtype(dtype)]


def is_float(dtype: np.dtype[np.generic]) -> bool:
    """Whether tensors of this type can be weights.

    Examples
    --------
    >>> is_float(np.dtype("float16")), is_float(np.dtype("int64"))
    (True, False)
    """
    return dtype == _BFLOAT16 or dtype.name in {"float16", "float32", "float64"}


def has_tensor(dtype: np.dtype[np.generic]) -> bool:
    """Whether PyTorch has tensors of this type and computes with them: not with strings, four or eight bit floats.

    Examples
    --------
    >>> has_tensor(np.dtype("float32")), has_tensor(np.dtype(ml_dtypes.int4)), has_tensor(np.dtype(object))
    (True, False, False)
    """
    return dtype.name in _NAMES


def to_tensor(array: Array) -> Tensor:
    """Return a new tensor with the bits of an array.

    Examples
    --------
    >>> to_tensor(np.ones(2, ml_dtypes.bfloat16))
    tensor([1., 1.], dtype=torch.bfloat16)
    """
    copy = np.array(array, order="C")
    if copy.dtype == _BFLOAT16:
        return torch.from_numpy(copy.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(copy)


def to_array(tensor: Tensor) -> Array:
    """Return an array with the bits of a tensor, wherever that lies.

    Examples
    --------
    >>> to_array(torch.ones(2, dtype=torch.bfloat16)).dtype.name
    'bfloat16'
    """
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(_BFLOAT16)
    array: Array = tensor.numpy()
    return array
