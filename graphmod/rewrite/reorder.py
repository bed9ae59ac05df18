"""Reordering blocks that follow each other."""

from __future__ import annotations

from itertools import pairwise

from onnx import NodeProto

from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.region import Place, Region, check_passes_through, find_region, inside
from graphmod.rewrite.verb import verb


@verb(exact=False, example="graphmod reorder resnet.onnx layer1.1 layer1.2 '[1, 0]' --out swapped.onnx")
def reorder(model: Model, places: list[Place], order: list[int]) -> Model:
    """Let blocks that follow each other run in another order.

    Every tensor between them has the same type, and nothing but the next block reads it. Blocks keep their names.

    Parameters
    ----------
    model : Model
    places : list of Block, str or (str, str)
        Blocks or regions, each of which begins where the one before it ends.
    order : list of int
        The numbers of the places, from 0, in the order in which they are to run.

    Raises
    ------
    RefusedError
        There is no such region, they do not follow each other, one changes the type, or a tensor between them is needed
        elsewhere.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> swapped = gm.reorder(m, ["layer1.3", "layer1.4"], [1, 0])
    >>> [block.path for block in gm.blocks(swapped)["layer1"].children][2:5]
    ['layer1.2', 'layer1.4', 'layer1.3']
    """
    if sorted(order) != list(range(len(places))):
        raise RefusedError(f"the order {order} must name each of the numbers 0 to {len(places) - 1} once")
    if order == sorted(order):
        return model
    regions = [find_region(model, place) for place in places]
    for before, after in pairwise(regions):
        if before.exit != after.entry:
            raise RefusedError(f"a region begins at '{after.entry}', and the one before it ends at '{before.exit}'")
    draft = Draft(model)
    for region in regions:
        check_passes_through(model, region)
    start, end = regions[0].entry, regions[-1].exit
    entering = [_entering(draft, region) for region in regions]
    _check_private(draft, regions, entering)
    leaving = draft.readers(end)
    exits = [region.exit for region in regions]
    if end in draft.outputs:
        exits[-1] = draft.unused(f"{end}/before")
        draft.make_as(end, exits[-1])
    current = start
    for number in order:
        for operator in entering[number]:
            # shapes stay as they are, so whoever asks for one gets it from a tensor that comes before all blocks
            source = start if operator.op_type in _SHAPES else current
            draft.redirect(regions[number].entry, source, [operator])
        current = exits[number]
    if end in draft.outputs:
        draft.make_as(current, end)
    else:
        draft.redirect(end, current, leaving)
    return draft.finish()


_SHAPES = ("Shape", "Size")


def _entering(draft: Draft, region: Region) -> list[NodeProto]:
    """Return the operators of a region that read its entry."""
    reading = {id(operator) for operator in draft.readers(region.entry)}
    return [operator for operator in inside(draft, region) if id(operator) in reading]


def _check_private(draft: Draft, regions: list[Region], entering: list[list[NodeProto]]) -> None:
    """Raise RefusedError if a tensor between two regions is a graph output, or read outside of the second."""
    outputs = set(draft.outputs)
    for region, own in zip(regions[1:], entering[1:], strict=True):
        if region.entry in outputs:
            raise RefusedError(f"'{region.entry}' lies between two of the blocks and is an output of the model")
        known = {id(operator) for operator in own}
        others = [one for one in draft.readers(region.entry) if id(one) not in known and one.op_type not in _SHAPES]
        if others:
            raise RefusedError(
                f"'{region.entry}' lies between two of the blocks and is also read by {others[0].op_type} "
                f"'{others[0].name}'"
            )
