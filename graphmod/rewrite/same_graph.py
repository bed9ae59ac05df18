"""Pairing the constants of two models of one graph: the same operators in the same order, joined the same way.

Names may differ. The first difference is named in a refusal.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from graphmod.errors import RefusedError
from graphmod.model import with_inner
from graphmod.model.model import TensorType, type_of
from graphmod.rewrite.names import Call, key_of


@dataclass(frozen=True)
class Twin:
    """A constant and its counterpart in another model.

    Parameters
    ----------
    name : str
        What the first model calls it.
    is_variance : bool
        Whether a BatchNormalization, in a function too, reads it as its variance.
    first, other : onnx.TensorProto
    """

    name: str
    is_variance: bool
    first: TensorProto = field(repr=False)
    other: TensorProto = field(repr=False)


def twins(first: ModelProto, other: ModelProto) -> list[Twin]:
    """Return the constants that operators of a model read, or hold in attributes, with their counterparts.

    Raises
    ------
    RefusedError
        The graphs differ.
    """
    functions = [{key_of(f): f for f in model.functions} for model in (first, other)]
    if functions[0].keys() != functions[1].keys():
        odd = min(functions[0].keys() ^ functions[1].keys())
        raise RefusedError(f"the graphs differ: only one model has function '{odd[1]}'")
    within = _variance_inputs(functions[0])
    pairs = [*_twins(first.graph, other.graph, within)]
    for key, function in functions[0].items():
        pairs += _twins(function, functions[1][key], within)
    return pairs


class _Names:
    """Which tensor of the other model is which of the first one, and which are initializers; bodies see all around."""

    def __init__(self) -> None:
        self.there, self.back = ChainMap({"": ""}), ChainMap({"": ""})
        self.held: tuple[ChainMap[str, TensorProto], ChainMap[str, TensorProto]] = ChainMap(), ChainMap()

    def inside(self) -> _Names:
        """Return what a body starts from; bodies beside each other may use one name for different tensors."""
        inner = _Names()
        inner.there, inner.back = self.there.new_child(), self.back.new_child()
        inner.held = self.held[0].new_child(), self.held[1].new_child()
        return inner

    def pair(self, a: str, b: str, where: str, variances: Container[str] = ()) -> Iterator[Twin]:
        """Note a pair, and yield it if initializers are new in it; refuse if one of the two has another partner."""
        constant = a in self.held[0], b in self.held[1]
        if constant[0] != constant[1]:
            raise RefusedError(f"the graphs differ: {where} is an initializer in one model only")
        if a not in self.there and b not in self.back:
            depth = next((i for i, known in enumerate(self.held[0].maps) if a in known), 0)
            self.there.maps[depth][a], self.back.maps[depth][b] = b, a
            if constant[0]:
                yield Twin(a, a in variances, self.held[0][a], self.held[1][b])
        elif self.there.get(a) != b:
            raise RefusedError(f"the graphs differ: {where} is '{a}' in one and '{b}' in the other")


def _twins(
    first: GraphProto | FunctionProto, other: GraphProto | FunctionProto, within: Mapping[Call, Sequence[int]]
) -> Iterator[Twin]:
    """Walk two graphs and their bodies side by side."""
    variances = _variances(first.node, within)
    pending = [(first, other, _Names())]
    while pending:
        a, b, names = pending.pop()
        for graph, known in zip((a, b), names.held, strict=True):
            if isinstance(graph, GraphProto):
                known.update((tensor.name, tensor) for tensor in graph.initializer)
                known.update((sparse.values.name, sparse.values) for sparse in graph.sparse_initializer)
        yield from _pair_ends(a, b, names, "input")
        for one, two in zip(a.node, b.node, strict=False):
            where = f"{one.op_type} '{one.name or next(iter(one.output), '')}'"
            _check_kind(one, two, where)
            for i, (read, instead) in enumerate(zip(one.input, two.input, strict=True)):
                yield from names.pair(read, instead, f"input {i} of {where}", variances)
            for attribute, instead_ in _attributes(one, two, where):
                name = one.output[0]
                if attribute.HasField("t"):
                    yield Twin(name, name in variances, attribute.t, instead_.t)
                if attribute.HasField("sparse_tensor"):
                    yield Twin(name, False, attribute.sparse_tensor.values, instead_.sparse_tensor.values)
                    yield Twin(
                        f"{name} indices", False, attribute.sparse_tensor.indices, instead_.sparse_tensor.indices
                    )
                inner = [(attribute.g, instead_.g)] if attribute.HasField("g") else []
                inner += zip(attribute.graphs, instead_.graphs, strict=True)
                pending += [(*bodies, names.inside()) for bodies in inner]
            for made, instead in zip(one.output, two.output, strict=True):
                yield from names.pair(made, instead, f"an output of {where}")
        if len(a.node) != len(b.node):
            longer = max(a.node, b.node, key=len)
            odd = longer[min(len(a.node), len(b.node))]
            raise RefusedError(f"the graphs differ: only one model has {odd.op_type} '{odd.name}'")
        yield from _pair_ends(a, b, names, "output")


def _variance_inputs(functions: Mapping[Call, FunctionProto]) -> dict[Call, list[int]]:
    """Return, by function, the inputs that a BatchNormalization in it reads as its variance."""
    found: dict[Call, list[int]] = {}
    grown = True
    while grown:  # once more for each function that calls another
        reached = {key: _variances(function.node, found) for key, function in functions.items()}
        now = {key: [i for i, name in enumerate(functions[key].input) if name in reached[key]] for key in functions}
        grown, found = now != found, now
    return found


def _variances(operators: Iterable[NodeProto], within: Mapping[Call, Sequence[int]]) -> set[str]:
    """Return the tensors that a BatchNormalization reads as its variance, through Identity and functions too."""
    found: set[str] = set()
    copies: dict[str, str] = {}
    for operator in with_inner(operators):
        if operator.op_type == "BatchNormalization" and len(operator.input) == 5:
            found.add(operator.input[4])
        elif operator.op_type == "Identity":
            copies[operator.output[0]] = operator.input[0]
        numbers = within.get(key_of(operator), ())
        found.update(operator.input[i] for i in numbers if i < len(operator.input))
    fresh = found
    while fresh:
        fresh = {copies[name] for name in fresh if name in copies} - found
        found |= fresh
    return found


def _pair_ends(
    a: GraphProto | FunctionProto, b: GraphProto | FunctionProto, names: _Names, what: str
) -> Iterator[Twin]:
    """Pair inputs or outputs; initializers that are listed among the inputs, as old files do, are none."""
    ends = [list(getattr(graph, what)) for graph in (a, b)]
    if what == "input":
        ends = [[one for one in some if _name(one) not in held] for some, held in zip(ends, names.held, strict=True)]
    if len(ends[0]) != len(ends[1]):
        raise RefusedError(f"the graphs differ: one has {len(ends[0])} {what}s, the other {len(ends[1])}")
    for one, two in zip(*ends, strict=True):
        yield from names.pair(_name(one), _name(two), f"an {what}")
        if isinstance(one, str):
            continue
        kinds = type_of(one), type_of(two)
        if _fixed(kinds[0]) != _fixed(kinds[1]):
            raise RefusedError(
                f"the graphs differ: {what} '{one.name}' is {kinds[0]} in one and {kinds[1]} in the other"
            )


def _name(end: ValueInfoProto | str) -> str:
    return end if isinstance(end, str) else end.name


def _fixed(kind: TensorType) -> tuple[object, object]:
    """Return a type without the symbols of its dimensions."""
    return kind.dtype, kind.shape and tuple(size if isinstance(size, int) else None for size in kind.shape)


def _check_kind(one: NodeProto, two: NodeProto, where: str) -> None:
    kinds = [key_of(op) for op in (one, two)]
    if kinds[0] != kinds[1]:
        raise RefusedError(f"the graphs differ: {where} stands where the other has {two.op_type} '{two.name}'")
    for what in ("input", "output"):
        if len(getattr(one, what)) != len(getattr(two, what)):
            raise RefusedError(f"the graphs differ: {where} has another number of {what}s in the other")


def _attributes(one: NodeProto, two: NodeProto, where: str) -> Sequence[tuple[AttributeProto, AttributeProto]]:
    """Return the attributes that hold constants or bodies; refuse unless all others are equal."""
    found = [{attribute.name: attribute for attribute in op.attribute} for op in (one, two)]
    odd = found[0].keys() ^ found[1].keys()
    if odd:
        raise RefusedError(f"the graphs differ: only one model has attribute '{min(odd)}' of {where}")
    pairs = [(attribute, found[1][name]) for name, attribute in found[0].items()]
    for a, b in pairs:
        inner = [x.HasField("t") or x.HasField("sparse_tensor") or x.HasField("g") or len(x.graphs) for x in (a, b)]
        if inner[0] != inner[1] or not (inner[0] or a == b):
            raise RefusedError(f"the graphs differ: attribute '{a.name}' of {where} is not the same in both")
    return [(a, b) for a, b in pairs if a.HasField("t") or a.HasField("sparse_tensor") or a.HasField("g") or a.graphs]
