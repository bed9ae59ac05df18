"""Names in a graph: where those of tensors and functions stand, subgraphs included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from onnx import FunctionProto, GraphProto, NodeProto

from graphmod.model import bodies, with_inner

Call = tuple[str, str, str]
"""Domain, name and overload of a function."""


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and all subgraphs in it."""
    yield graph
    for operator in graph.node:
        yield from bodies(operator)


def rename_tensors(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors other names, in place and wherever they stand; those that ``names`` lacks keep theirs."""
    for one in graphs(graph):
        constants = (*one.initializer, *(sparse.values for sparse in one.sparse_initializer))
        for named in (*one.input, *one.output, *one.value_info, *constants):
            named.name = names.get(named.name, named.name)
        for note in one.quantization_annotation:
            note.tensor_name = names.get(note.tensor_name, note.tensor_name)
            for entry in note.quant_parameter_tensor_names:
                entry.value = names.get(entry.value, entry.value)
        for operator in one.node:
            for tensors in (operator.input, operator.output):
                if not names.keys().isdisjoint(tensors):
                    tensors[:] = [names.get(name, name) for name in tensors]


def key_of(called: NodeProto | FunctionProto) -> Call:
    """Return what tells a function from others, of itself or of a call."""
    name = called.op_type if isinstance(called, NodeProto) else called.name
    return called.domain, name, called.overload


def rename_calls(operators: Iterable[NodeProto], calls: Mapping[Call, str]) -> None:
    """Let operators, and those in their subgraphs, call functions by other names, in place."""
    for operator in with_inner(operators):
        operator.op_type = calls.get(key_of(operator), operator.op_type)
