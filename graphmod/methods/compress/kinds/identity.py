"""``identity``: nothing; the run goes."""

from __future__ import annotations

from collections.abc import Iterator

from graphmod.methods.compress.fits import fitted
from graphmod.methods.compress.kinds.registry import CLOSED_FORM, kind
from graphmod.methods.compress.part import Part
from graphmod.methods.compress.site import Site


@kind("identity", CLOSED_FORM)
def identity(site: Site) -> Iterator[Part]:
    """Connect the exit to the entry."""
    yield from fitted(site, "identity")
