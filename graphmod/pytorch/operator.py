"""One ONNX operator on its way into PyTorch: what a converter can ask of it, and where it puts the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import getitem
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import NodeProto
from torch import Tensor, fx, nn

from graphmod.errors import UnsupportedOperatorError
from graphmod.pytorch.binding import Weight
from graphmod.pytorch.dtypes import is_float
from graphmod.pytorch.steps import Permute, Step

if TYPE_CHECKING:
    from graphmod.pytorch.importer import Importer

Array = NDArray[np.generic]
T = TypeVar("T")
Scalar = int | float | bool
Operand = fx.Node | Scalar
Size = int | fx.Node


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
                if attribute.strings:
                    value = [item.decode() for item in attribute.strings]
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
        rank = self.known_rank(index)
        if rank is None:
            raise self.unsupported(f"the number of axes of '{self.proto.input[index]}' is unknown")
        return rank

    def shape(self, index: int) -> tuple[int | str | None, ...] | None:
        """Return what is known of an input's shape."""
        kind = self.importer.scope.types.get(self.proto.input[index])
        return kind.shape if kind else None

    def known_rank(self, index: int = 0) -> int | None:
        """Return the number of axes of an input, or None where shape inference does not find it."""
        if (value := self.constant(index)) is not None:
            return value.ndim
        shape = self.shape(index)
        return None if shape is None else len(shape)

    def dtype(self, index: int = 0) -> np.dtype[np.generic]:
        """Return the element type of an input; raise where it is unknown."""
        if (value := self.constant(index)) is not None:
            return value.dtype
        kind = self.importer.scope.types.get(self.proto.input[index])
        if kind is None or kind.dtype is None:
            raise self.unsupported(f"the element type of '{self.proto.input[index]}' is unknown")
        return kind.dtype

    def has_type(self, dtype: torch.dtype) -> bool:
        """Whether an operator's first input is known to be a tensor of a type."""
        kind = self.importer.scope.types.get(self.proto.input[0])
        return kind is not None and kind.dtype is not None and self.importer.torch_dtype(kind.dtype) == dtype

    def is_half(self) -> bool:
        """Whether an operator's first input is known to be a tensor of half precision."""
        return self.has_type(torch.float16) or self.has_type(torch.bfloat16)

    def is_float(self, index: int = 0) -> bool:
        """Whether an input holds floating-point numbers."""
        return is_float(self.dtype(index))

    def requires_arithmetic(self) -> None:
        """Raise if torch can only store the first input: unsigned integers of more than a byte."""
        kind = self.importer.scope.types.get(self.proto.input[0])
        if kind is not None and kind.dtype is not None and kind.dtype.kind == "u" and kind.dtype.itemsize > 1:
            raise self.unsupported(f"torch does not compute with {kind.dtype}")

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
        if not self.importer.weights.is_number(self.proto.input[index]):
            return self.input(index)
        rank = self.known_rank(other)
        if value.ndim and (rank is None or rank < value.ndim):
            return self.input(index)
        return number(value)

    def scalar(self, index: int, default: T) -> fx.Node | Scalar | T:
        """Return an optional input that holds one number: the number, where it is constant or a size."""
        if not self.has(index):
            return default
        value = self.constant(index)
        if value is not None:
            return number(value) if self.importer.weights.is_number(self.proto.input[index]) else self.input(index)
        known = self.importer.sizes.get(self.proto.input[index])
        return self.input(index) if known is None else self.importer.size(known.items[0])

    def is_size(self, index: int) -> bool:
        """Whether an input is constant, or computed from sizes alone."""
        return self.constant(index) is not None or self.importer.sizes.get(self.proto.input[index]) is not None

    def ints(self, index: int) -> list[Size] | fx.Node:
        """Return an input that lists integers: a list where it is constant, or computed from sizes, else a node.

        What depends on a dynamic size is a node inside the list, which is a Python integer when the network runs.
        """
        value = self.constant(index)
        if value is not None:
            return [int(item) for item in value.reshape(-1)]
        known = self.importer.sizes.get(self.proto.input[index])
        return self.input(index) if known is None else [self.importer.size(item) for item in known.items]

    def plain_ints(self, index: int) -> list[int] | fx.Node:
        """Return an input that lists integers: as a list where they are all known, else as a node."""
        given = self.ints(index)
        if isinstance(given, fx.Node) or any(isinstance(item, fx.Node) for item in given):
            return self.input(index)
        return [int(item) for item in given if not isinstance(item, fx.Node)]

    def axes(self, index: int) -> list[int] | fx.Node | None:
        """Return axes given as an attribute or as an input, or None where neither is there."""
        if self.has(index):
            return self.plain_ints(index)
        axes: list[int] | None = self.attribute("axes", None)
        return axes

    def fixed(self, index: int) -> fx.Node | None:
        """Return the node of an optional input that is not trained where it is constant, such as a scale."""
        if not self.has(index):
            return None
        name = self.proto.input[index]
        return self.importer.weights.buffer(name) if name in self.importer.constants else self.input(index)

    def weight(self, index: int, permutation: Sequence[int] | None = None) -> Weight | None:
        """Return a constant float input as a trainable weight with its axes in the order that a module wants.

        None where the input is missing, computed, no float, or already a parameter in another form.
        """
        return self.weight_by(index, () if permutation is None else (Permute(tuple(permutation)),))

    def weight_by(self, index: int, steps: Sequence[Step]) -> Weight | None:
        """Return a constant float input as a trainable weight that some steps lead to; see :meth:`weight`."""
        if not self.has(index):
            return None
        weight = self.importer.weights.weight(self.proto.input[index], steps)
        return None if weight is None else replace(weight, index=index)

    def attribute_weight(self, name: str, shape: tuple[int, ...] | None = None) -> Weight | None:
        """Return the floats of an attribute, in a shape, as a trainable weight; None where they are missing."""
        self._known.add(name)
        return self.importer.weights.of_attribute(self.proto, name, shape)

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

    def bodies(self, build: Callable[..., nn.Module], names: Sequence[str], *args: Any) -> fx.Node:
        """Put a module that owns the operator's bodies at its place, and call it with ``args`` and what they capture.

        ``build`` gets the bodies' networks and, for each, which of the captured tensors it reads.
        """
        graphs = {attribute.name: attribute.g for attribute in self.proto.attribute if attribute.HasField("g")}
        self.ignore(*names)
        return self.importer.call_bodies(self, build, [graphs[name] for name in names], args)

    def empty_output(self, index: int) -> Tensor:
        """Return a tensor of an output's type whose first axis, and every axis of unknown size, has no elements."""
        kind = self.importer.scope.types.get(self.proto.output[index])
        shape = () if kind is None or kind.shape is None else kind.shape[1:]
        dtype = None if kind is None or kind.dtype is None else self.importer.torch_dtype(kind.dtype)
        return torch.empty([0, *(size if isinstance(size, int) else 0 for size in shape)], dtype=dtype)

    def torch_dtype(self, code: int) -> torch.dtype:
        """Return PyTorch's name of an ONNX element type; raise where it has none."""
        dtype = self.importer.dtype_of(code)
        if dtype is None:
            raise self.unsupported(f"element type {code} has no counterpart")
        return dtype

    def neighbour(self, index: int) -> fx.Node | None:
        """Return a node on whose device a result has to be that is computed from sizes; None where none is known."""
        return self.importer.neighbour(self.proto.input[index])

    def maker(self, index: int = 0) -> Operator | None:
        """Return the operator that makes an input, if it is one of the same graph."""
        return self.importer.maker(self.proto.input[index])

    def absorb(self, reader: Operator, node: fx.Node) -> None:
        """Let a node stand for the output of a later operator too, which is not converted any more."""
        self.importer.absorb(reader, node)


def number(value: Array) -> Scalar:
    """Return a one-element array as a Python number, written as short as single precision allows.

    Examples
    --------
    >>> number(np.float32([0.1]))
    0.1
    """
    item = value.reshape(-1)[0]
    if value.dtype.kind in "iu":
        return int(item)
    if value.dtype.kind == "b":
        return bool(item)
    return float(str(item)) if value.dtype == np.float32 else float(item)
