"""Operators that ONNX infers no shapes for, said as operators that make the same shapes, of which it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
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


def _on_floats(op_type: str, reads: Sequence[int], scales: Mapping[int, int], levels: int | None = None) -> Alike:
    """Say it as an operator on floats.

    Parameters
    ----------
    op_type : str
    reads : sequence of int
        Its inputs, by their places.
    scales : mapping of int to int
        For inputs that are levels, the place of a scale.
    levels : int, optional
        The place of the scale of what it makes, which its zero point follows, where that is levels if they are given.
    """

    def alike(operator: NodeProto, _: int) -> list[NodeProto]:
        given, made = [*operator.input, "", ""], list(operator.output)
        floats = {place: f"{made[0]}/{place}" for place in scales}
        becomes_levels = levels is not None and levels < len(operator.input) and bool(given[levels])
        results = [f"{made[0]}/floats"] if becomes_levels else made
        same = helper.make_node(op_type, [floats.get(place, given[place]) for place in reads], results)
        known = onnx.defs.get_schema(op_type).attributes
        same.attribute.extend(one for one in operator.attribute if one.name in known)
        nodes = [
            helper.make_node("DequantizeLinear", [given[place], given[scale]], [floats[place]])
            for place, scale in scales.items()
        ]
        if not becomes_levels or levels is None:
            return [*nodes, same]
        return [*nodes, same, helper.make_node("QuantizeLinear", [*results, *given[levels : levels + 2]], made)]

    return alike


def _pooled_levels(operator: NodeProto, opset: int) -> list[NodeProto]:
    if any(attribute.name == "channels_last" and attribute.i for attribute in operator.attribute):
        return []
    return _on_floats(operator.op_type.removeprefix("QLinear"), [0], {0: 1}, 3)(operator, opset)


def _joined_levels(operator: NodeProto, _: int) -> list[NodeProto]:
    return [helper.make_node("Concat", operator.input[2::3], operator.output, axis=operator.attribute[0].i)]


def _quantised_attention(operator: NodeProto, opset: int) -> list[NodeProto]:
    """Say it as a third of the packed projection."""
    (product, split), made = _packed_attention(operator, opset), operator.output[0]
    floats = [f"{made}/{place}" for place in range(2)]
    nodes = [
        helper.make_node("DequantizeLinear", [levels, operator.input[3]], [name])
        for levels, name in zip(operator.input, floats, strict=False)
    ]
    product.input[:] = floats
    return [*nodes, product, split]


def _embeddings(operator: NodeProto, _: int) -> list[NodeProto]:
    """Say it as looking up words, once for their sum with others, and the length of every sample's mask."""
    ids, words, made = operator.input[0], operator.input[2], [*operator.output, "", ""]
    found = [helper.make_node("Gather", [words, ids], [name]) for name in (made[0], made[2]) if name]
    if made[1]:
        lengths = helper.make_node("ArgMax", [ids], [f"{made[1]}/lengths"], axis=1, keepdims=0)
        found += [lengths, helper.make_node("CastLike", [*lengths.output, ids], [made[1]])]
    return found


def _queries(operator: NodeProto, _: int) -> list[NodeProto]:
    """Say it as its queries, unless keys and values are packed with them."""
    has_keys = bool(operator.input[1])
    return [helper.make_node("Identity", operator.input[:1], operator.output[:1])] if has_keys else []


_ALIKE: dict[tuple[str, str], Alike] = {
    ("", "GroupNormalization"): _first,
    ("", "MeanVarianceNormalization"): _first,
    ("", "SimplifiedLayerNormalization"): _first,
    (MICROSOFT, "Attention"): _packed_attention,
    (MICROSOFT, "BiasGelu"): _first,
    (MICROSOFT, "DynamicQuantizeLSTM"): _on_floats("LSTM", [0, 1, 2], {1: 8, 2: 10}),
    (MICROSOFT, "DynamicQuantizeMatMul"): _on_floats("MatMul", [0, 1], {1: 2}),
    (MICROSOFT, "EmbedLayerNormalization"): _embeddings,
    (MICROSOFT, "FastGelu"): _first,
    (MICROSOFT, "FusedConv"): _fewer_inputs(3),
    (MICROSOFT, "FusedGemm"): _fewer_inputs(3),
    (MICROSOFT, "FusedMatMul"): _matrix_product,
    (MICROSOFT, "Gelu"): _first,
    (MICROSOFT, "GroupQueryAttention"): _queries,
    (MICROSOFT, "MatMulIntegerToFloat"): _on_floats("MatMul", [0, 1], {0: 2, 1: 2}),
    (MICROSOFT, "MultiHeadAttention"): _attention,
    (MICROSOFT, "QAttention"): _quantised_attention,
    (MICROSOFT, "QGemm"): _on_floats("Gemm", [0, 3], {0: 1, 3: 1}, 7),
    (MICROSOFT, "QLinearAdd"): _on_floats("Add", [0, 3], {0: 1, 3: 4}, 6),
    (MICROSOFT, "QLinearAveragePool"): _pooled_levels,
    (MICROSOFT, "QLinearConcat"): _joined_levels,
    (MICROSOFT, "QLinearConv"): _on_floats("Conv", [0, 3], {0: 1, 3: 1}, 6),
    (MICROSOFT, "QLinearGlobalAveragePool"): _pooled_levels,
    (MICROSOFT, "QLinearLeakyRelu"): _first,
    (MICROSOFT, "QLinearMul"): _on_floats("Mul", [0, 3], {0: 1, 3: 4}, 6),
    (MICROSOFT, "QLinearSigmoid"): _first,
    (MICROSOFT, "QLinearSoftmax"): _first,
    (MICROSOFT, "QLinearWhere"): _on_floats("Where", [0, 1, 4], {1: 2, 4: 5}, 7),
    (MICROSOFT, "QuickGelu"): _first,
    (MICROSOFT, "RotaryEmbedding"): _first,
    (MICROSOFT, "SkipLayerNormalization"): _sum,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _sum,
    (MICROSOFT, "TransposeMatMul"): _matrix_product,
}
