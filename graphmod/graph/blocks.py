"""Blocks: regions with one boundary in and one out, nested into a tree (the program structure tree)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby

from graphmod.errors import RefusedError
from graphmod.graph.flow import data_flow, primary_input, primary_output
from graphmod.graph.scope import common_scope, scope_parts
from graphmod.model import Model

LAYER_STARTS = frozenset(
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
    children: tuple[Block, ...] = field(default=(), repr=False, compare=False)

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
    scoped = any(segment.scope for segment in chain)
    root = _Draft("", chain, depth=0) if scoped else _Draft("", chain, inner=_by_position(model, chain))
    return _uniquely_named(_built(root))


# -- regions: what lies between which boundaries


class _Flow:
    """The data flow with tensors as numbers, in the graph's order: an edge leads from a lower to a higher one."""

    def __init__(self, model: Model, source: str, sink: str) -> None:
        flow = data_flow(model, source, sink)
        self.tensors = sorted(flow, key=lambda name: -1 if name == source else model.producer[name])
        number = {name: i for i, name in enumerate(self.tensors)}
        self.before = [[number[name] for name in flow.pred[tensor]] for tensor in self.tensors]
        self.after = [[number[name] for name in flow.succ[tensor]] for tensor in self.tensors]

    def cut(self, entry: int, members: Sequence[int]) -> Iterator[tuple[int, int, list[int]]]:
        """Cut a region at its boundaries; yield what lies before, behind and between every two of them.

        A tensor is a boundary if no edge leads past it (:func:`graphmod.graph.boundaries.dominators`).
        """
        furthest = max(tensor for tensor in members if entry in self.before[tensor])
        start, inside = entry, list[int]()
        for tensor in members:
            if furthest == tensor:
                yield start, tensor, inside
                start, inside = tensor, []
            else:
                inside.append(tensor)
            if tensor != members[-1]:
                furthest = max(furthest, *self.after[tensor])

    def branches(self, start: int, stop: int, inside: Sequence[int]) -> Iterator[list[int]]:
        """Yield the parts between two boundaries that hang together, if they have a single entry and exit."""
        inner, seen, ends = set(inside), set[int](), set(self.before[stop])
        for first in inside:
            if first in seen:
                continue
            seen.add(first)
            members = [first]
            for tensor in members:  # grows meanwhile
                fresh = [n for n in (*self.before[tensor], *self.after[tensor]) if n in inner and n not in seen]
                seen.update(fresh)
                members.extend(dict.fromkeys(fresh))
            if len(ends.intersection(members)) == 1 and any(start in self.before[tensor] for tensor in members):
                yield sorted(members)


def _segments(model: Model, source: str, sink: str) -> tuple[_Segment, ...]:
    """Cut the trunk at its boundaries, then every branch in it at its own, without recursion."""
    flow = _Flow(model, source, sink)
    regions: list[tuple[int, Sequence[int]]] = [(0, range(1, len(flow.tensors)))]
    found: list[list[tuple[int, int, list[int], range]]] = []
    for entry, members in regions:  # grows meanwhile
        spans = []
        for start, stop, inside in flow.cut(entry, members):
            first = len(regions)
            regions.extend((start, branch) for branch in flow.branches(start, stop, inside))
            spans.append((start, stop, inside, range(first, len(regions))))
        found.append(spans)
    scopes: dict[int, tuple[str, ...]] = {}
    built: dict[int, tuple[_Segment, ...]] = {}
    for number in reversed(range(len(found))):  # a branch has a higher number than what it is in
        segments = []
        for start, stop, inside, branches in found[number]:
            places = sorted({model.producer[flow.tensors[tensor]] for tensor in (*inside, stop)})
            for place in places:
                if place not in scopes:
                    scopes[place] = scope_parts(model.operators[place])
            segments.append(
                _Segment(
                    flow.tensors[start],
                    flow.tensors[stop],
                    tuple(model.operator_names[place] for place in places),
                    common_scope(scopes[place] for place in places),
                    model.operators[places[-1]].op_type,
                    tuple(built.pop(branch) for branch in branches),
                )
            )
        built[number] = tuple(segments)
    return built[0]


# -- blocks: which segments belong together, and what they are called


@dataclass(frozen=True)
class _Draft:
    """A block to be: a run of segments, and what tells its children.

    Those are ``inner`` where it is given; else grouped by scopes at ``depth`` where that is given; else the segments of
    the run, or the branches of its only one.
    """

    path: str
    run: tuple[_Segment, ...]
    depth: int | None = None
    inner: tuple[_Draft, ...] | None = None

    def children(self) -> tuple[_Draft, ...]:
        """Return the drafts of the children."""
        if self.inner is not None:
            return self.inner
        if self.depth is not None:
            return tuple(_by_scope(self.run, self.path, self.depth))
        parts = self.run[0].branches if len(self.run) == 1 else [(segment,) for segment in self.run]
        paths = (f"{self.path}.{number}" for number in range(len(parts)))
        return tuple(_Draft(_branch_path(part, path), part) for part, path in zip(parts, paths, strict=True))


def _built(root: _Draft) -> Block:
    """Return the block of a draft, with all that it contains."""
    drafts = [root]
    inside: list[range] = []
    for draft in drafts:  # grows meanwhile
        first = len(drafts)
        drafts.extend(draft.children())
        inside.append(range(first, len(drafts)))
    built: dict[int, Block] = {}
    for number in reversed(range(len(drafts))):
        draft = drafts[number]
        children = tuple(built.pop(child) for child in inside[number])
        if len(children) == 1 and draft.depth:
            children = children[0].children  # a scope around nothing but one scope
        operators = tuple(name for segment in draft.run for name in segment.operators)
        built[number] = Block(draft.path, draft.run[0].entry, draft.run[-1].exit, operators, children)
    return built[0]


def _by_scope(run: Sequence[_Segment], path: str, depth: int) -> Iterator[_Draft]:
    """Group neighbours that share a scope at a depth."""

    def key(segment: _Segment) -> str | None:
        return segment.scope[depth] if len(segment.scope) > depth else None

    above = f"{path}." if path else ""
    for name, group in groupby(run, key):
        members = tuple(group)
        if name is None:
            yield from (_Draft(f"{above}{segment.op_type.lower()}", (segment,)) for segment in members)
        elif len(members) == 1 and not members[0].branches:
            yield _Draft(".".join(members[0].scope), members)
        else:
            yield _Draft(f"{above}{name}", members, depth=depth + 1)


def _by_position(model: Model, chain: Sequence[_Segment]) -> tuple[_Draft, ...]:
    """Group layers with what follows them, and layers whose exits have one shape into stages."""
    layers: list[list[_Segment]] = []
    for segment in chain:
        if not layers or segment.branches or segment.op_type in LAYER_STARTS:
            layers.append([])
        layers[-1].append(segment)

    def shape(layer: list[_Segment]) -> str:
        return str(model.tensors.get(layer[-1].exit))

    found = []
    for number, (_, run) in enumerate(groupby(layers, shape)):
        stage = [tuple(layer) for layer in run]
        if len(stage) == 1:
            found.append(_Draft(str(number), stage[0]))
        else:
            inner = tuple(_Draft(f"{number}.{index}", layer) for index, layer in enumerate(stage))
            found.append(_Draft(str(number), tuple(segment for layer in stage for segment in layer), inner=inner))
    return tuple(found)


def _branch_path(part: Sequence[_Segment], position: str) -> str:
    if len(part) == 1 and part[0].scope and not part[0].branches:
        return ".".join(part[0].scope)
    return position


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
        rebuilt[id(block)] = Block(renamed[id(block)], block.entry, block.exit, block.operators, children)
    return rebuilt[id(root)]
