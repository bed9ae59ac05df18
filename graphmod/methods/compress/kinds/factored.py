"""``factored``: the run with its layers split into two thinner ones each, at a rank that keeps most of their energy."""

from __future__ import annotations

from collections.abc import Iterator

from graphmod.errors import RefusedError
from graphmod.methods.compress.kinds.registry import SEARCHED, kind
from graphmod.methods.compress.part import Part
from graphmod.methods.compress.site import Site
from graphmod.rewrite import low_rank

ENERGY = 0.9
"""Share of a weight's squared singular values that stays."""


@kind("factored", SEARCHED)
def factored(site: Site) -> Iterator[Part]:
    """Split layers by :func:`graphmod.low_rank`."""
    try:
        thinner = low_rank(site.run, energy=ENERGY)
    except RefusedError:  # no layer would shrink
        return
    yield Part.ready("factored", site.entry, site.exit, site.error_of(thinner), thinner)
