"""Attention operators: heads go as units, and query heads with the key and value head that they share."""

from __future__ import annotations

from collections.abc import Sequence

from graphmod.pruning.change import Change, adapts
from graphmod.pruning.labels import Labels
from graphmod.pruning.registry import MICROSOFT, couples
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
    """Let heads of query, key and value go together."""
    if len(site.operator.output) > 1 or any(site.has(place) for place in (4, 6, 7)):
        raise Uncoupled(f"{site} has a cache or a mask of keys")
    query, key, value = (site.labels(place) for place in range(3))
    if [len(axes) for axes in (query, key, value)] != [3, 3, 3]:
        raise Uncoupled(f"{site} reads query, key and value packed in one")
    heads = site.fresh(site.attribute("num_heads"))
    widths = [_heads(site, axes, heads) for axes in (query, key, value)]
    why = f"the width of a head, or a position, of {site}"
    site.keep([*widths, query[1], key[1], value[1]], why)
    if site.has(3):
        bias = site.labels(3)[0]
        _tie_in_turn(site, bias, [query[2], key[2], value[2]])
    _added_to_scores(site, 5, heads)
    site.note(heads=heads)
    joined = site.fresh(site.made()[2])
    site.merge(joined, [heads, widths[2]])
    return [[query[0], query[1], joined]]


@adapts("MultiHeadAttention", domain=MICROSOFT)
@adapts("Attention", domain=MICROSOFT)
def fewer_own_heads(site: Site, change: Change) -> None:
    """Count the heads that are left; the scale is that of a head's width, which stays."""
    change.set("num_heads", change.count(site.notes["heads"]))


def _tie_in_turn(site: Site, whole: Labels, parts: Sequence[Labels]) -> None:
    start = 0
    for part in parts:
        site.tie(whole[start : start + len(part)], part)
        start += len(part)


@couples("Attention", domain=MICROSOFT)
def packed_attention(site: Site) -> list[Axes]:
    """Let heads go in the packed projection of query, key and value."""
    if len(site.operator.output) > 1 or site.has(4) or site.attribute("qkv_hidden_sizes") is not None:
        raise Uncoupled(f"{site} has a cache, or parts of different sizes")
    data, weight = site.labels(0), site.labels(1)
    site.tie(data[2], weight[0])
    heads = site.fresh(site.attribute("num_heads"))
    n_out = len(weight[1]) // 3
    three = site.kept(3, f"query, key and value of {site}")
    width = site.kept(n_out // len(heads), f"the width of a head of {site}")
    site.merge(weight[1], [three, heads, width])
    _added_to_scores(site, 5, heads)
    if site.has(2):
        site.tie(site.labels(2)[0], weight[1])
    site.keep([data[1]], f"positions of {site}")
    site.produce(weight[1])
    site.note(heads=heads)
    joined = site.fresh(n_out)
    site.merge(joined, [heads, width])
    return [[data[0], data[1], joined]]


@couples("RotaryEmbedding")
def rotary_embedding(site: Site) -> list[Axes]:
    """Let whole heads go; places within a head are paired."""
    data = site.labels()
    why = f"{site} pairs places within a head"
    site.keep([data[-2]], f"positions of {site}")
    if len(data) == 4:
        site.keep([data[3]], why)
    else:
        heads = site.fresh(site.attribute("num_heads"))
        site.merge(data[2], [heads, site.kept(len(data[2]) // len(heads), why)])
        site.note(heads=heads)
    return [data]


@adapts("RotaryEmbedding")
def fewer_rotated_heads(site: Site, change: Change) -> None:
    """Count the heads that are left."""
    if "heads" in site.notes:
        change.set("num_heads", change.count(site.notes["heads"]))
