"""What a removal asks of one operator: attributes to set, and values that small inputs need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphmod.prune.labels import Labels
from graphmod.prune.site import Array, Axes


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
    alive: Callable[[Labels], NDArray[np.bool_]]
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
