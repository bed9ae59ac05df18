"""The same model in disguise: every inner name another, operators in another order that is as good."""

from __future__ import annotations

import random

from onnx import GraphProto, ModelProto, NodeProto

from graphmod.model import consumed


def disguise(proto: ModelProto, seed: int = 0) -> ModelProto:
    """Return a copy with new names of operators and of all tensors but inputs and outputs, and operators shuffled."""
    found = ModelProto()
    found.CopyFrom(proto)
    kept = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    _rename(found.graph, {name: name for name in kept})
    _shuffle(found.graph, random.Random(seed))
    return found


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    def new(name: str) -> str:
        return names.setdefault(name, f"renamed_{len(names)}") if name else ""

    pending = [graph]
    while pending:
        body = pending.pop()
        for value in (*body.input, *body.output, *body.value_info, *body.initializer):
            value.name = new(value.name)
        for sparse in body.sparse_initializer:
            sparse.values.name = new(sparse.values.name)
        for operator in body.node:
            operator.name = new(f"operator {id(body)} {operator.name}") if operator.name else ""
            operator.input[:] = map(new, operator.input)
            operator.output[:] = map(new, operator.output)
            pending += [inner for a in operator.attribute for inner in ([a.g] if a.HasField("g") else a.graphs)]


def _shuffle(graph: GraphProto, choice: random.Random) -> None:
    made = {name for operator in graph.node for name in operator.output}
    left = [NodeProto.FromString(operator.SerializeToString()) for operator in graph.node]
    done: set[str] = set()
    ordered = []
    while left:
        ready = [operator for operator in left if not (made & set(consumed(operator))) - done]
        picked = choice.choice(ready)
        left.remove(picked)
        done.update(picked.output)
        ordered.append(picked)
    del graph.node[:]
    graph.node.extend(ordered)
