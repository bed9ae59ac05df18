"""The networkx view of a graph: operators are nodes, tensors are edges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import networkx as nx
from onnx import GraphProto, NodeProto


def operator_names(graph: GraphProto) -> tuple[str, ...]:
    """Return one unique name an operator: its own, or type and position where that is missing or taken."""
    counts = Counter(operator.name for operator in graph.node)
    taken = {name for name, count in counts.items() if name and count == 1}
    names = []
    for position, operator in enumerate(graph.node):
        name = operator.name
        if not name or counts[name] > 1:
            name = f"{operator.op_type}_{position}"
            while name in taken:
                name += "_"
            taken.add(name)
        names.append(name)
    return tuple(names)


def consumed(operator: NodeProto) -> Iterator[str]:
    """Yield the tensors that an operator reads, those that its subgraphs capture included."""
    pending = [operator]
    made: set[str] = set()
    while pending:
        current = pending.pop()
        for attribute in current.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                made.update(value.name for value in body.input)
                made.update(tensor.name for tensor in body.initializer)
                made.update(tensor.values.name for tensor in body.sparse_initializer)
                made.update(name for inner in body.node for name in inner.output)
                pending.extend(body.node)
                yield from (value.name for value in body.output if value.name not in made)
        for name in current.input:
            if name and (current is operator or name not in made):
                yield name


def as_networkx(graph: GraphProto) -> nx.MultiDiGraph:
    """Return a graph whose nodes are operators, inputs and outputs, and whose edges are tensors.

    Nodes carry ``kind`` ("operator", "input" or "output"); operators also ``op_type``, ``position`` and ``proto``.
    Edges are keyed by the tensor's name. Initializers are no edges: they are data of the operators that read them.
    """
    view = nx.MultiDiGraph()
    constant = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    producer: dict[str, str] = {}
    for value in graph.input:
        if value.name not in constant:
            node = f"input:{value.name}"
            view.add_node(node, kind="input")
            producer[value.name] = node
    names = operator_names(graph)
    for position, (name, operator) in enumerate(zip(names, graph.node, strict=True)):
        view.add_node(name, kind="operator", op_type=operator.op_type, position=position, proto=operator)
        producer.update((tensor, name) for tensor in operator.output if tensor)
    for name, operator in zip(names, graph.node, strict=True):
        for tensor in consumed(operator):
            if tensor in producer:
                view.add_edge(producer[tensor], name, key=tensor)
    for value in graph.output:
        node = f"output:{value.name}"
        view.add_node(node, kind="output")
        if value.name in producer:
            view.add_edge(producer[value.name], node, key=value.name)
    return view
