"""The registry of schedules: how many weights each layer keeps, and so which.

A new schedule is a function with ``@schedule("name")`` in a file of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphmod.errors import RefusedError
from graphmod.methods.deeparc.sparsity.layers import Layer, Mask

Schedule = Callable[[Sequence[Layer], int], list[Mask]]
"""From layers and how many of all their weights are kept, a mask a layer: true, so many times, where a weight stays.

What is zero already stays so; at least one weight goes."""

SCHEDULES: dict[str, Schedule] = {}
"""All schedules by name."""


def schedule(name: str) -> Callable[[Schedule], Schedule]:
    """Register a schedule.

    Raises
    ------
    RefusedError
        Another module has registered one of that name.
    """

    def register(function: Schedule) -> Schedule:
        known = SCHEDULES.get(name, function)
        if known.__module__ != function.__module__:
            raise RefusedError(f"there is a schedule '{name}' in {known.__module__}; choose another name")
        SCHEDULES[name] = function
        return function

    return register
