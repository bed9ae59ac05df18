"""Scopes: the graph that is being imported, the main one or the body of a control-flow operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, OperatorSetIdProto, TensorProto

from graphmod.model import TensorType, initializers
from graphmod.model.model import type_of
from graphmod.pytorch.address import Address
from graphmod.pytorch.registry import domain_of

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Scope:
    """A graph whose function calls are expanded and whose Constant operators of tensors count as initializers.

    Parameters
    ----------
    operators : tuple of onnx.NodeProto
        In topological order.
    inputs, outputs : tuple of str
        Names of tensors.
    types : mapping of str to TensorType
        What is known of tensors, those of the graphs around included.
    initializers : mapping of str to onnx.TensorProto
        With their values, or a reference to them.
    addresses : mapping of str to Address
        Where in the file an initializer's values lie.
    folder : pathlib.Path, optional
        Where the files of external initializers lie.
    opset_imports : tuple of onnx.OperatorSetIdProto
    ir_version : int
    """

    operators: tuple[NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: Mapping[str, TensorType]
    initializers: Mapping[str, TensorProto]
    addresses: Mapping[str, Address]
    folder: Path | None
    opset_imports: tuple[OperatorSetIdProto, ...]
    ir_version: int

    @cached_property
    def made(self) -> frozenset[str]:
        """The tensors that the graph's inputs and operators bring."""
        return frozenset((*self.inputs, *(name for operator in self.operators for name in operator.output)))

    def initial_value(self, name: str) -> Array:
        """Return an initializer's value, memory-mapped where it lies in a file of its own."""
        return initializers.values(self.initializers[name], self.folder)


def types_of(graph: GraphProto) -> dict[str, TensorType]:
    """Return the types of a graph's tensors, as far as the graph says them."""
    types = {tensor.name: TensorType(*initializers.tensor_type(tensor)) for tensor in graph.initializer}
    for operator in graph.node:
        if is_initializer(operator):
            types[operator.output[0]] = TensorType(*initializers.tensor_type(operator.attribute[0].t))
    for value in (*graph.value_info, *graph.output, *graph.input):
        types.setdefault(value.name, type_of(value))
    return types


def is_initializer(operator: NodeProto) -> bool:
    """Whether an operator is a Constant that holds a tensor."""
    return operator.op_type == "Constant" and domain_of(operator.domain) == "" and operator.attribute[0].name == "value"
