"""The site: one operator as a coupling rule sees it, with the labels, shapes and values of what it reads and makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from graphmod.model import Model
from graphmod.pruning.labels import Couplings, Labels
from graphmod.pruning.merging import Merge

Array = NDArray[np.generic]
Axes = list[Labels]
"""The labels of all axes of a tensor."""


class Uncoupled(Exception):  # a signal between rules and the analysis, no error that users see
    """A rule cannot tell how indices correspond; what the operator touches is kept, for this reason."""


@dataclass(frozen=True, eq=False)
class Site:
    """One operator in a coupling analysis.

    Parameters
    ----------
    operator : NodeProto
    name : str
        The operator's name in the model.
    opset : int
        The version of the operator's domain.
    couplings : Couplings
    model : Model
        The network, for rules that ask what makes or reads a tensor.
    shapes : callable
        The shape of a tensor; None where it is not known.
    values : callable
        The value of a small tensor that follows from constants and shapes; None of others.
    axes : callable
        The labels of a tensor that the operator reads.
    constant : callable
        Whether a tensor follows from constants alone.
    merges : list of Merge
        Axes made of several factors, of which one is chosen later; rules add to them.
    produced : list of Labels
        Axes that weights of this operator make; rules add to them.
    notes : dict of str to Labels
        What the rule remembers for the removal.
    """

    operator: NodeProto
    name: str
    opset: int
    couplings: Couplings
    model: Model
    shapes: Callable[[str], tuple[int, ...] | None]
    values: Callable[[str], Array | None]
    axes: Callable[[str], Axes]
    constant: Callable[[str], bool]
    merges: list[Merge]
    produced: list[Labels]
    notes: dict[str, Labels] = field(default_factory=dict)

    def __str__(self) -> str:
        """Render as ``Conv 'stem'``."""
        return f"{self.operator.op_type} '{self.name}'"

    # -- what it reads and makes

    def has(self, place: int) -> bool:
        """Whether an input is given."""
        return place < len(self.operator.input) and bool(self.operator.input[place])

    def shape(self, place: int = 0) -> tuple[int, ...]:
        """Return the shape of an input."""
        return self._shape(self.operator.input[place])

    def made(self, place: int = 0) -> tuple[int, ...]:
        """Return the shape of an output."""
        return self._shape(self.operator.output[place])

    def _shape(self, tensor: str) -> tuple[int, ...]:
        shape = self.shapes(tensor)
        if shape is None:
            raise Uncoupled(f"{self} reads or makes '{tensor}', whose shape is not known")
        return shape

    def labels(self, place: int = 0) -> Axes:
        """Return the labels of an input, by axis."""
        self._shape(self.operator.input[place])
        return list(self.axes(self.operator.input[place]))

    def value(self, place: int) -> Array | None:
        """Return the value of an input that follows from constants and shapes; None if it does not, or is not there."""
        return self.values(self.operator.input[place]) if self.has(place) else None

    def is_constant(self, place: int) -> bool:
        """Whether an input follows from constants alone."""
        return self.constant(self.operator.input[place])

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return the value of an attribute."""
        return next((helper.get_attribute_value(a) for a in self.operator.attribute if a.name == name), default)

    def axis(self, default: int, rank: int) -> int:
        """Return the attribute ``axis``, counted from the start."""
        return self.counted([int(self.attribute("axis", default))], rank)[0]

    def counted(self, axes: Sequence[int], rank: int) -> list[int]:
        """Return axes counted from the start.

        Raises
        ------
        Uncoupled
            There is no such axis.
        """
        if not all(-rank <= axis < rank for axis in axes):
            raise Uncoupled(f"{self} names an axis that a tensor of {rank} axes does not have")
        return [axis % rank for axis in axes]

    def integers(self, place: int, name: str) -> list[int] | None:
        """Return a parameter that is an input of newer operators and an attribute of older ones.

        Raises
        ------
        Uncoupled
            The input is given, and its value is not known.
        """
        if not self.has(place):
            found = self.attribute(name)
            return None if found is None else [int(i) for i in np.ravel(found)]
        value = self.value(place)
        if value is None:
            raise Uncoupled(f"{self} reads '{self.operator.input[place]}', whose value is computed from data")
        return [int(i) for i in np.ravel(value)]

    def check_sizes(self, place: int) -> None:
        """Check that an input which names what the operator makes can follow.

        Raises
        ------
        Uncoupled
            It is computed from data, and the file does not say that it is always the same.
        """
        kind = self.model.tensors.get(self.operator.output[0])
        is_fixed = kind is not None and kind.shape is not None and all(isinstance(size, int) for size in kind.shape)
        if not is_fixed:
            self.integers(place, "shape")

    # -- what a rule says

    def fresh(self, size: int) -> Labels:
        """Return new labels."""
        return self.couplings.fresh(size)

    def kept(self, size: int, why: str) -> Labels:
        """Return new labels that are kept."""
        labels = self.couplings.fresh(size)
        self.couplings.keep(labels, why)
        return labels

    def tie(self, left: Labels, right: Labels) -> None:
        """Tie labels pairwise."""
        if len(left) != len(right):
            raise Uncoupled(f"{self} reads sizes that do not fit together; shapes of inputs that fit are needed")
        self.couplings.tie(left, right)

    def keep(self, axes: Sequence[Labels], why: str) -> None:
        """Keep axes."""
        for labels in axes:
            self.couplings.keep(labels, why)

    def discourage(self, *axes: Labels) -> None:
        """Note axes that should rather not lose indices."""
        for labels in axes:
            self.couplings.prefer(labels, carries=False)

    def merge(self, whole: Labels, factors: Sequence[Labels]) -> None:
        """Say that an axis is a product of factors, the last one running fastest; one of them can lose indices."""
        wide = [factor for factor in factors if len(factor) > 1]
        if len(whole) != prod(map(len, factors)):
            raise Uncoupled(f"{self} divides an axis of {len(whole)} in a way that does not come out even")
        if len(wide) == 1:
            self.tie(whole, wide[0])
        elif wide:
            self.merges.append(Merge(whole, tuple(wide), str(self)))

    def produce(self, labels: Labels) -> None:
        """Say that an axis is made by weights of this operator: what is made together is one group."""
        self.produced.append(labels)

    def note(self, **labels: Labels) -> None:
        """Remember labels for the removal."""
        self.notes.update(labels)

    def broadcast(self, operands: Sequence[Axes], shape: Sequence[int]) -> Axes:
        """Tie the axes of operands that broadcast to a shape, and return those of the result."""
        found: list[Labels | None] = [None] * len(shape)
        for axes in operands:
            for axis, labels in enumerate(axes, len(shape) - len(axes)):
                if len(labels) == shape[axis]:
                    known = found[axis]
                    if known is None:
                        found[axis] = labels
                    else:
                        self.tie(known, labels)
        return [self.fresh(size) if labels is None else labels for size, labels in zip(shape, found, strict=True)]

    def broadcast_to(self, place: int, axes: Axes) -> None:
        """Tie an input that is there, and broadcasts to other axes, such as a bias or a scale."""
        if self.has(place):
            for labels, ours in zip(reversed(self.labels(place)), reversed(axes), strict=False):
                if len(labels) == len(ours):
                    self.tie(labels, ours)
