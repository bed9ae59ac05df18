"""Deciding in which float type every operator of a graph and of its subgraphs computes.

Each tensor has one *native* type, that in which its operator makes it, and is *wanted* in others by those who read it:
a Cast stands where the two differ, one for all readers. Casts between floats that the file has are seen through: who
reads what one makes reads what it was made from.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, SparseTensorProto, TensorProto, TypeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graphmod.model import Model, has_bodies, own_bodies
from graphmod.model.initializers import LARGE, values
from graphmod.rewrite.element_types import FLOATS, STANDARD, Formal, formals, runs, type_name
from graphmod.rewrite.rounding import fits, retyped

NO_TENSOR = -1
"""Stands for sequences, optionals and maps."""

_WITH_BODIES = ("If", "Loop", "Scan")

_MOVERS = {
    *("Compress", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity"),
    *("Pad", "Reshape", "ReverseSequence", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze"),
    *("Tile", "Transpose", "Trilu", "Unsqueeze", "Where"),
}
"""What only moves data: it takes the type in which its data comes."""

_CHOOSING = ("to", "dtype", "output_dtype", "output_datatype")
"""Attributes that say which type an operator makes."""


@dataclass(frozen=True)
class Choice:
    """The element types in which an operator reads its inputs and makes its outputs; 0 where nothing is known.

    Parameters
    ----------
    reads, makes : tuple of int
    kept : bool
        Whether the operator, and all in its bodies, stays as it is.
    exactly : bool
        Whether it should get its constants as they were, where it reads the old type; not so if it reads that only for
        want of a kernel.
    """

    reads: tuple[int, ...]
    makes: tuple[int, ...]
    kept: bool = False
    exactly: bool = True


@dataclass(eq=False)
class Scope:
    """A graph, the main one or an operator's body, and what is decided about the tensors that it defines.

    Parameters
    ----------
    graph : GraphProto
        As the file has it.
    inferred : GraphProto
        The same after shape inference.
    outer : Scope, optional
        The graph that it is part of.
    frozen : bool
        Whether all of it stays as it is.
    """

    graph: GraphProto
    inferred: GraphProto
    outer: Scope | None = None
    frozen: bool = False
    types: dict[str, int] = field(default_factory=dict)
    native: dict[str, int] = field(default_factory=dict)
    wanted: dict[str, set[int]] = field(default_factory=dict)
    exactly: set[str] = field(default_factory=set)
    constants: dict[str, TensorProto | SparseTensorProto | NodeProto] = field(default_factory=dict)
    casts: dict[str, NodeProto] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)
    choices: list[Choice] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def home(self, tensor: str) -> Scope | None:
        """Return the scope that defines a tensor that can be read here."""
        scope: Scope | None = self
        while scope is not None and tensor not in scope.types:
            scope = scope.outer
        return scope

    def root(self, tensor: str) -> tuple[Scope | None, str]:
        """Return the tensor that one is made from by nothing but Casts between floats, and the scope that has it."""
        home = self.home(tensor)
        while home is not None and tensor in home.casts and home.type_of(home.casts[tensor].input[0]) in FLOATS:
            tensor = home.casts[tensor].input[0]
            home = home.home(tensor)
        return home, tensor

    def type_of(self, tensor: str) -> int:
        """Return the element type that a tensor has in the file, 0 if unknown."""
        home = self.home(tensor) if tensor else None
        return home.types[tensor] if home else 0

    def native_of(self, tensor: str) -> int | None:
        """Return the type in which a tensor is made; None for constants, which are made in whatever is wanted."""
        home = self.home(tensor)
        return None if home is None or tensor in home.constants else home.native[tensor]

    def constant(self, tensor: str) -> TensorProto | SparseTensorProto | NodeProto | None:
        """Return what holds the value of a constant."""
        home = self.home(tensor)
        return home.constants.get(tensor) if home else None

    def want(self, tensor: str, element: int, exactly: bool) -> None:
        """Note that a tensor is needed in an element type, and whether no other storage will do for a constant."""
        home = self.home(tensor)
        if home is not None:
            home.wanted.setdefault(tensor, set()).add(element)
            if exactly:
                home.exactly.add(tensor)


def element_of(kind: TypeProto) -> int:
    """Return the element type that a declaration says, 0 if none, :data:`NO_TENSOR` for what is no tensor."""
    if kind.HasField("tensor_type") or kind.HasField("sparse_tensor_type"):
        return int(kind.tensor_type.elem_type or kind.sparse_tensor_type.elem_type)
    return NO_TENSOR if kind.WhichOneof("value") else 0


class Plan:
    """Which type every tensor of a model gets.

    Parameters
    ----------
    model : Model
    to : int
        The element type to compute in.
    kept : container of str
        Names of operators of the main graph that stay as they are.
    keep_io : bool
        Whether graph inputs and outputs keep their types.
    """

    def __init__(self, model: Model, to: int, kept: Container[str], keep_io: bool):
        self.model = model
        self.to = to
        main = Scope(model._proto.graph, model._inferred.graph)
        self.scopes = [main]
        self._define(main, [value.name for value in main.graph.input if keep_io], [])
        frozen = {place for place, name in enumerate(model.operator_names) if name in kept}
        for scope in self.scopes:  # grows: bodies follow the graph that they are part of
            for place, operator in enumerate(scope.graph.node):
                self._decide(scope, place, operator, scope.frozen or (scope is main and place in frozen))
            for value in scope.graph.output:
                stays = keep_io if scope is main else scope.frozen
                kind = scope.type_of(value.name)
                scope.ends.append(kind if stays else self.new(kind))
                scope.want(value.name, scope.ends[-1], exactly=stays)
        self._see_through_casts()
        for scope in self.scopes:
            for name in scope.constants:
                scope.native[name] = self._storage(scope, name)

    def new(self, element: int) -> int:
        """Return the type that a tensor gets where nothing stands against it."""
        return self.to if element in FLOATS else element

    # -- scopes

    def _define(self, scope: Scope, fixed: Container[str], given: Sequence[int]) -> None:
        """Note the types of all that a scope defines, and which of its tensors are constants."""
        graph, inferred = scope.graph, scope.inferred
        types = {v.name: element_of(v.type) for v in (*inferred.value_info, *inferred.output, *inferred.input)}
        for value, kind in zip(graph.input, given or [0] * len(graph.input), strict=True):
            scope.types[value.name] = types.get(value.name) or kind
            stays = scope.frozen or value.name in fixed
            scope.native[value.name] = scope.types[value.name] if stays else self.new(scope.types[value.name])
        for tensor in graph.initializer:
            scope.types[tensor.name] = tensor.data_type
            scope.constants[tensor.name] = tensor
        for sparse in graph.sparse_initializer:
            scope.types[sparse.values.name] = sparse.values.data_type
            scope.constants[sparse.values.name] = sparse
        for operator in graph.node:
            told = formals(operator, self.model.opsets)
            for place, name in enumerate(operator.output):
                if name:
                    scope.types[name] = types.get(name) or _shared_type(scope, operator, told, place)

    def _open_bodies(self, scope: Scope, place: int, choice: Choice) -> None:
        """Add the bodies of an operator to the scopes."""
        operator, inferred = scope.graph.node[place], scope.inferred.node[place]
        old = [scope.type_of(name) for name in operator.input]
        for body, known in zip(own_bodies(operator), own_bodies(inferred), strict=True):
            inner = Scope(body, known, scope, choice.kept)
            self._define(inner, (), old[len(old) - len(body.input) :] if body.input else [])
            self.scopes.append(inner)

    # -- operators

    def _decide(self, scope: Scope, place: int, operator: NodeProto, kept: bool) -> None:
        """Choose the types of an operator, and note what it wants and makes."""
        reads = tuple(scope.type_of(name) for name in operator.input)
        makes = tuple(scope.type_of(name) for name in operator.output)
        if not kept and operator.op_type == "Constant" and operator.domain in STANDARD and makes[0] in FLOATS:
            scope.constants[operator.output[0]] = operator
        if not kept and operator.op_type == "Cast" and operator.domain in STANDARD and makes[0] in FLOATS and reads[0]:
            choice = Choice(reads, (self._cast(scope, operator),))
            scope.casts[operator.output[0]] = operator
        else:
            choice = Choice(reads, makes, kept=True) if kept else self._choose(scope, operator, reads, makes)
            for name, old, element in zip(operator.input, reads, choice.reads, strict=True):
                if name and old in FLOATS:
                    scope.want(name, element, exactly=element == old and choice.exactly)
        scope.choices.append(choice)
        scope.native.update(zip(operator.output, choice.makes, strict=True))
        self._open_bodies(scope, place, choice)

    def _cast(self, scope: Scope, operator: NodeProto) -> int:
        """Return the type in which the result of a Cast is at hand; what it is wanted in, it makes at once."""
        source, made = operator.input[0], operator.output[0]
        kind = scope.type_of(source)
        if kind in FLOATS:
            if self._is_counted(scope, source):
                scope.counted.add(made)
            return scope.native_of(source) or self.to
        if kind != TensorProto.BOOL and self._narrows(scope.types[made]):
            scope.counted.add(made)
            return scope.types[made]
        return self.to

    def _choose(self, scope: Scope, operator: NodeProto, reads: tuple[int, ...], makes: tuple[int, ...]) -> Choice:
        as_it_is = Choice(reads, makes, kept=True)
        named = [kind for name, kind in zip((*operator.input, *operator.output), (*reads, *makes), strict=True) if name]
        nests = has_bodies(operator)
        told = formals(operator, self.model.opsets)
        if not nests and FLOATS_SET.isdisjoint(named):
            return Choice(reads, makes)
        if told is None or NO_TENSOR in named or (0 in named and not nests):
            return as_it_is
        wanted = tuple(self._admitted(kind, formal) for kind, formal in zip(reads, told[0], strict=True))
        made = tuple(self._admitted(kind, formal) for kind, formal in zip(makes, told[1], strict=True))
        if operator.op_type.endswith("LayerNormalization"):
            made = (*made[:1], *makes[1:])  # the statistics come in the type that stash_type says
        if nests:
            possible = operator.op_type in _WITH_BODIES and all(map(self._is_new, (*wanted, *made)))
            return Choice(wanted, made) if possible else as_it_is
        if operator.op_type == "Range" or self._counts(scope, operator, makes):
            scope.counted.update(name for name, kind in zip(operator.output, makes, strict=True) if kind in FLOATS)
            return Choice(reads, makes)
        if (wanted, made) == (reads, makes):
            return Choice(reads, makes, exactly=self.to != TensorProto.BFLOAT16)
        if self._follows(scope, operator, reads, makes):
            return Choice(
                reads, makes, exactly=operator.op_type not in ("Shape", "Size") and self.to != TensorProto.BFLOAT16
            )
        trial = with_types(operator, makes, made, saturate=True)
        if runs(trial, wanted, made, self.model.opsets) or not runs(operator, reads, makes, self.model.opsets):
            return Choice(wanted, made)
        return Choice(reads, makes, exactly=False)

    def _is_new(self, element: int) -> bool:
        return element not in FLOATS or element == self.to

    def _admitted(self, element: int, formal: Formal) -> int:
        return self.to if element in FLOATS and type_name(self.to) in formal[1] else element

    def _follows(self, scope: Scope, operator: NodeProto, reads: Sequence[int], makes: Sequence[int]) -> bool:
        """Whether an operator can take its data as it comes, and it comes unchanged.

        In bfloat16, which is for storage, all that compute do.
        """
        moves = operator.op_type in _MOVERS or self.to == TensorProto.BFLOAT16
        if not moves and not FLOATS_SET.isdisjoint(makes):
            return False
        given = [
            (kind, native)
            for name, kind in zip(operator.input, reads, strict=True)
            if kind in FLOATS and (native := scope.native_of(name)) is not None
        ]
        unchanged = (bool(given) or not moves) and all(kind == native != self.to for kind, native in given)
        return unchanged and not any(self._is_beyond(scope, name) for name in operator.input)

    # -- what is computed from integers

    def _narrows(self, element: int) -> bool:
        return element in FLOATS and _SIZES[self.to] < _SIZES[element]

    def _is_counted(self, scope: Scope, tensor: str) -> bool:
        home = scope.home(tensor)
        return home is not None and tensor in home.counted

    def _counts(self, scope: Scope, operator: NodeProto, makes: Sequence[int]) -> bool:
        """Whether an operator computes with positions: floats from integers, and constants beside them."""
        if not any(self._narrows(kind) for kind in makes):
            return False
        given = [name for name in operator.input if scope.type_of(name) in FLOATS]
        others = [name for name in given if not self._is_counted(scope, name)]
        return len(others) < len(given) and all(self._is_small(scope, name) for name in others)

    def _is_beyond(self, scope: Scope, tensor: str) -> bool:
        """Whether a tensor is a small constant that does not fit the new type: a mask, which must be in it early."""
        held = scope.constant(tensor) if scope.type_of(tensor) in FLOATS else None
        if isinstance(held, TensorProto):
            return prod(held.dims) <= LARGE and not fits(values(held, self.model.folder), self.to)
        return isinstance(held, NodeProto) and not fits(held_by(held), self.to)

    def _is_small(self, scope: Scope, tensor: str) -> bool:
        """Whether a tensor is a constant that may stand beside positions: few numbers, none too large for the type."""
        held = scope.constant(tensor)
        if isinstance(held, TensorProto):
            return prod(held.dims) <= LARGE and fits(values(held, self.model.folder), self.to)
        return isinstance(held, NodeProto) and prod((array := held_by(held)).shape) <= LARGE and fits(array, self.to)

    # -- the end

    def _see_through_casts(self) -> None:
        """Pass on what is wanted of the results of Casts between floats to what these were made from."""
        for scope in reversed(self.scopes):
            for name in reversed(scope.casts):
                source = scope.casts[name].input[0]
                if scope.type_of(source) in FLOATS:
                    for element in scope.wanted.get(name, ()):
                        scope.want(source, element, exactly=element == scope.type_of(source))

    def _storage(self, scope: Scope, name: str) -> int:
        """Return the type that a constant is kept in: the new one, unless someone needs every digit of it.

        Where ONNX Runtime lacks the kernels, the new type only saves space, and only matrices take any.
        """
        old = scope.types[name]
        wanted = scope.wanted.get(name, set())
        if old not in FLOATS or not wanted or (old in wanted and name in scope.exactly):
            return old
        if self.to in wanted:
            return self.to
        held = scope.constants[name]
        dims = held.dims if not isinstance(held, NodeProto) else held_by(held).shape
        return self.to if len(dims) > 1 and prod(dims) > 1 else old


FLOATS_SET = frozenset(FLOATS)

_SIZES: dict[int, int] = {TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2, TensorProto.FLOAT: 4, TensorProto.DOUBLE: 8}


def _shared_type(scope: Scope, operator: NodeProto, told: tuple[list[Formal], list[Formal]] | None, place: int) -> int:
    """Return the type of an output that inference leaves open: that of an input with which it shares its type."""
    if told is None:
        return 0
    shared = told[1][place][0]
    kinds = (scope.type_of(n) for n, (name, _) in zip(operator.input, told[0], strict=True) if name == shared and n)
    return next((kind for kind in kinds if kind), 0)


def held_by(constant: NodeProto) -> NDArray[np.generic]:
    """Return the floats that a Constant makes."""
    (attribute,) = constant.attribute
    if attribute.name == "value":
        return numpy_helper.to_array(attribute.t)
    if attribute.name == "sparse_value":
        return np.asarray(next(iter(ReferenceEvaluator(constant).run(None, {}))))
    return np.array(attribute.f if attribute.name == "value_float" else list(attribute.floats), np.float32)


def with_types(operator: NodeProto, old: Sequence[int], new: Sequence[int], saturate: bool) -> NodeProto:
    """Return an operator whose attributes say that it makes other types than before; bodies are left alone."""
    fresh = NodeProto()
    fresh.CopyFrom(operator)
    if not new or old[0] == new[0]:
        return fresh
    if fresh.op_type == "Constant" and fresh.domain in STANDARD:
        tensor = retyped(
            TensorProto(name=fresh.output[0], dims=held_by(operator).shape), held_by(operator), new[0], saturate
        )
        del fresh.attribute[:]
        fresh.attribute.append(helper.make_attribute("value", tensor))
    if fresh.op_type == "ConstantOfShape" and fresh.domain in STANDARD:
        given = [attribute.t for attribute in fresh.attribute if attribute.name == "value"]
        held = given[0] if given else numpy_helper.from_array(np.zeros(1, np.float32))
        del fresh.attribute[:]
        fresh.attribute.append(
            helper.make_attribute("value", retyped(held, numpy_helper.to_array(held), new[0], saturate))
        )
    said = {attribute.name: attribute for attribute in fresh.attribute}
    for name in _CHOOSING:
        if name in said and said[name].i in FLOATS:
            said[name].i = new[0]
        elif name not in said and _default(fresh, name) == old[0]:
            fresh.attribute.append(helper.make_attribute(name, new[0]))
    return fresh


def _default(operator: NodeProto, attribute: str) -> int:
    """Return the value that an attribute has where it is not given, 0 for none."""
    if not onnx.defs.has(operator.op_type, operator.domain):
        return 0
    declared = onnx.defs.get_schema(operator.op_type, operator.domain).attributes.get(attribute)
    return int(declared.default_value.i) if declared else 0
