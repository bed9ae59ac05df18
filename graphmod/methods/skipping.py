"""Skipping blocks by identity: in the graph, for good, or in a measurement, one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import Block, subgraph
from graphmod.model import Model
from graphmod.probe import predict, stream
from graphmod.rewrite import Region
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.region import bridge, check_passes_through

Array = NDArray[np.generic]

StandIn = Callable[[Array], Array]
"""What takes a region's place: activations at its entry to those at its exit, sample by sample."""

_BUDGET = 1 << 28
"""Bytes of activations that are held at a time."""


def skip(model: Model, blocks: Sequence[Block | Region]) -> Model:
    """Return the model without some blocks: what follows each reads what it reads.

    Unlike one ``gm.remove`` after the other it knows blocks that follow each other by the names they have in ``model``.

    Parameters
    ----------
    model : Model
    blocks : sequence of Block or Region
        In the network's order, none within another.

    Raises
    ------
    RefusedError
        A block has another type at its exit than at its entry.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> layer = gm.blocks(m)["layer1"]
    >>> shorter = skip(m, layer.children[2:5])
    >>> [block.path for block in gm.blocks(shorter)["layer1"].children]
    ['layer1.0', 'layer1.1', 'layer1.5', 'layer1.6']
    """
    if not blocks:
        return model
    draft = Draft(model)
    instead: dict[str, str] = {}
    for block in blocks:
        region = Region(block.entry, block.exit)
        check_passes_through(model, region, "; graphmod.replace fits a layer in between")
        instead[block.exit] = instead.get(block.entry, block.entry)  # it may have gone with an earlier block
        bridge(draft, Region(instead[block.exit], block.exit))
    return draft.finish()


def outputs_without(
    model: Model,
    regions: Sequence[Region],
    data: Data,
    output: str | None = None,
    stand_ins: Sequence[StandIn] | None = None,
) -> tuple[Array, list[Array]]:
    """Return a network's output, and what it is without each of some regions, one at a time.

    What lies before the regions runs once for all of them; for each, what lies behind it runs on the activations at its
    entry. No edited model is built. Samples are taken so many at a time that activations at the entries fit in 256 MB.

    Parameters
    ----------
    model : Model
    regions : sequence of Region
        Exits are boundaries of the trunk.
    data : Data
    output : str, optional
        The tensor that is wanted; the first float output if None.
    stand_ins : sequence of callable, optional
        For each region what is in its place, a function of the activations at its entry; the identity if None.

    Returns
    -------
    array, shape (samples, ...)
        The output of the whole network.
    list of array
        For each region the output without it.

    Raises
    ------
    RefusedError
        The first axis at a region's entry is not the batch.
    """
    wanted = output or model.main_output
    entries = list(dict.fromkeys(region.entry for region in regions))
    unit = fixed_batch(model) or 1
    size = sum(4 * model.tensors[name].size for name in entries if name in model.tensors)
    whole: list[Array] = []
    without: list[list[Array]] = [[] for _ in regions]
    suffixes: dict[str, Model] = {}
    for chunk in data.batches(max(unit, _BUDGET // max(1, size)), unit):
        batches = [values for _, values in stream(model, chunk, list(dict.fromkeys([*entries, wanted])), 256)]
        values = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        whole.append(values[wanted])
        for place, (region, found) in enumerate(zip(regions, without, strict=True)):
            activations = values[region.entry]
            if len(activations) != len(chunk):
                raise RefusedError(
                    f"the first axis of '{region.entry}' is not the batch, so nothing can stand in for what follows"
                )
            instead = activations if stand_ins is None else stand_ins[place](activations)
            if region.exit != wanted:
                if region.exit not in suffixes:
                    suffixes[region.exit] = subgraph(model, [region.exit], [wanted])
                suffix = suffixes[region.exit]
                shared = {name: chunk.inputs[name] for name in suffix.inputs if name in chunk.inputs}
                instead = predict(suffix, Data({**shared, region.exit: instead}), output=wanted)
            found.append(instead)
    return np.concatenate(whole), [np.concatenate(found) for found in without]
