"""``pruned``: the run with fewer channels inside; what reads them makes up for the others on the samples."""

from __future__ import annotations

from collections.abc import Iterator

from graphmod.errors import RefusedError
from graphmod.methods.compress.kinds.registry import SEARCHED, kind
from graphmod.methods.compress.part import Part
from graphmod.methods.compress.site import Site
from graphmod.pruning import prune

RATIOS = (0.5, 0.75)
"""Shares of every group of channels that go."""


@kind("pruned", SEARCHED)
def pruned(site: Site) -> Iterator[Part]:
    """Remove the least important channels of the run's inner groups, by the norm of their weights."""
    for ratio in RATIOS:
        try:
            smaller = prune(site.run, ratio, data=site.few(site.run))
        except RefusedError:  # there is no group inside
            return
        yield Part.ready(f"pruned {ratio}", site.entry, site.exit, site.error_of(smaller), smaller)
