"""Widths: how long every axis is once units are gone, and what the network costs then."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from graphmod.graph.costs import mac_axes
from graphmod.pruning.groups import Groups, Units
from graphmod.pruning.labels import Labels

Alive = NDArray[np.bool_]
"""Which units are left, of all groups."""


@dataclass(frozen=True, eq=False)
class Polynomial:
    """A cost that is a sum of products of widths.

    Parameters
    ----------
    factors : array of float
        One a product: what does not depend on widths.
    axes : array of int, shape (n_products, n)
        The numbers of the axes in each product; 0 stands for none.
    """

    factors: NDArray[np.float64]
    axes: NDArray[np.int64]

    def __call__(self, widths: NDArray[np.int64]) -> float:
        """Return the cost at some widths; ``widths[0]`` is 1."""
        return float(self.factors @ widths[self.axes].prod(1, dtype=np.float64)) if len(self.factors) else 0.0


class Widths:
    """The axes that units lie along, each of them once, however many tensors share it.

    Parameters
    ----------
    found : Groups
    """

    def __init__(self, found: Groups):
        self.found = found
        self._number: dict[bytes, int] = {}
        self._of_array: dict[int, int] = {}
        self.units: list[Units] = [np.empty(0, np.int64)]
        for axes in found.analysis.axes.values():
            for labels in axes:
                self.number(labels)

    def number(self, labels: Labels) -> int:
        """Return the number of an axis, 0 if no unit lies along it."""
        known = self._of_array.get(id(labels))
        if known is None:
            units = self.found.unit_of[labels]
            known = 0
            if (units >= 0).any():
                known = self._number.setdefault(units.tobytes(), len(self.units))
                if known == len(self.units):
                    self.units.append(units)
            self._of_array[id(labels)] = known
        return known

    @cached_property
    def _places(self) -> tuple[Units, NDArray[np.int64]]:
        lengths = [len(units) for units in self.units[1:]]
        return np.concatenate([np.empty(0, np.int64), *self.units[1:]]), np.cumsum([0, *lengths[:-1]])

    def __call__(self, alive: Alive) -> NDArray[np.int64]:
        """Return the width of every axis by its number; that of number 0 is 1."""
        every, starts = self._places
        if not len(every):
            return np.ones(1, np.int64)
        left = np.append(alive, True)[every]  # -1 belongs to no unit, and stays
        return np.append(1, np.add.reduceat(left, starts, dtype=np.int64))

    @cached_property
    def weights(self) -> Polynomial:
        """The number of weights."""
        model, axes = self.found.model, self.found.analysis.axes
        products = []
        for name, kind in model.constants.items():
            if kind.is_float:
                products.append(self._product([(labels, len(labels)) for labels in axes.get(name, ())], kind.size))
        return _polynomial(products)

    @cached_property
    def macs(self) -> Polynomial:
        """The multiply-accumulates of one sample."""
        model, axes = self.found.model, self.found.analysis.axes
        products = []
        for operator in model.operators:
            lengths = []
            for tensor, place in mac_axes(operator):
                kind = model.tensors.get(tensor)
                sizes = kind.shape if kind is not None and kind.shape is not None else ()
                labels = axes.get(tensor, [])
                if len(labels) == len(sizes):
                    counted = [
                        one if isinstance(size, int) else 1 for one, size in zip(map(len, labels), sizes, strict=True)
                    ]
                    lengths += list(zip(labels, counted, strict=True))[place]
            if lengths:
                products.append(self._product(lengths, prod(count for _, count in lengths)))
        return _polynomial(products)

    def _product(self, lengths: list[tuple[Labels, int]], whole: int) -> tuple[float, list[int]]:
        """Return a product of lengths as what is fixed, and the axes that vary."""
        varying = [(self.number(labels), count) for labels, count in lengths]
        fixed = whole / prod(count for number, count in varying if number) if whole else 0.0
        return fixed, [number for number, _ in varying if number]


def _polynomial(products: list[tuple[float, list[int]]]) -> Polynomial:
    width = max((len(axes) for _, axes in products), default=0)
    axes = np.zeros((len(products), max(1, width)), np.int64)
    for row, (_, own) in enumerate(products):
        axes[row, : len(own)] = own
    return Polynomial(np.array([factor for factor, _ in products]), axes)
