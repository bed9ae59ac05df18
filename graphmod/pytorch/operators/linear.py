"""Products of matrices: Gemm, MatMul, Einsum."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from graphmod.pytorch.binding import Weight
from graphmod.pytorch.operator import Operator
from graphmod.pytorch.registry import operator


@operator("MatMul")
def matmul(op: Operator) -> fx.Node:
    """Convert MatMul; with a constant matrix on the right it is a linear layer, with the bias added after it."""
    op.requires_arithmetic()
    right = op.constant(1)
    weight = op.weight(1, (1, 0)) if right is not None and right.ndim == 2 else None
    if weight is None:
        return op.call(torch.matmul, op.input(0), op.input(1))
    adder = op.sole_reader()
    bias = _bias(adder, op.proto.output[0], n=weight.shape[0])
    node = _linear(op, weight, bias)
    if adder is not None and bias is not None:
        op.absorb(adder, node)
    return node


def _bias(adder: Operator | None, product: str, n: int) -> Weight | None:
    """Return the vector that an Add adds to a product, if it is that."""
    if adder is None or adder.type != "Add" or len(set(adder.proto.input)) != 2 or adder.attribute("axis", None):
        return None
    index = 1 - list(adder.proto.input).index(product)
    bias = adder.weight(index)
    return bias if bias is not None and bias.shape == (n,) else None


def _linear(op: Operator, weight: Weight, bias: Weight | None) -> fx.Node:
    n_out, n_in = weight.shape
    module = nn.Linear(n_in, n_out, bias=bias is not None, device="meta")
    return op.module(module, op.input(0), weight=weight, bias=bias)


@operator("Gemm")
def gemm(op: Operator) -> fx.Node:
    """Convert Gemm; a plain product with a constant matrix is a linear layer."""
    op.requires_arithmetic()
    alpha, beta = op.attribute("alpha", 1.0), op.attribute("beta", 1.0)
    turn_a, turn_b = bool(op.attribute("transA", 0)), bool(op.attribute("transB", 0))
    right = op.constant(1)
    if right is not None and not turn_a and alpha == 1.0 and (beta == 1.0 or not op.has(2)):
        weight, bias = op.weight(1, (0, 1) if turn_b else (1, 0)), op.weight(2)
        n = right.shape[0 if turn_b else 1]
        if weight is not None and (not op.has(2) or (bias is not None and bias.shape == (n,))):
            return _linear(op, weight, bias)
    a = op.method("t", op.input(0)) if turn_a else op.input(0)
    b = op.method("t", op.input(1)) if turn_b else op.input(1)
    if not op.has(2):
        product = op.call(torch.mm, a, b)
        return product if alpha == 1.0 else op.call(torch.mul, product, alpha)
    if not op.is_float():
        return op.call(integer_gemm, a, b, op.input(2), alpha, beta)
    return op.call(torch.addmm, op.input(2), a, b, beta=beta, alpha=alpha)


def integer_gemm(a: Tensor, b: Tensor, c: Tensor, alpha: float, beta: float) -> Tensor:
    """Product and sum of integers, with scale factors that are rounded off at the end."""
    return (alpha * (a @ b) + beta * c).to(a.dtype)


@operator("Einsum", since=12)
def einsum(op: Operator) -> fx.Node:
    """Convert Einsum."""
    op.requires_arithmetic()
    return op.call(torch.einsum, op.attribute("equation", "").replace(" ", ""), *op.inputs())


@operator("Det", since=11)
def det(op: Operator) -> fx.Node:
    """Convert Det."""
    return op.call(det_of_halves if op.is_half() else torch.det, op.input())


def det_of_halves(x: Tensor) -> Tensor:
    """Determinant of half precision, which torch has of higher precisions alone."""
    return torch.det(x.float()).to(x.dtype)
