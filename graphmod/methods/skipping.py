"""Skipping blocks by identity: in the graph, for good, or in a measurement, one block at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch
from graphmod.errors import InvalidDataError
from graphmod.graph import Block, subgraph
from graphmod.model import Model
from graphmod.probe import gathered, predict
from graphmod.rewrite import Region
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.region import bridge, check_passes_through

Array = NDArray[np.generic]

StandIn = Callable[[Array], Array]
"""What takes a region's place: activations at its entry to those at its exit, sample by sample."""

_BUDGET = 1 << 28
"""Bytes of activations that are held at a time."""


def skip(model: Model, blocks: Sequence[Block | Region], known: Model | None = None) -> Model:
    """Return the model without some blocks: what follows each reads what it reads.

    Unlike one ``gm.remove`` after the other it knows blocks that follow each other by the names they have in ``model``.

    Parameters
    ----------
    model : Model
    blocks : sequence of Block or Region
        In the network's order, none within another.
    known : Model, optional
        The network before edits after which shapes need not be known, by which types at entries and exits are compared.

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
        check_passes_through(known or model, region, "; graphmod.replace fits a layer in between")
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
        The first axis at a region's entry, or of the output, is not the batch.
    InvalidDataError
        The number of samples is no multiple of what the model's inputs fix.
    """
    wanted = output or model.main_output
    entries = list(dict.fromkeys(region.entry for region in regions))
    unit = fixed_batch(model) or 1
    if len(data) % unit:
        raise InvalidDataError(
            f"the model takes {unit} samples at a time and the data has {len(data)}; leave {len(data) % unit} out"
        )
    size = sum(4 * model.tensors[name].size for name in entries if name in model.tensors)
    whole: list[Array] = []
    without: list[list[Array]] = [[] for _ in regions]
    for chunk in data.batches(max(unit, _BUDGET // max(1, size)), unit):
        values = gathered(model, chunk, [*entries, wanted])
        whole.append(values[wanted])
        for place, (region, found) in enumerate(zip(regions, without, strict=True)):
            instead = values[region.entry] if stand_ins is None else stand_ins[place](values[region.entry])
            if region.exit != wanted:  # its session is not kept: those of all regions hold most weights many times
                suffix = subgraph(model, [region.exit], [wanted])
                shared = {name: chunk.inputs[name] for name in suffix.inputs if name in chunk.inputs}
                instead = predict(suffix, Data({**shared, region.exit: instead}), output=wanted)
            found.append(instead)
    return np.concatenate(whole), [np.concatenate(found) for found in without]
