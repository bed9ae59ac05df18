"""Patterns: several operators that write out what PyTorch has one module for.

A pattern is a tree of operator types that ends in one operator, its root. It is found before any operator is converted,
so that the operators inside it never are. To add one, register a function in a file of
:mod:`graphmod.pytorch.operators`::

    @pattern(Op("Mul", X("x"), Op("Sigmoid", X("x"))))
    def silu(op: Operator, found: Found) -> fx.Node:
        return op.module(nn.SiLU(), op.importer.node(found["x"]))

"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from torch import fx

if TYPE_CHECKING:
    from graphmod.pytorch.operator import Operator

COMMUTATIVE = frozenset({"Add", "Mul"})


@dataclass(frozen=True)
class X:
    """Any tensor; the same name stands for the same tensor."""

    name: str


@dataclass(frozen=True)
class Number:
    """A constant of one element: of a value, or of any, which goes by the name."""

    value: float | None = None
    name: str = ""


@dataclass(frozen=True)
class Op:
    """An operator of a type; its first inputs match the patterns given, others are free."""

    type: str
    inputs: tuple[Pattern, ...]
    name: str = ""

    def __init__(self, op_type: str, *inputs: Pattern, name: str = "") -> None:
        object.__setattr__(self, "type", op_type)
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "name", name)


Pattern: TypeAlias = "X | Number | Op"


@dataclass
class Found:
    """Where a pattern holds: tensors, numbers and operators by the names that the pattern gives them."""

    tensors: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    operators: dict[str, Operator] = field(default_factory=dict)
    inside: set[int] = field(default_factory=set)

    def __getitem__(self, name: str) -> str:
        return self.tensors[name]

    def copy(self) -> Found:
        """Return a copy to try further matches on."""
        return Found(dict(self.tensors), dict(self.numbers), dict(self.operators), set(self.inside))


Check = Callable[["Operator", Found], bool]
Conversion = Callable[["Operator", Found], fx.Node]


@dataclass(frozen=True)
class Rule:
    """A pattern, what else has to hold, and what it becomes."""

    pattern: Op
    check: Check
    convert: Conversion


_RULES: dict[str, list[Rule]] = {}


def pattern(*patterns: Op, check: Check = lambda *_: True) -> Callable[[Conversion], Conversion]:
    """Register what operators become that match one of some patterns; ``check`` looks at what was found."""

    def register(function: Conversion) -> Conversion:
        for tree in patterns:
            _RULES.setdefault(tree.type, []).append(Rule(tree, check, function))
        return function

    return register


def find_pattern(op: Operator) -> tuple[Rule, Found] | None:
    """Return the first pattern that ends in an operator, with what it holds; None where there is none."""
    for rule in _RULES.get(op.type, ()):
        for found in _match(rule.pattern, op, Found()):
            if _closed(op, found) and rule.check(op, found):
                return rule, found
    return None


def _match(tree: Op, op: Operator, found: Found) -> Iterator[Found]:
    """Yield every way in which an operator matches."""
    if op.type != tree.type or len(op.proto.input) < len(tree.inputs):
        return
    if tree.name and tree.name in found.operators and found.operators[tree.name].position != op.position:
        return
    orders = [tree.inputs]
    if tree.type in COMMUTATIVE and len(tree.inputs) == 2:
        orders.append(tree.inputs[::-1])
    for order in orders:
        start = found.copy()
        start.inside.add(op.position)
        if tree.name:
            start.operators[tree.name] = op
        yield from _match_inputs(order, 0, op, start)


def _match_inputs(order: tuple[Pattern, ...], index: int, op: Operator, found: Found) -> Iterator[Found]:
    if index == len(order):
        yield found
        return
    for after in _match_input(order[index], index, op, found):
        yield from _match_inputs(order, index + 1, op, after)


def _match_input(tree: Pattern, index: int, op: Operator, found: Found) -> Iterator[Found]:
    tensor = op.proto.input[index]
    match tree:
        case X(name):
            if tensor and found.tensors.get(name, tensor) == tensor:
                after = found.copy()
                after.tensors[name] = tensor
                yield after
        case Number(value, name):
            constant = op.constant(index)
            if constant is None or constant.size != 1 or not _spreads(constant.ndim, index, op):
                return
            actual = float(constant.reshape(-1)[0])
            rounding = 1e-3 if constant.dtype.itemsize == 2 else 1e-5
            if value is None or math.isclose(actual, value, rel_tol=rounding):
                after = found.copy()
                after.numbers[name] = actual
                yield after
        case Op():
            maker = op.maker(index)
            if maker is not None and tensor == maker.proto.output[0]:
                yield from _match(tree, maker, found)


def _spreads(n_axes: int, index: int, op: Operator) -> bool:
    """Whether a constant of one element adds no axis to what it is combined with."""
    others = [op.known_rank(other) for other in range(len(op.proto.input)) if other != index]
    return n_axes == 0 or any(rank is not None and rank >= n_axes for rank in others)


def _closed(root: Operator, found: Found) -> bool:
    """Whether nothing outside the pattern reads what is made inside it."""
    importer = root.importer
    return all(
        importer.read_only_by(name, found.inside)
        for position in found.inside - {root.position}
        for name in importer.scope.operators[position].output
        if name
    )
