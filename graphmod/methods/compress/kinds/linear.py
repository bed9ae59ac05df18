"""``linear``: a linear map of channels, as a 1x1 convolution, with a stride where the size changes, or a product."""

from __future__ import annotations

from collections.abc import Iterator

from graphmod.methods.compress.fits import fitted
from graphmod.methods.compress.kinds.registry import CLOSED_FORM, kind
from graphmod.methods.compress.part import Part
from graphmod.methods.compress.site import Site


@kind("linear", CLOSED_FORM)
def linear(site: Site) -> Iterator[Part]:
    """Map channels linearly."""
    yield from fitted(site, "linear")
