"""Extracting a part of a model."""

from __future__ import annotations

from graphmod.errors import InvalidModelError, RefusedError
from graphmod.graph import Block, blocks, carries_activations, primary_input, subgraph
from graphmod.model import Model
from graphmod.rewrite.tensors import named_tensors
from graphmod.rewrite.verb import verb


@verb(exact=True, example="graphmod extract resnet.onnx image layer3 --out features.onnx")
def extract(model: Model, inputs: str | Block | list[str | Block], outputs: str | Block | list[str | Block]) -> Model:
    """Return the part of a model between some tensors, as a model that runs.

    Graph inputs that the part needs as context (masks, positions, the shape of the primary input) stay its inputs.

    Parameters
    ----------
    model : Model
    inputs : str, Block or list of them
        Where the part begins: tensors, or blocks (what goes into them).
    outputs : str, Block or list of them
        Where it ends: tensors, blocks (what comes out of them), operators (their first outputs) or selectors.

    Raises
    ------
    RefusedError
        A place does not exist, the type of a tensor is unknown, or activations reach an output past the inputs.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> features = gm.extract(m, "image", "layer3")
    >>> list(features.inputs)
    ['image']
    """
    sources = [_entry(model, place) for place in ([inputs] if isinstance(inputs, str | Block) else inputs)]
    places = [outputs] if isinstance(outputs, str | Block) else outputs
    sinks = list(dict.fromkeys(tensor for place in places for tensor in named_tensors(model, place)))
    part = subgraph(model, sources, sinks)
    primary = _primary_input(model)
    if primary is not None and primary in part.inputs and primary not in sources:
        reached = [name for name in sinks if carries_activations(part, primary, name)]
        if reached:
            raise RefusedError(
                f"'{reached[0]}' depends on '{primary}' past {', '.join(sources)}; cut at a boundary "
                "(graphmod.boundaries lists them) or name all tensors that cross"
            )
    return part.derive(part.editable())


def _entry(model: Model, place: str | Block) -> str:
    if isinstance(place, Block):
        return place.entry
    if place in model.tensors or _primary_input(model) is None:
        return place
    return next((block.entry for block in blocks(model).walk() if block.path == place and block.path), place)


def _primary_input(model: Model) -> str | None:
    """Return the input that the trunk starts from; None where there is no trunk."""
    try:
        return primary_input(model)
    except InvalidModelError:
        return None
