"""Types of tensors by ONNX's shape inference, which knows nothing of operators outside the standard.

For inference alone such an operator is replaced by standard ones whose outputs have the same types: its stand-in.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from graphmod.errors import InvalidModelError
from graphmod.pytorch.registry import domain_of

ORIGINAL = "graphmod.original"

StandIn = Callable[[NodeProto], list[NodeProto]]

_STAND_INS: dict[tuple[str, str], StandIn] = {}


def stand_in(*op_types: str, domain: str = "") -> Callable[[StandIn], StandIn]:
    """Register the standard operators whose outputs have the types of an operator outside the standard.

    One of the standard is replaced only where the model imports an operator set that does not have it yet, or where
    the standard says nothing of its outputs' types.
    """

    def register(function: StandIn) -> StandIn:
        for op_type in op_types:
            _STAND_INS[domain, op_type] = function
        return function

    return register


def like_input(index: int) -> StandIn:
    """Return the stand-in of an operator whose first output has the type of one of its inputs."""

    def identity(operator: NodeProto) -> list[NodeProto]:
        return [helper.make_node("Identity", [operator.input[index]], [operator.output[0]])]

    return identity


def infer_types(proto: ModelProto, opsets: Mapping[str, int]) -> GraphProto:
    """Return a model's graph with the types of all tensors that inference finds.

    Raises
    ------
    InvalidModelError
        Operators contradict each other.
    """
    copy = ModelProto()
    copy.CopyFrom(proto)
    if not opsets.get(""):  # nothing but operators of other domains
        copy.opset_import.append(helper.make_opsetid("", onnx.defs.onnx_opset_version()))
    foreign = _replace(copy.graph, opsets)
    declared = [value for value in copy.graph.value_info if foreign and value.type.tensor_type.HasField("shape")]
    del copy.graph.value_info[:]  # what inference finds by itself is surer than what edits have left there
    copy.graph.value_info.extend(declared)
    try:
        inferred: ModelProto = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise InvalidModelError(f"shape inference fails: {' '.join(str(error).split())}") from error
    _restore(inferred.graph)
    return inferred.graph


def _replace(graph: GraphProto, opsets: Mapping[str, int]) -> bool:
    """Put stand-ins into a graph; return whether it has operators that inference does not know."""
    operators: list[NodeProto] = []
    foreign = False
    for operator in graph.node:
        for attribute in operator.attribute:
            if attribute.HasField("g"):
                foreign |= _replace(attribute.g, opsets)
        domain = domain_of(operator.domain)
        function = _STAND_INS.get((domain, operator.op_type))
        known = onnx.defs.has(operator.op_type, opsets.get(domain, 1), domain)
        foreign |= not known
        if function is None or (known and _is_inferred(operator.op_type, opsets.get(domain, 1), domain)):
            operators.append(operator)
            continue
        nodes = function(operator)
        for node in nodes:
            node.metadata_props.add(key=ORIGINAL, value="")
        nodes[-1].metadata_props[-1].value = base64.b64encode(operator.SerializeToString()).decode()
        operators.extend(nodes)
    copies = [NodeProto.FromString(operator.SerializeToString()) for operator in operators]
    del graph.node[:]
    graph.node.extend(copies)
    return foreign


def _is_inferred(op_type: str, opset: int, domain: str) -> bool:
    return bool(onnx.defs.get_schema(op_type, opset, domain).has_type_and_shape_inference_function)


def _restore(graph: GraphProto) -> None:
    operators: list[NodeProto] = []
    for operator in graph.node:
        for attribute in operator.attribute:
            if attribute.HasField("g"):
                _restore(attribute.g)
        kept = [entry.value for entry in operator.metadata_props if entry.key == ORIGINAL]
        if not kept:
            operators.append(operator)
        elif kept[0]:
            operators.append(NodeProto.FromString(base64.b64decode(kept[0])))
    copies = [NodeProto.FromString(operator.SerializeToString()) for operator in operators]
    del graph.node[:]
    graph.node.extend(copies)


def placeholder(name: str, shape: list[int], dtype: int = TensorProto.FLOAT) -> list[NodeProto]:
    """Return operators that make a tensor of a shape: a stand-in's weight, of which only the type matters."""
    sizes = helper.make_node("Constant", [], [f"{name}/sizes"], value_ints=shape)
    value = helper.make_tensor("value", dtype, [1], [0])
    return [sizes, helper.make_node("ConstantOfShape", [f"{name}/sizes"], [name], value=value)]
