"""Steps: how a parameter's values follow from a constant's in the graph, and how they go back there.

An exporter hides a weight behind Identity, Transpose, Reshape, Cast or DequantizeLinear; a torch module wants its axes
in another order, or its gates. Every such change is a step with a way there and a way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from graphmod.errors import RefusedError
from graphmod.pytorch.dtypes import torch_dtype

Array = NDArray[np.generic]


class Step(Protocol):
    """One change of a constant on its way into a parameter."""

    def there(self, array: Array) -> Array:
        """Return what the step makes of an array."""

    def back(self, array: Array, old: Array) -> Array:
        """Return what ``old`` has to become for the step to make ``array`` of it."""

    def shape_there(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of what the step makes of an array of a shape."""


@dataclass(frozen=True)
class Permute:
    """Another order of axes."""

    order: tuple[int, ...]

    def there(self, array: Array) -> Array:
        """Return a view with permuted axes."""
        return array.transpose(self.order)

    def back(self, array: Array, old: Array) -> Array:  # noqa: ARG002 - a step's signature
        """Return a view with the axes in their old order."""
        return array.transpose(np.argsort(self.order))

    def shape_there(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the permuted shape."""
        return tuple(shape[axis] for axis in self.order)


@dataclass(frozen=True)
class Reshape:
    """Another shape, the same elements in the same order."""

    shape: tuple[int, ...]

    def there(self, array: Array) -> Array:
        """Return the array in the new shape."""
        return array.reshape(self.shape)

    def back(self, array: Array, old: Array) -> Array:
        """Return the array in the old shape."""
        return array.reshape(old.shape)

    def shape_there(self, shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: ARG002 - a step's signature
        """Return the new shape."""
        return self.shape


@dataclass(frozen=True)
class Convert:
    """Another floating-point type."""

    dtype: np.dtype[np.generic]

    def there(self, array: Array) -> Array:
        """Return the array in the new type."""
        return array.astype(self.dtype, copy=False)

    def back(self, array: Array, old: Array) -> Array:
        """Return the array rounded to the old type.

        Raises
        ------
        RefusedError
            A value is larger than the old type can say.
        """
        with np.errstate(over="ignore"):
            rounded = array.astype(old.dtype, copy=False)
        if not np.isfinite(rounded.astype(np.float64)).all() and np.isfinite(array.astype(np.float64)).all():
            raise RefusedError(f"a value of {np.abs(array).max():.3g} is more than {old.dtype} can hold")
        return rounded

    def shape_there(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape as it is."""
        return shape


@dataclass(frozen=True)
class Take:
    """Some indices of an axis, in an order of their own: a direction's gates, as torch has them."""

    axis: int
    indices: tuple[int, ...]

    def _index(self) -> tuple[slice | list[int], ...]:
        return (*[slice(None)] * self.axis, list(self.indices))

    def there(self, array: Array) -> Array:
        """Return the slices."""
        return array[self._index()]

    def back(self, array: Array, old: Array) -> Array:
        """Return the old array with the slices replaced."""
        new = old.copy()
        new[self._index()] = array
        return new

    def shape_there(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with as many indices as are taken."""
        return (*shape[: self.axis], len(self.indices), *shape[self.axis + 1 :])


@dataclass(frozen=True, eq=False)
class Dequantize:
    """Integers, or small floats, into the floats that they stand for.

    Parameters
    ----------
    scale : array
    zero : array, optional
    axis : int
        The axis that a one-dimensional scale belongs to.
    block : int
        The size of blocks along the axis, where the scale has one value a block; else 0.
    """

    scale: Array
    zero: Array | None
    axis: int
    block: int

    def _along(self, parameter: Array, array: Array) -> Array:
        if self.block:
            repeated = np.repeat(parameter, self.block, self.axis)
            return np.take(repeated, range(array.shape[self.axis]), self.axis)
        if parameter.size == 1:
            return parameter.reshape(())
        if parameter.ndim != 1:
            return parameter
        shape = [1] * array.ndim
        shape[self.axis] = parameter.size
        return parameter.reshape(shape)

    def there(self, array: Array) -> Array:
        """Return ``(array - zero) * scale``."""
        wide = array.astype(np.float32)
        if self.zero is not None:
            wide = wide - self._along(self.zero, array).astype(np.float32)
        return np.multiply(wide, self._along(self.scale, array), dtype=self.scale.dtype, casting="unsafe")

    def back(self, array: Array, old: Array) -> Array:
        """Return the nearest quantized values, rounded as what quantizes when the network runs rounds.

        Raises
        ------
        RefusedError
            A value lies so far outside what the scale can say that more than rounding would be lost.
        """
        wide = np.float64 if old.dtype.itemsize > 2 else np.float32  # 32-bit levels need more digits than floats have
        scale = self._along(self.scale, old).astype(wide)
        ratio: Array = array.astype(wide) / np.where(scale == 0, 1, scale).astype(wide)
        levels = ratio.astype(np.float64)
        zero = np.zeros((), old.dtype) if self.zero is None else self._along(self.zero, old)
        whole, shifts_whole = ("int" in array.dtype.name for array in (old, zero))
        if whole and shifts_whole:  # a half is rounded before it is shifted
            levels = np.round(levels)
        levels = levels + zero.astype(np.float64)
        if whole:
            levels = np.round(levels)
        low, high = (float(limit) for limit in _limits(old.dtype))
        if not np.isfinite(levels).all():
            raise RefusedError("a quantized weight has become infinite or no number; train with a smaller step")
        beyond = float(np.max(np.maximum(levels - high, low - levels), initial=0.0))
        if beyond > max(1.0, 0.01 * (high - low)):
            raise RefusedError(
                f"training moved quantized weights {beyond:.0f} steps beyond what their scale can say "
                f"({low:.0f} to {high:.0f}); let write_back cut them off there (saturate=True), or train them less far"
            )
        return np.clip(levels, low, high).astype(old.dtype)

    def shape_there(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape as it is."""
        return shape


Steps = tuple[Step, ...]


def forward(steps: Steps, array: Array) -> Array:
    """Return what the steps make of an array.

    Examples
    --------
    >>> forward((Permute((1, 0)), Reshape((6,))), np.arange(6).reshape(2, 3)).tolist()
    [0, 3, 1, 4, 2, 5]
    """
    return reduce(lambda made, step: step.there(made), steps, array)


def backward(steps: Steps, array: Array, old: Array) -> Array:
    """Return what ``old`` has to become for the steps to make ``array`` of it.

    Examples
    --------
    >>> backward((Permute((1, 0)), Reshape((6,))), np.array([0, 3, 1, 4, 2, 5]), np.zeros((2, 3))).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    if not steps:
        return array
    first, *others = steps
    return first.back(backward(tuple(others), array, first.there(old)), old)


def saturated(steps: Steps, array: Array, old: Array) -> Array:
    """Return an array cut off at what the steps can make of any values of the old array's type."""
    if not any(isinstance(step, Dequantize) for step in steps):
        return array
    ends = [forward(steps, np.full_like(old, limit)) for limit in _limits(old.dtype)]
    return np.clip(array, np.minimum(*ends), np.maximum(*ends))


def _limits(dtype: np.dtype[np.generic]) -> tuple[float, float]:
    limits: Any = (ml_dtypes.iinfo if "int" in dtype.name else ml_dtypes.finfo)(dtype)
    return limits.min, limits.max


def forward_shape(steps: Steps, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of what the steps make of an array of a shape.

    Examples
    --------
    >>> forward_shape((Permute((1, 0)), Take(0, (0, 2))), (4, 3))
    (2, 4)
    """
    return reduce(lambda made, step: step.shape_there(made), steps, shape)


def without_identities(steps: Sequence[Step], shape: tuple[int, ...]) -> Steps:
    """Drop steps that change nothing and join permutations, for an array of a shape."""
    kept: list[Step] = []
    for step in steps:
        if isinstance(step, Permute):
            if kept and isinstance(last := kept[-1], Permute):
                kept.pop()
                step = Permute(tuple(last.order[axis] for axis in step.order))
            if step.order != tuple(range(len(step.order))):
                kept.append(step)
        elif not (isinstance(step, Reshape) and not kept and step.shape == shape):
            kept.append(step)
    return tuple(kept)


def restep(
    graph: fx.Graph, node: fx.Node, held: Steps, wanted: Steps, shape: tuple[int, ...], dtype: torch.dtype
) -> fx.Node | None:
    """Return a node for a constant as one reader wants it, made from the parameter as another reader holds it.

    ``shape`` and ``dtype`` are the constant's before any step. None where a step that only goes one way lies between.
    """
    n = 0
    while n < min(len(held), len(wanted)) and held[n] == wanted[n]:
        n += 1
    shapes = [shape]
    for step in held:
        shapes.append(step.shape_there(shapes[-1]))
    for i in range(len(held) - 1, n - 1, -1):
        match held[i]:
            case Permute(order):
                node = graph.call_method("permute", (node, *(int(axis) for axis in np.argsort(order))))
            case Reshape():
                node = graph.call_method("reshape", (node, *shapes[i]))
            case Convert():
                node = graph.call_method("to", (node, dtype))
            case _:
                return None
    for step in wanted[n:]:
        match step:
            case Permute(order):
                node = graph.call_method("permute", (node, *order))
            case Reshape(sizes):
                node = graph.call_method("reshape", (node, *sizes))
            case Convert(narrow):
                node = graph.call_method("to", (node, torch_dtype(narrow)))
            case Take(axis, indices):
                node = graph.call_function(getitem, (node, (*[slice(None)] * axis, list(indices))))
            case _:
                return None
    return node
