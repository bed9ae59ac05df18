"""Operators that ONNX infers no shapes for, said as operators that make the same shapes, of which it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import NodeProto, helper

MICROSOFT = "com.microsoft"
Alike = Callable[[NodeProto, int], list[NodeProto]]
"""From an operator and the opset, operators that make tensors of the same names, types and shapes."""


def shaped_alike(operator: NodeProto, opset: int) -> list[NodeProto]:
    """Return operators that make the same shapes; none where the operator is not known here.

    Examples
    --------
    >>> fused = helper.make_node("FusedMatMul", ["a", "b"], ["y"], domain="com.microsoft", transB=1)
    >>> [one.op_type for one in shaped_alike(fused, 17)]
    ['Einsum', 'MatMul']
    """
    rule = _ALIKE.get((operator.domain, operator.op_type))
    return [] if rule is None else rule(operator, opset)


def _first(operator: NodeProto, _: int) -> list[NodeProto]:
    return [helper.make_node("Identity", operator.input[:1], operator.output[:1])]


def _sum(operator: NodeProto, _: int) -> list[NodeProto]:
    made = [name for place, name in enumerate(operator.output) if name and place in (0, 3)]  # not the statistics
    return [helper.make_node("Add", operator.input[:2], [name]) for name in made]


def _fewer_inputs(n_inputs: int) -> Alike:
    def alike(operator: NodeProto, _: int) -> list[NodeProto]:
        names = ("group", "kernel_shape", "pads", "strides", "dilations", "auto_pad", "transA", "transB")
        same = helper.make_node(operator.op_type.removeprefix("Fused"), operator.input[:n_inputs], operator.output)
        same.attribute.extend(attribute for attribute in operator.attribute if attribute.name in names)
        return [same]

    return alike


def _matrix_product(operator: NodeProto, _: int) -> list[NodeProto]:
    """Say transposes of the last axes by an Einsum each."""
    given = {attribute.name: attribute.i for attribute in operator.attribute}
    if given.get("transBatchA") or given.get("transBatchB"):
        return []
    made, operands = [], list(operator.input)
    for place, name in enumerate(("transA", "transB")):
        if given.get(name):
            operands[place] = f"{operator.output[0]}/{name}"
            made.append(helper.make_node("Einsum", [operator.input[place]], [operands[place]], equation="...ij->...ji"))
    return [*made, helper.make_node("MatMul", operands, operator.output)]


def _attention(operator: NodeProto, _: int) -> list[NodeProto]:
    """Say it as a product of queries with keys, and with values."""
    made = operator.output[0]
    query, key, value = (*operator.input[:3], "", "")[:3]
    if not (key and value):
        return []
    return [
        helper.make_node("Transpose", [key], [f"{made}/keys"], perm=[0, 2, 1]),
        helper.make_node("MatMul", [query, f"{made}/keys"], [f"{made}/scores"]),
        helper.make_node("MatMul", [f"{made}/scores", value], [made]),
    ]


def _packed_attention(operator: NodeProto, opset: int) -> list[NodeProto]:
    """Say it as a third of the packed projection."""
    made = operator.output[0]
    if any(attribute.name == "qkv_hidden_sizes" for attribute in operator.attribute):
        return []
    counted: dict[str, Any] = {"num_outputs": 3} if opset >= 18 else {}
    parts = [made, f"{made}/keys", f"{made}/values"]
    return [
        helper.make_node("MatMul", operator.input[:2], [f"{made}/packed"]),
        helper.make_node("Split", [f"{made}/packed"], parts, axis=2, **counted),
    ]


_ALIKE: dict[tuple[str, str], Alike] = {
    ("", "GroupNormalization"): _first,
    ("", "MeanVarianceNormalization"): _first,
    ("", "SimplifiedLayerNormalization"): _first,
    (MICROSOFT, "Attention"): _packed_attention,
    (MICROSOFT, "BiasGelu"): _first,
    (MICROSOFT, "FastGelu"): _first,
    (MICROSOFT, "FusedConv"): _fewer_inputs(3),
    (MICROSOFT, "FusedGemm"): _fewer_inputs(3),
    (MICROSOFT, "FusedMatMul"): _matrix_product,
    (MICROSOFT, "Gelu"): _first,
    (MICROSOFT, "MultiHeadAttention"): _attention,
    (MICROSOFT, "QuickGelu"): _first,
    (MICROSOFT, "SkipLayerNormalization"): _sum,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _sum,
}
