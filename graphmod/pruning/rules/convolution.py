"""Convolutions: output channels come from the weight; grouped ones lose whole groups, or the same places in each."""

from __future__ import annotations

from collections.abc import Sequence

from graphmod.pruning.change import Change, adapts
from graphmod.pruning.labels import Labels
from graphmod.pruning.registry import MICROSOFT, couples
from graphmod.pruning.site import Axes, Site, Uncoupled


def convolved(site: Site, data: Axes, weight: Axes) -> Axes:
    """Couple data and weight, and return the output's labels."""
    group = site.attribute("group", 1)
    why = f"positions that {site} moves over"
    site.keep([*data[2:], *weight[2:]], why)
    if group == 1:
        site.tie(data[1], weight[1])
    else:
        groups = site.fresh(group)
        site.merge(data[1], [groups, weight[1]])
        site.merge(weight[0], [groups, site.fresh(len(weight[0]) // group)])
        site.note(groups=groups)
    site.produce(weight[0])
    return [data[0], weight[0], *(site.kept(size, why) for size in site.made()[2:])]


def per_channel(site: Site, channels: Labels, places: Sequence[int]) -> None:
    """Tie vectors that hold a value for every channel, such as a bias, or the scales of quantised weights."""
    for place in places:
        if site.has(place) and (axes := site.labels(place)) and len(axes[0]) == len(channels):
            site.tie(axes[0], channels)


@couples("Conv")
@couples("FusedConv", domain=MICROSOFT)
def convolution(site: Site) -> list[Axes]:
    """Tie input channels to the weight's axis 1, output channels to its axis 0 and the bias."""
    made = convolved(site, site.labels(0), site.labels(1))
    per_channel(site, made[1], [2])
    if site.has(3):  # FusedConv adds a residual
        for ours, residual in zip(made, site.labels(3), strict=True):
            site.tie(ours, residual)
    return [made]


@couples("ConvInteger")
def integer_convolution(site: Site) -> list[Axes]:
    """Tie as a convolution does; zero points of weights are per output channel."""
    made = convolved(site, site.labels(0), site.labels(1))
    per_channel(site, made[1], [3])
    return [made]


@couples("QLinearConv")
@couples("QLinearConv", domain=MICROSOFT)
def quantised_convolution(site: Site) -> list[Axes]:
    """Tie as a convolution does; scales and zero points of weights, and the bias, are per output channel."""
    if site.attribute("channels_last", 0):
        raise Uncoupled(f"{site} has its channels last")
    made = convolved(site, site.labels(0), site.labels(3))
    per_channel(site, made[1], [4, 5, 8])
    return [made]


@couples("DeformConv")
def deformable_convolution(site: Site) -> list[Axes]:
    """Tie as a convolution does; channels that share offsets lose the same places."""
    data, offsets = site.labels(0), site.labels(2)
    made = convolved(site, data, site.labels(1))
    per_channel(site, made[1], [3])
    why = f"positions that {site} moves over"
    n_shared = int(site.attribute("offset_group", 1))
    site.merge(data[1], [site.kept(n_shared, why), site.fresh(len(data[1]) // n_shared)])
    for axes in (offsets, *([site.labels(4)] if site.has(4) else [])):
        site.tie(axes[0], data[0])
        site.keep(axes[1:], why)
    return [made]


@couples("ConvTranspose")
def transposed_convolution(site: Site) -> list[Axes]:
    """Tie input channels to the weight's axis 0; output channels are groups times its axis 1."""
    data, weight = site.labels(0), site.labels(1)
    group = site.attribute("group", 1)
    why = f"positions that {site} moves over"
    site.keep([*data[2:], *weight[2:]], why)
    site.tie(data[1], weight[0])
    channels = weight[1]
    if group > 1:
        groups = site.fresh(group)
        site.merge(data[1], [groups, site.fresh(len(data[1]) // group)])
        channels = site.fresh(group * len(weight[1]))
        site.merge(channels, [groups, weight[1]])
        site.note(groups=groups)
    site.produce(channels)
    per_channel(site, channels, [2])
    return [[data[0], channels, *(site.kept(size, why) for size in site.made()[2:])]]


@adapts("Conv", "ConvTranspose", "ConvInteger", "DeformConv", "QLinearConv")
@adapts("FusedConv", "QLinearConv", domain=MICROSOFT)
def fewer_groups(site: Site, change: Change) -> None:
    """Count the groups that are left."""
    if "groups" in site.notes:
        change.set("group", change.count(site.notes["groups"]))
