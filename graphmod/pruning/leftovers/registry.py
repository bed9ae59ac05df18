"""The registry of rules by operator: what it makes of channels that are constant, and where it takes them in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from graphmod.pruning.by_operator import ByOperator
from graphmod.pruning.leftovers.known import Known

if TYPE_CHECKING:
    from graphmod.pruning.leftovers.reading import Reading

Rule = Callable[["Reading"], Sequence[Known | None]]
"""Returns what is known of every output, None where nothing is."""

settles: ByOperator[Rule] = ByOperator()
"""Registers a rule about constants for operators of a domain."""
