"""Operators that take or put entries by index: an axis along which data count stays, the others pass."""

from __future__ import annotations

import numpy as np

from graphmod.pruning.change import Change, adapts
from graphmod.pruning.labels import Labels
from graphmod.pruning.registry import MICROSOFT, couples
from graphmod.pruning.rules.convolution import per_channel
from graphmod.pruning.site import Axes, Site, Uncoupled


@couples("Gather")
def gather(site: Site) -> list[Axes]:
    """Take labels where indices are known; keep an axis that data chooses from."""
    data, indices = site.labels(0), site.labels(1)
    axis = site.axis(0, len(data))
    chosen = site.value(1)
    if chosen is None:
        site.keep([data[axis]], f"{site} looks entries up by index")
        taken = indices
        if site.is_constant(0):
            for labels in (*data[:axis], *data[axis + 1 :]):
                site.produce(labels)
    else:
        picked = data[axis][chosen.astype(np.int64)]
        if picked.ndim != 1:
            site.keep([data[axis]], f"{site} takes entries one by one")
        taken = [picked] if picked.ndim == 1 else indices
    return [[*data[:axis], *taken, *data[axis + 1 :]]]


@adapts("Gather")
def moved_indices(site: Site, change: Change) -> None:
    """Count anew where the indices point, without those that are gone."""
    data, chosen = site.labels(0), site.value(1)
    if chosen is None:
        return
    alive = change.alive(data[site.axis(0, len(data))])
    if not alive.all():
        places = np.cumsum(alive) - 1
        kept = chosen[alive[chosen]] if chosen.ndim else chosen
        change.need(1, places[kept])


@couples("EmbedLayerNormalization", domain=MICROSOFT)
def embeddings(site: Site) -> list[Axes]:
    """Tie the widths of all tables, whose sum is normalised; keep the entries."""
    ids, width = site.labels(0), site.labels(2)[1]
    for place in (2, 3, 4):
        if site.has(place):
            table = site.labels(place)
            site.keep(table[:1], f"{site} looks entries up by index")
            site.tie(table[1], width)
            if site.is_constant(place):
                site.produce(table[1])
    per_channel(site, width, [5, 6])
    made = [*ids, width]
    return [made, ids[:1], made]


def _tie_others(site: Site, data: Axes, axis: int, *places: int) -> None:
    """Tie all axes but one with those of inputs, which have entries for the first indices of each."""
    for place in places:
        for other, (labels, ours) in enumerate(zip(site.labels(place), data, strict=True)):
            if other != axis:
                site.tie(labels, ours[: len(labels)])


@couples("GatherElements")
def gather_elements(site: Site) -> list[Axes]:
    """Keep the axis that is counted along; elsewhere an entry and its index go together."""
    data, indices = site.labels(0), site.labels(1)
    axis = site.axis(0, len(data))
    site.keep([data[axis]], f"{site} looks entries up by index")
    _tie_others(site, data, axis, 1)
    return [indices]


@couples("ScatterElements", "Scatter")
def scatter_elements(site: Site) -> list[Axes]:
    """Keep the axis that is counted along, and what is put there; elsewhere all goes together."""
    data = site.labels(0)
    axis = site.axis(0, len(data))
    site.keep([site.labels(place)[axis] for place in range(3)], f"{site} puts entries by index")
    _tie_others(site, data, axis, 1, 2)
    return [data]


@couples("GatherND")
def gather_nd(site: Site) -> list[Axes]:
    """Keep the axes that tuples of indices count along; batches before them and axes behind them pass."""
    data, indices = site.labels(0), site.labels(1)
    first = int(site.attribute("batch_dims", 0))
    last = first + len(indices[-1])
    site.keep([*data[first:last], indices[-1]], f"{site} looks entries up by index")
    for labels, ours in zip(data[:first], indices, strict=False):
        site.tie(labels, ours)
    return [[*indices[:-1], *data[last:]]]


@couples("ScatterND")
def scatter_nd(site: Site) -> list[Axes]:
    """Keep the axes that tuples of indices count along, and the tuples; axes behind them pass."""
    data, indices, updates = (site.labels(place) for place in range(3))
    n_counted = len(indices[-1])
    site.keep([*data[:n_counted], *indices, *updates[: len(indices) - 1]], f"{site} puts entries by index")
    for labels, ours in zip(updates[len(indices) - 1 :], data[n_counted:], strict=True):
        site.tie(labels, ours)
    return [data]


@couples("TensorScatter")
def update_cache(site: Site) -> list[Axes]:
    """Keep the positions that are written to; all else goes together."""
    data, update = site.labels(0), site.labels(1)
    axis = site.axis(-2, len(data))
    site.keep([data[axis], update[axis]], f"positions of {site}")
    _tie_others(site, data, axis, 1)
    return [data]


@couples("ReverseSequence")
def reverse_sequence(site: Site) -> list[Axes]:
    """Keep the steps; a sequence and its length go together."""
    data = site.labels()
    batch, steps = site.counted([site.attribute("batch_axis", 1), site.attribute("time_axis", 0)], len(data))
    site.keep([data[steps]], f"{site} turns the axis round")
    site.tie(site.labels(1)[0], data[batch])
    return [data]


@couples("OneHot")
def one_hot(site: Site) -> list[Axes]:
    """Add an axis of classes, which stay."""
    made: list[Labels] = site.labels()
    axis = site.axis(-1, len(made) + 1)
    made.insert(axis, site.kept(site.made()[axis], f"classes that {site} counts"))
    return [made]


@couples("Compress", "NonMaxSuppression", "NonZero", "Unique")
def chosen_by_values(site: Site) -> list[Axes]:
    """Keep all."""
    raise Uncoupled(f"{site} chooses by values what it returns")
