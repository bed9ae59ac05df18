"""Sizes: arithmetic on shapes, followed as Python integers.

Exporters write ``x.reshape(x.shape[0], -1)`` as a chain of Shape, Gather, Mul, Concat. Followed as integers, each an
expression of the sizes of tensors, the chain becomes that very call again: nothing is computed with tensors, dynamic
sizes stay symbolic for torch.export and torch.compile, and what depends on static sizes alone is known at once.
"""

from __future__ import annotations

import operator as python
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from graphmod.pytorch.constants import Constants
from graphmod.pytorch.registry import domain_of
from graphmod.pytorch.scope import Scope

LONGEST = 64
"""Integers above which a constant is data rather than a shape."""


@dataclass(frozen=True)
class Dim:
    """The size of a tensor along an axis, known when the network runs."""

    tensor: str
    axis: int


@dataclass(frozen=True)
class Expr:
    """A function of sizes."""

    function: Callable[..., int | bool]
    args: tuple[Item, ...]


Item: TypeAlias = "int | bool | Dim | Expr"


@dataclass(frozen=True)
class Ints:
    """An integer or boolean tensor of no or one axis, element by element."""

    items: tuple[Item, ...]
    rank: int
    dtype: np.dtype[np.generic]


def quotient(left: int, right: int) -> int:
    """Divide towards zero, as ONNX does.

    Examples
    --------
    >>> quotient(-7, 2)
    -3
    """
    n = abs(left) // abs(right)
    return n if (left < 0) == (right < 0) else -n


def choose(condition: bool, left: int, right: int) -> int:
    """Return the left value if the condition holds, else the right one."""
    return left if condition else right


ARITHMETIC: dict[str, Callable[..., int | bool]] = {
    "Add": python.add,
    "Sub": python.sub,
    "Mul": python.mul,
    "Div": quotient,
    "Mod": python.mod,
    "Max": max,
    "Min": min,
    "Equal": python.eq,
    "Less": python.lt,
    "LessOrEqual": python.le,
    "Greater": python.gt,
    "GreaterOrEqual": python.ge,
    "And": python.and_,
    "Or": python.or_,
    "Not": python.not_,
    "Neg": python.neg,
    "Where": choose,
}
TRUTHS = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not"})


class Sizes:
    """The tensors of a graph that hold nothing but sizes and what is computed from them.

    Parameters
    ----------
    scope : Scope
    constants : Constants
    parent : Sizes, optional
        Those of the graph around.
    """

    def __init__(self, scope: Scope, constants: Constants, parent: Sizes | None = None) -> None:
        self._scope = scope
        self._constants = constants
        self._parent = parent
        self._ints: dict[str, Ints] = {}
        for operator in scope.operators:
            if domain_of(operator.domain) == "" and not constants.folds(operator) and len(operator.output) == 1:
                made = self._follow(operator)
                if made is not None and len(made.items) <= LONGEST:
                    self._ints[operator.output[0]] = made

    def __contains__(self, name: str) -> bool:
        return name in self._ints

    def get(self, name: str) -> Ints | None:
        """Return a tensor's integers, or None for one that holds other things."""
        if name in self._ints:
            return self._ints[name]
        if name in self._constants:
            return self._constant(name)
        return None

    def _constant(self, name: str) -> Ints | None:
        kind = self._scope.types.get(name)
        if kind is not None and kind.dtype is not None and kind.dtype.name not in ("int64", "int32", "bool"):
            return None
        if kind is not None and kind.shape is not None and (len(kind.shape) > 1 or kind.size > LONGEST):
            return None
        value = self._constants.value(name)
        if value.ndim > 1 or value.size > LONGEST or value.dtype.name not in ("int64", "int32", "bool"):
            return None
        items = value.reshape(-1).tolist()
        return Ints(tuple(items), value.ndim, value.dtype)

    def _follow(self, operator: NodeProto) -> Ints | None:
        attributes = {a.name: helper.get_attribute_value(a) for a in operator.attribute}
        if operator.op_type == "Shape":
            return self._shape(operator.input[0], attributes.get("start", 0), attributes.get("end"))
        if operator.op_type == "Size":
            whole = self._shape(operator.input[0], 0, None)
            return whole and Ints((_fold(python.mul, whole.items, 1),), 0, np.dtype(np.int64))
        rule = RULES.get(operator.op_type)
        if rule is None or not operator.input or operator.input[0] == "":
            return None
        given = []
        for name in operator.input:
            known = self.get(name) if name else None
            if name and known is None:
                return None
            given.append(known)
        if not any(known is not None and name in self._ints for name, known in zip(operator.input, given, strict=True)):
            return None  # nothing but constants: folded, or not integers
        return rule(operator.op_type, given, attributes)

    def _shape(self, tensor: str, start: int, end: int | None) -> Ints | None:
        kind = self._scope.types.get(tensor)
        if kind is None or kind.shape is None:
            return None
        items = [size if isinstance(size, int) else Dim(tensor, axis) for axis, size in enumerate(kind.shape)]
        return Ints(tuple(items[start:end]), 1, np.dtype(np.int64))


Rule = Callable[[str, Sequence[Ints | None], dict[str, object]], Ints | None]
RULES: dict[str, Rule] = {}


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Register how operators act on lists of integers."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(op_types, function))
        return function

    return register


def _apply(function: Callable[..., int | bool], *args: Item) -> Item:
    """Return a function of sizes: its value where all of them are known, in its simplest form where one is."""
    if all(isinstance(arg, int) for arg in args):
        if function is quotient and args[1] == 0:
            return Expr(function, args)
        return function(*args)
    match function, args:
        case (python.add, (x, 0)) | (python.add, (0, x)) | (python.sub, (x, 0)):
            return x
        case (python.mul, (x, 1)) | (python.mul, (1, x)):
            return x
        case (f, (x, 1)) if f is quotient:
            return x
        case (f, (x, y)) if f is quotient and _not_negative(x) and _not_negative(y):
            return Expr(python.floordiv, (x, y))
        case (f, (True, x, _)) if f is choose:
            return x
        case (f, (False, _, y)) if f is choose:
            return y
    if function in (python.eq, python.lt, python.le, python.gt, python.ge) and _decided(function, *args) is not None:
        return bool(_decided(function, *args))
    return Expr(function, args)


def _not_negative(item: Item) -> bool:
    if isinstance(item, int):
        return item >= 0
    if isinstance(item, Dim):
        return True
    return item.function in (python.add, python.mul, python.floordiv) and all(_not_negative(arg) for arg in item.args)


def _decided(function: Callable[..., int | bool], left: Item, right: Item) -> bool | None:
    """Decide a comparison of a size with a negative number, as exporters make them to find a -1."""
    if isinstance(right, int) and right < 0 and _not_negative(left):
        return function in (python.gt, python.ge)
    if isinstance(left, int) and left < 0 and _not_negative(right):
        return function in (python.lt, python.le)
    return None


def _fold(function: Callable[..., int | bool], items: Sequence[Item], start: int) -> Item:
    total: Item = start
    for item in items:
        total = _apply(function, total, item)
    return total


def _present(given: Sequence[Ints | None]) -> Iterator[Ints]:
    return (known for known in given if known is not None)


@rule(*ARITHMETIC)
def _arithmetic(op_type: str, given: Sequence[Ints | None], attributes: dict[str, object]) -> Ints | None:
    operands = list(_present(given))
    length = max(len(known.items) for known in operands)
    if any(len(known.items) not in (1, length) for known in operands) or not length:
        return None
    columns = [known.items * length if len(known.items) == 1 else known.items for known in operands]
    function = ARITHMETIC[op_type]
    if (op_type in ("Max", "Min") and len(columns) != 2) or attributes.get("fmod"):
        return None
    dtype = np.dtype(bool) if op_type in TRUTHS else operands[-1].dtype
    items = tuple(_apply(function, *column) for column in zip(*columns, strict=True))
    return Ints(items, max(known.rank for known in operands), dtype)


@rule("Identity")
def _identity(_: str, given: Sequence[Ints | None], __: dict[str, object]) -> Ints | None:
    return given[0]


@rule("Cast")
def _cast(_: str, given: Sequence[Ints | None], attributes: dict[str, object]) -> Ints | None:
    dtype = helper.tensor_dtype_to_np_dtype(int(str(attributes["to"])))
    known = given[0]
    if known is None or dtype.name not in ("int64", "int32") or known.dtype.kind == "b":
        return known if known is not None and dtype == known.dtype else None
    return Ints(known.items, known.rank, dtype)


@rule("ConstantOfShape")
def _constant_of_shape(_: str, given: Sequence[Ints | None], attributes: dict[str, object]) -> Ints | None:
    sizes, value = given[0], attributes.get("value")
    if sizes is None or len(sizes.items) != 1 or not isinstance(value, TensorProto):
        return None
    n, filling = sizes.items[0], numpy_helper.to_array(value)
    if not isinstance(n, int) or n > LONGEST or filling.dtype.name not in ("int64", "int32", "bool"):
        return None
    return Ints((filling.reshape(-1)[0].item(),) * n, 1, filling.dtype)


@rule("Gather")
def _gather(_: str, given: Sequence[Ints | None], attributes: dict[str, object]) -> Ints | None:
    source, indices = given
    if source is None or indices is None or source.rank != 1 or attributes.get("axis", 0):
        return None
    places = [index for index in indices.items if isinstance(index, int)]
    n = len(source.items)
    if len(places) != len(indices.items) or any(not -n <= place < n for place in places):
        return None
    return Ints(tuple(source.items[place] for place in places), indices.rank, source.dtype)


@rule("Slice")
def _slice(_: str, given: Sequence[Ints | None], attributes: dict[str, object]) -> Ints | None:
    source = given[0]
    if source is None or source.rank != 1:
        return None
    bounds: list[int] = []
    if len(given) > 1:
        for known, default in zip([*given[1:3], *(*given[3:], None, None)[:2]], (0, 0, 0, 1), strict=True):
            item = default if known is None else known.items[0] if len(known.items) == 1 else None
            if not isinstance(item, int):
                return None
            bounds.append(item)
    else:
        starts, ends = attributes["starts"], attributes["ends"]
        assert isinstance(starts, Sequence)
        assert isinstance(ends, Sequence)
        bounds = [starts[0], ends[0], 0, 1]
    start, end, axis, step = bounds
    if axis not in (0, -1) or step < 1:
        return None
    return Ints(source.items[start:end:step], 1, source.dtype)


@rule("Concat")
def _concat(_: str, given: Sequence[Ints | None], __: dict[str, object]) -> Ints | None:
    parts = list(_present(given))
    if any(known.rank != 1 for known in parts):
        return None
    return Ints(tuple(item for known in parts for item in known.items), 1, parts[0].dtype)


@rule("Squeeze")
def _squeeze(_: str, given: Sequence[Ints | None], __: dict[str, object]) -> Ints | None:
    source = given[0]
    return Ints(source.items, 0, source.dtype) if source is not None and len(source.items) == 1 else None


@rule("Unsqueeze")
def _unsqueeze(_: str, given: Sequence[Ints | None], __: dict[str, object]) -> Ints | None:
    source = given[0]
    return Ints(source.items, 1, source.dtype) if source is not None and source.rank == 0 else None


@rule("Reshape")
def _reshape(_: str, given: Sequence[Ints | None], __: dict[str, object]) -> Ints | None:
    source, shape = (*given, None)[:2]
    if source is None or shape is None or any(not isinstance(size, int) for size in shape.items):
        return None
    if len(shape.items) == 1:
        return Ints(source.items, 1, source.dtype) if shape.items[0] in (-1, len(source.items)) else None
    return Ints(source.items, 0, source.dtype) if not shape.items and len(source.items) == 1 else None


@rule("ReduceProd", "ReduceSum")
def _reduce(op_type: str, given: Sequence[Ints | None], attributes: dict[str, object]) -> Ints | None:
    source = given[0]
    if source is None or source.rank != 1 or source.dtype.kind == "b":
        return None
    function, start = (python.mul, 1) if op_type == "ReduceProd" else (python.add, 0)
    return Ints((_fold(function, source.items, start),), int(bool(attributes.get("keepdims", 1))), source.dtype)
