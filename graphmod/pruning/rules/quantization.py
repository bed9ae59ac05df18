"""Quantisation: scales and zero points by channel are tied to the channels."""

from __future__ import annotations

from graphmod.pruning.registry import MICROSOFT, couples
from graphmod.pruning.rules.convolution import per_channel
from graphmod.pruning.site import Axes, Site, Uncoupled


@couples("QuantizeLinear", "DequantizeLinear")
@couples("QuantizeLinear", "DequantizeLinear", domain=MICROSOFT)
def by_channel(site: Site) -> list[Axes]:
    """Hand the labels on; scales and zero points follow the axis."""
    data = site.labels()
    if site.attribute("block_size", 0):
        raise Uncoupled(f"{site} has one scale for a block of several")
    if site.shape(1) not in ((), (1,)):
        per_channel(site, data[site.axis(1, len(data)) if len(data) > 1 else 0], [1, 2])
    return [data]
