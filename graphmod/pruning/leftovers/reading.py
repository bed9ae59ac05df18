"""The reading: one operator as a rule about constants sees it, with what is known of its inputs and what is gone."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from graphmod.model import consumed
from graphmod.pruning.labels import Labels
from graphmod.pruning.leftovers.known import Known, along, spread, unknown
from graphmod.pruning.site import Array, Site

if TYPE_CHECKING:
    from graphmod.pruning.leftovers.propagation import Propagation

Mask = NDArray[np.bool_]

SMALL = 1 << 16
"""Scalars up to which arithmetic on weights alone is followed: that on scales and biases, not on kernels."""


class Reading:
    """One operator among channels that are gone.

    Parameters
    ----------
    site : Site
    state : Propagation
        What is known so far, and what becomes of removed units.
    """

    def __init__(self, site: Site, state: Propagation):
        self.site, self.state = site, state
        self.operator = site.operator
        given = (place for place in range(len(site.operator.input)) if site.has(place))
        self.is_constant = all(map(site.is_constant, given))  # such an operator can mix weights, and makes no channels

    # -- what it reads and makes

    def known(self, place: int) -> Known:
        """Return what is known of an input; of weights that are computed from others, where they are small."""
        name = self.operator.input[place]
        sizes = [len(labels) for labels in self.site.labels(place)]
        if not self.site.is_constant(place):
            value = self.state.known.get(name)
        else:
            value = self.state.constant(name) if not self.is_constant or prod(sizes) <= SMALL else None
        return unknown(len(sizes)) if value is None else value

    def gone(self, place: int, axis: int) -> Mask:
        """Return which indices of an input's axis are removed."""
        return self.state.gone(self.site.labels(place)[axis])

    def is_touched(self, place: int) -> bool:
        """Whether an input loses indices, and is no constant among activations."""
        is_read = self.site.has(place) and (self.is_constant or not self.site.is_constant(place))
        return is_read and self.state.is_touched(self.operator.input[place])

    def made_gone(self, axis: int, output: int = 0) -> Mask:
        """Return which indices of an output's axis are removed."""
        return self.state.gone(self.state.axes(self.operator.output[output])[axis])

    def made_zero(self, axis: int, output: int = 0) -> Known:
        """Return an output that is zero at what is removed of an axis that weights make."""
        rank = len(self.state.axes(self.operator.output[output]))
        return spread(np.where(self.made_gone(axis, output), 0.0, np.nan), rank, axis)

    def weight(self, place: int) -> Array | None:
        """Return the value of a constant input; None if it is computed."""
        return self.state.found.weight(self.operator.input[place])

    def is_fixed(self, place: int) -> bool:
        """Whether an input is a stored constant that nobody can override, or is not there."""
        return not self.site.has(place) or self.state.is_fixed(self.operator.input[place])

    def _is_own(self, place: int) -> bool:
        """Whether an input is a stored constant that nobody can override and nobody else reads."""
        model, name = self.state.found.model, self.operator.input[place]
        is_read_once = len(model.readers[name]) == 1 and list(consumed(self.operator)).count(name) == 1
        return self.state.is_fixed(name) and is_read_once and name not in model.outputs

    def only_reader(self) -> NodeProto | None:
        """Return the operator that alone reads the first output, at one input; None if there is no such."""
        model, made = self.state.found.model, self.operator.output[0]
        positions = model.readers.get(made, ())
        if len(positions) != 1 or made in model.outputs:
            return None
        reader = model.operators[positions[0]]
        return reader if list(consumed(reader)).count(made) == 1 else None

    # -- what becomes of the units

    def is_estimated(self, place: int, axis: int) -> bool:
        """Whether means of data stand for what an input holds."""
        return (self.operator.input[place], axis % len(self.site.labels(place))) in self.state.estimates

    def taken(
        self, place: int, axis: int, which: Mask, only_zero: str = "", weight: tuple[int, int] | None = None
    ) -> Known:
        """Return what channels hold that the operator adds up, 0 for others and for what has to be dropped.

        Parameters
        ----------
        place, axis : int
        which : array of bool
            Which channels, of the whole axis.
        only_zero : str
            Why nothing but zero can be taken in; "" if everything can.
        weight : (int, int), optional
            The input that a contraction's weights are, and their axis that meets this one: if nobody else reads them,
            they take in what other channels tell of these, and what is left of these is returned.
        """
        name, axis = self.operator.input[place], axis % len(self.site.labels(place))
        if which.any():
            self.state.reads[name, axis] = None
        estimate = self.state.estimates.get((name, axis))
        values = along(self.known(place), axis, len(which)) if estimate is None else estimate.mean
        values = np.where(which, values, 0.0)
        if which.any() and weight is not None and self._is_own(weight[0]):
            self.state.mixable[name, axis] = None
            predicted = None if estimate is None else estimate.predicted(which, offset=not only_zero)
            if predicted is not None:
                slopes, values = predicted
                self.state.mix(self.operator, *weight, which, slopes)
        is_missing = which & np.isnan(values)
        is_refused = which & ~is_missing & (values != 0) & bool(only_zero)
        self.drop(place, axis, is_missing, f"{self.site} reads what is no constant without them")
        self.drop(place, axis, is_refused, only_zero)
        if estimate is not None:
            self.drop(place, axis, which, f"{self.site} takes estimates from data in")
        return np.where(is_missing | is_refused, 0.0, values)

    def drop(self, place: int, axis: int, which: Mask, why: str) -> None:
        """Say that what channels hold is not taken in exactly, and why."""
        units = self.state.found.units(self.site.labels(place)[axis][which])
        for unit in np.unique(units[units >= 0]).tolist():
            self.state.dropped.setdefault(unit, why)

    def drop_all(self, why: str) -> None:
        """Say so of all that is removed from the activations that the operator reads."""
        for place in range(len(self.operator.input)):
            if self.is_touched(place):
                for axis in range(len(self.site.labels(place))):
                    self.drop(place, axis, self.gone(place, axis), why)

    def fold(self, operator: NodeProto, place: int, value: Known, labels: Labels) -> None:
        """Let a constant input of an operator take in a value along its last axis."""
        if value.any():
            self.state.fold(operator, place, value, labels)
