"""Blocks: regions with one boundary in and one out, nested into a tree (the program structure tree)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, groupby, pairwise

import networkx as nx

from graphmod.errors import RefusedError
from graphmod.graph.boundaries import dominators
from graphmod.graph.flow import data_flow, primary_input, primary_output
from graphmod.graph.scope import common_scope, scope_parts
from graphmod.model import Model

_LAYER_STARTS = frozenset(
    {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "Gemm", "MatMul", "MatMulInteger", "LSTM", "GRU", "RNN"}
)
"""Operators that open a layer where no scope tells the layers apart."""


@dataclass(frozen=True)
class Block:
    """A region with a single entry and a single exit.

    Parameters
    ----------
    path : str
        Its name: the exporter's scope (``layer3.1``) where there is one, else its position (``2.1``).
    entry, exit : str
        The tensors between which it lies.
    operators : tuple of str
        The operators on data paths between them, in the graph's order.
    children : tuple of Block
        The blocks it is made of; one after the other, or side by side where it is a single split and join.
    """

    path: str
    entry: str
    exit: str
    operators: tuple[str, ...] = field(repr=False)
    children: tuple[Block, ...] = field(default=(), repr=False)

    def walk(self) -> Iterator[Block]:
        """Yield the block and all that it contains, parents first."""
        pending = [self]
        while pending:
            block = pending.pop()
            yield block
            pending.extend(reversed(block.children))

    def __getitem__(self, path: str) -> Block:
        """Return the block of that path.

        Raises
        ------
        RefusedError
            There is none; the message lists what there is.
        """
        for block in self.walk():
            if block.path == path:
                return block
        inside = ", ".join(child.path for child in self.children) or "none"
        where = f"block '{self.path}'" if self.path else "the model"
        raise RefusedError(f"there is no block '{path}' in {where}; the blocks at its top are {inside}")


@dataclass(frozen=True)
class _Segment:
    """What lies between two neighbouring boundaries: one operator, or branches that split and join."""

    entry: str
    exit: str
    operators: tuple[str, ...]
    scope: tuple[str, ...]
    op_type: str
    branches: tuple[tuple[_Segment, ...], ...] = ()


def blocks(model: Model, source: str | None = None, sink: str | None = None) -> Block:
    """Return the tree of blocks of a model; its root is the whole trunk.

    Parameters
    ----------
    model : Model
    source, sink : str, optional
        Other tensors to start from and to end at than the primary input and output.

    Raises
    ------
    InvalidModelError
        The model has no float input, or no path of data joins the two tensors.

    Examples
    --------
    >>> import graphmod as gm
    >>> tree = gm.blocks(gm.load(gm.demo.model_path()))
    >>> [child.path for child in tree["layer1"].children][:3]
    ['layer1.0', 'layer1.1', 'layer1.2']
    """
    start = source or primary_input(model)
    end = sink or primary_output(model, start)
    chain = _segments(model, start, end)
    operators = tuple(name for segment in chain for name in segment.operators)
    scoped = any(segment.scope for segment in chain)
    children = _by_scope(chain, ()) if scoped else _by_position(model, chain)
    return _uniquely_named(Block("", start, end, operators, children))


def _segments(model: Model, source: str, sink: str) -> tuple[_Segment, ...]:
    """Cut the trunk at its boundaries, then every branch in it at its own, without recursion."""
    flow = data_flow(model, source, sink)
    position = {name: i for i, name in enumerate(model.operator_names)}
    order = {tensor: i for i, tensor in enumerate(nx.topological_sort(flow))}
    outline: list[tuple[tuple[object, ...], str, str, tuple[str, ...]]] = []
    pending: list[tuple[tuple[object, ...], str, str, nx.DiGraph]] = [((), source, sink, flow)]
    parts: dict[tuple[object, ...], int] = {}
    while pending:
        key, entry, exit_, region = pending.pop()
        chain = [entry, *dominators(region, entry, exit_)]
        parts[key] = len(chain) - 1
        inner = sorted(set(region) - set(chain), key=order.__getitem__)
        cuts = [order[tensor] for tensor in chain]
        between: list[list[str]] = [[] for _ in chain[1:]]
        part = 0
        for tensor in inner:
            while order[tensor] > cuts[part + 1]:
                part += 1
            between[part].append(tensor)
        for number, ((start, stop), inside) in enumerate(zip(pairwise(chain), between, strict=True)):
            made = {region.edges[edge]["operator"] for edge in region.in_edges([*inside, stop])}
            outline.append(((*key, number), start, stop, tuple(sorted(made, key=position.__getitem__))))
            branch = 0
            for members in nx.weakly_connected_components(flow.subgraph(inside)):
                last = [tensor for tensor in flow.predecessors(stop) if tensor in members]
                if len(last) == 1 and any(start in flow.pred[tensor] for tensor in members):
                    pending.append(((*key, number, branch), start, last[0], flow.subgraph({*members, start})))
                    branch += 1
    return _assemble(model, outline, parts)


def _assemble(
    model: Model,
    outline: Sequence[tuple[tuple[object, ...], str, str, tuple[str, ...]]],
    parts: dict[tuple[object, ...], int],
) -> tuple[_Segment, ...]:
    """Build segments from the innermost outwards: a longer key lies deeper."""
    operators = dict(zip(model.operator_names, model.operators, strict=True))
    scopes = {name: scope_parts(op) for name, op in operators.items()}
    built: dict[tuple[object, ...], _Segment] = {}
    branches_of: dict[tuple[object, ...], list[tuple[object, ...]]] = {}
    for key in sorted(parts, key=len):
        if key:
            branches_of.setdefault(key[:-1], []).append(key)
    for key, entry, exit_, inside in sorted(outline, key=lambda item: -len(item[0])):
        branches = tuple(
            tuple(built[(*branch, number)] for number in range(parts[branch])) for branch in branches_of.get(key, ())
        )
        shared = common_scope(scopes[name] for name in inside)
        last = operators[inside[-1]].op_type
        built[key] = _Segment(entry, exit_, inside, shared, last, branches)
    return tuple(built[(number,)] for number in range(parts[()]))


def _by_scope(chain: Sequence[_Segment], prefix: tuple[str, ...]) -> tuple[Block, ...]:
    """Group neighbours that share a scope, level by level."""
    found: list[Block] = []
    depth = len(prefix)

    def key(segment: _Segment) -> str | None:
        return segment.scope[depth] if len(segment.scope) > depth else None

    for name, run in groupby(chain, key):
        members = tuple(run)
        if name is None:
            found.extend(_leaf(segment, ".".join((*prefix, segment.op_type.lower()))) for segment in members)
        elif len(members) == 1 and not members[0].branches:
            found.append(_leaf(members[0], ".".join(members[0].scope)))
        else:
            inner = _by_scope(members, (*prefix, name))
            found.append(_around(".".join((*prefix, name)), members, inner))
    return tuple(found)


def _by_position(model: Model, chain: Sequence[_Segment]) -> tuple[Block, ...]:
    """Group layers with what follows them, and layers whose exits have one shape into stages."""
    layers: list[list[_Segment]] = []
    for segment in chain:
        if not layers or segment.branches or segment.op_type in _LAYER_STARTS:
            layers.append([])
        layers[-1].append(segment)

    def shape(layer: list[_Segment]) -> str:
        return str(model.tensors.get(layer[-1].exit))

    stages = [list(run) for _, run in groupby(layers, shape)]
    found = []
    for number, stage in enumerate(stages):
        inner = tuple(_numbered(layer, f"{number}.{index}") for index, layer in enumerate(stage))
        if len(stage) == 1:
            found.append(_numbered(stage[0], str(number)))
        else:
            found.append(_around(str(number), [segment for layer in stage for segment in layer], inner))
    return tuple(found)


def _numbered(layer: Sequence[_Segment], path: str) -> Block:
    if len(layer) == 1:
        return _leaf(layer[0], path)
    return _around(path, layer, tuple(_leaf(segment, f"{path}.{i}") for i, segment in enumerate(layer)))


def _around(path: str, members: Sequence[_Segment], children: tuple[Block, ...]) -> Block:
    operators = tuple(name for segment in members for name in segment.operators)
    if len(children) == 1:
        children = children[0].children
    return Block(path, members[0].entry, members[-1].exit, operators, children)


def _leaf(segment: _Segment, path: str) -> Block:
    """Return the block of one segment; the branches of a split and join are its children, side by side."""
    children = []
    for number, branch in enumerate(segment.branches):
        if len(branch) == 1:
            children.append(_leaf(branch[0], _branch_path(branch[0], f"{path}.{number}")))
            continue
        inner = tuple(_leaf(part, _branch_path(part, f"{path}.{number}.{i}")) for i, part in enumerate(branch))
        operators = tuple(name for part in branch for name in part.operators)
        children.append(Block(f"{path}.{number}", branch[0].entry, branch[-1].exit, operators, inner))
    return Block(path, segment.entry, segment.exit, segment.operators, tuple(children))


def _branch_path(segment: _Segment, position: str) -> str:
    return ".".join(segment.scope) if segment.scope and not segment.branches else position


def _uniquely_named(root: Block) -> Block:
    """Tell equal paths apart by a number, in the order of the walk."""
    taken = {block.path for block in root.walk()}
    numbers: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(2))
    used: set[str] = set()
    renamed: dict[int, str] = {}
    for block in root.walk():
        path = block.path
        if path in used:
            path = next(p for p in (f"{block.path}_{n}" for n in numbers[block.path]) if p not in taken)
        taken.add(path)
        used.add(path)
        renamed[id(block)] = path
    rebuilt: dict[int, Block] = {}
    for block in reversed(list(root.walk())):
        children = tuple(rebuilt[id(child)] for child in block.children)
        rebuilt[id(block)] = replace(block, path=renamed[id(block)], children=children)
    return rebuilt[id(root)]
