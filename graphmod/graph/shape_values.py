"""What arithmetic on shapes gives, element by element, as far as declared dimensions tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from graphmod.model import TensorType

Array = NDArray[np.generic]
Values = NDArray[np.object_]
"""Integers, None where an element is not known; of rank 0 or 1."""

Rule = Callable[[NodeProto, list[Values]], Values | None]

_LONGEST = 64


def shape_values(
    operators: Iterable[NodeProto],
    types: Mapping[str, TensorType],
    constant: Callable[[str], Array | None],
) -> dict[str, Values]:
    """Return the elements of tensors of rank 0 or 1 that are made from shapes, and of the constants they are made with.

    Parameters
    ----------
    operators : iterable of NodeProto
        In topological order.
    types : mapping of str to TensorType
        What is known of the tensors.
    constant : callable
        The value of a tensor that is constant, None for others.
    """
    found: dict[str, Values] = {}

    def known(name: str) -> Values | None:
        kind = types.get(name)
        if name not in found and kind is not None and kind.dtype in (np.int64, np.int32) and len(kind.shape or ()) <= 1:
            value = constant(name) if kind.shape is not None and kind.size <= _LONGEST else None
            if value is not None:
                found[name] = value.astype(object)
        return found.get(name)

    for operator in operators:
        if operator.domain not in ("", "ai.onnx") or not operator.output:
            continue
        made = None
        if operator.op_type in ("Shape", "Size"):
            made = _of_a_shape(operator, types.get(operator.input[0]))
        elif operator.op_type in RULES:
            read = [known(name) if name else np.empty(0, object) for name in operator.input]
            if any(one is None for one in read):
                continue
            made = RULES[operator.op_type](operator, [one for one in read if one is not None])
        kind = types.get(operator.output[0])
        if made is not None and made.size <= _LONGEST and kind is not None and kind.dtype in (np.int64, np.int32):
            found[operator.output[0]] = made
    return found


def _of_a_shape(operator: NodeProto, kind: TensorType | None) -> Values | None:
    if kind is None or kind.shape is None:
        return None
    sizes = [size if isinstance(size, int) else None for size in kind.shape]
    if operator.op_type == "Size":
        return _array([None if None in sizes else prod(size for size in sizes if size is not None)]).reshape(())
    start, end = _attribute(operator, "start", 0), _attribute(operator, "end", len(sizes))
    return _array(sizes[start:end])


def _array(values: Sequence[int | None]) -> Values:
    return np.array(values, np.object_)


def _attribute(operator: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in operator.attribute if a.name == name), default)


def _plain(values: Values) -> list[int] | None:
    """Return integers that are all known."""
    flat = values.ravel().tolist()
    return None if None in flat else flat


def _gather(operator: NodeProto, read: list[Values]) -> Values | None:
    data, indices = read
    places = _plain(indices)
    if data.ndim != 1 or places is None or _attribute(operator, "axis", 0) not in (0, -1):
        return None
    if any(not -len(data) <= place < len(data) for place in places):
        return None
    return _array([data[place] for place in places]).reshape(indices.shape)


def _slice(_: NodeProto, read: list[Values]) -> Values | None:
    if len(read) < 3 or read[0].ndim != 1:
        return None
    starts, ends, _axes, steps = (_plain(one) for one in (*read[1:], *[np.empty(0, object)] * (5 - len(read))))
    if starts is None or ends is None or steps is None or len(starts) != 1 or (steps or [1])[0] < 1:
        return None
    return read[0][starts[0] : ends[0] : (steps or [1])[0]]


def _concat(_: NodeProto, read: list[Values]) -> Values | None:
    return np.concatenate(read) if all(one.ndim == 1 for one in read) else None


def _unsqueeze(_: NodeProto, read: list[Values]) -> Values | None:
    return read[0].reshape(1) if read[0].ndim == 0 else None


def _squeeze(_: NodeProto, read: list[Values]) -> Values | None:
    return read[0].reshape(()) if read[0].size == 1 else None


def _same(operator: NodeProto, read: list[Values]) -> Values | None:
    to = _attribute(operator, "to", 0)
    return read[0] if not to or helper.tensor_dtype_to_np_dtype(to) == np.int64 else None


def _elementwise(function: Callable[[int, int], int | None]) -> Rule:
    def rule(_: NodeProto, read: list[Values]) -> Values | None:
        try:
            pairs = np.broadcast(*read)
        except ValueError:
            return None
        made = [None if a is None or b is None else function(a, b) for a, b in pairs]
        return _array(made).reshape(pairs.shape)

    return rule


RULES: dict[str, Rule] = {
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Identity": _same,
    "Cast": _same,
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(lambda a, b: a // b if a >= 0 and b > 0 else None),
}
