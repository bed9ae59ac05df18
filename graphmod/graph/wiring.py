"""The wiring of a model: which operator reads what of which, inside bodies and functions too, whatever the names.

A body is a subgraph that an operator carries in an attribute. Operators of bodies and functions stand beside those of
the main graph, so that an algorithm on the wiring needs no recursion: what a body captures is read like any tensor, and
what a body gives is read by the operator that carries it. Constant operators are constants, as initializers are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    SparseTensorProto,
    TensorProto,
)

from graphmod.errors import InvalidModelError
from graphmod.model import Model, check_model
from graphmod.model.stored import Stored
from graphmod.model.view import operator_names

CARRIED = -1
"""The position, among the outputs of an operator, of what it hands to the inputs of its bodies."""

_CONSTANT_FIELDS = {
    "value_float": TensorProto.FLOAT,
    "value_floats": TensorProto.FLOAT,
    "value_int": TensorProto.INT64,
    "value_ints": TensorProto.INT64,
    "value_string": TensorProto.STRING,
    "value_strings": TensorProto.STRING,
}


@dataclass(frozen=True)
class Constant:
    """An initializer, or what a Constant operator makes.

    Parameters
    ----------
    name : str
        Of the tensor.
    values : Stored
        Those other than zero where it is sparse.
    indices : Stored, optional
        Where the values of a sparse constant stand.
    shape : tuple of int
    """

    name: str
    values: Stored
    indices: Stored | None
    shape: tuple[int, ...]

    @property
    def parts(self) -> tuple[Stored, ...]:
        """The stored tensors it is made of."""
        return (self.values,) if self.indices is None else (self.values, self.indices)

    def __str__(self) -> str:
        """Render as ``float32[64, 3, 7, 7]``."""
        dtype = "string" if self.values.is_text else self.values.dtype
        return f"{dtype}[{', '.join(map(str, self.shape))}]"


class Read(NamedTuple):
    """An edge: what is read of which point at which slot, such as "0" or "then_branch 0"."""

    slot: str
    source: int
    position: int


@dataclass(frozen=True)
class Point:
    """An operator, or an input or output of the main graph, a body or a function.

    Parameters
    ----------
    kind : str
        "operator", "input" or "output".
    name : str
        Unique; operators of bodies and functions have those in front, ``choice/then_branch/Relu_0``.
    scope : str
        "" in the main graph; else what kind of body, or which function, it is in.
    tensors : tuple of str
        The names of what it makes, or of what an output gives.
    operator : onnx.NodeProto, optional
        Not to be changed.
    version : int
        Of the operator set that the operator is of; 0 where the model imports none of that domain.
    """

    kind: str
    name: str
    scope: str
    tensors: tuple[str, ...]
    operator: NodeProto | None = field(default=None, repr=False)
    version: int = field(default=0, repr=False)


@dataclass(frozen=True)
class Wiring:
    """Points, what they read of each other, and which constants.

    Parameters
    ----------
    points : sequence of Point
    reads : sequence of sequence of Read
        By point.
    constants : sequence of Constant
    held : sequence of mapping of str to int
        By point: the constants that it reads, by slot.
    positions : sequence of (bool, int)
        Of each operator in the main graph: whether it is a point (else a constant), and which.
    """

    points: Sequence[Point]
    reads: Sequence[Sequence[Read]]
    constants: Sequence[Constant]
    held: Sequence[Mapping[str, int]]
    positions: Sequence[tuple[bool, int]]

    def tensor(self, read: Read) -> str:
        """Return the name of the tensor that an edge stands for."""
        made = self.points[read.source].tensors
        return made[read.position] if read.position != CARRIED else self.points[read.source].name


def domain_of(operator: NodeProto | FunctionProto | OperatorSetIdProto) -> str:
    """Return the domain, "" where it is the standard one under either of its names."""
    return "" if operator.domain == "ai.onnx" else str(operator.domain)


def function_key(function: FunctionProto) -> str:
    """Return what tells a function from the others of its model."""
    return "::".join(filter(None, (function.domain, function.name, function.overload)))


class _Scope:
    """The names that operators of one graph see: its own, then those around it."""

    def __init__(self, path: str, kind: str, opsets: Mapping[str, int], around: _Scope | None = None):
        self.path, self.kind, self.opsets, self.around = path, kind, opsets, around
        self.made: dict[str, tuple[int, int]] = {}
        self.constants: dict[str, int] = {}

    def owner_of(self, name: str) -> _Scope:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.made or name in scope.constants:
                return scope
            scope = scope.around
        raise InvalidModelError(
            f"nothing makes tensor '{name}', which {self.path or 'the graph'} reads; check the model"
        )


class _Builder:
    """Collects points scope by scope, then resolves what they read once every name is known."""

    def __init__(self, model: Model):
        self.folder = model.folder
        self.points: list[Point] = []
        self.constants: list[Constant] = []
        self.positions: list[tuple[bool, int]] = []
        self.pending: list[tuple[_Scope, GraphProto | FunctionProto, int]] = []
        self.unresolved: list[tuple[int, str, _Scope, str]] = []
        self.carried: list[tuple[int, Read]] = []

    def point(self, scope: _Scope, kind: str, name: str, tensors: Sequence[str], op: NodeProto | None = None) -> int:
        path = f"{scope.path}/{name}" if scope.path else name
        version = 0 if op is None else scope.opsets.get(domain_of(op), 0)
        self.points.append(Point(kind, path, scope.kind, tuple(tensors), op, version))
        return len(self.points) - 1

    def constant(self, scope: _Scope, name: str, tensor: TensorProto | SparseTensorProto) -> int:
        sparse = isinstance(tensor, SparseTensorProto)
        values = Stored(tensor.values if sparse else tensor, self.folder)
        indices = Stored(tensor.indices, self.folder) if sparse else None
        path = f"{scope.path}/{name}" if scope.path else name
        self.constants.append(Constant(path, values, indices, tuple(tensor.dims)))
        scope.constants[name] = len(self.constants) - 1
        return len(self.constants) - 1

    def add(self, scope: _Scope, graph: GraphProto | FunctionProto, owner: int) -> None:
        if isinstance(graph, GraphProto):
            for tensor in graph.initializer:
                self.constant(scope, tensor.name, tensor)
            for sparse in graph.sparse_initializer:
                self.constant(scope, sparse.values.name, sparse)
        for number, value in enumerate(graph.input):
            name = value if isinstance(value, str) else value.name
            if name not in scope.constants:
                scope.made[name] = self.point(scope, "input", name, [name]), 0
                if owner >= 0:
                    read = Read(f"{scope.path.rpartition('/')[2]} {number}", owner, CARRIED)
                    self.carried.append((scope.made[name][0], read))
        names = operator_names(graph)
        for name, operator in zip(names, graph.node, strict=True):
            place = self.operator(scope, name, operator)
            if not scope.path:
                self.positions.append(place)
        for number, value in enumerate(graph.output):
            name = value if isinstance(value, str) else value.name
            if owner >= 0:
                self.unresolved.append((owner, f"{scope.path.rpartition('/')[2]} {number}", scope, name))
            else:
                self.unresolved.append((self.point(scope, "output", name, [name]), "0", scope, name))

    def operator(self, scope: _Scope, name: str, operator: NodeProto) -> tuple[bool, int]:
        if operator.op_type == "Constant" and not operator.domain:
            value = _constant_value(operator)
            if value is not None:
                return False, self.constant(scope, operator.output[0], value)
        number = self.point(scope, "operator", name, operator.output, operator)
        scope.made.update((tensor, (number, i)) for i, tensor in enumerate(operator.output) if tensor)
        self.unresolved.extend((number, _slot(i), scope, read) for i, read in enumerate(operator.input) if read)
        for attribute in operator.attribute:
            for i, body in enumerate(_bodies(attribute)):
                part = attribute.name if attribute.HasField("g") else f"{attribute.name}[{i}]"
                kind = f"{scope.kind}>{operator.op_type}.{part}"
                inner = _Scope(f"{self.points[number].name}/{part}", kind, scope.opsets, scope)
                self.pending.append((inner, body, number))
        return True, number

    def build(self, model: Model) -> Wiring:
        proto = model._proto
        self.add(_Scope("", "", _opsets(proto)), proto.graph, -1)
        for function in proto.functions:
            key = f"function {function_key(function)}"
            self.add(_Scope(key, key, _opsets(function)), function, -1)
        while self.pending:
            self.add(*self.pending.pop())
        reads: list[list[Read]] = [[] for _ in self.points]
        held: list[dict[str, int]] = [{} for _ in self.points]
        for target, read in self.carried:
            reads[target].append(read)
        for target, slot, scope, name in self.unresolved:
            owner = scope.owner_of(name)
            if name in owner.made:
                reads[target].append(Read(slot, *owner.made[name]))
            else:
                held[target][slot] = owner.constants[name]
        return Wiring(self.points, reads, self.constants, held, self.positions)


def _opsets(proto: ModelProto | FunctionProto) -> dict[str, int]:
    return {domain_of(entry): entry.version for entry in proto.opset_import}


@cache
def _slot(number: int) -> str:
    return str(number)


def _bodies(attribute: AttributeProto) -> Iterator[GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def _constant_value(operator: NodeProto) -> TensorProto | SparseTensorProto | None:
    """Return what a Constant operator makes; None where an attribute of a function gives it."""
    tensor: TensorProto
    sparse: SparseTensorProto
    for attribute in operator.attribute:
        if attribute.ref_attr_name:
            return None
        if attribute.name == "value":
            tensor = attribute.t
            return tensor
        if attribute.name == "sparse_value":
            sparse = attribute.sparse_tensor
            return sparse
        if attribute.name in _CONSTANT_FIELDS:
            value: Any = onnx.helper.get_attribute_value(attribute)
            values = value if attribute.name.endswith("s") else [value]
            dims = [len(values)] if attribute.name.endswith("s") else []
            return onnx.helper.make_tensor(operator.output[0], _CONSTANT_FIELDS[attribute.name], dims, values)
    return None


def wiring(model: Model) -> Wiring:
    """Return the wiring of a model.

    Raises
    ------
    InvalidModelError
        An operator reads a tensor that nothing makes.

    Examples
    --------
    >>> import graphmod as gm
    >>> found = wiring(gm.load(gm.demo.model_path()))
    >>> found.points[0].name, found.points[1].operator.op_type, found.constants[found.held[1]["1"]].shape
    ('image', 'Conv', (16, 1, 3, 3))
    """
    check_model(model)
    return _Builder(model).build(model)
