"""Bindings: which constant of the graph is which parameter or buffer of the network, and by which steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from graphmod.pytorch.address import Address
from graphmod.pytorch.steps import Dequantize, Permute, Steps

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Source:
    """Where a constant's values come from.

    Parameters
    ----------
    tensor : str
        The float tensor that is trained in its place: an initializer, what a constant operator makes, or what an
        initializer is dequantized to.
    address : Address, optional
        Where in the file the values lie; None for what operators compute, where ``maker`` says which.
    steps : Steps
        Lead from the values in the file to the constant.
    shape : tuple of int
        The values' shape in the file.
    dtype : str
        Their element type there.
    maker : Address, optional
        The operator that computes the values, where no address holds them.
    digest : bytes, optional
        The digest of values that no address holds.
    output : int
        Which of the maker's outputs the values are.
    """

    tensor: str
    address: Address | None
    steps: Steps
    shape: tuple[int, ...]
    dtype: str
    maker: Address | None = None
    digest: bytes | None = None
    output: int = 0

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        """The values' element type in the file, as NumPy's."""
        return np.dtype(getattr(ml_dtypes, self.dtype, self.dtype))

    @property
    def key(self) -> tuple[object, ...]:
        """What two constants have in common that are one weight: where they lie, and how they are dequantized."""
        if self.address is not None:
            quantized = any(isinstance(step, Dequantize) for step in self.steps)
            return (self.address, self.tensor if quantized else "")
        return (self.tensor,) if self.maker is None else (self.maker, self.output)

    @property
    def permutation(self) -> tuple[int, ...] | None:
        """The order in which the axes arrive, where that is all that happens to them."""
        if not self.steps:
            return tuple(range(len(self.shape)))
        return self.steps[0].order if len(self.steps) == 1 and isinstance(self.steps[0], Permute) else None


def digest_of(value: Array) -> bytes:
    """Return a digest of an array's bits."""
    return hashlib.sha256(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data).digest()


@dataclass(frozen=True)
class Weight:
    """A constant on its way into a module; ``index`` is the operator's input that reads it."""

    source: Source
    shape: tuple[int, ...]
    value: Callable[[], Array]
    index: int = 0


@dataclass(frozen=True)
class Binding:
    """One place of the network where a constant of the graph lives.

    Parameters
    ----------
    source : Source
        The constant, with the steps that lead to the parameter.
    path : str
        Dotted path of the parameter or buffer.
    reader : tuple of (Address, int), optional
        The operator, and position of its input, for running statistics: these are never shared, even where two
        operators read one tensor.
    """

    source: Source
    path: str
    reader: tuple[Address, int] | None = None

    @property
    def tensor(self) -> str:
        """Name of the float tensor that the parameter stands for."""
        return self.source.tensor
