"""What a removal asks of one operator: attributes to set, and values that small inputs need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from graphmod.pruning.by_operator import ByOperator
from graphmod.pruning.labels import Labels
from graphmod.pruning.site import Array, Axes, Site

Left = Callable[[Labels], NDArray[np.bool_]]
"""Which indices of an axis are left."""


@dataclass(frozen=True)
class Need:
    """A value that an input must have.

    Parameters
    ----------
    value : array
    serves : callable, optional
        Whether another value does as well.
    """

    value: Array
    serves: Callable[[Array], bool] | None = None

    def is_met(self, value: Array) -> bool:
        """Whether the input may have this value."""
        same = value.shape == self.value.shape and np.array_equal(value, self.value, equal_nan=value.dtype.kind == "f")
        return same or (self.serves is not None and self.serves(value))


@dataclass(frozen=True, eq=False)
class Change:
    """How one operator must change.

    Parameters
    ----------
    read, written : list of Axes
        The labels of inputs and outputs; empty where there are none.
    alive : callable
        Which labels are left, of an axis.
    """

    read: list[Axes]
    written: list[Axes]
    alive: Left
    attributes: dict[str, Any] = field(default_factory=dict)
    needs: dict[int, Need] = field(default_factory=dict)

    def count(self, labels: Labels) -> int:
        """Return how many indices of an axis are left."""
        return int(self.alive(labels).sum())

    def shape(self, place: int = 0) -> NDArray[np.int64]:
        """Return the shape that an input is left with."""
        return np.array([self.count(labels) for labels in self.read[place]], np.int64)

    def made(self, place: int = 0) -> NDArray[np.int64]:
        """Return the shape that an output must have."""
        return np.array([self.count(labels) for labels in self.written[place]], np.int64)

    def set(self, name: str, value: Any) -> None:
        """Say what an attribute must be; None takes it away."""
        self.attributes[name] = value

    def need(self, place: int, value: NDArray[Any], serves: Callable[[Array], bool] | None = None) -> None:
        """Say what the value of an input must be, or which values do as well."""
        self.needs[place] = Need(value, serves)


Adaptation = Callable[[Site, Change], None]
"""Says which attributes and small inputs an operator needs once indices are gone."""

adapts: ByOperator[Adaptation] = ByOperator()
"""Registers what operators of a domain need once indices are gone."""


def adapted(operator: NodeProto, site: Site | None, axes: Mapping[str, Axes], left: Left) -> Change:
    """Set the attributes of an operator, in place, as what is left needs them, and return what else it needs."""
    change = Change(
        [axes.get(name, []) for name in operator.input], [axes.get(name, []) for name in operator.output], left
    )
    rule = adapts.of(operator)
    if rule is not None and site is not None:
        rule(site, change)
    for name, value in change.attributes.items():
        _set_attribute(operator, name, value)
    return change


def _set_attribute(operator: NodeProto, name: str, value: Any) -> None:
    """Set an attribute where it is, or add it at the end; None takes it away."""
    own = next((attribute for attribute in operator.attribute if attribute.name == name), None)
    if value is None:
        kept = [attribute for attribute in operator.attribute if attribute.name != name]
        del operator.attribute[:]
        operator.attribute.extend(kept)
    elif own is None:
        operator.attribute.append(helper.make_attribute(name, value))
    elif helper.get_attribute_value(own) != value:
        own.CopyFrom(helper.make_attribute(name, value, own.doc_string))


def at_other_size(needed: Array, first: Array | None, other: Array) -> Array:
    """Return what is needed at another size of dynamic dimensions: what does not follow from them is the same.

    Parameters
    ----------
    needed : array
        What is needed at the first size.
    first, other : array
        What there was at the first size, and at the other.

    Examples
    --------
    >>> at_other_size(np.array([2, 32]), np.array([2, 64]), np.array([3, 64]))
    array([ 3, 32])
    """
    if first is None or first.shape != needed.shape or first.shape != other.shape:
        return needed
    scaled: Any = needed
    if first.dtype.kind in "iu":
        old, new, want = (value.astype(np.int64) for value in (first, other, needed))
        scaled = new * want // np.where(old == 0, 1, old)
    return np.where(needed == first, other, np.where(first == other, needed, scaled))
