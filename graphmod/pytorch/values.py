"""Values that flow through a network: tensors, arrays of what PyTorch has no tensors of, sequences and optionals.

A sequence is a Python list, an empty optional is None. Strings, and numbers below eight bits, stay NumPy arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from graphmod.pytorch.dtypes import has_tensor, to_array, to_tensor

Value = Any
"""A tensor, an array, a list of them, or None."""


def to_value(array: Any, device: torch.device | None = None) -> Value:
    """Return what the network computes with for an array, a list of arrays, or None.

    Examples
    --------
    >>> to_value([np.ones(2, np.float32), np.array(["a"], object)])
    [tensor([1., 1.]), array(['a'], dtype=object)]
    """
    if array is None or isinstance(array, Tensor):
        return array
    if isinstance(array, list | tuple):
        return [to_value(item, device) for item in array]
    array = np.asarray(array)
    if not has_tensor(array.dtype):
        return array.astype(object) if array.dtype.kind in "US" else array
    return to_tensor(array).to(device)


def to_numpy(value: Value) -> Any:
    """Return the array of a tensor, the arrays of a list of tensors; arrays and None as they are.

    Examples
    --------
    >>> to_numpy([torch.ones(2), None])
    [array([1., 1.], dtype=float32), None]
    """
    if isinstance(value, Tensor):
        return to_array(value)
    if isinstance(value, list | tuple):
        return [to_numpy(item) for item in value]
    return value


def device_of(*values: Value) -> torch.device | None:
    """Return the device of the first tensor among values."""
    for value in values:
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, list | tuple) and (found := device_of(*value)) is not None:
            return found
    return None
