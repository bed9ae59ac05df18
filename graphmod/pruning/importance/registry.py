"""The registry of importances: what a unit is worth, in numbers that can be compared within a group.

A new importance is a function with ``@importance("name")`` in a file of this package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch
from graphmod.errors import InvalidDataError
from graphmod.pruning.groups import Group, Groups
from graphmod.registry import Registry

Scores = NDArray[np.float64]

Found = TypeVar("Found")

MOST = 1024
"""Samples that importances look at, at most: more of them hardly change an order, and take their time."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an importance may look at.

    Parameters
    ----------
    found : Groups
        All groups of the network.
    data : Data, optional
        Calibration samples, with targets where there are any.
    seed : int
        Same seed, same scores.
    progress : bool
        Show a progress bar while samples run.
    """

    found: Groups
    data: Data | None = None
    seed: int = 0
    progress: bool = False
    _known: dict[Callable[[Evidence], Any], Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def samples(self) -> Data:
        """The samples to look at: of more than 1,024 so many, drawn with the seed.

        Raises
        ------
        InvalidDataError
            There are none.
        """
        if self.data is None:
            raise InvalidDataError(
                "this importance looks at what the network computes and needs samples: pass data=, or take one that "
                "looks at weights alone, such as l2"
            )
        return self.once(_drawn)

    def once(self, compute: Callable[[Evidence], Found]) -> Found:
        """Return what a function makes of this evidence; it is computed once for all groups."""
        if compute not in self._known:
            self._known[compute] = compute(self)
        return cast(Found, self._known[compute])


def _drawn(evidence: Evidence) -> Data:
    data = evidence.data
    assert data is not None
    fixed = fixed_batch(evidence.found.model) or 1
    if len(data) <= max(MOST, fixed):
        return data
    n = max(1, MOST // fixed) * fixed
    return data[np.sort(np.random.default_rng(evidence.seed).choice(len(data), n, replace=False))]


Importance = Callable[[Group, Evidence], Scores]
"""Returns an array of shape (n_units,), finite, at least 0, larger for units that matter more."""

IMPORTANCE: Registry[Importance] = Registry("an importance")
"""All importances by name."""

importance = IMPORTANCE.register


def by_unit(units: NDArray[np.int64], by_index: Scores, n_units: int) -> Scores:
    """Sum values by index of an axis into values by unit; an index of unit -1 belongs to none.

    Examples
    --------
    >>> by_unit(np.array([0, 0, -1, 1]), np.array([1.0, 2.0, 9.0, 4.0]), 3)
    array([3., 4., 0.])
    """
    own = units >= 0
    return np.bincount(units[own], by_index[own], n_units).astype(np.float64)
