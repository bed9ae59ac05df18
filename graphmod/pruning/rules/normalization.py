"""Normalisations: scales are tied to the axes that they scale; statistics are of what is left."""

from __future__ import annotations

from collections.abc import Sequence

from graphmod.pruning.change import Change, adapts
from graphmod.pruning.labels import Labels
from graphmod.pruning.registry import MICROSOFT, couples
from graphmod.pruning.rules.convolution import per_channel
from graphmod.pruning.site import Axes, Site


def statistics(site: Site, data: Axes, axes: Sequence[int]) -> Axes:
    """Return the labels of statistics over some axes, which become 1 long."""
    return [site.fresh(1) if axis in axes else labels for axis, labels in enumerate(data)]


@couples("BatchNormalization")
def batch_normalization(site: Site) -> list[Axes]:
    """Tie scale, bias, mean and variance to the channels; early ones may have values for every position too."""
    data = site.labels(0)
    channels: Labels = data[1] if len(data) > 1 else site.kept(1, f"{site} of one channel")
    if site.attribute("spatial", 1):
        per_channel(site, channels, [1, 2, 3, 4])
    else:
        for place in range(1, 5):
            site.broadcast_to(place, data)
    return [data, *([channels] for _ in site.operator.output[1:])]


@couples("InstanceNormalization")
def instance_normalization(site: Site) -> list[Axes]:
    """Tie scale and bias to the channels."""
    data = site.labels(0)
    per_channel(site, data[1], [1, 2])
    return [data]


@couples("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_normalization(site: Site) -> list[Axes]:
    """Tie scale and bias to the last axes."""
    data = site.labels(0)
    for place in (1, 2):
        site.broadcast_to(place, data)
    first = site.axis(-1, len(data))
    mean = statistics(site, data, range(first, len(data)))
    return [data, mean, mean]


@couples("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_normalization(site: Site) -> list[Axes]:
    """Tie both inputs, and scale and biases to the last axis."""
    data = site.broadcast([site.labels(0), site.labels(1)], site.made())
    for place in range(2, len(site.operator.input)):
        site.broadcast_to(place, data)
    mean = statistics(site, data, [len(data) - 1])
    return [data, mean, mean, data]


@couples("GroupNormalization")
def group_normalization(site: Site) -> list[Axes]:
    """Let whole groups go, or the same places in each."""
    data = site.labels(0)
    n_groups = site.attribute("num_groups")
    groups = site.fresh(n_groups)
    site.merge(data[1], [groups, site.fresh(len(data[1]) // n_groups)])
    site.note(groups=groups)
    for place in (1, 2):
        labels = site.labels(place)[0]
        if len(labels) == len(data[1]):
            site.tie(labels, data[1])
        elif len(labels) == n_groups:
            site.tie(labels, groups)
    return [data]


@adapts("GroupNormalization")
def fewer_groups(site: Site, change: Change) -> None:
    """Count the groups that are left."""
    change.set("num_groups", change.count(site.notes["groups"]))


@couples("LpNormalization", "MeanVarianceNormalization", "LRN")
def free_of_weights(site: Site) -> list[Axes]:
    """Hand the labels on."""
    return [site.labels()]
