"""Constant tensors: initializers, and all that operators compute from nothing but them.

Which tensors are constant follows from the graph alone; values are computed when first asked for, so that a model
that cannot be imported is refused before any weight is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from graphmod.errors import InvalidDataError, InvalidModelError
from graphmod.model import initializers
from graphmod.model.session import open_session, run
from graphmod.model.view import consumed
from graphmod.pytorch.address import attribute_array, marked
from graphmod.pytorch.binding import Source, digest_of
from graphmod.pytorch.dtypes import is_float
from graphmod.pytorch.registry import domain_of
from graphmod.pytorch.scope import Scope
from graphmod.pytorch.steps import Convert, Dequantize, Permute, Reshape, Step, without_identities

Array = NDArray[np.generic]

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
NOT_FOLDED = frozenset({
    "If", "Loop", "Scan", "SequenceMap", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase",
    "SplitToSequence", "Optional", "OptionalGetElement",
})  # fmt: skip
"""Operators that may return something else than a tensor."""
FOREIGN = frozenset({("com.microsoft", "DequantizeLinear")})
"""Operators outside the standard that make constants out of constants."""
TAKING = frozenset({"Expand", "Gather", "Slice", "Split", "Tile"})
"""Operators of which a constant result would be another weight than the one that they read."""
SMALL = 64
"""Scalars up to which a float constant is rather a parameter of an operator than a weight."""
RESHAPING = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})


class Constants:
    """The constant tensors of one graph, and of those around it.

    Parameters
    ----------
    scope : Scope
        The graph. Initializers that a caller could override by a graph input count as constant.
    parent : Constants, optional
        Those of the graph whose operator has this one as its body.
    """

    def __init__(self, scope: Scope, parent: Constants | None = None) -> None:
        self._scope = scope
        self._parent = parent
        self._makers: dict[str, NodeProto] = {}
        self._sources: dict[str, Source] = {}
        self._steps: dict[str, Step | None] = {}
        self._dequantized: dict[tuple[str | bytes, ...], str] = {}
        self._gates = _recurrent_weights(scope.operators)
        for operator in scope.operators:
            if self.folds(operator):
                self._makers.update((name, operator) for name in operator.output if name)

    def __contains__(self, name: str) -> bool:
        return name in self._makers or name in self._scope.initializers or (not self._owns(name) and self._above(name))

    def _owns(self, name: str) -> bool:
        return name in self._scope.made

    def _above(self, name: str) -> bool:
        return self._parent is not None and name in self._parent

    def _owner(self, name: str) -> Constants:
        if name in self._makers or name in self._scope.initializers:
            return self
        if self._parent is None:
            raise InvalidModelError(f"tensor '{name}' is not constant")
        return self._parent._owner(name)

    def folds(self, operator: NodeProto) -> bool:
        """Whether an operator's outputs are constant."""
        return (
            (domain_of(operator.domain) == "" or (operator.domain, operator.op_type) in FOREIGN)
            and operator.op_type not in RANDOM
            and operator.op_type not in NOT_FOLDED
            and not self._takes_from_a_weight(operator)
            and operator.op_type != "QuantizeLinear"  # what is rounded when the network runs can be trained
            and all(name in self for name in consumed(operator))
        )

    def _takes_from_a_weight(self, operator: NodeProto) -> bool:
        """Whether an operator takes a part of a weight, which stays whole then; but for gates of recurrent layers."""
        if operator.op_type not in TAKING or operator.input[0] not in self or operator.output[0] in self._gates:
            return False
        kind = self._scope.types.get(operator.input[0])
        return kind is not None and kind.is_float and kind.size > SMALL

    def source(self, name: str) -> Source:
        """Follow a constant to where its values lie in the file, through all that can be undone."""
        owner = self._owner(name)
        if name not in owner._sources:
            owner._sources[name] = owner._source(name)
        return owner._sources[name]

    def _source(self, name: str) -> Source:
        maker = self._makers.get(name)
        if maker is None:
            tensor = self._scope.initializers[name]
            dtype, shape = initializers.tensor_type(tensor)
            stored = self._scope.addresses.get(name)
            return Source(name, stored, (), shape, dtype.name)
        if maker.op_type == "Constant" and maker.attribute[0].name in ("value_floats", "value_float"):
            value = self.value(name)
            place = marked(maker)
            address = None if place is None else (*place, "attribute", maker.attribute[0].name)
            return Source(name, address, (), value.shape, value.dtype.name, place, digest_of(value))
        step = self._step_to(name)
        if step is None and maker.op_type != "Identity":
            value = self.value(name)
            output = list(maker.output).index(name)
            return Source(name, None, (), value.shape, value.dtype.name, marked(maker), digest_of(value), output)
        if isinstance(step, Dequantize):
            key = (*maker.input, *sorted(attribute.SerializeToString() for attribute in maker.attribute))
            if (first := self._dequantized.setdefault(key, name)) != name:
                return self.source(first)
        before = self.source(maker.input[0])
        steps = before.steps if step is None else (*before.steps, step)
        tensor_name = name if isinstance(step, Dequantize) else before.tensor
        steps = without_identities(steps, before.shape)
        return replace(before, tensor=tensor_name, steps=steps)

    def _step_to(self, name: str) -> Step | None:
        """Return what an operator does to a weight that becomes a constant, where it can be undone."""
        if name not in self._steps:
            maker = self._makers[name]
            self._steps[name] = self._step(maker) if name in maker.output[:1] else None
        return self._steps[name]

    def _is_stored(self, name: str) -> bool:
        """Whether a constant's values lie in the file as they are; what is computed has no source as yet."""
        maker = self._makers.get(name)
        return maker is None or (maker.op_type == "Identity" and self._is_stored(maker.input[0]))

    def _is_float(self, name: str) -> bool:
        kind = self._scope.types.get(name)
        return is_float(self.value(name).dtype if kind is None or kind.dtype is None else kind.dtype)

    def _step(self, maker: NodeProto) -> Step | None:
        """Return the step that an operator takes on a weight, or None for one that cannot be undone."""
        if maker.op_type == "Transpose":
            return Permute(self._axes(maker))
        if maker.op_type in RESHAPING and self._is_float(maker.input[0]):
            return Reshape(self._folded_shape(maker))
        if maker.op_type == "Cast":
            to = helper.tensor_dtype_to_np_dtype(helper.get_node_attr_value(maker, "to"))
            if is_float(to) and self._is_float(maker.input[0]):
                return Convert(to)
        if maker.op_type == "DequantizeLinear":
            if not self._is_stored(maker.input[0]):
                return None
            root = self.source(maker.input[0])
            if root.address is None or root.steps:
                return None
            scale = self.value(maker.input[1])
            zero = self.value(maker.input[2]) if len(maker.input) > 2 and maker.input[2] else None
            attributes = {a.name: helper.get_attribute_value(a) for a in maker.attribute}
            if not is_float(scale.dtype) or attributes.get("output_dtype"):
                return None
            return Dequantize(scale, zero, attributes.get("axis", 1), attributes.get("block_size", 0))
        return None

    def _folded_shape(self, maker: NodeProto) -> tuple[int, ...]:
        kind = self._scope.types.get(maker.output[0])
        shape = None if kind is None or kind.shape is None else kind.shape
        if shape is not None and all(isinstance(size, int) for size in shape):
            return tuple(size for size in shape if isinstance(size, int))
        return self._evaluate([maker.output[0]])[0].shape

    def value(self, name: str) -> Array:
        """Return a constant's value; initializers in files stay memory-mapped."""
        owner = self._owner(name)
        return owner._value(name)

    def _value(self, name: str) -> Array:
        if name in self._scope.initializers:
            return self._scope.initial_value(name)
        maker = self._makers[name]
        match maker.op_type:
            case "Identity":
                return self.value(maker.input[0])
            case "Constant" if (array := attribute_array(maker.attribute[0])) is not None:
                return array
        step = self._step_to(name)
        return self._folded[name] if step is None else step.there(self.value(maker.input[0]))

    def _axes(self, transpose: NodeProto) -> tuple[int, ...]:
        for attribute in transpose.attribute:
            if attribute.name == "perm":
                return tuple(attribute.ints)
        return tuple(reversed(range(self.value(transpose.input[0]).ndim)))

    @cached_property
    def _folded(self) -> dict[str, Array]:
        """What constant operators make that only evaluation can tell, as far as something reads it."""
        wanted = [name for name in self._makers if name not in self._followed and name in self._read_outside]
        return dict(zip(wanted, self._evaluate(wanted), strict=True))

    @cached_property
    def _followed(self) -> set[str]:
        """The outputs whose values follow from the operator's first input, or attribute, without evaluation."""
        plain = {
            name
            for name, maker in self._makers.items()
            if maker.op_type == "Identity"
            or (maker.op_type == "Constant" and attribute_array(maker.attribute[0]) is not None)
        }
        return plain | {name for name in self._makers if self._step_to(name) is not None}

    @cached_property
    def _read_outside(self) -> set[str]:
        """The constants that something not constant reads, those behind operators that can be undone included."""
        read = {name for op in self._scope.operators if not self.folds(op) for name in consumed(op)}
        read.update(self._scope.outputs)
        for operator in reversed(self._scope.operators):
            if not self._followed.isdisjoint(operator.output) and not read.isdisjoint(operator.output):
                read.update(operator.input)
        return read

    def _evaluate(self, names: list[str]) -> list[Array]:
        proto = self._graph_of(names)
        results: Sequence[object]
        try:
            results = run(open_session(proto, self._scope.folder, None), names, {})
        except (InvalidModelError, InvalidDataError, RuntimeError):  # no kernel or NumPy array for this type: bfloat16
            for tensor in proto.graph.initializer:
                initializers.embed(tensor, self._scope.folder)
            results = list(ReferenceEvaluator(proto).run(names, {}))
        return [np.asarray(result) for result in results]

    def _graph_of(self, names: Iterable[str]) -> ModelProto:
        """Return a model of the operators that make some constants, and of nothing else."""
        needed = set(names)
        operators: list[NodeProto] = []
        for operator in reversed(self._scope.operators):
            if not needed.isdisjoint(operator.output):
                operators.append(operator)
                needed.update(consumed(operator))
        operators.reverse()
        made = {name for operator in operators for name in operator.output}
        graph = helper.make_graph(operators, "constants", [], [ValueInfoProto(name=name) for name in names])
        graph.initializer.extend(self._tensor(name) for name in sorted(needed - made))
        return helper.make_model(graph, opset_imports=self._scope.opset_imports, ir_version=self._scope.ir_version)

    def _tensor(self, name: str) -> TensorProto:
        if name in self._scope.initializers:
            tensor = TensorProto()
            tensor.CopyFrom(self._scope.initializers[name])
            tensor.name = name
            return tensor
        return numpy_helper.from_array(np.ascontiguousarray(self.value(name)), name)


def _recurrent_weights(operators: Sequence[NodeProto]) -> set[str]:
    """Return the tensors from which the inputs of recurrent operators are made."""
    found: set[str] = set()
    for operator in reversed(operators):
        if operator.op_type in ("LSTM", "GRU", "RNN") or not found.isdisjoint(operator.output):
            found.update(operator.input)
    return found
