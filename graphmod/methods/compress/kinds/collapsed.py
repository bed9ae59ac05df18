"""``collapsed``: blocks in a row as one, their weights merged, with a linear map behind it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from graphmod.errors import RefusedError
from graphmod.methods.compress.kinds.registry import SEARCHED, kind
from graphmod.methods.compress.part import Part
from graphmod.methods.compress.site import Site
from graphmod.rewrite import collapse
from graphmod.rewrite.region import Place


@kind("collapsed", SEARCHED)
def collapsed(site: Site) -> Iterator[Part]:
    """Merge the run's blocks by :func:`graphmod.collapse`, its boundaries being where blocks end."""
    for length in site.periods:
        blocks: list[Place] = list(pairwise(site.tensors[::length]))
        try:
            merged = collapse(site.run, blocks, site.few(site.run))
        except RefusedError:  # the blocks are not alike
            continue
        yield Part.ready("collapsed", site.entry, site.exit, site.error_of(merged), merged)
        return
