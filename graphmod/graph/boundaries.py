"""Boundaries: the tensors at which a network can be cut in two."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import networkx as nx

from graphmod.graph.flow import data_flow, primary_input, primary_output
from graphmod.model import Model

_RELABELLING = frozenset({"Identity", "Dropout"})
"""Operators that pass a tensor on as it is: their output is the same boundary as their input."""

_SCALING = frozenset({"Mul", "Div"})
"""Operators that, by a scalar, only scale a tensor: their input is the same boundary as their output, so that an
activation has one boundary whether an exporter writes it as one operator or as several."""


def boundaries(model: Model, source: str | None = None, sink: str | None = None) -> list[str]:
    """Return the tensors that every path of data from input to output runs through, in order.

    They are the dominators of the output in the graph of data flow (Lengauer & Tarjan 1979), which in a graph without
    cycles a single sweep finds. The input is none of them, the output is the last one.

    Parameters
    ----------
    model : Model
    source, sink : str, optional
        Other tensors to start from and to end at than the primary input and output.

    Returns
    -------
    list of str
        Names of tensors.

    Raises
    ------
    InvalidModelError
        The model has no float input, or no path of data joins the two tensors.

    Examples
    --------
    >>> import graphmod as gm
    >>> gm.boundaries(gm.load(gm.demo.model_path()))[-1]
    'logits'
    """
    start = source or primary_input(model)
    end = sink or primary_output(model, start)
    known = _KNOWN.setdefault(model, {})
    if (start, end) not in known:
        known[start, end] = _found(model, start, end)
    return list(known[start, end])


_KNOWN: WeakKeyDictionary[Model, dict[tuple[str, str], tuple[str, ...]]] = WeakKeyDictionary()
"""What :func:`boundaries` found; models do not change."""


def _found(model: Model, start: str, end: str) -> tuple[str, ...]:
    flow = data_flow(model, start, end)
    skipped: set[str] = set()
    for operator in model.operators:
        if operator.op_type in _RELABELLING:
            skipped.update(tensor for tensor in operator.output if tensor != end)
        elif operator.op_type in _SCALING and any(_is_scalar(model, name) for name in operator.input):
            skipped.update(operator.input)
    return tuple(tensor for tensor in dominators(flow, start, end) if tensor not in skipped)


def _is_scalar(model: Model, name: str) -> bool:
    return name in model.constants and model.constants[name].size == 1


def dominators(flow: nx.DiGraph, source: str, sink: str) -> list[str]:
    """Return the nodes on every path from source to sink, in order, without the source.

    Every node of ``flow`` lies on such a path. Then a node is on all of them if, in a topological order, no edge leads
    past it: one that did would be part of a path around it.
    """
    order = {node: place for place, node in enumerate(nx.topological_sort(flow))}
    chain = []
    furthest = 0
    for node, place in order.items():
        if furthest == place and node != source:
            chain.append(node)
        furthest = max([furthest, *(order[after] for after in flow.succ[node])])
    if source != sink and (not chain or chain[-1] != sink):
        raise nx.NetworkXNoPath(f"the graph of data flow does not end in '{sink}'")
    return chain
