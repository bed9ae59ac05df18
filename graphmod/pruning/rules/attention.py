"""Attention operators: heads go as units, and query heads with the key and value head that they share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphmod.pruning.change import Change, adapts
from graphmod.pruning.labels import Labels
from graphmod.pruning.registry import MICROSOFT, couples
from graphmod.pruning.rules.convolution import per_channel
from graphmod.pruning.site import Axes, Site, Uncoupled


def _heads(site: Site, data: Axes, heads: Labels, width: Labels | None = None) -> Labels:
    """Couple heads with a tensor that has them as axis 1, or merged in its last axis; return the width of a head."""
    if len(data) == 4:
        site.tie(data[1], heads)
        return data[3]
    found = site.fresh(len(data[2]) // len(heads)) if width is None else width
    site.merge(data[2], [heads, found])
    return found


def _added_to_scores(site: Site, place: int, heads: Labels) -> None:
    """Couple heads with what is added to the scores of positions, or masks them."""
    if site.has(place):
        added = site.labels(place)
        if len(added) > 2 and len(added[-3]) == len(heads):
            site.tie(added[-3], heads)
        site.keep(added[-2:], f"positions of {site}")


@couples("Attention")
def attention(site: Site) -> list[Axes]:
    """Let key-value heads go with the query heads that read them; the width of a head stays, it sets the scale."""
    query, key, value = (site.labels(place) for place in range(3))
    why = f"the width of a head, or a position, of {site}"
    n_query = len(query[1]) if len(query) == 4 else site.attribute("q_num_heads")
    n_shared = len(key[1]) if len(key) == 4 else site.attribute("kv_num_heads")
    shared = site.fresh(n_shared)
    heads = shared
    if n_query != n_shared:
        heads = site.fresh(n_query)
        repeats = site.kept(n_query // n_shared, f"query heads that {site} lets read one key")
        site.merge(heads, [shared, repeats])
    widths = [_heads(site, query, heads), _heads(site, key, shared)]
    site.tie(*widths)
    of_value = _heads(site, value, shared)
    site.keep([widths[0]], why)
    if len(value) == 3:
        site.keep([of_value], why)
    site.keep([query[-2], key[-2], value[-2]], why)
    for labels in (key[0], value[0]):
        site.tie(query[0], labels)
    _added_to_scores(site, 3, heads)
    for place in (4, 5):
        if site.has(place):
            past = site.labels(place)
            site.tie(past[1], shared)
            site.keep([past[2]], why)
            site.tie(past[3], widths[0] if place == 4 else of_value)
    site.note(heads=heads, shared=shared)
    return _attended(site, query, heads, shared, widths[0], of_value)


def _attended(site: Site, query: Axes, heads: Labels, shared: Labels, width: Labels, of_value: Labels) -> list[Axes]:
    why = f"positions of {site}"
    if len(query) == 4:
        made = [query[0], heads, query[2], of_value]
    else:
        joined = site.fresh(site.made()[2])
        site.merge(joined, [heads, of_value])
        made = [query[0], query[1], joined]
    others: list[Axes] = []
    for place, name in enumerate(site.operator.output[1:], 1):
        if not name:
            others.append([])
        elif place < 3:
            steps = site.kept(site.made(place)[2], why)
            others.append([query[0], shared, steps, width if place == 1 else of_value])
        else:
            others.append([query[0], heads, *(site.kept(n, why) for n in site.made(place)[2:])])
    return [made, *others]


@adapts("Attention")
def fewer_heads(site: Site, change: Change) -> None:
    """Count the heads that are left."""
    for name, labels in (("q_num_heads", "heads"), ("kv_num_heads", "shared")):
        if site.attribute(name) is not None:
            change.set(name, change.count(site.notes[labels]))


@couples("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(site: Site) -> list[Axes]:
    """Let heads of query, key and value go together, with those of a cache."""
    heads = site.fresh(site.attribute("num_heads"))
    why = f"the width of a head, or a position, of {site}"
    query, key, value = (site.labels(place) if site.has(place) else [] for place in range(3))
    if [len(axes) for axes in (query, key, value)] != [3, 3, 3]:
        raise Uncoupled(f"{site} reads query, key and value packed in one, or by head")
    widths = [_heads(site, axes, heads) for axes in (query, key, value)]
    site.keep([*widths, query[1], key[1], value[1]], why)
    if site.has(3):
        parts = np.split(site.labels(3)[0], np.cumsum([len(heads) * len(width) for width in widths])[:2])
        for part, width in zip(parts, widths, strict=True):
            site.merge(part, [heads, width])
    if site.has(4):
        site.keep(site.labels(4), f"positions of {site}")
    _added_to_scores(site, 5, heads)
    _cached(site, (6, 7), heads, why)
    site.note(heads=heads)
    joined = site.fresh(site.made()[2])
    site.merge(joined, [heads, widths[2]])
    caches = _new_caches(site, (1, 2), query[0], heads, why)
    scores = [query[0], heads, *(site.kept(size, why) for size in _known(site, 3)[2:])]
    return [[query[0], query[1], joined], *caches, scores]


def _known(site: Site, place: int) -> Sequence[int]:
    """Return the shape of an output, 1 for all of its four axes where it is not known; () where there is none."""
    if place >= len(site.operator.output) or not site.operator.output[place]:
        return ()
    return site.shapes(site.operator.output[place]) or (1, 1, 1, 1)


def _cached(site: Site, places: Sequence[int], heads: Labels, why: str) -> None:
    """Couple heads with keys and values of earlier positions."""
    for place in places:
        if site.has(place):
            past = site.labels(place)
            site.tie(past[1], heads)
            site.keep(past[2:], why)


def _new_caches(site: Site, made: Sequence[int], batch: Labels, heads: Labels, why: str) -> list[Axes]:
    """Return the labels of keys and values as they are handed to later positions."""
    return [
        [batch, heads, *(site.kept(size, why) for size in shape[2:])] if (shape := _known(site, place)) else []
        for place in made
    ]


@couples("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(site: Site) -> list[Axes]:
    """Let key-value heads go with the query heads that read them, also where all are packed in the query."""
    query, why = site.labels(0), f"the width of a head, or a position, of {site}"
    n_query, n_shared = site.attribute("num_heads"), site.attribute("kv_num_heads")
    shared = heads = site.fresh(n_shared)
    if n_query != n_shared:
        heads = site.fresh(n_query)
        site.merge(heads, [shared, site.kept(n_query // n_shared, f"query heads that {site} lets read one key")])
    if site.has(1):
        parts = [query[2], *(site.labels(place)[2] for place in (1, 2))]
        width = len(query[2]) // n_query
        site.keep([site.labels(place)[1] for place in (1, 2)], why)
    else:
        width = len(query[2]) // (n_query + 2 * n_shared)
        parts = np.split(query[2], [n_query * width, (n_query + n_shared) * width])
    for part, own in zip(parts, (heads, shared, shared), strict=True):
        site.merge(part, [own, site.kept(width, why)])
    site.keep([query[1]], why)
    _cached(site, (3, 4), shared, why)
    for place in (7, 8, 9, 14, 15):  # tables of rotations, positions, scales of a head's places
        if site.has(place):
            site.keep(site.labels(place), why)
    _added_to_scores(site, 10, heads)
    per_channel(site, heads, [11])
    if any(site.has(place) for place in (12, 13)):
        raise Uncoupled(f"{site} has a quantised cache")
    site.note(heads=heads, shared=shared)
    joined = site.fresh(n_query * width)
    site.merge(joined, [heads, site.kept(width, why)])
    scores = [query[0], heads, *(site.kept(size, why) for size in _known(site, 3)[2:])]
    return [[query[0], query[1], joined], *_new_caches(site, (1, 2), query[0], shared, why), scores]


@adapts("GroupQueryAttention", domain=MICROSOFT)
def fewer_heads_and_keys(site: Site, change: Change) -> None:
    """Count the heads that are left."""
    change.set("num_heads", change.count(site.notes["heads"]))
    change.set("kv_num_heads", change.count(site.notes["shared"]))


@adapts("MultiHeadAttention", domain=MICROSOFT)
@adapts("Attention", "QAttention", domain=MICROSOFT)
def fewer_own_heads(site: Site, change: Change) -> None:
    """Count the heads that are left; the scale is that of a head's width, which stays."""
    change.set("num_heads", change.count(site.notes["heads"]))


@couples("Attention", domain=MICROSOFT)
def packed_attention(site: Site) -> list[Axes]:
    """Let heads go in the packed projection of query, key and value."""
    if len(site.operator.output) > 1 or site.has(4) or site.attribute("qkv_hidden_sizes") is not None:
        raise Uncoupled(f"{site} has a cache, or parts of different sizes")
    made = _packed(site)
    _added_to_scores(site, 5, site.notes["heads"])
    return made


@couples("QAttention", domain=MICROSOFT)
def quantised_packed_attention(site: Site) -> list[Axes]:
    """Let heads go in the packed projection, with scales and zero points by column."""
    if len(site.operator.output) > 1 or site.has(8):
        raise Uncoupled(f"{site} has a cache")
    made = _packed(site)
    per_channel(site, site.labels(1)[1], [4, 7])
    return made


def _packed(site: Site) -> list[Axes]:
    data, weight = site.labels(0), site.labels(1)
    site.tie(data[2], weight[0])
    heads = site.fresh(site.attribute("num_heads"))
    n_out = len(weight[1]) // 3
    three = site.kept(3, f"query, key and value of {site}")
    width = site.kept(n_out // len(heads), f"the width of a head of {site}")
    site.merge(weight[1], [three, heads, width])
    if site.has(2):
        site.tie(site.labels(2)[0], weight[1])
    site.keep([data[1]], f"positions of {site}")
    site.produce(weight[1])
    site.note(heads=heads)
    joined = site.fresh(n_out)
    site.merge(joined, [heads, width])
    return [[data[0], data[1], joined]]


@couples("RotaryEmbedding")
@couples("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(site: Site) -> list[Axes]:
    """Let whole heads go; places within a head are paired."""
    data = site.labels()
    why = f"{site} pairs places within a head"
    tables = (2, 3) if site.operator.domain == MICROSOFT else (1, 2)
    for place in range(1, 4):  # rotations, and the positions at which they are
        if site.has(place):
            of = site.labels(place)
            has_samples = len(of) > 1 and (len(of) == 3 or place not in tables)
            if has_samples and len(of[0]) == len(data[0]):
                site.tie(of[0], data[0])
            site.keep(of[has_samples:], why)
    site.keep([data[-2]], f"positions of {site}")
    if len(data) == 4:
        site.keep([data[3]], why)
    else:
        n_heads = site.attribute("num_heads", 0) or len(data[2]) // (2 * site.shape(tables[0])[-1])
        heads = site.fresh(n_heads)
        site.merge(data[2], [heads, site.kept(len(data[2]) // n_heads, why)])
        site.note(heads=heads)
    return [data]


@adapts("RotaryEmbedding")
@adapts("RotaryEmbedding", domain=MICROSOFT)
def fewer_rotated_heads(site: Site, change: Change) -> None:
    """Count the heads that are left, where they are counted."""
    if "heads" in site.notes and site.attribute("num_heads", 0):
        change.set("num_heads", change.count(site.notes["heads"]))
