"""Bodies: the graphs that operators hold as attributes, such as the branches of an If."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import GraphProto, NodeProto


def own_bodies(operator: NodeProto) -> Iterator[GraphProto]:
    """Yield the bodies of an operator, without those of operators in them."""
    for attribute in operator.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def has_bodies(operator: NodeProto) -> bool:
    """Whether an operator holds a graph."""
    return any(True for _ in own_bodies(operator))


def bodies(operator: NodeProto) -> Iterator[GraphProto]:
    """Yield the bodies of an operator, those of operators in them included."""
    pending = [operator]
    while pending:
        for body in own_bodies(pending.pop()):
            yield body
            pending.extend(body.node)


def inner_operators(operator: NodeProto) -> Iterator[NodeProto]:
    """Yield the operators in an operator's bodies."""
    return (inner for body in bodies(operator) for inner in body.node)


def with_inner(operators: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield operators, each followed by those in its bodies."""
    for operator in operators:
        yield operator
        yield from inner_operators(operator)
