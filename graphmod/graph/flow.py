"""The data flow: which tensors carry activations of the trunk, and which are context."""

from __future__ import annotations

from collections.abc import Container, Iterable

import networkx as nx
import numpy as np

from graphmod.errors import InvalidModelError
from graphmod.model import Model

_SHAPE_READERS = frozenset({"Shape", "Size"})
"""Operators whose output tells the shape of a tensor and nothing of its values."""

_POSITION_FINDERS = frozenset({"ArgMax", "ArgMin", "NonZero", "TopK"})
"""Operators whose integer outputs are positions."""

_INTEGER_ARITHMETIC = frozenset({"ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QuantizeLinear"})
"""Operators whose integer outputs are quantised activations."""


def primary_input(model: Model) -> str:
    """Return the input that the trunk starts from: of the float inputs, else of the integer ones, the most read.

    Token ids count as an integer input; masks, positions and caches reach fewer operators than the ids do.

    Raises
    ------
    InvalidModelError
        The model has no float or integer input that reaches a float output.
    """
    for kinds in ("f", "iu"):
        candidates = [name for name, kind in model.inputs.items() if _kind(model, name) in kinds and kind.dtype]
        reached = {name: _reached(model, name) for name in candidates}
        useful = [name for name in candidates if _carried_outputs(model, reached[name])]
        if useful:
            return max(useful, key=lambda name: len(reached[name]))
    told = ", ".join(f"'{name}': {kind}" for name, kind in model.inputs.items()) or "none"
    raise InvalidModelError(f"the model has no float input that reaches a float output (its inputs are {told})")


def primary_output(model: Model, source: str | None = None) -> str:
    """Return the first float output that activations of the primary input reach."""
    reached = _reached(model, source or primary_input(model))
    outputs = _carried_outputs(model, reached)
    if not outputs:
        raise InvalidModelError("no float output of the model depends on its primary input")
    return outputs[0]


def data_flow(model: Model, source: str | None = None, sink: str | None = None) -> nx.DiGraph:
    """Return the tensors that carry activations from the primary input to the primary output.

    Nodes are tensors, an edge joins an operator's input to its output (edge attribute ``operator``). Shape arithmetic,
    masks, positions and all that does not depend on the primary input are context and have no place in it.

    Parameters
    ----------
    model : Model
    source, sink : str, optional
        Other tensors to start from and to end at.

    Raises
    ------
    InvalidModelError
        The model has no float input, or no path of data joins the two tensors.

    Examples
    --------
    >>> import graphmod as gm
    >>> flow = data_flow(gm.load(gm.demo.model_path()))
    >>> next(iter(flow.successors("image")), None) is not None
    True
    """
    start = source or primary_input(model)
    end = sink or primary_output(model, start)
    names = model.operator_names
    producer = {tensor: i for i, op in enumerate(model.operators) for tensor in op.output if tensor}
    reached = _reached(model, start)
    if end not in reached:
        raise InvalidModelError(f"no path of data joins tensor '{start}' to tensor '{end}'")
    flow = nx.DiGraph()
    flow.add_node(start)
    pending, seen = [end], {end}
    while pending:
        tensor = pending.pop()
        for origin in reached[tensor]:
            flow.add_edge(origin, tensor, operator=names[producer[tensor]])
            if origin not in seen:
                seen.add(origin)
                pending.append(origin)
    return flow


def activations(model: Model, source: str) -> Container[str]:
    """Return the tensors that carry activations of ``source``, itself included."""
    return _reached(model, source)


def carries_activations(model: Model, source: str, tensor: str) -> bool:
    """Whether a tensor carries activations of ``source``."""
    return tensor in _reached(model, source)


def _reached(model: Model, source: str) -> dict[str, tuple[str, ...]]:
    """Return, for every tensor that carries activations of ``source``, the tensors that it has them from."""
    reached: dict[str, tuple[str, ...]] = {source: ()}
    for position, operator in enumerate(model.operators):
        if operator.op_type in _SHAPE_READERS:
            continue
        origins = tuple(dict.fromkeys(name for name in model.reads[position] if name in reached))
        if not origins:
            continue
        for tensor in operator.output:
            if tensor and _carries(model, operator.op_type, tensor, origins):
                reached[tensor] = origins
    return reached


def _carries(model: Model, op_type: str, tensor: str, origins: Iterable[str]) -> bool:
    kind = _kind(model, tensor)
    if kind in "f?":
        return True
    if kind == "b":
        return False
    wide = model.tensors[tensor].dtype not in (np.dtype(np.int8), np.dtype(np.uint8))
    if not wide or op_type in _INTEGER_ARITHMETIC:
        return True
    return op_type not in _POSITION_FINDERS and any(_kind(model, name) in "iu" for name in origins)


def _kind(model: Model, tensor: str) -> str:
    """Return "f", "i", "u", "b" or another numpy kind; "?" where shape inference found no type."""
    kind = model.inputs.get(tensor) or model.tensors.get(tensor)
    if kind is None or kind.dtype is None:
        return "?"
    return "f" if kind.is_float else kind.dtype.kind


def _carried_outputs(model: Model, reached: dict[str, tuple[str, ...]]) -> list[str]:
    return [name for name in model.outputs if name in reached and reached[name] and _kind(model, name) in "f?"]
