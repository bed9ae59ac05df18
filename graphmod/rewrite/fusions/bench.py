"""The bench: a draft with what fusions ask of it, types, constants, who else reads a tensor, and names for messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, TypeGuard

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto

from graphmod.model import TensorType
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.element_types import STANDARD

Array = NDArray[np.generic]

_CASTS = ("Cast", "CastLike")

_DEPTH = 32
"""Steps from constants that are followed."""

Step = Callable[[list[Array], dict[str, Any]], Array | None]


def _numbers(reads: list[Array], attributes: dict[str, Any]) -> tuple[int, ...]:
    """Return axes or sizes, which an input holds in newer opsets and an attribute in older ones."""
    return tuple(int(d) for d in (reads[1] if len(reads) > 1 else attributes.get("axes", ())))


def _filled(reads: list[Array], attributes: dict[str, Any]) -> Array:
    value = onnx.numpy_helper.to_array(attributes["value"]) if "value" in attributes else np.zeros(1, np.float32)
    return np.broadcast_to(value.reshape(()), tuple(int(d) for d in reads[0]))


def _reshaped(reads: list[Array], attributes: dict[str, Any]) -> Array | None:
    shape = _numbers(reads, attributes)
    return None if 0 in shape else reads[0].reshape(shape)


_STEPS: dict[str, Step] = {
    "ConstantOfShape": _filled,
    "Expand": lambda reads, _: np.broadcast_to(reads[0], np.broadcast_shapes(reads[0].shape, tuple(reads[1]))),
    "Identity": lambda reads, _: reads[0],
    "Reshape": _reshaped,
    "Shape": lambda reads, a: np.array(reads[0].shape[a.get("start", 0) : a.get("end")], np.int64),
    "Squeeze": lambda reads, a: np.squeeze(reads[0], _numbers(reads, a) or None),
    "Transpose": lambda reads, a: reads[0].transpose(a.get("perm")),
    "Unsqueeze": lambda reads, a: np.expand_dims(reads[0], _numbers(reads, a)),
}
"""What the operators make that only copy, view or convert constants."""


@dataclass(frozen=True)
class Held:
    """A constant whose values are read when they are asked for: looking for fusions must not read large weights."""

    kind: TensorType
    read: Callable[[], Array | None]

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The type of a scalar."""
        assert self.kind.dtype is not None
        return self.kind.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return tuple(d for d in self.kind.shape or () if isinstance(d, int))

    @property
    def n_bytes(self) -> int:
        """Bytes of the values."""
        return prod(self.shape) * self.dtype.itemsize

    def values(self) -> NDArray[np.float64]:
        """Return the values in float64."""
        value = self.read()
        assert value is not None
        return value.astype(np.float64)


def is_a(operator: NodeProto | None, *op_types: str) -> TypeGuard[NodeProto]:
    """Whether there is an operator, and it is of one of some types of the standard's, not of one that is called so."""
    return operator is not None and operator.domain in STANDARD and operator.op_type in op_types


class Bench:
    """A draft that fusions change.

    Parameters
    ----------
    draft : Draft
    """

    def __init__(self, draft: Draft):
        self.draft = draft
        self._names = {id(own := draft.operator(name)): (own, name) for name in draft.model.operator_names}
        self._fresh: dict[str, TensorType] = {}
        self._made: set[str] = set()
        self._outputs = set(draft.outputs)
        self._declared = {value.name for value in draft.graph.input}

    # -- what is there

    def told(self, operator: NodeProto) -> str:
        """Return an operator's type and name, for messages."""
        name = self._names[id(operator)][1] if id(operator) in self._names else operator.name
        return f"{operator.op_type} '{name}'"

    def attributes(self, operator: NodeProto) -> dict[str, Any]:
        """Return an operator's attributes by name, text as str."""
        found = {a.name: onnx.helper.get_attribute_value(a) for a in operator.attribute}
        return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}

    def kind(self, tensor: str) -> TensorType | None:
        """Return a tensor's type, as far as it is known."""
        return self._fresh.get(tensor) or self.draft.model.tensors.get(tensor)

    def rank(self, tensor: str) -> int | None:
        """Return a tensor's number of axes, None if it is not known."""
        kind = self.kind(tensor)
        return None if kind is None or kind.shape is None else len(kind.shape)

    def is_output(self, tensor: str) -> bool:
        """Whether a tensor is an output of the graph."""
        return tensor in self._outputs

    def constant(self, tensor: str) -> Array | None:
        """Return what follows from constants by a few steps that copy values at most; None for other tensors."""
        values: dict[str, Array] = {}
        pending = [tensor]
        while pending:
            name = pending[-1]
            operator = self.draft.producer(name)
            value = self.draft.constant(name)
            if value is None and is_a(operator, "Constant"):
                value = _written_out(self.attributes(operator))
            if value is None:
                if not is_a(operator, *_STEPS, *_CASTS) or len(pending) > _DEPTH:
                    return None
                reads = [name for name in operator.input if name][: 1 if operator.op_type == "CastLike" else None]
                missing = [name for name in reads if name not in values]
                pending += missing
                if missing:
                    continue
                value = self._step(operator, [values[name] for name in reads])
            if value is None:
                return None
            values[name] = value
            pending.pop()
        return values[tensor]

    def _step(self, operator: NodeProto, reads: list[Array]) -> Array | None:
        if operator.op_type in _STEPS:
            return _STEPS[operator.op_type](reads, self.attributes(operator))
        kind = self.kind(operator.output[0])
        if kind is None and operator.op_type == "CastLike":
            kind = self.kind(operator.input[1])
        return None if kind is None or kind.dtype is None else reads[0].astype(kind.dtype)

    def held(self, tensor: str) -> Held | None:
        """Return the same without its values, which can be read later; None for other tensors."""
        if tensor in self.draft.model.initializers or tensor in self._made:
            kind = self.kind(tensor)
            return None if kind is None or kind.dtype is None else Held(kind, lambda: self.draft.constant(tensor))
        value = self.constant(tensor)
        return None if value is None else Held(TensorType(value.dtype, value.shape), lambda: value)

    def sole_reader(self, tensor: str) -> NodeProto | str:
        """Return the one operator that reads a tensor, or why there is none or more than that."""
        if self.draft.is_read_once(tensor):
            return self.draft.readers(tensor)[0]
        if tensor in self._outputs:
            return f"its tensor '{tensor}' is an output of the model"
        readers = self.draft.readers(tensor)
        if not readers:
            return f"nothing reads '{tensor}'"
        if len(readers) == 1:
            return f"{self.told(readers[0])} reads '{tensor}' twice, or in a subgraph"
        return f"'{tensor}' is read by {self.told(readers[0])} and {self.told(readers[1])}"

    # -- changing it

    def tensor(self, name: str, kind: TensorType | None) -> str:
        """Return an unused name for a new tensor of a known type."""
        fresh = self.draft.unused(name)
        if kind is not None:
            self._fresh[fresh] = kind
        return fresh

    def store(self, tensor: str, value: Array, reader: NodeProto) -> str:
        """Return the name under which an operator finds another value of a constant: the same, if only it reads it."""
        model = self.draft.model
        as_it_was = tensor in model.initializers and tuple(model.initializers[tensor].dims) == value.shape
        own = as_it_was and tensor not in self._declared
        if (own or tensor in self._made) and self.draft.is_read_once(tensor):
            self.draft.set_initializer(tensor, value)
            self._fresh[tensor] = TensorType(value.dtype, value.shape)
            return tensor
        return self.weight(f"{tensor}/{reader.name}" if reader.name else tensor, value)

    def weight(self, name: str, value: Array) -> str:
        """Add an initializer, and return the name that it got."""
        fresh = self.draft.weight(name, value)
        self._made.add(fresh)
        self._fresh[fresh] = TensorType(value.dtype, value.shape)
        return fresh

    def set_attributes(self, operator: NodeProto, **values: Any) -> None:
        """Give an operator other attributes; None takes one away."""
        kept = [a for a in operator.attribute if a.name not in values]
        new = [onnx.helper.make_attribute(name, value) for name, value in values.items() if value is not None]
        copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in kept]
        del operator.attribute[:]
        operator.attribute.extend([*copies, *new])

    def set_input(self, operator: NodeProto, position: int, tensor: str) -> None:
        """Let an operator read another tensor at one of its inputs, and drop who made the old one for nobody else."""
        inputs = [*operator.input, *[""] * (position + 1 - len(operator.input))]
        old, inputs[position] = inputs[position], tensor
        self.draft.set_inputs(operator, inputs)
        if old:
            self.drop_unread([old])

    def discard(self, operator: NodeProto) -> None:
        """Take out an operator, and what only it needed."""
        inputs = [*operator.input]
        self.draft.discard(operator)
        self.drop_unread(inputs)

    def drop_unread(self, tensors: list[str]) -> None:
        """Take out the operators whose every output lost its last reader."""
        pending = list(tensors)
        while pending:
            operator = self.draft.producer(pending.pop())
            if operator is None:
                continue
            if not any(self.draft.readers(name) or name in self._outputs for name in operator.output):
                pending += operator.input
                self.draft.discard(operator)

    def bypass(self, operator: NodeProto) -> list[NodeProto]:
        """Take out an operator whose output is its first input; see :meth:`why_not_bypass`."""
        source, made = operator.input[0], operator.output[0]
        maker, around = self.draft.producer(source), self.draft.readers(made)
        self.draft.discard(operator)
        if made in self._outputs:
            assert maker is not None
            self.draft.redirect(source, made)
            self.draft.make_as(source, made)
        else:
            self.draft.redirect(made, source)
        self.drop_unread([*operator.input[1:]])
        return around if maker is None else [maker, *around]

    def why_not_bypass(self, operator: NodeProto) -> str | None:
        """Return why an operator must stay even if its output is its first input."""
        source, made = operator.input[0], operator.output[0]
        if any(self.draft.readers(name) or name in self._outputs for name in operator.output[1:] if name):
            return f"its tensor '{operator.output[1]}' is needed"
        if made not in self._outputs:
            return None
        if self.draft.producer(source) is None or source in self._outputs:
            return f"'{made}' is an output of the model, and '{source}' is an input, an output or an initializer"
        return None


def _written_out(attributes: dict[str, Any]) -> Array | None:
    """Return the value that a Constant has as a number or a list of them."""
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        for key in (name, f"{name}s"):
            if key in attributes:
                return np.array(attributes[key], dtype)
    return None
