"""The program: a model's graph as the importer walks it, with function calls expanded and dead branches taken out.

All of this happens on a working copy without large values; every constant in it knows where in the file it lies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from graphmod.errors import InvalidModelError, UnsupportedOperatorError
from graphmod.model import Model, TensorType, consumed
from graphmod.model import initializers as stored
from graphmod.pytorch.address import Address, Lookup, mark, marked, operators_of
from graphmod.pytorch.constants import Constants
from graphmod.pytorch.functions import expand_functions
from graphmod.pytorch.registry import domain_of
from graphmod.pytorch.scope import Scope, is_initializer, types_of
from graphmod.pytorch.sizes import Sizes
from graphmod.pytorch.stand_ins import infer_types

Array = NDArray[np.generic]

NEWEST = onnx.defs.onnx_opset_version()


class Program:
    """A model on its way into PyTorch.

    Parameters
    ----------
    model : Model

    Attributes
    ----------
    main : Scope
        The main graph.
    constants, sizes : Constants, Sizes
        What is constant in it, and what is computed from sizes.
    opsets : dict of str to int
        The operator sets that it imports, by domain.

    Raises
    ------
    InvalidModelError
        The graph is cyclic, not sorted or incomplete, an attribute has the wrong type, or an initializer has no data.
    UnsupportedOperatorError
        The model imports a newer operator set than is known.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.opsets = model.opsets
        if self.opsets.get("", 0) > NEWEST:
            raise UnsupportedOperatorError(
                f"the model imports operator set {self.opsets['']}; the newest that the installed onnx knows is "
                f"{NEWEST}, so install a newer onnx"
            )
        for tensor in model._proto.graph.initializer:
            _check_data(tensor)
        self._lookup = Lookup(model._proto)
        proto = stored.without_large_values(model._proto)
        _check_order(proto.graph, {tensor.name for tensor in model._proto.graph.initializer})
        for operator in operators_of(proto):
            self._check_attributes(operator)
        mark(proto)
        _drop_large_constants(proto)
        self._proto = expand_functions(proto, self.opsets)
        self.main, self.constants, self.sizes = self._main()

    def opset_of(self, operator: NodeProto) -> int:
        """Return the version of an operator's domain that the model imports."""
        return self.opsets.get(domain_of(operator.domain), 1)

    def _check_attributes(self, operator: NodeProto) -> None:
        domain = domain_of(operator.domain)
        if not onnx.defs.has(operator.op_type, self.opset_of(operator), domain):
            return
        known: Any = onnx.defs.get_schema(operator.op_type, self.opset_of(operator), domain).attributes
        for attribute in operator.attribute:
            expected = known.get(attribute.name)
            what = f"attribute '{attribute.name}' of operator '{operator.name or operator.output[0]}'"
            if expected is None:
                raise InvalidModelError(
                    f"{what} ({operator.op_type}) is none that opset {self.opset_of(operator)} knows; remove it, or "
                    "let the model import the operator set that has it"
                )
            if not attribute.ref_attr_name and attribute.type != int(expected.type.value):
                raise InvalidModelError(
                    f"{what} ({operator.op_type}) is of type "
                    f"{AttributeProto.AttributeType.Name(attribute.type)}; opset {self.opset_of(operator)} wants "
                    f"{expected.type.name}"
                )

    def _main(self) -> tuple[Scope, Constants, Sizes]:
        """Return the main graph's scope, constants and sizes; what is known of sizes is fixed, Ifs are decided."""
        while True:
            graph = infer_types(self._proto, self.opsets)
            scope = self._scope(graph, tuple(self.model.inputs), {})
            constants = Constants(scope)
            sizes = Sizes(scope, constants)
            known = {name: value for name in sizes if (value := sizes.value(name)) is not None}
            taken = {
                first_output(operator): bool(constants.value(operator.input[0]).reshape(-1)[0])
                for operator in scope.operators
                if operator.op_type == "If" and operator.input[0] in constants
            }
            if not known and not taken:
                return scope, constants, sizes
            _fix(self._proto.graph, known)
            _take_branches(self._proto.graph, taken)

    def body(self, graph: GraphProto, around: Scope) -> Scope:
        """Return the scope of an operator's body."""
        return self._scope(graph, tuple(value.name for value in graph.input), around.types)

    def _scope(self, graph: GraphProto, inputs: tuple[str, ...], around: Mapping[str, TensorType]) -> Scope:
        tensors: dict[str, TensorProto] = {}
        addresses: dict[str, Address] = {}
        if not around:
            tensors.update(self.model.initializers)
            addresses.update((name, ("graph", "initializer", name)) for name in tensors)
        for tensor in graph.initializer:
            if tensor.name not in tensors and (place := marked(tensor)) is not None:
                tensors[tensor.name], addresses[tensor.name] = self._lookup.find(place), place
            else:
                tensors.setdefault(tensor.name, tensor)
        for operator in graph.node:
            if is_initializer(operator):
                name = operator.output[0]
                tensors[name], place = self._constant(operator)
                if place is not None:
                    addresses[name] = place
        return Scope(
            operators=tuple(operator for operator in graph.node if not is_initializer(operator)),
            inputs=inputs,
            outputs=tuple(value.name for value in graph.output),
            types={**around, **types_of(graph)},
            initializers=tensors,
            addresses=addresses,
            folder=self.model.folder,
            opset_imports=tuple(self._proto.opset_import),
            ir_version=self._proto.ir_version,
        )

    def _constant(self, operator: NodeProto) -> tuple[TensorProto, Address | None]:
        """Return the tensor of a Constant operator and where it lies in the file."""
        place = marked(operator)
        if place is not None:
            original = self._lookup.find(place).attribute[0]
            if original.HasField("t"):
                return original.t, (*place, "attribute", "value", "t")
        return operator.attribute[0].t, None  # it came by a function's attribute


def _fix(graph: GraphProto, known: dict[str, Array]) -> None:
    """Turn tensors that depend on static sizes alone into initializers."""
    operators = [operator for operator in graph.node if operator.output[0] not in known]
    del graph.node[:]
    graph.node.extend(operators)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in known.items())
    declared = [value for value in graph.value_info if value.name not in known]
    del graph.value_info[:]
    graph.value_info.extend(declared)


def _check_data(tensor: TensorProto) -> None:
    """Raise unless an initializer has as many values as its shape says."""
    if uses_external_data(tensor) or tensor.data_type == TensorProto.STRING:
        return
    needed, there = stored.n_stored_bytes(tensor), len(tensor.raw_data)
    if there and there != needed:
        raise InvalidModelError(
            f"initializer '{tensor.name}' has {there} bytes of data; its shape {list(tensor.dims)} needs {needed}"
        )
    lists = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    if needed and not there and not any(len(values) for values in lists):
        raise InvalidModelError(f"initializer '{tensor.name}' of shape {list(tensor.dims)} has no data")


def _check_order(graph: GraphProto, known: set[str]) -> None:
    """Raise unless every operator reads what comes before it."""
    known = known | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    for operator in graph.node:
        for name in consumed(operator):
            if name not in known:
                later = any(name in other.output for other in graph.node)
                why = "only a later operator makes: the graph is cyclic or not sorted" if later else "nothing makes"
                raise InvalidModelError(
                    f"operator '{operator.name or operator.output[0]}' ({operator.op_type}) reads tensor '{name}', "
                    f"which {why}"
                )
        for name in operator.output:
            if name and name in known:
                raise InvalidModelError(
                    f"operator '{operator.name or name}' ({operator.op_type}) makes tensor '{name}', which is there "
                    "already"
                )
            known.add(name)
    for value in graph.output:
        if value.name not in known:
            raise InvalidModelError(f"nothing makes the graph's output '{value.name}'")


def _drop_large_constants(proto: ModelProto) -> None:
    for operator in operators_of(proto):
        if is_initializer(operator):
            _drop_if_large(operator.attribute[0].t)
        for attribute in operator.attribute:
            if attribute.HasField("g"):
                for tensor in attribute.g.initializer:
                    _drop_if_large(tensor)


def _drop_if_large(tensor: TensorProto) -> None:
    if math.prod(tensor.dims) > stored.LARGE and tensor.data_type != TensorProto.STRING:
        stored.clear(tensor)


def _take_branches(graph: GraphProto, taken: dict[str, bool]) -> None:
    """Replace Ifs, named by their first output, by one of their branches."""
    defined = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    defined |= {name for operator in graph.node for name in operator.output}
    operators: list[NodeProto] = []
    for operator in graph.node:
        if operator.op_type != "If" or first_output(operator) not in taken:
            operators.append(operator)
            continue
        wanted = "then_branch" if taken[first_output(operator)] else "else_branch"
        branch = GraphProto()
        branch.CopyFrom(next(attribute.g for attribute in operator.attribute if attribute.name == wanted))
        own = [tensor.name for tensor in branch.initializer]
        own += [name for inner in branch.node for name in inner.output if name]
        names = {name: _unused(name, defined) for name in own if name in defined}
        defined.update(names.get(name, name) for name in own)
        for inner in branch.node:
            rename(inner, names)
        for tensor in branch.initializer:
            tensor.name = names.get(tensor.name, tensor.name)
        operators.extend(branch.node)
        graph.initializer.extend(branch.initializer)
        for made, result in zip(operator.output, branch.output, strict=True):
            if made:
                source = names.get(result.name, result.name)
                operators.append(helper.make_node("Identity", [source], [made]))
    del graph.node[:]
    graph.node.extend(operators)


def first_output(operator: NodeProto) -> str:
    """Return the first output that an operator really has."""
    return next((name for name in operator.output if name), "")


def _unused(name: str, taken: set[str]) -> str:
    n = 0
    while f"{name}_{n}" in taken:
        n += 1
    return f"{name}_{n}"


def rename(operator: NodeProto, names: dict[str, str]) -> None:
    """Rename the tensors of an operator, those that its bodies capture included."""
    for field in (operator.input, operator.output):
        for index, name in enumerate(field):
            field[index] = names.get(name, name)
    for attribute in operator.attribute:
        if attribute.HasField("g"):
            body = attribute.g
            own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
            own |= {name for inner in body.node for name in inner.output}
            outer = {name: new for name, new in names.items() if name not in own}
            for inner in body.node:
                rename(inner, outer)
            for value in body.output:
                value.name = outer.get(value.name, value.name)
