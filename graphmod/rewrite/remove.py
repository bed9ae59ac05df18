"""Removing regions: the exit of each becomes its entry."""

from __future__ import annotations

from graphmod.model import Model
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.region import Place, Region, bridge, check_passes_through, find_regions
from graphmod.rewrite.verb import verb


@verb(exact=False, example="graphmod remove resnet.onnx layer3.2 --out smaller.onnx")
def remove(model: Model, place: Place) -> Model:
    """Remove blocks or operators and connect what comes before them to what comes after.

    Parameters
    ----------
    model : Model
    place : Block, str or (str, str)
        A block, a block's path, an operator's name, the tensors before and after a region (``"before..after"``), or a
        selector, all of whose matches go.

    Returns
    -------
    Model
        Without the region; weights that nothing else uses are gone.

    Raises
    ------
    RefusedError
        Entry and exit differ in dtype or shape, or their shapes are unknown, or there is no such region.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> gm.remove(m, "layer1.3").n_weights < m.n_weights
    True
    """
    draft = Draft(model)
    instead: dict[str, str] = {}
    for region in find_regions(model, place):
        check_passes_through(model, region, "; graphmod.replace fits a layer in between")
        instead[region.exit] = instead.get(region.entry, region.entry)  # it may have gone with an earlier region
        bridge(draft, Region(instead[region.exit], region.exit))
    return draft.finish()
