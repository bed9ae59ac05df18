"""Addresses: where in a model's file a constant's values lie, whatever the importer makes of the graph around them.

An address leads through the protobuf message by names: ``("graph", "initializer", "w")``, or
``("graph", "node", "y", "attribute", "then_branch", "g", "node", "c", "attribute", "value", "t")`` for a Constant in a
branch. Operators go by their first output, so that an address outlives edits elsewhere in the graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from graphmod.errors import RefusedError
from graphmod.model import with_inner

Array = NDArray[np.generic]
Address = tuple[str, ...]

MARK = "graphmod.address"
"""Metadata key under which working copies of a graph keep where their constants and operators came from."""


def function_key(function: FunctionProto) -> str:
    """Return what identifies a model-local function.

    Examples
    --------
    >>> function_key(FunctionProto(domain="custom", name="Swish"))
    'custom::Swish::'
    """
    return f"{function.domain}::{function.name}::{function.overload}"


def _key(message: Any) -> str:
    if isinstance(message, NodeProto):
        return next((name for name in message.output if name), "")
    return function_key(message) if isinstance(message, FunctionProto) else str(message.name)


class Lookup:
    """Finds messages of one model by their addresses."""

    def __init__(self, proto: ModelProto) -> None:
        self._proto = proto
        self._children: dict[Address, dict[str, Any]] = {}

    def find(self, address: Address) -> Any:
        """Return the message at an address.

        Raises
        ------
        RefusedError
            The model has nothing there.
        """
        message: Any = self._proto
        steps = iter(range(len(address)))
        for i in steps:
            message = getattr(message, address[i])
            if isinstance(message, (GraphProto, TensorProto)):
                continue
            place = address[: i + 1]
            if place not in self._children:
                self._children[place] = {_key(child): child for child in message}
            next(steps)
            if address[i + 1] not in self._children[place]:
                raise RefusedError(
                    f"the model has no '{address[i + 1]}' any more, which the network was imported from; write back to "
                    "the model that was imported"
                )
            message = self._children[place][address[i + 1]]
        return message


def mark(proto: ModelProto) -> None:
    """Write into a working copy, beside every operator and every constant of a body, where it lies."""
    for operator in proto.graph.node:
        _mark_operator(operator, ("graph", "node", _key(operator)))
    for function in proto.functions:
        for operator in function.node:
            _mark_operator(operator, ("functions", function_key(function), "node", _key(operator)))


def _mark_operator(operator: NodeProto, address: Address) -> None:
    operator.metadata_props.add(key=MARK, value=json.dumps(address))
    for attribute in operator.attribute:
        if attribute.HasField("g"):
            inside = (*address, "attribute", attribute.name, "g")
            for inner in attribute.g.node:
                _mark_operator(inner, (*inside, "node", _key(inner)))
            for tensor in attribute.g.initializer:
                tensor.metadata_props.add(key=MARK, value=json.dumps((*inside, "initializer", tensor.name)))


def marked(message: NodeProto | TensorProto) -> Address | None:
    """Return where a message of a working copy came from, or None for one that was made since."""
    for entry in message.metadata_props:
        if entry.key == MARK:
            return tuple(json.loads(entry.value))
    return None


def operators_of(proto: ModelProto) -> Iterator[NodeProto]:
    """Yield all operators of a model, those of bodies and functions included."""
    yield from with_inner(proto.graph.node)
    for function in proto.functions:
        yield from with_inner(function.node)


_NUMBERS: dict[int, tuple[str, type[np.generic]]] = {
    AttributeProto.FLOAT: ("f", np.float32),
    AttributeProto.FLOATS: ("floats", np.float32),
    AttributeProto.INT: ("i", np.int64),
    AttributeProto.INTS: ("ints", np.int64),
}


def attribute_array(attribute: AttributeProto) -> Array | None:
    """Return the numbers that an attribute holds, or None for one that holds something else.

    Examples
    --------
    >>> attribute_array(AttributeProto(name="value_floats", type=AttributeProto.FLOATS, floats=[1, 2]))
    array([1., 2.], dtype=float32)
    """
    if attribute.type not in _NUMBERS:
        return None
    field, dtype = _NUMBERS[attribute.type]
    return np.asarray(getattr(attribute, field), dtype)


def set_attribute(attribute: AttributeProto, value: Array) -> None:
    """Write numbers into an attribute that holds numbers."""
    field, _ = _NUMBERS[attribute.type]
    attribute.ClearField(field)
    if field in ("floats", "ints"):
        getattr(attribute, field).extend(value.reshape(-1).tolist())
    else:
        setattr(attribute, field, value.item())
