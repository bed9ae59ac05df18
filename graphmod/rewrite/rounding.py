"""Rounding: the values of a float tensor in another float type."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from graphmod.errors import RefusedError

Array = NDArray[np.generic]


def stands_for_infinity(array: Array) -> NDArray[np.bool_]:
    """Return where an array holds the largest number of its type, or infinity: what masks are made of."""
    limit = _limits(array.dtype).max
    return np.asarray(np.abs(array) >= limit, bool)


def fits(array: Array, element: int) -> bool:
    """Whether no number of an array is too large for a float type."""
    return bool(np.isfinite(_cast(array, element)).all())


def rounded(array: Array, element: int, name: str, saturate: bool) -> Array:
    """Return an array in another float type, each number rounded to the nearest.

    The largest number of the old type stands for infinity, as masks use it: it becomes the largest of the new one. A
    single number that would round to zero (an epsilon) becomes the smallest of the new type instead.

    Parameters
    ----------
    array : array
    element : int
        The new type, as ``TensorProto`` counts them.
    name : str
        Of the tensor, for messages.
    saturate : bool
        Whether numbers that are too large become the largest of the new type.

    Raises
    ------
    RefusedError
        A number is too large for the new type.
    """
    found = _cast(array, element)
    limits = _limits(found.dtype)
    if array.size == 1 and not found.any() and array.any():
        return np.copysign(np.full(array.shape, limits.smallest_subnormal, found.dtype), array).astype(found.dtype)
    if not np.isfinite(found).all():
        over = np.isinf(found) & np.isfinite(array)
        beyond = over & ~stands_for_infinity(array)
        if beyond.any() and not saturate:
            worst = np.abs(np.where(beyond, array, 0)).max()
            raise RefusedError(
                f"tensor '{name}' holds {worst:.4g}, and the largest {found.dtype} is {float(limits.max):.4g}; pass "
                "saturate=True to take that instead, or keep the operators that read it as they are"
            )
        found = np.where(over, np.copysign(np.asarray(limits.max, found.dtype), found), found)
    return found


def _limits(dtype: np.dtype[np.generic]) -> Any:
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]  # as ml_dtypes has it


def _cast(array: Array, element: int) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(array.astype(helper.tensor_dtype_to_np_dtype(element)))


def retyped(tensor: TensorProto, array: Array, element: int, saturate: bool) -> TensorProto:
    """Return a tensor with its values, ``array``, in another float type; name, doc string and metadata stay."""
    fresh = TensorProto(name=tensor.name, doc_string=tensor.doc_string, data_type=element, dims=tensor.dims)
    fresh.metadata_props.extend(tensor.metadata_props)
    fresh.raw_data = rounded(array, element, tensor.name, saturate).tobytes()
    return fresh
