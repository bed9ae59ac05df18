"""Function calls: the model's own functions, and operators that ONNX defines by simpler ones, become their bodies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx
import onnx.inliner
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto, helper

from graphmod.errors import InvalidModelError
from graphmod.pytorch.address import operators_of
from graphmod.pytorch.registry import domain_of, find
from graphmod.pytorch.stand_ins import infer_types

PRIVATE = "graphmod.functions"
"""Domain in which ONNX's own functions become functions of the working copy, one for every call."""


def expand_functions(proto: ModelProto, opsets: Mapping[str, int]) -> ModelProto:
    """Replace the calls of the model's functions, and those of ONNX's functions for which there is no converter.

    Raises
    ------
    InvalidModelError
        A function cannot be put in place of its call: it calls itself, say.
    """
    if proto.functions:
        proto = _inlined(proto, any(_differs(function, opsets) for function in proto.functions))
    while calls := [operator for operator in operators_of(proto) if _is_call(operator, opsets)]:
        types = dict(_types(infer_types(proto, opsets)))
        for position, operator in enumerate(calls):
            function = _function_of(operator, opsets, types)
            function.domain, function.name = PRIVATE, f"{operator.op_type}_{position}"
            for entry in function.opset_import:  # it holds for the model's version too, and is inlined only where equal
                entry.version = opsets.get(domain_of(entry.domain), entry.version)
            for name, default in _defaults(operator, opsets).items():
                if name not in {attribute.name for attribute in operator.attribute}:
                    operator.attribute.append(default)
            operator.domain, operator.op_type = function.domain, function.name
            proto.functions.append(function)
        proto.opset_import.append(helper.make_opsetid(PRIVATE, 1))
        proto = _inlined(proto, convert_version=False)
    return proto


def is_function(op_type: str, domain: str, opset: int) -> bool:
    """Whether ONNX defines an operator by simpler ones.

    Examples
    --------
    >>> is_function("SoftmaxCrossEntropyLoss", "", 17), is_function("Conv", "", 17)
    (True, False)
    """
    if not onnx.defs.has(op_type, opset, domain):
        return False
    schema: Any = onnx.defs.get_schema(op_type, opset, domain)
    return bool(schema.has_function or schema.has_context_dependent_function)


def _inlined(proto: ModelProto, convert_version: bool) -> ModelProto:
    try:
        made: ModelProto = onnx.inliner.inline_local_functions(proto, convert_version)
    except (RuntimeError, onnx.checker.ValidationError) as error:
        raise InvalidModelError(f"the model's functions cannot be inlined: {' '.join(str(error).split())}") from error
    for entry in [entry for entry in made.opset_import if entry.domain == PRIVATE]:
        made.opset_import.remove(entry)
    return made


def _differs(function: FunctionProto, opsets: Mapping[str, int]) -> bool:
    return any(opsets.get(domain_of(entry.domain), entry.version) != entry.version for entry in function.opset_import)


def _is_call(operator: NodeProto, opsets: Mapping[str, int]) -> bool:
    domain = domain_of(operator.domain)
    opset = opsets.get(domain, 1)
    return find(operator.op_type, domain, opset) is None and is_function(operator.op_type, domain, opset)


def _function_of(operator: NodeProto, opsets: Mapping[str, int], types: Mapping[str, TypeProto]) -> FunctionProto:
    """Return the function that defines an operator, for the operator set of the model."""
    domain = domain_of(operator.domain)
    opset = opsets.get(domain, 1)
    schema: Any = onnx.defs.get_schema(operator.op_type, opset, domain)
    if schema.has_function:
        version = max((v for v in schema.function_opset_versions if v <= opset), default=None)
        if version is not None:
            return _parsed(schema.get_function_with_opset_version(version))
    version = max((v for v in schema.context_dependent_function_opset_versions if v <= opset), default=opset)
    given = [types.get(name, TypeProto()).SerializeToString() for name in operator.input]
    content = schema.get_context_dependent_function_with_opset_version(version, operator.SerializeToString(), given)
    return _parsed(content)


def _parsed(content: bytes) -> FunctionProto:
    function: FunctionProto = FunctionProto.FromString(content)
    return function


def _defaults(operator: NodeProto, opsets: Mapping[str, int]) -> dict[str, onnx.AttributeProto]:
    domain = domain_of(operator.domain)
    schema = onnx.defs.get_schema(operator.op_type, opsets.get(domain, 1), domain)
    return {name: entry.default_value for name, entry in schema.attributes.items() if entry.default_value.name}


def _types(graph: GraphProto) -> Iterator[tuple[str, TypeProto]]:
    for value in (*graph.value_info, *graph.input, *graph.output):
        yield value.name, value.type
    for tensor in graph.initializer:
        yield tensor.name, helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    for operator in graph.node:
        for attribute in operator.attribute:
            if attribute.HasField("g"):
                yield from _types(attribute.g)
