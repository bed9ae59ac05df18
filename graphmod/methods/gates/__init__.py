"""Gates on units and blocks: a network that computes what it will once some of them are gone, and that network."""

from graphmod.methods.gates.closing import (
    AGREE,
    always_open,
    check_alike,
    check_equal,
    feeds,
    rounded,
    skippable_blocks,
    whole_groups,
    without,
)
from graphmod.methods.gates.gated import Gated

__all__ = [
    "AGREE",
    "Gated",
    "always_open",
    "check_alike",
    "check_equal",
    "feeds",
    "rounded",
    "skippable_blocks",
    "whole_groups",
    "without",
]
