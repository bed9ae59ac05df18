"""Extracting a part of a model."""

from __future__ import annotations

from collections.abc import Sequence

from graphmod.errors import RefusedError
from graphmod.graph import carries_activations, primary_input, subgraph
from graphmod.model import Model


def extract(model: Model, inputs: Sequence[str] | str, outputs: Sequence[str] | str) -> Model:
    """Return the part of a model between some tensors, as a model that runs.

    Graph inputs that the part needs as context (masks, positions, the shape of the primary input) stay its inputs.

    Parameters
    ----------
    model : Model
    inputs, outputs : str or sequence of str
        Names of tensors.

    Raises
    ------
    RefusedError
        A tensor does not exist, its type is unknown, or activations reach an output past the inputs.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> features = gm.extract(m, "image", gm.blocks(m)["layer3"].exit)
    >>> list(features.inputs)
    ['image']
    """
    sources = [inputs] if isinstance(inputs, str) else list(inputs)
    sinks = [outputs] if isinstance(outputs, str) else list(outputs)
    part = subgraph(model, sources, sinks)
    primary = primary_input(model)
    if primary in part.inputs and primary not in sources:
        reached = [name for name in sinks if carries_activations(part, primary, name)]
        if reached:
            raise RefusedError(
                f"'{reached[0]}' depends on '{primary}' past {', '.join(sources)}; cut at a boundary "
                "(graphmod.boundaries lists them) or name all tensors that cross"
            )
    return part.derive(part.editable())
