"""What changed in the values of a constant: found by its bytes, measured in float64, a chunk at a time."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

import numpy as np
from numpy.typing import NDArray

from graphmod.graph.wiring import Constant
from graphmod.model.stored import Numbers


@dataclass(frozen=True)
class WeightChange:
    """A constant that is another one in the second model.

    Parameters
    ----------
    name, name_after : str
    before, after : str
        Dtype and shape.
    l2, relative, largest : float or None
        The L2 norm of the change, that norm over the L2 norm of the constant before (infinite where that was 0), and
        the largest absolute change of a scalar. None where shapes differ or the constant holds strings.
    operators : tuple of str
        The operators of the first model that read it.
    """

    name: str
    name_after: str
    before: str
    after: str
    l2: float | None
    relative: float | None
    largest: float | None
    operators: tuple[str, ...]


def equal(a: Constant, b: Constant) -> bool:
    """Whether two constants are the same to the bit, sparse or not. Values at one place of one file are not read."""
    if a.shape != b.shape:
        return False
    if stored_alike(a, b):
        return all(one.equals(other) for one, other in zip(a.parts, b.parts, strict=True))
    if a.values.tensor.data_type != b.values.tensor.data_type or a.values.is_text:
        return False
    return bool(np.array_equal(_bits(a), _bits(b)))


def stored_alike(a: Constant, b: Constant) -> bool:
    """Whether both constants are sparse, or neither is."""
    return (a.indices is None) == (b.indices is None)


def _bits(constant: Constant) -> NDArray[np.generic]:
    """Return all scalars of a constant in a row, as bits that can be compared."""
    found = np.frombuffer(b"".join(constant.values.chunks()), f"V{constant.values.dtype.itemsize}")
    if constant.indices is None:
        return found
    dense = np.zeros(prod(constant.shape), found.dtype)
    dense[_places(constant)] = found
    return dense


def norms(a: Constant, b: Constant) -> tuple[float, float, float] | None:
    """Return the L2 norm of a change, its share of the first constant's norm, and the largest change of a scalar.

    Scalars that are NaN in both, or the same infinity, have not changed. None where the two cannot be subtracted.
    """
    if a.shape != b.shape or a.values.is_text or b.values.is_text:
        return None
    if a.indices is None and b.indices is None:
        pairs = zip(a.values.numbers(), b.values.numbers(), strict=True)
    else:
        pairs = zip(*([side] for side in _aligned(a, b)), strict=True)
    squares = before = largest = 0.0
    for left, right in pairs:
        change = _change(left, right)
        scale = np.abs(left)
        squares += float(np.einsum("i,i", change, change))  # a dot product would wake every thread of BLAS
        before += float(np.einsum("i,i", scale, scale))
        largest = float(np.maximum(largest, change.max(initial=0.0)))
    l2 = sqrt(squares) if squares == squares else squares
    relative = l2 / sqrt(before) if before else (float("inf") if l2 else 0.0)
    return l2, relative, largest


def _change(left: Numbers, right: Numbers) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        change: NDArray[np.float64] = np.abs(right - left)
    if not np.isfinite(change.max(initial=0.0)):
        change[(left == right) | (np.isnan(left) & np.isnan(right))] = 0
    return change


def _aligned(a: Constant, b: Constant) -> tuple[Numbers, Numbers]:
    """Return the scalars of two constants, of which one is sparse at least, at all places where either has one."""
    places = [_places(side) for side in (a, b)]
    every = np.union1d(*places)
    found = []
    for side, own in zip((a, b), places, strict=True):
        numbers = np.concatenate([np.zeros(0), *side.values.numbers()])
        spread = np.zeros(every.size, numbers.dtype)
        spread[np.searchsorted(every, own)] = numbers
        found.append(spread)
    return found[0], found[1]


def _places(constant: Constant) -> NDArray[np.int64]:
    """Return the flat positions of a constant's stored scalars."""
    if constant.indices is None:
        return np.arange(int(np.prod(constant.shape)))
    flat = np.concatenate([np.zeros(0, np.int64), *(chunk.astype(np.int64) for chunk in constant.indices.numbers())])
    if len(constant.indices.shape) == 1:
        return flat
    return np.asarray(np.ravel_multi_index(tuple(flat.reshape(constant.indices.shape).T), constant.shape), np.int64)
