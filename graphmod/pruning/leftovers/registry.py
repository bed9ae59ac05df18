"""The registry of rules by operator: what it makes of channels that are constant, and where it takes them in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from graphmod.pruning.leftovers.known import Known

if TYPE_CHECKING:
    from graphmod.pruning.leftovers.reading import Reading

Rule = Callable[["Reading"], Sequence[Known | None]]
"""Returns what is known of every output, None where nothing is."""

SETTLING: dict[tuple[str, str], Rule] = {}


def settles(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register a rule about constants for operators of a domain."""

    def register(rule: Rule) -> Rule:
        SETTLING.update(dict.fromkeys([(domain, op_type) for op_type in op_types], rule))
        return rule

    return register
