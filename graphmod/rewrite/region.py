"""A region with one entry and one exit, and how other operators take its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnx import GraphProto, NodeProto, TensorProto

from graphmod.errors import InvalidModelError, RefusedError
from graphmod.graph import Block, blocks, data_flow, primary_input
from graphmod.graph.boundaries import dominators
from graphmod.graph.scope import GRAPHMOD_SCOPE, common_scope, scope_parts
from graphmod.model import Model, consumed

Place = str | tuple[str, str] | Block
"""What names a region: a block, its path, an operator's name, or a pair of tensors."""


@dataclass(frozen=True)
class Region:
    """All that lies between two tensors.

    Parameters
    ----------
    entry, exit : str
        Names of tensors: every path of data from the model's input to ``exit`` runs through ``entry``.
    """

    entry: str
    exit: str


def find_region(model: Model, place: Place) -> Region:
    """Return the region that a user named.

    Parameters
    ----------
    model : Model
    place : Block, str or (str, str)
        A block, a block's path, an operator's name, or the tensors before and after the region.

    Raises
    ------
    RefusedError
        There is no such block, operator or tensor; or activations reach the exit past the entry.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> find_region(m, "layer1.3") == find_region(m, gm.blocks(m)["layer1.3"])
    True
    """
    if isinstance(place, Block):
        entry, exit_ = place.entry, place.exit
    elif isinstance(place, tuple):
        entry, exit_ = place
    else:
        entry, exit_ = _named(model, place)
    source = primary_input(model)
    if entry == exit_:
        raise RefusedError(f"the region from '{entry}' to itself is empty")
    try:
        flow = data_flow(model, source, exit_)
    except InvalidModelError as error:
        raise RefusedError(f"no activations reach tensor '{exit_}'") from error
    if entry != source and entry not in dominators(flow, source, exit_):
        raise RefusedError(
            f"activations reach '{exit_}' past '{entry}'; take a region that begins where all paths meet "
            "('graphmod blocks' lists them)"
        )
    return Region(entry, exit_)


def _named(model: Model, name: str) -> tuple[str, str]:
    operators = dict(zip(model.operator_names, model.operators, strict=True))
    tree = blocks(model)
    found = next((block for block in tree.walk() if block.path == name and block.path), None)
    if found is not None:
        return found.entry, found.exit
    if name not in operators:
        tops = ", ".join(child.path for child in tree.children)
        raise RefusedError(f"there is no block or operator '{name}'; blocks at the top are {tops}")
    operator = operators[name]
    read = [tensor for tensor in operator.input if tensor and tensor not in model.constants]
    carried = [tensor for tensor in read if tensor in data_flow(model, sink=operator.output[0])]
    if len(carried) != 1:
        raise RefusedError(
            f"operator '{name}' ({operator.op_type}) joins {len(carried)} tensors of activations "
            f"({', '.join(carried) or 'none'}); name the two tensors to connect instead"
        )
    return carried[0], operator.output[0]


def put_in_place(
    model: Model,
    region: Region,
    operators: Sequence[NodeProto],
    initializers: Sequence[TensorProto] = (),
) -> Model:
    """Return the model with other operators in a region's place.

    The operators read ``region.entry`` and make ``region.exit``; none at all connect the two tensors directly. What
    only the region needed is dropped: its operators, weights and type annotations, and nothing else.

    Raises
    ------
    RefusedError
        The operator at the exit makes other tensors that are needed elsewhere.
    """
    proto = model.editable()
    graph = proto.graph
    roots = _roots(graph)
    before = _live(graph, roots)
    if not operators and region.exit not in model.outputs:
        for operator in graph.node:
            _rename_reads(operator, region.exit, region.entry)
        _drop(graph, before, _live(graph, roots))
    else:
        bridge = NodeProto(op_type="Identity", input=[region.entry], output=[region.exit])
        _swap_producer(model, graph, region, [bridge])
        _drop(graph, before, _live(graph, roots))  # first, so that names of an earlier replacement are free again
        if operators:
            _swap_producer(model, graph, region, operators)
            graph.initializer.extend(initializers)
    return model.derive(proto)


def _swap_producer(model: Model, graph: GraphProto, region: Region, new: Sequence[NodeProto]) -> None:
    place = next(i for i, operator in enumerate(graph.node) if region.exit in operator.output)
    old = graph.node[place]
    others = {name for name in old.output if name and name != region.exit}
    read = {name for reads in model.reads for name in reads} | set(model.outputs)
    if others & read:
        raise RefusedError(
            f"operator '{old.name}' also makes '{min(others & read)}', which is needed outside of the region"
        )
    origin = ".".join(common_scope(scope_parts(op) for op in _between(model, region)))
    copies = [NodeProto.FromString(op.SerializeToString()) for op in new]
    for operator in copies:
        entry = operator.metadata_props.add()
        entry.key, entry.value = GRAPHMOD_SCOPE, origin
    rest = [NodeProto.FromString(op.SerializeToString()) for op in graph.node]
    del graph.node[:]
    graph.node.extend([*rest[:place], *copies, *rest[place + 1 :]])


def _between(model: Model, region: Region) -> list[NodeProto]:
    flow = data_flow(model, region.entry, region.exit)
    inside = {name for _, _, name in flow.edges(data="operator")}
    return [op for name, op in zip(model.operator_names, model.operators, strict=True) if name in inside]


def _roots(graph: GraphProto) -> set[str]:
    """Return the outputs, and the tensors of operators on which no output depends: the file has them, so they stay."""
    outputs = {value.name for value in graph.output}
    live = _live(graph, outputs)
    return outputs.union(*(operator.output for operator in graph.node if live.isdisjoint(operator.output)))


def _live(graph: GraphProto, roots: set[str]) -> set[str]:
    """Return the tensors on which the roots depend, initializers included, and what else their operators make."""
    live = set(roots)
    for operator in reversed(graph.node):
        if any(name in live for name in operator.output):
            live.update(consumed(operator), filter(None, operator.output))
    return live


def _drop(graph: GraphProto, before: set[str], after: set[str]) -> None:
    """Drop operators, weights and annotations of tensors on which the roots depended before and no longer do."""
    dead = before - after
    for i in reversed(range(len(graph.node))):
        made = set(graph.node[i].output)
        if made & before and not made & after:
            del graph.node[i]
    weights = {tensor.name for tensor in graph.initializer}
    inputs_too = dead & weights  # files of IR version 3 list their initializers among the inputs
    for entries, names in ((graph.initializer, dead), (graph.value_info, dead), (graph.input, inputs_too)):
        for i in reversed(range(len(entries))):
            if entries[i].name in names:
                del entries[i]


def _rename_reads(operator: NodeProto, old: str, new: str) -> None:
    for inner in _with_subgraphs(operator):
        for i, name in enumerate(inner.input):
            if name == old:
                inner.input[i] = new


def _with_subgraphs(operator: NodeProto) -> Iterator[NodeProto]:
    pending = [operator]
    while pending:
        current = pending.pop()
        yield current
        for attribute in current.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                pending.extend(body.node)
