"""Constant tensors: initializers, and all that operators compute from nothing but them.

Which tensors are constant follows from the graph alone; values are computed when first asked for, so that a model
that cannot be imported is refused before any weight is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graphmod.errors import InvalidModelError
from graphmod.model import Model
from graphmod.model.session import open_session
from graphmod.model.view import consumed
from graphmod.pytorch.registry import domain_of

Array = NDArray[np.generic]

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)


@dataclass(frozen=True)
class Source:
    """The tensor that holds a constant's values, and the order in which its axes arrive.

    Identity and Transpose hand a weight on; any other operator makes a new one.
    """

    tensor: str
    permutation: tuple[int, ...]


class Constants:
    """The constant tensors of a model's main graph.

    Parameters
    ----------
    model : Model
        Initializers that a caller could override by a graph input count as constant.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._makers: dict[str, NodeProto] = {}
        for operator in model.operators:
            if self.folds(operator):
                self._makers.update((name, operator) for name in operator.output if name)

    def __contains__(self, name: str) -> bool:
        return name in self._makers or name in self._model.initializers

    def folds(self, operator: NodeProto) -> bool:
        """Whether an operator's outputs are constant."""
        return (
            domain_of(operator.domain) == ""
            and operator.op_type not in RANDOM
            and all(name in self for name in consumed(operator))
        )

    def source(self, name: str) -> Source:
        """Follow a constant through Identity and Transpose to the tensor that holds its values."""
        order: tuple[int, ...] | None = None
        while (maker := self._makers.get(name)) is not None and maker.op_type in ("Identity", "Transpose"):
            if maker.op_type == "Transpose":
                own = self._axes(maker)
                order = own if order is None else tuple(own[axis] for axis in order)
            name = maker.input[0]
        return Source(name, tuple(range(self.value(name).ndim)) if order is None else order)

    def value(self, name: str) -> Array:
        """Return a constant's value; initializers in files stay memory-mapped."""
        if name in self._model.initializers:
            return self._model.initializer(name)
        maker = self._makers[name]
        match maker.op_type:
            case "Identity":
                return self.value(maker.input[0])
            case "Transpose":
                return self.value(maker.input[0]).transpose(self._axes(maker))
            case "Constant" if maker.attribute[0].name in ("value", "value_float", "value_int", "value_ints"):
                return _attribute_value(maker)
        return self._folded[name]

    def _axes(self, transpose: NodeProto) -> tuple[int, ...]:
        for attribute in transpose.attribute:
            if attribute.name == "perm":
                return tuple(attribute.ints)
        return tuple(reversed(range(self.value(transpose.input[0]).ndim)))

    @cached_property
    def _folded(self) -> dict[str, Array]:
        """What constant operators other than Identity and Transpose make, as far as something reads it."""
        wanted = [
            name
            for name, maker in self._makers.items()
            if maker.op_type not in ("Identity", "Transpose") and name in self._read_outside
        ]
        return dict(zip(wanted, self._evaluate(wanted), strict=True))

    @cached_property
    def _read_outside(self) -> set[str]:
        """The constants that something not constant reads, those behind Identity and Transpose included."""
        read = {name for op in self._model.operators if not self.folds(op) for name in consumed(op)}
        read.update(self._model.outputs)
        for operator in reversed(self._model.operators):
            if operator.op_type in ("Identity", "Transpose") and not read.isdisjoint(operator.output):
                read.update(operator.input)
        return read

    def _evaluate(self, names: list[str]) -> list[Array]:
        proto = self._graph_of(names)
        try:
            results = open_session(proto, self._model.folder, None).run(names, {})
        except (InvalidModelError, RuntimeError):  # no kernel, or no NumPy array, for this type: bfloat16, say
            proto = Model(proto, self._model.folder).proto()
            results = ReferenceEvaluator(proto).run(names, {})
        return [np.asarray(result) for result in results]

    def _graph_of(self, names: Iterable[str]) -> ModelProto:
        """Return a model of the operators that make some constants, and of nothing else."""
        needed = set(names)
        operators: list[NodeProto] = []
        for operator in reversed(self._model.operators):
            if not needed.isdisjoint(operator.output):
                operators.insert(0, operator)
                needed.update(consumed(operator))
        original = self._model._proto
        graph = helper.make_graph(operators, "constants", [], [ValueInfoProto(name=name) for name in names])
        graph.initializer.extend(t for name, t in self._model.initializers.items() if name in needed)
        return helper.make_model(
            graph, opset_imports=original.opset_import, ir_version=original.ir_version, functions=original.functions
        )


def _attribute_value(constant: NodeProto) -> Array:
    attribute = constant.attribute[0]
    match attribute.name:
        case "value":
            return numpy_helper.to_array(attribute.t)
        case "value_float":
            return np.asarray(attribute.f, np.float32)
        case "value_int":
            return np.asarray(attribute.i, np.int64)
    return np.asarray(attribute.ints, np.int64)
