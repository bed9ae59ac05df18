"""``affine``: a scale and a shift of every channel."""

from __future__ import annotations

from collections.abc import Iterator

from graphmod.methods.compress.fits import fitted
from graphmod.methods.compress.kinds.registry import CLOSED_FORM, kind
from graphmod.methods.compress.part import Part
from graphmod.methods.compress.site import Site


@kind("affine", CLOSED_FORM)
def affine(site: Site) -> Iterator[Part]:
    """Scale and shift channels."""
    yield from fitted(site, "affine")
