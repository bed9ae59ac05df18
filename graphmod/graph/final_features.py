"""The features that a classifier decides by: what its final layer with weights reads."""

from __future__ import annotations

import networkx as nx
from onnx import NodeProto

from graphmod.errors import RefusedError
from graphmod.graph.boundaries import boundaries
from graphmod.graph.flow import data_flow, primary_input, primary_output
from graphmod.model import Model

_LAYERS = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")
"""Operators that multiply activations by a matrix or a kernel; biases and normalisations are no layers of their own."""


def final_features(model: Model) -> str:
    """Return the last boundary before the weights of the final layer.

    Where the final layer's own input is no boundary, because another path leads around it, it is the boundary before
    that.

    Parameters
    ----------
    model : Model

    Returns
    -------
    str
        Name of a tensor.

    Raises
    ------
    RefusedError
        There is no such layer, or no boundary before it.
    InvalidModelError
        The model has no trunk.

    Examples
    --------
    >>> import graphmod as gm
    >>> gm.graph.final_features(gm.load(gm.demo.model_path()))
    'view'
    """
    last = _final(model)
    before = [name for name in boundaries(model, primary_input(model)) if model.producer[name] < last]
    if not before:
        raise RefusedError(
            f"there is no boundary before the final layer '{model.operator_names[last]}', so that no tensor holds the "
            "features it decides by"
        )
    return before[-1]


def final_layer(model: Model) -> NodeProto:
    """Return the last operator on the way of the data that multiplies activations by a matrix or a kernel of weights.

    Raises
    ------
    RefusedError
        There is none.
    InvalidModelError
        The model has no trunk.

    Examples
    --------
    >>> import graphmod as gm
    >>> final_layer(gm.load(gm.demo.model_path())).op_type
    'Gemm'
    """
    return model.operators[_final(model)]


def _final(model: Model) -> int:
    """Return the final layer's place."""
    source = primary_input(model)
    flow = data_flow(model, source, primary_output(model, source))
    places = [
        place
        for place in {model.producer[tensor] for _, tensor in flow.edges}
        if model.operators[place].op_type in _LAYERS
        and any(_is_matrix(model, name, flow) for name in model.reads[place])
    ]
    if not places:
        raise RefusedError(
            "no operator multiplies activations by weights, so that there is no final layer, and no tensor "
            "holds the features that it decides by"
        )
    return max(places)


def _is_matrix(model: Model, name: str, flow: nx.DiGraph) -> bool:
    """Whether a tensor is a matrix or a kernel that carries no activations."""
    kind = model.tensors.get(name)
    return name not in flow and kind is not None and kind.is_float and len(kind.shape or ()) > 1
