"""One ONNX operator on its way into PyTorch: what a converter can ask of it, and where it puts the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import getitem
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto
from torch import fx, nn

from graphmod.errors import UnsupportedOperatorError
from graphmod.pytorch.binding import Weight
from graphmod.pytorch.dtypes import is_float

if TYPE_CHECKING:
    from graphmod.pytorch.importer import Importer

Array = NDArray[np.generic]
T = TypeVar("T")
Scalar = int | float | bool
Operand = fx.Node | Scalar


@dataclass(frozen=True)
class Operator:
    """One ONNX operator, as its converter sees it.

    Parameters
    ----------
    proto : onnx.NodeProto
        The operator.
    position : int
        Its place in the model's order.
    opset : int
        The version of its domain's operator set that the model imports.
    importer : Importer
        The import that it is part of.
    """

    proto: NodeProto
    position: int
    opset: int
    importer: Importer
    _known: set[str] = field(default_factory=set, compare=False)

    # -- what it is

    @property
    def type(self) -> str:
        """The operator's type."""
        return self.proto.op_type

    def unsupported(self, reason: str) -> UnsupportedOperatorError:
        """Return the error that says why this operator cannot be imported; the converter raises it."""
        name = self.proto.name or self.proto.output[0]
        return UnsupportedOperatorError(f"cannot import operator '{name}' ({self.type}, opset {self.opset}): {reason}")

    def attribute(self, name: str, default: T) -> T:
        """Return an attribute's value, or ``default`` where the operator has none; strings are decoded."""
        self._known.add(name)
        for attribute in self.proto.attribute:
            if attribute.name == name:
                value = onnx.helper.get_attribute_value(attribute)
                if isinstance(value, bytes):
                    value = value.decode()
                if isinstance(value, float):
                    value = float(str(np.float32(value)))  # 1e-05 rather than 9.999999747378752e-06
                return cast(T, list(value) if attribute.ints or attribute.floats else value)
        return default

    def ignore(self, *names: str) -> None:
        """Declare that attributes do not matter here."""
        self._known.update(names)

    def requires_no_other_attribute(self) -> None:
        """Raise if there is an attribute that the converter has not asked for: a later revision may have added it."""
        for attribute in self.proto.attribute:
            if attribute.name not in self._known:
                raise self.unsupported(f"attribute {attribute.name} has no counterpart")

    def requires(self, **values: object) -> None:
        """Raise unless every attribute named is missing or has the value given."""
        for name, value in values.items():
            actual = self.attribute(name, value)
            if actual != value:
                raise self.unsupported(f"attribute {name} = {actual} has no counterpart")

    def uses_output(self, index: int) -> bool:
        """Whether anything reads an output."""
        outputs = self.proto.output
        return index < len(outputs) and bool(outputs[index]) and self.importer.n_readers(outputs[index]) > 0

    def requires_single_output(self) -> None:
        """Raise if anything reads an output other than the first."""
        for index in range(1, len(self.proto.output)):
            if self.uses_output(index):
                raise self.unsupported(f"its output {index} is used, which has no counterpart")

    # -- what it reads

    def has(self, index: int) -> bool:
        """Whether the (optional) input is given."""
        return index < len(self.proto.input) and bool(self.proto.input[index])

    def rank(self, index: int = 0) -> int:
        """Return the number of axes of an input; raise where shape inference does not find it."""
        rank = self._rank(index)
        if rank is None:
            raise self.unsupported(f"the number of axes of '{self.proto.input[index]}' is unknown")
        return rank

    def shape(self, index: int) -> tuple[int | str | None, ...] | None:
        """Return what is known of an input's shape."""
        kind = self.importer.model.tensors.get(self.proto.input[index])
        return kind.shape if kind else None

    def _rank(self, index: int) -> int | None:
        if (value := self.constant(index)) is not None:
            return value.ndim
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def dtype(self, index: int = 0) -> np.dtype[np.generic]:
        """Return the element type of an input; raise where it is unknown."""
        if (value := self.constant(index)) is not None:
            return value.dtype
        kind = self.importer.model.tensors.get(self.proto.input[index])
        if kind is None or kind.dtype is None:
            raise self.unsupported(f"the element type of '{self.proto.input[index]}' is unknown")
        return kind.dtype

    def is_float(self, index: int = 0) -> bool:
        """Whether an input holds floating-point numbers."""
        return is_float(self.dtype(index))

    def constant(self, index: int) -> Array | None:
        """Return the value of a constant input, or None where it is missing or computed at run time."""
        if not self.has(index) or self.proto.input[index] not in self.importer.constants:
            return None
        return self.importer.constants.value(self.proto.input[index])

    def required(self, index: int) -> Array:
        """Return the value of an input that has to be constant; raise where it is not."""
        value = self.constant(index)
        if value is None:
            raise self.unsupported(f"its input {index} has to be constant")
        return value

    def input(self, index: int = 0) -> fx.Node:
        """Return the node of an input; a constant becomes a parameter or a buffer of the network."""
        return self.importer.node(self.proto.input[index])

    def inputs(self) -> list[fx.Node]:
        """Return the nodes of all inputs."""
        return [self.input(index) for index in range(len(self.proto.input))]

    def optional(self, index: int) -> fx.Node | None:
        """Return the node of an input, or None where it is not given."""
        return self.input(index) if self.has(index) else None

    def operand(self, index: int, other: int) -> Operand:
        """Return an input of an element-wise operator: a number, where a constant broadcasts like one."""
        value = self.constant(index)
        if value is None or value.size != 1 or value.dtype.kind not in "fiub":
            return self.input(index)
        rank = self._rank(other)
        if value.ndim and (rank is None or rank < value.ndim):
            return self.input(index)
        return number(value)

    def scalar(self, index: int, default: T) -> fx.Node | Scalar | T:
        """Return an optional input that holds one number: the number, where it is constant."""
        if not self.has(index):
            return default
        value = self.constant(index)
        return self.input(index) if value is None else number(value)

    def ints(self, index: int) -> list[int] | fx.Node:
        """Return an input that lists integers: as a list where it is constant."""
        value = self.constant(index)
        return self.input(index) if value is None else [int(item) for item in value.reshape(-1)]

    def axes(self, index: int) -> list[int] | fx.Node | None:
        """Return axes given as an attribute or as an input, or None where neither is there."""
        if self.has(index):
            return self.ints(index)
        axes: list[int] | None = self.attribute("axes", None)
        return axes

    def weight(self, index: int, permutation: Sequence[int] | None = None) -> Weight | None:
        """Return a constant float input as a trainable weight with its axes in the order that a module wants.

        None where the input is missing, computed, no float, or already a parameter with another order of axes.
        """
        if not self.has(index) or self.proto.input[index] not in self.importer.constants:
            return None
        weight = self.importer.weight(self.proto.input[index], permutation)
        return None if weight is None else replace(weight, index=index)

    # -- what it becomes

    def module(self, module: nn.Module, *args: Any, **weights: Weight | None) -> fx.Node:
        """Put a submodule at the operator's place in the network, with its weights by name, and call it."""
        return self.importer.call_module(self, module, args, weights)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Call a function on nodes and numbers."""
        return self.importer.graph.call_function(function, args, kwargs)

    def method(self, name: str, *args: Any, **kwargs: Any) -> fx.Node:
        """Call a tensor's method."""
        return self.importer.graph.call_method(name, args, kwargs)

    def items(self, node: fx.Node, n: int) -> tuple[fx.Node, ...]:
        """Return the first ``n`` members of a node that is a tuple."""
        return tuple(self.call(getitem, node, index) for index in range(n))

    def sole_reader(self) -> Operator | None:
        """Return the only operator that reads this one's first output, or None where several or none do."""
        return self.importer.sole_reader(self.proto.output[0])

    def absorb(self, reader: Operator, node: fx.Node) -> None:
        """Let a node stand for the output of a later operator too, which is not converted any more."""
        self.importer.absorb(reader, node)


def number(value: Array) -> Scalar:
    """Return a one-element array as a Python number, written as short as its type allows.

    Examples
    --------
    >>> number(np.float32([0.1]))
    0.1
    """
    item = value.reshape(-1)[0]
    if value.dtype.kind in "iu":
        return int(item)
    return bool(item) if value.dtype.kind == "b" else float(str(item))
