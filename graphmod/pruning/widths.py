"""Widths: how long every axis is once units are gone, and what the network costs then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from graphmod.graph.costs import mac_products
from graphmod.model import Model
from graphmod.pruning.groups import Groups, Units
from graphmod.pruning.labels import Labels
from graphmod.rewrite.fusions.affine import UNFUSED

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

    def products(self, axes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the products in which some axes are."""
        order, starts = self._by_axis
        some = axes[axes < len(starts) - 1]
        return np.unique(np.concatenate([np.empty(0, np.int64), *(order[starts[i] : starts[i + 1]] for i in some)]))

    @cached_property
    def _by_axis(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The products of all axes, one axis after another, and where those of each begin."""
        flat = self.axes.ravel()
        order = np.argsort(flat, kind="stable")
        return order // self.axes.shape[1], np.searchsorted(flat[order], np.arange(flat.max(initial=0) + 2))


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
    def _of_all(self) -> Callable[[Alive], NDArray[np.int64]]:
        return counting(self.units[1:])

    def __call__(self, alive: Alive) -> NDArray[np.int64]:
        """Return the width of every axis by its number; that of number 0 is 1."""
        return self._of_all(alive)

    @cached_property
    def axes_of(self) -> list[NDArray[np.int64]]:
        """The numbers of the axes along which each group lies, in the order of the groups."""
        group_of = self.found.group_of
        axes: list[list[int]] = [[] for _ in self.found]
        for number, units in enumerate(self.units[1:], 1):
            for place in np.unique(group_of[units[units >= 0]]).tolist():
                axes[place].append(number)
        return [np.array(own, np.int64) for own in axes]

    @cached_property
    def weights(self) -> Polynomial:
        """The number of weights, without those of what :func:`graphmod.unfuse` put in until training is over."""
        return self.weights_of(self.found.model.constants)

    def weights_of(self, constants: Iterable[str]) -> Polynomial:
        """Return the number of weights in some constants; see :attr:`weights`."""
        model, axes = self.found.model, self.found.analysis.axes
        passing = set(_fused_away(model))
        products = []
        for name in constants:
            kind = model.constants[name]
            if kind.is_float and name not in passing:
                products.append(self._product([(labels, len(labels)) for labels in axes.get(name, ())], kind.size))
        return _polynomial(products)

    @cached_property
    def macs(self) -> Polynomial:
        """The multiply-accumulates of one sample."""
        model, axes = self.found.model, self.found.analysis.axes
        products = []
        for product in (product for operator in model.operators for product in mac_products(operator)):
            lengths: list[tuple[Labels, int]] = []
            for tensor, place in product:
                kind = model.tensors.get(tensor)
                sizes = kind.shape if kind is not None and kind.shape is not None else ()
                labels = axes.get(tensor, [])
                if len(labels) == len(sizes):
                    counted = [
                        len(one) if isinstance(size, int) else 1 for one, size in zip(labels, sizes, strict=True)
                    ]
                    lengths += list(zip(labels, counted, strict=True))[place]
            products.append(self._product(lengths, prod(count for _, count in lengths)))
        return _polynomial(products)

    def _product(self, lengths: list[tuple[Labels, int]], whole: int) -> tuple[float, list[int]]:
        """Return a product of lengths as what is fixed, and the axes that vary."""
        varying = [(self.number(labels), count) for labels, count in lengths]
        fixed = whole / prod(count for number, count in varying if number) if whole else 0.0
        return fixed, [number for number, _ in varying if number]


def _fused_away(model: Model) -> Iterator[str]:
    """Yield the weights of BatchNormalizations that will be fused again, but for the biases that layers then get."""
    for operator in model.operators:
        if any(entry.key == UNFUSED for entry in operator.metadata_props):
            layer = model.operators[model.producer[operator.input[0]]]
            has_bias = layer.op_type == "Add" or len(layer.input) > 2
            scale, bias, mean, variance = operator.input[1:5]
            yield from (scale, mean, variance, *([bias] if has_bias else []))


def counting(axes: Sequence[Units]) -> Callable[[Alive], NDArray[np.int64]]:
    """Return a function that tells the widths of some axes, by their units: 1, and then theirs.

    Examples
    --------
    >>> counting([np.array([0, 0, -1]), np.array([1, 2])])(np.array([False, True, True])).tolist()
    [1, 1, 2]
    """
    if not axes:
        return lambda _: np.ones(1, np.int64)
    every, starts = np.concatenate(axes), np.cumsum([0, *map(len, axes[:-1])])
    stays = every < 0  # an index that belongs to no unit
    return lambda alive: np.append(1, np.add.reduceat(alive[every] | stays, starts, dtype=np.int64))


class Counted:
    """A cost that follows from widths alone: weights, or multiply-accumulates.

    Parameters
    ----------
    widths : Widths
    polynomial : Polynomial
    """

    def __init__(self, widths: Widths, polynomial: Polynomial):
        self.widths, self.polynomial = widths, polynomial
        self._parts: dict[int, Callable[[Alive], float]] = {}

    def __call__(self, alive: Alive) -> float:
        """Return what the network costs when some units are left."""
        return self.polynomial(self.widths(alive))

    def part(self, place: int, alive: Alive) -> float:
        """Return how much of it depends on the units of a group."""
        if place not in self._parts:
            self._parts[place] = self._part(place)
        return self._parts[place](alive)

    def _part(self, place: int) -> Callable[[Alive], float]:
        products = self.polynomial.products(self.widths.axes_of[place])
        axes = self.polynomial.axes[products]
        own = np.union1d(0, axes)
        polynomial = Polynomial(self.polynomial.factors[products], np.searchsorted(own, axes))
        widths = counting([self.widths.units[number] for number in own[1:]])
        return lambda alive: polynomial(widths(alive))


def _polynomial(products: list[tuple[float, list[int]]]) -> Polynomial:
    width = max((len(axes) for _, axes in products), default=0)
    axes = np.zeros((len(products), max(1, width)), np.int64)
    for row, (_, own) in enumerate(products):
        axes[row, : len(own)] = own
    return Polynomial(np.array([factor for factor, _ in products]), axes)
