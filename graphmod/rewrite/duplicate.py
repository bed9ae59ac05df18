"""Duplicating a block: copies of it run after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from onnx import NodeProto, TensorProto

from graphmod.errors import RefusedError
from graphmod.graph.scope import common_scope, scope_parts
from graphmod.model import Model, bodies, consumed
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.graft import annotate, renamed, set_scope
from graphmod.rewrite.region import Place, carrying_tensors, check_passes_through, find_region, inside
from graphmod.rewrite.split import any_random
from graphmod.rewrite.verb import verb

_NEVER_TRAINED = frozenset({TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING})
"""Types of constants that hold shapes, axes and conditions: copies of a block share them."""


@verb(exact=False, example="graphmod duplicate bert.onnx encoder.layer.3 --out deeper.onnx")
def duplicate(model: Model, place: Place, times: int = 1, *, share_weights: bool = False) -> Model:
    """Let copies of a block run after it, each on what the one before it makes.

    A copy bears the block's names with ``_copy`` and is a block of its own. Context, such as masks, is shared.

    Parameters
    ----------
    model : Model
    place : Block, str or (str, str)
        A block, a block's path, an operator's name, the tensors before and after a region (``"before..after"``), or a
        selector that one place of the graph matches. What it makes has the type of what it reads.
    times : int
        How many copies.
    share_weights : bool
        Whether copies use the block's own weights; otherwise each has weights of its own, equal at first.

    Raises
    ------
    RefusedError
        There is no such region, it changes the type, or ``times`` is less than 1.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> deeper = gm.duplicate(m, "layer1.3")
    >>> [block.path for block in gm.blocks(deeper)["layer1"].children][3:6]
    ['layer1.3', 'layer1.3_copy', 'layer1.4']
    """
    if times < 1:
        raise RefusedError(f"{times} copies are none: give a number of at least 1")
    region = find_region(model, place)
    check_passes_through(model, region)
    draft = Draft(model)
    original, readers = inside(draft, region), draft.readers(region.exit)
    owned = _Owned([], []) if share_weights else _owned(model, draft, original)
    scopes = _Scopes(model, original)
    at_the_end = region.exit in draft.outputs
    made = current = _make_room(draft, region.exit) if at_the_end else region.exit
    copied = [*owned.operators, *original]
    for number in range(1, times + 1):
        suffix = scopes.unused_suffix()
        tensors = [*owned.initializers, *(name for operator in copied for name in _made(operator))]
        names = {name: draft.unused(f"{name}{suffix}") for name in tensors}
        if at_the_end and number == times:
            names[made] = region.exit
        for name in owned.initializers:
            _copy_initializer(model, draft, name, names[name])
        copies = [renamed(operator, {**names, region.entry: current}) for operator in copied]
        for copy in copies:
            copy.name = copy.name and draft.unused_operator(f"{copy.name}{suffix}")
            set_scope(copy, scopes.moved(copy, suffix))
        draft.add(copies, original[-1])
        annotate(draft, model._proto.graph, names, symbols=True)
        current = names[made]
    if not at_the_end:
        draft.redirect(region.exit, current, readers)
    return draft.finish()


def _make_room(draft: Draft, output: str) -> str:
    """Let the operator that makes a graph output make another tensor, and return its name."""
    fresh = draft.unused(f"{output}/before")
    draft.make_as(output, fresh)
    return fresh


def _made(operator: NodeProto) -> Iterator[str]:
    """Yield the tensors that an operator makes, those of its subgraphs included."""
    yield from (name for name in operator.output if name)
    for body in bodies(operator):
        yield from (value.name for value in body.input)
        yield from (tensor.name for tensor in body.initializer)
        yield from (tensor.values.name for tensor in body.sparse_initializer)
        yield from (name for inner in body.node for name in inner.output if name)


@dataclass(frozen=True)
class _Owned:
    """What holds the weights of a block: initializers, and operators that make constants of them."""

    initializers: list[str]
    operators: list[NodeProto]


def _owned(model: Model, draft: Draft, block: Iterable[NodeProto]) -> _Owned:
    sparse = {tensor.values.name: tensor.values for tensor in model._proto.graph.sparse_initializer}
    stored = {**model.initializers, **sparse}
    constant, trained = set(stored), {name for name, t in stored.items() if t.data_type not in _NEVER_TRAINED}
    for operator, reads in zip(model.operators, model.reads, strict=True):
        if constant.issuperset(reads) and not any_random([operator]):
            constant.update(operator.output)
            if not trained.isdisjoint(reads) or _holds_a_weight(operator):
                trained.update(name for name in operator.output if name)
    initializers: list[str] = []
    found: dict[int, NodeProto] = {}
    pending = [name for operator in block for name in consumed(operator)]
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in trained or name in seen:
            continue
        seen.add(name)
        maker = draft.producer(name)
        if maker is None:
            initializers.append(name)
        elif id(maker) not in found:
            found[id(maker)] = maker
            pending.extend(consumed(maker))
    return _Owned(sorted(initializers), [operator for operator in draft.operators if id(operator) in found])


def _holds_a_weight(operator: NodeProto) -> bool:
    held = [a for a in operator.attribute if operator.op_type == "Constant"]
    return any(
        a.t.data_type not in _NEVER_TRAINED
        if a.HasField("t")
        else a.name in ("value_float", "value_floats", "sparse_value")
        for a in held
    )


def _copy_initializer(model: Model, draft: Draft, name: str, fresh: str) -> None:
    """Add an initializer's copy; values in a file stay there, and both point to them."""
    if name in model.initializers:
        copy = TensorProto()
        copy.CopyFrom(model.initializers[name])
        copy.name = fresh
        draft.add_initializer(copy)
        return
    own = draft.graph.sparse_initializer.add()
    own.CopyFrom(next(one for one in model._proto.graph.sparse_initializer if one.values.name == name))
    own.values.name = fresh


class _Scopes:
    """The scopes of a model, and where copies of a block lie among them.

    Copies of all that is in a scope get one beside it, ``layer1.3_copy``; copies of a part of a scope one within it.
    """

    def __init__(self, model: Model, block: Sequence[NodeProto]):
        parts = [scope_parts(operator) for operator in model.operators]
        self._taken = {".".join(path[:depth]) for path in parts for depth in range(1, len(path) + 1)}
        self._shared = common_scope(map(scope_parts, block))
        carrying, depth = carrying_tensors(model), len(self._shared)
        inside = sum(
            path[:depth] == self._shared and any(name in carrying for name in operator.output)
            for path, operator in zip(parts, model.operators, strict=True)
        )
        self._whole = inside == sum(any(name in carrying for name in operator.output) for operator in block)

    def unused_suffix(self) -> str:
        """Return what tells the next copy from the block and from other copies: ``_copy``, ``_copy2``, ..."""
        suffixes = ("_copy" if number == 1 else f"_copy{number}" for number in count(1))
        shared = ".".join(self._shared)
        found = next(s for s in suffixes if not {f"{shared}{s}", f"{shared}.{s[1:]}", s[1:]} & self._taken)
        self._taken.add(f"{shared}{found}")
        return found

    def moved(self, operator: NodeProto, suffix: str) -> str:
        """Return the scope of an operator's copy, "" where it has none."""
        path, depth = scope_parts(operator), len(self._shared)
        if not path:
            return ""
        if self._whole and depth:
            return ".".join((*path[: depth - 1], f"{path[depth - 1]}{suffix}", *path[depth:]))
        return ".".join((*path[:depth], suffix[1:], *path[depth:]))
