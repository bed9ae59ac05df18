"""``retained``: of the blocks of a run one stays, and a linear map of channels makes up for the others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from graphmod.graph import subgraph
from graphmod.methods.compress.kinds.registry import SEARCHED, kind
from graphmod.methods.compress.part import Part, as_model, declared
from graphmod.methods.compress.site import Site, sums
from graphmod.model import Model
from graphmod.rewrite import Region
from graphmod.rewrite.draft import tensor_names
from graphmod.rewrite.names import rename_tensors
from graphmod.rewrite.replacements import Fit, as_operators, fit


@kind("retained", SEARCHED)
def retained(site: Site) -> Iterator[Part]:
    """Let the block stay behind which a map comes nearest to what the run gives."""
    found = [one for length in site.periods for block in pairwise(site.tensors[::length]) for one in _with(site, block)]
    if found:
        yield min(found, key=lambda one: one.error)


def _with(site: Site, block: tuple[str, str]) -> Iterator[Part]:
    """Yield the run with one block left, if it can begin where the run does and end as it does."""
    types = site.original.tensors
    if types.get(block[0], site.original.inputs.get(block[0])) != types.get(site.entry) or site.axis is None:
        return
    kept = _moved(site, block)
    given = site.values(kept, block[1])
    seen = sums(given, site.y[: len(given)], site.axis, site.rows)
    correction = None if seen is None else fit("linear", seen)
    if correction is None or seen is None or any(step > 1 for step in seen.strides):
        return
    part = _corrected(site, kept, block[1], correction)
    yield Part.ready("retained", site.entry, site.exit, correction.error(seen), part)


def _moved(site: Site, block: tuple[str, str]) -> Model:
    """Return a block as a model that reads the run's entry."""
    part = subgraph(site.original, [block[0]], [block[1]])
    proto = part.editable()
    rename_tensors(proto.graph, {block[0]: site.entry})
    return Model(proto, part.folder)


def _corrected(site: Site, kept: Model, end: str, correction: Fit) -> Model:
    """Return the block with the map behind it."""
    proto = kept.editable()
    inside = dict.fromkeys(tensor_names(proto.graph, proto.graph.node)).keys() - kept.inputs.keys()
    rename_tensors(proto.graph, {name: f"{name}/kept" for name in inside})  # it may hold a fit of the same names
    for operator in proto.graph.node:
        operator.name = operator.name and f"{operator.name}/kept"
    steps, weights = as_operators(correction, Region(f"{end}/kept", site.exit), site.original.tensors[site.exit])
    behind = as_model(site.original, site.entry, site.exit, steps, weights)
    proto.graph.node.extend(behind.operators)
    proto.graph.initializer.extend(behind.initializers.values())
    proto.graph.ClearField("output")
    proto.graph.output.append(declared(site.original, site.exit))
    return Model(proto, kept.folder)
