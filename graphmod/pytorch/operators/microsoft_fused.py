"""Operators of ONNX Runtime's optimiser, domain com.microsoft: layers fused with what comes after or before them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from onnx import NodeProto, helper
from torch import Tensor, fx, nn

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.operators.activation import hard_sigmoid_of, scaled_elu, swish_of
from graphmod.pytorch.operators.convolution import conv
from graphmod.pytorch.operators.linear import gemm
from graphmod.pytorch.operators.normalization import layer_norm, layer_norm_of, rms_norm, rms_norm_of
from graphmod.pytorch.registry import Outputs, operator
from graphmod.pytorch.stand_ins import like_input, stand_in

MICROSOFT = "com.microsoft"

Numbers = list[float | None]

ACTIVATIONS: dict[str, Callable[[Operator, fx.Node, Numbers], fx.Node]] = {
    "Relu": lambda op, x, _: op.call(torch.relu, x),
    "Tanh": lambda op, x, _: op.call(torch.tanh, x),
    "Sigmoid": lambda op, x, _: op.call(torch.sigmoid, x),
    "Softplus": lambda op, x, _: op.call(F.softplus, x),
    "Softsign": lambda op, x, _: op.call(F.softsign, x),
    "LeakyRelu": lambda op, x, n: op.call(F.leaky_relu, x, _or(n[0], 0.01)),
    "Elu": lambda op, x, n: op.call(F.elu, x, _or(n[0], 1.0)),
    "Selu": lambda op, x, n: op.call(scaled_elu, x, _or(n[0], 1.67326324), _or(n[2], 1.05070102)),
    "HardSigmoid": lambda op, x, n: op.call(hard_sigmoid_of, x, _or(n[0], 0.2), _or(n[1], 0.5)),
    "Clip": lambda op, x, n: op.call(torch.clamp, x, n[0], n[1]),
}
"""What follows a fused layer, with its alpha, beta and gamma; for Clip these are its bounds."""


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _activated(op: Operator, x: fx.Node, numbers: Numbers) -> fx.Node:
    name = op.attribute("activation", "")
    if not name:
        return x
    if name not in ACTIVATIONS:
        raise op.unsupported(f"its activation {name} has no counterpart")
    return ACTIVATIONS[name](op, x, numbers)


def _alpha_beta_gamma(op: Operator) -> Numbers:
    return [op.attribute(f"activation_{name}", None) for name in ("alpha", "beta", "gamma")]


def without(operator: NodeProto, op_type: str, n_inputs: int, *dropped: str) -> NodeProto:
    """Return a standard operator with the first inputs and output of another, and all but some of its attributes."""
    made = helper.make_node(op_type, operator.input[:n_inputs], operator.output[:1])
    made.attribute.extend(attribute for attribute in operator.attribute if attribute.name not in dropped)
    return made


# -- products and convolutions


@operator("FusedConv", domain=MICROSOFT)
def fused_conv(op: Operator) -> fx.Node:
    """Convert FusedConv: a convolution, a tensor that is added, an activation."""
    made = conv(op)
    if op.has(3):
        made = op.call(torch.add, made, op.input(3))
    given: list[float] = op.attribute("activation_params", [])
    return _activated(op, made, [*given, *[None] * 3])


@stand_in("FusedConv", domain=MICROSOFT)
def _conv(operator: NodeProto) -> list[NodeProto]:
    return [without(operator, "Conv", 3, "activation", "activation_params")]


@operator("FusedGemm", domain=MICROSOFT)
def fused_gemm(op: Operator) -> fx.Node:
    """Convert FusedGemm: Gemm and an activation."""
    return _activated(op, gemm(op), _alpha_beta_gamma(op))


@stand_in("FusedGemm", domain=MICROSOFT)
def _gemm(operator: NodeProto) -> list[NodeProto]:
    names = [attribute.name for attribute in operator.attribute if attribute.name.startswith("activation")]
    return [without(operator, "Gemm", 3, *names)]


@operator("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul(op: Operator) -> fx.Node:
    """Convert FusedMatMul; with a constant matrix on the right it is a linear layer, scaled after it."""
    turn_b, alpha = bool(op.attribute("transB", 0)), op.attribute("alpha", 1.0)
    a = _turned(op, 0, turned=bool(op.attribute("transA", 0)), batch=bool(op.attribute("transBatchA", 0)))
    right, batch_b = op.constant(1), bool(op.attribute("transBatchB", 0))
    weight = None
    if right is not None and right.ndim == 2 and not batch_b:
        weight = op.weight(1, (0, 1) if turn_b else (1, 0))
    if weight is None:
        made = op.call(torch.matmul, a, _turned(op, 1, turned=turn_b, batch=batch_b))
    else:
        n_out, n_in = weight.shape
        made = op.module(nn.Linear(n_in, n_out, bias=False, device="meta"), a, weight=weight)
    if alpha != 1.0:
        made = op.call(torch.mul, made, alpha)
    if op.type != "FusedMatMulActivation":
        return made
    if op.attribute("activation", "") == "Softmax":
        return op.call(torch.softmax, made, op.attribute("activation_axis", -1))
    op.ignore("activation_axis")
    return _activated(op, made, _alpha_beta_gamma(op))


def _turned(op: Operator, index: int, *, turned: bool, batch: bool) -> fx.Node:
    """Return an input whose first axis becomes the last but one, if ``batch``, and whose last two are swapped."""
    x = op.input(index)
    if not batch:
        return op.method("transpose", x, -1, -2) if turned else x
    return op.method("movedim", x, 0, -1 if turned else -2)


@stand_in("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=MICROSOFT)
def _matmul(operator: NodeProto) -> list[NodeProto]:
    flags = {attribute.name for attribute in operator.attribute if attribute.i}
    nodes, factors = [], []
    for side, name in zip("AB", operator.input, strict=True):
        batch, turned = f"transBatch{side}" in flags, f"trans{side}" in flags
        factors.append(f"{operator.output[0]}/{side}" if batch or turned else name)
        if batch or turned:
            before, after = ("m...k", "...km" if turned else "...mk") if batch else ("...mk", "...km")
            nodes.append(helper.make_node("Einsum", [name], factors[-1:], equation=f"{before}->{after}"))
    return [*nodes, helper.make_node("MatMul", factors, operator.output)]


@operator("Inverse", domain=MICROSOFT)
def inverse(op: Operator) -> fx.Node:
    """Convert Inverse of matrices."""
    return op.call(torch.linalg.inv, op.input())


# -- activations


@operator("Gelu", "BiasGelu", domain=MICROSOFT)
def gelu(op: Operator) -> fx.Node:
    """Convert Gelu, with a bias added before it or without."""
    return op.module(nn.GELU(), _biased(op))


@operator("FastGelu", domain=MICROSOFT)
def fast_gelu(op: Operator) -> fx.Node:
    """Convert FastGelu, which is the approximation by tanh."""
    return op.module(nn.GELU("tanh"), _biased(op))


def _biased(op: Operator) -> fx.Node:
    return op.call(torch.add, op.input(0), op.input(1)) if op.has(1) else op.input(0)


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(op: Operator) -> fx.Node:
    """Convert QuickGelu; alpha 1 is SiLU."""
    alpha = op.attribute("alpha", 1.702)
    return op.module(nn.SiLU(), op.input()) if alpha == 1.0 else op.call(swish_of, op.input(), alpha)


@operator("BiasAdd", domain=MICROSOFT)
def bias_add(op: Operator) -> fx.Node:
    """Convert BiasAdd, which adds a residual too."""
    return op.call(torch.add, _biased(op), op.input(2))


@operator("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(op: Operator) -> fx.Node:
    """Convert BiasSoftmax over the last axis."""
    op.ignore("is_inner_broadcast")
    axis, rank = op.attribute("axis", 1), op.rank()
    if axis % rank != rank - 1:
        raise op.unsupported("a softmax over several axes has no counterpart")
    return op.module(nn.Softmax(dim=-1), _biased(op))


stand_in(
    "Gelu", "BiasGelu", "FastGelu", "QuickGelu", "BiasAdd", "BiasSoftmax", "Inverse", domain=MICROSOFT
)(like_input(0))  # fmt: skip


# -- normalizations


operator("LayerNormalization")(layer_norm)  # ONNX Runtime writes it whatever operator set the model imports
stand_in("LayerNormalization", "SimplifiedLayerNormalization")(like_input(0))
stand_in("SimplifiedLayerNormalization", domain=MICROSOFT)(like_input(0))


@operator("SimplifiedLayerNormalization")
@operator("SimplifiedLayerNormalization", domain=MICROSOFT)
def simplified_layer_norm(op: Operator) -> fx.Node:
    """Convert SimplifiedLayerNormalization, ONNX Runtime's name for RMSNormalization."""
    op.requires_single_output()
    return rms_norm(op)


@operator("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_norm(op: Operator) -> Outputs:
    """Convert SkipLayerNormalization: a residual is added, the sum normalized."""
    total = _residual(op, bias=4)
    weight, bias, epsilon = op.weight(2), op.weight(3), op.attribute("epsilon", 1e-12)
    if weight is None or (op.has(3) and bias is None):
        return op.call(layer_norm_of, total, op.input(2), op.optional(3), 1, epsilon), None, None, total
    module = nn.LayerNorm(weight.shape, eps=epsilon, bias=bias is not None, device="meta")
    return op.module(module, total, weight=weight, bias=bias), None, None, total


@operator("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_norm(op: Operator) -> Outputs:
    """Convert SkipSimplifiedLayerNormalization: a residual is added, the sum divided by its root mean square."""
    total = _residual(op, bias=3)
    weight, epsilon = op.weight(2), op.attribute("epsilon", 1e-12)
    if weight is None:
        return op.call(rms_norm_of, total, op.input(2), 1, epsilon), None, None, total
    return op.module(nn.RMSNorm(weight.shape, eps=epsilon, device="meta"), total, weight=weight), None, None, total


def _residual(op: Operator, bias: int) -> fx.Node:
    if op.uses_output(1) or op.uses_output(2):
        raise op.unsupported("its statistics are used, which have no counterpart")
    total = op.call(torch.add, op.input(0), op.input(1))
    return op.call(torch.add, total, op.input(bias)) if op.has(bias) else total


@stand_in("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def _sum_of_two(operator: NodeProto) -> list[NodeProto]:
    made = [name for name in (operator.output[0], *operator.output[3:]) if name]
    return [helper.make_node("Identity", operator.input[:1], [name]) for name in made]


@operator("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_norm(op: Operator) -> Outputs:
    """Convert EmbedLayerNormalization: rows of up to three tables are added, the sum normalized."""
    op.ignore("mask_index_type")
    epsilon, weight, bias = op.attribute("epsilon", 1e-12), op.weight(5), op.weight(6)
    total = op.call(
        embed, op.input(0), op.optional(1), op.input(2), op.input(3), op.optional(4), op.optional(8)
    )  # fmt: skip
    if weight is None or bias is None:
        made = op.call(layer_norm_of, total, op.input(5), op.input(6), 1, epsilon)
    else:
        made = op.module(nn.LayerNorm(weight.shape, eps=epsilon, device="meta"), total, weight=weight, bias=bias)
    lengths = op.call(lengths_of, op.input(0), op.optional(7)) if op.uses_output(1) else None
    return made, lengths, total


def embed(
    tokens: Tensor,
    segments: Tensor | None,
    word_table: Tensor,
    position_table: Tensor,
    segment_table: Tensor | None,
    positions: Tensor | None,
) -> Tensor:
    """Add up the embeddings of tokens, of their positions (0, 1, ... by default) and of their segments."""
    place = position_table[: tokens.shape[1]] if positions is None else F.embedding(positions, position_table)
    total = F.embedding(tokens, word_table) + place
    return total if segments is None or segment_table is None else total + F.embedding(segments, segment_table)


def lengths_of(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Count the ones of each row of a mask; without a mask, zero."""
    given = torch.zeros_like(tokens) if mask is None else mask == 1
    return given.sum(1).to(torch.int32)


@stand_in("EmbedLayerNormalization", domain=MICROSOFT)
def _embedded(operator: NodeProto) -> list[NodeProto]:
    made = [name for name in (operator.output[0], *operator.output[2:]) if name]
    return [helper.make_node("Gather", [operator.input[2], operator.input[0]], [name]) for name in made]
