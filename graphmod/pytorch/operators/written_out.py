"""What exporters write out: activations, normalizations and attention made of many operators."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import fx, nn

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.patterns import Found, Number, Op, Pattern, X, pattern
from graphmod.pytorch.steps import Reshape


def _products(*factors: Pattern) -> tuple[Op, ...]:
    """Return every way to multiply three factors pair by pair."""
    a, b, c = factors
    return tuple(Op("Mul", Op("Mul", left, right), last) for left, right, last in ((a, b, c), (a, c, b), (b, c, a)))


ERF = tuple(
    Op("Add", Op("Erf", scaled), Number(1.0))
    for scaled in (Op("Div", X("x"), Number(math.sqrt(2))), Op("Mul", X("x"), Number(math.sqrt(0.5))))
)
CUBES = (Op("Pow", X("x"), Number(3.0)), Op("Mul", Op("Mul", X("x"), X("x")), X("x")))
TANH = tuple(
    Op(
        "Add",
        Op("Tanh", Op("Mul", Op("Add", X("x"), Op("Mul", cube, Number(0.044715))), Number(0.7978846))),
        Number(1.0),
    )
    for cube in CUBES
)


@pattern(*(tree for part in ERF for tree in _products(X("x"), Number(0.5), part)))
def gelu(op: Operator, found: Found) -> fx.Node:
    """Convert a GELU that is written out with the error function."""
    return op.module(nn.GELU(), op.importer.node(found["x"]))


@pattern(*(tree for part in TANH for tree in _products(X("x"), Number(0.5), part)))
def gelu_by_tanh(op: Operator, found: Found) -> fx.Node:
    """Convert a GELU that is written out with the hyperbolic tangent."""
    return op.module(nn.GELU("tanh"), op.importer.node(found["x"]))


@pattern(Op("Mul", X("x"), Op("Sigmoid", X("x"))))
def silu(op: Operator, found: Found) -> fx.Node:
    """Convert a SiLU that is written out."""
    return op.module(nn.SiLU(), op.importer.node(found["x"]))


@pattern(Op("Mul", X("x"), Op("Tanh", Op("Softplus", X("x")))))
def mish(op: Operator, found: Found) -> fx.Node:
    """Convert a Mish that is written out."""
    return op.module(nn.Mish(), op.importer.node(found["x"]))


def _sixth(_: Operator, found: Found) -> bool:
    gate = found.operators["gate"]
    return math.isclose(gate.attribute("alpha", 0.2), 1 / 6, rel_tol=1e-5) and gate.attribute("beta", 0.5) == 0.5


@pattern(Op("Mul", X("x"), Op("HardSigmoid", X("x"), name="gate")), check=_sixth)
def hard_swish(op: Operator, found: Found) -> fx.Node:
    """Convert a Hardswish that is written out."""
    return op.module(nn.Hardswish(), op.importer.node(found["x"]))


# -- normalizations


def _last_axis(reduction: Operator) -> bool:
    axes, rank = reduction.axes(1), reduction.known_rank(0)
    return rank is not None and axes in ([-1], [rank - 1]) and bool(reduction.attribute("keepdims", 1))


def _normalizes(op: Operator, found: Found) -> bool:
    """Whether means are over the last axis, and scale and shift have its size."""
    importer = op.importer
    if not all(_last_axis(reduction) for name, reduction in found.operators.items() if name.startswith("mean")):
        return False
    kind = importer.scope.types.get(found["x"])
    if kind is None or not kind.shape:
        return False
    names = [name for name in ("weight", "bias") if name in found.tensors]
    if any(found[name] not in importer.constants for name in names):
        return False
    shapes = [importer.constants.value(found[name]).shape for name in names]
    return all(len(shape) == 1 and kind.shape[-1] in (shape[0], None) for shape in shapes)


CENTRED = Op("Sub", X("x"), Op("ReduceMean", X("x"), name="mean"))
SQUARES = (Op("Pow", CENTRED, Number(2.0)), Op("Mul", CENTRED, CENTRED))
NORMALIZED = tuple(
    Op("Div", CENTRED, Op("Sqrt", Op("Add", Op("ReduceMean", square, name="mean of squares"), Number(name="eps"))))
    for square in SQUARES
)


@pattern(*(Op("Add", Op("Mul", tree, X("weight")), X("bias")) for tree in NORMALIZED), check=_normalizes)
def layer_norm(op: Operator, found: Found) -> fx.Node:
    """Convert a layer normalization that is written out."""
    weight, bias = (op.importer.weights.weight(found[name], ()) for name in ("weight", "bias"))
    x, eps = op.importer.node(found["x"]), found.numbers["eps"]
    if weight is None or bias is None:
        scale, shift = (op.importer.node(found[name]) for name in ("weight", "bias"))
        return op.call(F.layer_norm, x, op.importer.constants.value(found["weight"]).shape, scale, shift, eps)
    return op.module(nn.LayerNorm(weight.shape, eps=eps, device="meta"), x, weight=weight, bias=bias)


MEAN_SQUARE = tuple(
    Op("Sqrt", Op("Add", Op("ReduceMean", square, name="mean"), Number(name="eps")))
    for square in (Op("Pow", X("x"), Number(2.0)), Op("Mul", X("x"), X("x")))
)
ROOTED = (
    *(Op("Div", X("x"), root) for root in MEAN_SQUARE),
    *(Op("Mul", X("x"), Op("Div", Number(1.0), root)) for root in MEAN_SQUARE),
    *(Op("Mul", X("x"), Op("Reciprocal", root)) for root in MEAN_SQUARE),
)


@pattern(*(Op("Mul", tree, X("weight")) for tree in ROOTED), check=_normalizes)
def rms_norm(op: Operator, found: Found) -> fx.Node:
    """Convert a root-mean-square normalization that is written out."""
    weight = op.importer.weights.weight(found["weight"], ())
    x, eps = op.importer.node(found["x"]), found.numbers["eps"]
    if weight is None:
        shape = op.importer.constants.value(found["weight"]).shape
        return op.call(F.rms_norm, x, shape, op.importer.node(found["weight"]), eps)
    return op.module(nn.RMSNorm(weight.shape, eps=eps, device="meta"), x, weight=weight)


def _shape(op: Operator, maker: Operator) -> tuple[int | str | None, ...]:
    kind = op.importer.scope.types.get(maker.proto.output[0])
    return () if kind is None or kind.shape is None else kind.shape


def _groups(op: Operator, found: Found) -> bool:
    """Whether an instance normalization of reshaped channels is a group normalization."""
    importer, inner = op.importer, found.operators["normalization"]
    kind = importer.scope.types.get(found["x"])
    if kind is None or kind.shape is None or not isinstance(kind.shape[1], int):
        return False
    ones, zeros, sizes = inner.constant(1), inner.constant(2), found.operators["apart"].constant(1)
    if ones is None or zeros is None or sizes is None or (ones != 1).any() or (zeros != 0).any():
        return False
    channels, rank = kind.shape[1], len(kind.shape)
    if sizes.tolist() != [0, ones.size, -1] or _shape(op, found.operators["together"]) != kind.shape:
        return False
    broadcast = (channels, *[1] * (rank - 2))
    names = ("weight", "bias")
    return all(
        found[name] in importer.constants and importer.constants.value(found[name]).shape == broadcast for name in names
    )


NORMALIZED_GROUPS = Op(
    "Reshape", Op("InstanceNormalization", Op("Reshape", X("x"), name="apart"), name="normalization"), name="together"
)


@pattern(Op("Add", Op("Mul", NORMALIZED_GROUPS, X("weight")), X("bias")), check=_groups)
def group_norm(op: Operator, found: Found) -> fx.Node:
    """Convert a group normalization that is written out as an instance normalization of groups."""
    inner = found.operators["normalization"]
    eps, x = inner.attribute("epsilon", 1e-5), op.importer.node(found["x"])
    groups, channels = int(inner.required(1).size), op.importer.constants.value(found["weight"]).size
    weight, bias = (op.importer.weights.weight(found[name], (Reshape((channels,)),)) for name in ("weight", "bias"))
    if weight is None or bias is None:
        scale, shift = (op.method("flatten", op.importer.node(found[name])) for name in ("weight", "bias"))
        return op.call(F.group_norm, x, groups, scale, shift, eps)
    return op.module(nn.GroupNorm(groups, channels, eps=eps, device="meta"), x, weight=weight, bias=bias)


# -- attention


def _attends(op: Operator, found: Found) -> bool:
    """Whether shapes are such that torch's own function does the same."""
    softmax, product, types = found.operators["softmax"], found.operators["product"], op.importer.scope.types
    rank = product.known_rank(0)
    if (
        rank not in (3, 4)
        or not product.is_float()
        or softmax.attribute("axis", -1 if softmax.opset >= 13 else 1) not in (-1, rank - 1)
    ):
        return False
    if "mask" not in found.tensors:
        return True
    scores, mask = (types[name].shape if name in types else None for name in (product.proto.output[0], found["mask"]))
    if scores is None or mask is None or not 2 <= len(mask) <= rank:
        return False
    pairs = zip(reversed(scores), reversed(mask), strict=False)
    return all(hidden in (1, size) or size != 1 for size, hidden in pairs)  # not a mask that widens the scores


SCORES = Op("MatMul", X("q"), X("k"), name="product")
SHARES = tuple(Op("Softmax", scores, name="softmax") for scores in (SCORES, Op("Add", SCORES, X("mask"))))
GUARDED = tuple(Op("Where", Op("IsNaN", shares), Number(0.0), shares) for shares in SHARES)


@pattern(*(Op("MatMul", shares, X("v")) for shares in (*SHARES, *GUARDED)), check=_attends)
def attention(op: Operator, found: Found) -> fx.Node:
    """Convert ``softmax(q @ k + mask) @ v``; scale factors stay where the graph has them, before the first product.

    Exporters may put zeros where the softmax has not-a-numbers, as torch does.

    Where a mask hides every key of a row with minus infinity, torch returns zeros, and the operators that are written
    out return not-a-numbers.
    """
    query, value = op.importer.node(found["q"]), op.importer.node(found["v"])
    key = op.method("transpose", op.importer.node(found["k"]), -2, -1)
    mask = op.importer.node(found["mask"]) if "mask" in found.tensors else None
    return op.call(F.scaled_dot_product_attention, query, key, value, attn_mask=mask, scale=1.0)
