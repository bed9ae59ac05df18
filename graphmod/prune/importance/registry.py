"""The registry of importances: what a unit is worth, in numbers that can be compared within a group.

A new importance is a function with ``@importance("name")`` in a file of this package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data
from graphmod.prune.groups import Group, Groups

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an importance may look at.

    Parameters
    ----------
    found : Groups
        All groups of the network.
    data : Data, optional
        Calibration samples.
    seed : int
    """

    found: Groups
    data: Data | None = None
    seed: int = 0

    @cached_property
    def shared(self) -> dict[str, object]:
        """What one importance computes once for all groups, by name."""
        return {}


Importance = Callable[[Group, Evidence], Scores]
"""Returns an array of shape (n_units,), larger for units that matter more."""

IMPORTANCE: dict[str, Importance] = {}
"""All importances by name."""


def importance(name: str) -> Callable[[Importance], Importance]:
    """Register an importance."""

    def register(function: Importance) -> Importance:
        IMPORTANCE[name] = function
        return function

    return register
