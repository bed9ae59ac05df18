"""The registry of coupling rules: how indices of what an operator reads correspond to indices of what it makes.

A new operator is a function with ``@couples(...)`` in a file of :mod:`graphmod.pruning.rules`, and beside it one with
``@adapts(...)`` of :mod:`graphmod.pruning.change` where attributes or small inputs hold sizes or indices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphmod.pruning.by_operator import ByOperator
from graphmod.pruning.site import Axes, Site

Rule = Callable[[Site], Sequence[Axes | None]]
"""Ties the labels of what an operator reads, and returns those of what it makes."""

couples: ByOperator[Rule] = ByOperator()
"""Registers a coupling rule for operators of a domain."""

MICROSOFT = "com.microsoft"
