"""The registry of schedules: how many weights each layer keeps, and so which.

A new schedule is a function with ``@schedule("name")`` in a file of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphmod.methods.deeparc.sparsity.layers import Layer, Mask
from graphmod.registry import Registry

Schedule = Callable[[Sequence[Layer], int], list[Mask]]
"""From layers and how many of all their weights are kept, a mask a layer: true, so many times, where a weight stays.

What is zero already stays so; at least one weight goes."""

SCHEDULES: Registry[Schedule] = Registry("a schedule")
"""All schedules by name."""

schedule = SCHEDULES.register
