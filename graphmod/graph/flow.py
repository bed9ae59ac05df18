"""The data flow: which tensors carry activations of the trunk, and which are context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from functools import cache, reduce
from operator import or_
from weakref import WeakKeyDictionary

import networkx as nx
import numpy as np

from graphmod.errors import InvalidModelError
from graphmod.model import Model, TensorType, check_model

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
    check_model(model)
    if model not in _PRIMARY:
        _PRIMARY[model] = _most_read(model)
    return _PRIMARY[model]


_PRIMARY: WeakKeyDictionary[Model, str] = WeakKeyDictionary()
"""What :func:`primary_input` found; models do not change."""


def _most_read(model: Model) -> str:
    for kinds in ("f", "iu"):
        candidates = [name for name, kind in model.inputs.items() if _kind(model, name) in kinds and kind.dtype]
        carried = _carried(model, candidates)
        ends = {name: carried.get(name, 0) for name in model.outputs if _kind(model, name) in "f?"}
        useful = [
            bit for bit, name in enumerate(candidates) if any(ends[end] >> bit & 1 for end in ends if end != name)
        ]
        if useful:
            numbers = Counter(carried.values())
            return candidates[max(useful, key=lambda bit: sum(n for bits, n in numbers.items() if bits >> bit & 1))]
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
    reached = _reached(model, start)
    if end not in reached:
        raise InvalidModelError(f"no path of data joins tensor '{start}' to tensor '{end}'")
    flow = nx.DiGraph()
    flow.add_node(start)
    pending, seen = [end], {end}
    while pending:
        tensor = pending.pop()
        for origin in reached[tensor]:
            flow.add_edge(origin, tensor, operator=names[model.producer[tensor]])
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
    known = _REACHED.setdefault(model, {})
    if source not in known:
        carried = _carried(model, [source])
        reads = model.reads
        origins: dict[int, tuple[str, ...]] = {}
        for tensor in carried:
            if tensor != source and (place := model.producer[tensor]) not in origins:
                origins[place] = tuple(dict.fromkeys(name for name in reads[place] if name in carried))
        known[source] = {t: () if t == source else origins[model.producer[t]] for t in carried}
    return known[source]


_REACHED: WeakKeyDictionary[Model, dict[str, dict[str, tuple[str, ...]]]] = WeakKeyDictionary()
"""What :func:`_reached` found; models do not change."""


def _carried(model: Model, sources: Sequence[str]) -> dict[str, int]:
    """Return, for every tensor, of which sources it carries activations: bit i stands for the i-th."""
    carried = {source: 1 << bit for bit, source in enumerate(sources)}
    for operator, reads in zip(model.operators, model.reads, strict=True):
        found = [(name, carried[name]) for name in reads if name in carried]
        if not found or operator.op_type in _SHAPE_READERS:
            continue
        whole = reduce(or_, (bits for _, bits in found))
        for tensor in operator.output:
            kind = _kind(model, tensor) if tensor else "b"
            if kind in "f?" or (kind != "b" and _is_quantized(model, operator.op_type, tensor)):
                bits = whole
            elif kind != "b" and operator.op_type not in _POSITION_FINDERS:
                bits = reduce(or_, (bits for name, bits in found if _kind(model, name) in "iu"), 0)
            else:
                continue
            if bits and tensor not in carried:
                carried[tensor] = bits
    return carried


def _is_quantized(model: Model, op_type: str, tensor: str) -> bool:
    return op_type in _INTEGER_ARITHMETIC or model.tensors[tensor].dtype in (np.dtype(np.int8), np.dtype(np.uint8))


def _kind(model: Model, tensor: str) -> str:
    """Return "f", "i", "u", "b" or another numpy kind; "?" where shape inference found no type."""
    kind = model.inputs.get(tensor) or model.tensors.get(tensor)
    return "?" if kind is None else _letter(kind.dtype)


@cache
def _letter(dtype: np.dtype[np.generic] | None) -> str:
    if dtype is None:
        return "?"
    return "f" if TensorType(dtype, None).is_float else dtype.kind


def _carried_outputs(model: Model, reached: dict[str, tuple[str, ...]]) -> list[str]:
    return [name for name in model.outputs if name in reached and reached[name] and _kind(model, name) in "f?"]
