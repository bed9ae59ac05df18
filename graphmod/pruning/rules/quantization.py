"""Quantisation: scales and zero points by channel are tied to the channels; operators on levels have scalar ones."""

from __future__ import annotations

from graphmod.pruning.registry import MICROSOFT, couples
from graphmod.pruning.rules.convolution import per_channel
from graphmod.pruning.rules.sampling import moved_over
from graphmod.pruning.rules.shape import joined
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


@couples("QLinearLeakyRelu", "QLinearSigmoid", domain=MICROSOFT)
def levels(site: Site) -> list[Axes]:
    """Hand the labels on."""
    return [site.labels()]


@couples("QLinearAdd", "QLinearMul", domain=MICROSOFT)
def sum_of_levels(site: Site) -> list[Axes]:
    """Tie what meets."""
    return [site.broadcast([site.labels(0), site.labels(3)], site.made())]


@couples("QLinearWhere", domain=MICROSOFT)
def choice_of_levels(site: Site) -> list[Axes]:
    """Tie what meets."""
    return [site.broadcast([site.labels(place) for place in (0, 1, 4)], site.made())]


@couples("QLinearConcat", domain=MICROSOFT)
def joined_levels(site: Site) -> list[Axes]:
    """Put labels one after another along the axis, tie the other axes."""
    return [joined(site, range(2, len(site.operator.input), 3))]


@couples("QLinearAveragePool", "QLinearGlobalAveragePool", domain=MICROSOFT)
def pooled_levels(site: Site) -> list[Axes]:
    """Keep the positions; channels may be last."""
    data = site.labels()
    if not site.attribute("channels_last", 0):
        return [moved_over(site, data)]
    why = f"positions that {site} moves over"
    site.keep(data[1:-1], why)
    return [[data[0], *(site.kept(size, why) for size in site.made()[1:-1]), data[-1]]]


@couples("QLinearSoftmax", domain=MICROSOFT)
def softmax_of_levels(site: Site) -> list[Axes]:
    """Keep the axis, along which values compete; before opset 13 all that follow."""
    data = site.labels()
    axis = site.axis(-1, len(data))
    end = len(data) if site.attribute("opset", 0) < 13 else axis + 1
    site.keep(data[axis:end], f"{site} compares the values along the axis")
    return [data]
