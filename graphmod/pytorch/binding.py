"""Bindings: which tensor of the graph is which parameter or buffer of the network, and in which order of axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from graphmod.pytorch.dtypes import to_array

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Weight:
    """A constant on its way into a module.

    ``permutation`` leads from the axes of the graph's ``tensor`` to those of the module's parameter; ``index`` is the
    operator's input that reads it.
    """

    tensor: str
    permutation: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    value: Callable[[], Array]
    index: int = 0


@dataclass(frozen=True)
class Binding:
    """One place of the network where a tensor of the graph lives.

    Parameters
    ----------
    tensor : str
        Name of the tensor in the graph: an initializer, or what a constant operator makes.
    path : str
        Dotted path of the parameter or buffer.
    permutation : tuple of int
        Leads from the tensor's axes to the parameter's.
    shape : tuple of int
        The tensor's shape.
    dtype : str
        The tensor's element type.
    reader : tuple of (str, int), optional
        First output of the operator, and position of its input, for running statistics: these are never shared, even
        where two operators read one tensor.
    """

    tensor: str
    path: str
    permutation: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    reader: tuple[str, int] | None = None

    def original(self, value: Tensor) -> Array:
        """Return a parameter's value with the tensor's axes and element type.

        Examples
        --------
        >>> import torch
        >>> Binding("w", "fc.weight", (1, 0), (2, 3), "float32").original(torch.zeros(3, 2)).shape
        (2, 3)
        """
        dtype = np.dtype(ml_dtypes.bfloat16 if self.dtype == "bfloat16" else self.dtype)
        array = to_array(value).transpose(np.argsort(self.permutation))
        return np.ascontiguousarray(array.astype(dtype, copy=False)).reshape(self.shape)
