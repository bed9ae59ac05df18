"""Sizes: arithmetic on shapes, followed as Python integers.

Exporters write ``x.reshape(x.shape[0], -1)`` as a chain of Shape, Gather, Mul, Concat. Followed as integers, each an
expression of the sizes of tensors, the chain becomes that very call again: nothing is computed with tensors, dynamic
sizes stay symbolic for torch.export and torch.compile, and what depends on static sizes alone is known at once.
"""

from __future__ import annotations

import operator as python
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from graphmod.pytorch.constants import Constants
from graphmod.pytorch.dtypes import has_tensor
from graphmod.pytorch.registry import domain_of
from graphmod.pytorch.scope import Scope

LONGEST = 64
"""Integers above which a constant is data rather than a shape."""

DEEPEST = 100
"""Functions of sizes above which a tensor computes them."""

TYPES = frozenset({"int64", "bool"})


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

    @cached_property
    def size(self) -> int:
        """How many functions it is made of."""
        return 1 + sum(arg.size for arg in self.args if isinstance(arg, Expr))


Item: TypeAlias = "int | bool | Dim | Expr"


@dataclass(frozen=True)
class Ints:
    """An integer or boolean tensor, element by element: an array of items, and the type that ONNX gives it."""

    array: NDArray[np.object_]
    dtype: np.dtype[np.generic]

    def __post_init__(self) -> None:
        object.__setattr__(self, "array", np.asarray(self.array, object))  # NumPy takes a single item out of its array

    @property
    def items(self) -> tuple[Item, ...]:
        """The elements, the last axis fastest."""
        return tuple(self.array.reshape(-1))

    @cached_property
    def value(self) -> NDArray[np.generic] | None:
        """The array of numbers, where all of them are known."""
        known = all(isinstance(item, int) for item in self.items)
        return self.array.astype(self.dtype) if known else None


def ints(items: Sequence[Item] | Item, dtype: np.dtype[np.generic]) -> Ints:
    """Return the tensor of some items, or of one alone."""
    if not isinstance(items, Sequence):
        return Ints(np.array(items, object), dtype)
    array = np.empty(len(items), object)
    array[:] = items
    return Ints(array, dtype)


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
    """

    def __init__(self, scope: Scope, constants: Constants) -> None:
        self._scope = scope
        self._constants = constants
        self._ints: dict[str, Ints] = {}
        for operator in scope.operators:
            if domain_of(operator.domain) == "" and not constants.folds(operator) and len(operator.output) == 1:
                made = self._follow(operator)
                if made is not None and made.array.size <= LONGEST and not _is_long(made):
                    self._ints[operator.output[0]] = made

    def __contains__(self, name: str) -> bool:
        return name in self._ints

    def __iter__(self) -> Iterator[str]:
        return iter(self._ints)

    def get(self, name: str) -> Ints | None:
        """Return a tensor's integers, or None for one that holds other things."""
        if name in self._ints:
            return self._ints[name]
        return self._constant(name) if name in self._constants else None

    def value(self, name: str) -> NDArray[np.generic] | None:
        """Return the numbers of a tensor that depends on static sizes alone."""
        return self._ints[name].value

    def _constant(self, name: str) -> Ints | None:
        kind = self._scope.types.get(name)
        if kind is not None and kind.dtype is not None and kind.dtype.name not in TYPES:
            return None
        if kind is not None and kind.size > LONGEST:
            return None
        value = self._constants.value(name)
        if value.size > LONGEST or value.dtype.name not in TYPES:
            return None
        return Ints(value.astype(object), value.dtype)

    def _follow(self, operator: NodeProto) -> Ints | None:
        attributes = {a.name: helper.get_attribute_value(a) for a in operator.attribute}
        if operator.op_type == "Shape":
            return self._shape(operator.input[0], attributes.get("start", 0), attributes.get("end"))
        if operator.op_type == "Size":
            whole = self._shape(operator.input[0], 0, None)
            return whole and ints(_fold(python.mul, whole.items, 1), np.dtype(np.int64))
        rule = RULES.get(operator.op_type)
        if rule is None or not operator.input or not any(name in self._ints for name in operator.input):
            return None
        given = [self.get(name) if name else None for name in operator.input]
        if any(name and known is None for name, known in zip(operator.input, given, strict=True)):
            return None
        return rule(operator.op_type, given, attributes)

    def _shape(self, tensor: str, start: int, end: int | None) -> Ints | None:
        kind = self._scope.types.get(tensor)
        if kind is None or kind.shape is None or kind.dtype is None or not has_tensor(kind.dtype):
            return None
        items = [size if isinstance(size, int) else Dim(tensor, axis) for axis, size in enumerate(kind.shape)]
        return ints(items[start:end], np.dtype(np.int64))


def _is_long(known: Ints) -> bool:
    return any(isinstance(item, Expr) and item.size > DEEPEST for item in known.items)


def sliced(size: int, start: int, end: int, step: int) -> range:
    """Return the positions that a slice of an axis takes; backwards, both bounds are cut off at the axis first.

    Examples
    --------
    >>> list(sliced(5, 1, 100, 2)), list(sliced(5, 100, -100, -2))
    ([1, 3], [4, 2, 0])
    """
    if step > 0:
        return range(size)[slice(start, end, step)]
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


Attributes = dict[str, Any]
Rule = Callable[[str, Sequence[Ints | None], Attributes], Ints | None]
RULES: dict[str, Rule] = {}


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Register how operators act on integers."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(op_types, function))
        return function

    return register


def _apply(function: Callable[..., int | bool], *args: Item) -> Item:
    """Return a function of sizes: its value where all of them are known, in its simplest form where one is."""
    if all(isinstance(arg, int) for arg in args):
        return Expr(function, args) if function in (quotient, python.mod) and args[1] == 0 else function(*args)
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
        case (f, (x, y)) if f in (python.eq, python.lt, python.le, python.gt, python.ge):
            decided = _decided(f, x, y)
            return Expr(f, args) if decided is None else decided
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
    first: Item = start
    return reduce(lambda total, item: _apply(function, total, item), items, first)


def _numbers(known: Ints | None) -> list[int] | None:
    """Return integers that are all known, as a list."""
    value = None if known is None else known.value
    return None if value is None else [int(item) for item in value.reshape(-1)]


@rule(*ARITHMETIC)
def _arithmetic(op_type: str, given: Sequence[Ints | None], attributes: Attributes) -> Ints | None:
    operands = [known for known in given if known is not None]
    if (op_type in ("Max", "Min") and len(operands) != 2) or attributes.get("fmod"):
        return None
    try:
        arrays = np.broadcast_arrays(*(known.array for known in operands))
    except ValueError:  # which the runtime would complain of, too
        return None
    made = np.empty(arrays[0].shape, object)
    for place in product(*map(range, made.shape)):
        made[place] = _apply(ARITHMETIC[op_type], *(array[place] for array in arrays))
    return Ints(made, np.dtype(bool) if op_type in TRUTHS else operands[-1].dtype)


@rule("Identity")
def _identity(_: str, given: Sequence[Ints | None], __: Attributes) -> Ints | None:
    return given[0]


@rule("Cast")
def _cast(_: str, given: Sequence[Ints | None], attributes: Attributes) -> Ints | None:
    (known,) = given
    dtype = helper.tensor_dtype_to_np_dtype(attributes["to"])
    if known is None or dtype != known.dtype:
        return None
    return Ints(known.array, dtype)


@rule("ConstantOfShape")
def _constant_of_shape(_: str, given: Sequence[Ints | None], attributes: Attributes) -> Ints | None:
    sizes = _numbers(given[0])
    filling = numpy_helper.to_array(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    if sizes is None or np.prod(sizes) > LONGEST or filling.dtype.name not in TYPES:
        return None
    return Ints(np.full(sizes, filling.item(), object), filling.dtype)


@rule("Gather")
def _gather(_: str, given: Sequence[Ints | None], attributes: Attributes) -> Ints | None:
    source, indices = given[0], None if given[1] is None else given[1].value
    axis = attributes.get("axis", 0)
    if source is None or indices is None or not source.array.ndim:
        return None
    n = source.array.shape[axis]
    if ((indices < -n) | (indices >= n)).any():
        return None
    return Ints(np.take(source.array, indices.astype(np.int64), axis), source.dtype)


@rule("Slice")
def _slice(_: str, given: Sequence[Ints | None], attributes: Attributes) -> Ints | None:
    source = given[0]
    if source is None:
        return None
    if len(given) > 1:
        starts, ends = _numbers(given[1]), _numbers(given[2])
        axes, steps = (_numbers(known) for known in (*given[3:], None, None)[:2])
    else:
        starts, ends, axes, steps = attributes["starts"], attributes["ends"], attributes.get("axes"), None
    if starts is None or ends is None:
        return None
    array = source.array
    along, by = range(len(starts)) if axes is None else axes, [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, along, by, strict=True):
        array = np.take(array, list(sliced(array.shape[axis], start, end, step)), axis)
    return Ints(array, source.dtype)


@rule("Concat")
def _concat(_: str, given: Sequence[Ints | None], attributes: Attributes) -> Ints | None:
    parts = [known for known in given if known is not None]
    return Ints(np.concatenate([known.array for known in parts], attributes.get("axis", 1)), parts[0].dtype)


@rule("Squeeze", "Unsqueeze")
def _axes(op_type: str, given: Sequence[Ints | None], attributes: Attributes) -> Ints | None:
    source, listed = (*given, None)[:2]
    axes = attributes.get("axes") if listed is None else _numbers(listed)
    if source is None or (axes is None and (op_type == "Unsqueeze" or listed is not None)):
        return None
    function = np.squeeze if op_type == "Squeeze" else np.expand_dims
    return Ints(function(source.array, None if axes is None else tuple(axes)), source.dtype)  # type: ignore[arg-type]  # only Squeeze can have none


@rule("Reshape")
def _reshape(_: str, given: Sequence[Ints | None], __: Attributes) -> Ints | None:
    source, sizes = (*given, None)[:2]
    shape = _numbers(sizes)
    if source is None or shape is None or 0 in shape:
        return None
    return Ints(source.array.reshape(shape), source.dtype)


@rule("Transpose")
def _transpose(_: str, given: Sequence[Ints | None], attributes: Attributes) -> Ints | None:
    (source,) = given
    return source and Ints(source.array.transpose(attributes.get("perm")), source.dtype)


@rule("ReduceProd", "ReduceSum")
def _reduce(op_type: str, given: Sequence[Ints | None], attributes: Attributes) -> Ints | None:
    source = given[0]
    if source is None or source.array.ndim != 1 or source.dtype.kind == "b" or attributes.get("noop_with_empty_axes"):
        return None
    function, start = (python.mul, 1) if op_type == "ReduceProd" else (python.add, 0)
    total = _fold(function, source.items, start)
    return ints([total] if attributes.get("keepdims", 1) else total, source.dtype)
