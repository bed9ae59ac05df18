"""Registries of the rules by operator: how indices correspond, and what must follow when some are gone.

A new operator is a function with ``@couples(...)`` in a file of :mod:`graphmod.prune.rules`, and one with
``@adapts(...)`` beside it where the operator's attributes or small inputs hold sizes or indices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from graphmod.prune.site import Axes, Site

if TYPE_CHECKING:
    from graphmod.prune.change import Change

Rule = Callable[[Site], Sequence[Axes | None]]
"""Ties the labels of what an operator reads, and returns those of what it makes."""

Adaptation = Callable[[Site, "Change"], None]
"""Says which attributes and small inputs an operator needs once indices are gone."""

COUPLING: dict[tuple[str, str], Rule] = {}
ADAPTATION: dict[tuple[str, str], Adaptation] = {}

MICROSOFT = "com.microsoft"


def couples(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a coupling rule for operators of a domain."""

    def register(rule: Rule) -> Rule:
        COUPLING.update(dict.fromkeys([(domain, op_type) for op_type in op_types], rule))
        return rule

    return register


def adapts(*op_types: str, domain: str = "") -> Callable[[Adaptation], Adaptation]:
    """Register what operators of a domain need once indices are gone."""

    def register(rule: Adaptation) -> Adaptation:
        ADAPTATION.update(dict.fromkeys([(domain, op_type) for op_type in op_types], rule))
        return rule

    return register
