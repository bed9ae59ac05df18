"""Activations: Relu, Clip, Gelu, Softmax and the like."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphmod.pytorch.operator import Operator, Scalar
from graphmod.pytorch.registry import operator

MODULES: dict[str, Callable[[], nn.Module]] = {
    "Relu": nn.ReLU,
    "Sigmoid": nn.Sigmoid,
    "Tanh": nn.Tanh,
    "Softplus": nn.Softplus,
    "Softsign": nn.Softsign,
    "HardSwish": nn.Hardswish,
    "Mish": nn.Mish,
}


def _by_type(op: Operator) -> fx.Node:
    return op.module(MODULES[op.type](), op.input())


operator(*MODULES)(_by_type)


@operator("LeakyRelu")
def leaky_relu(op: Operator) -> fx.Node:
    """Convert LeakyRelu."""
    return op.module(nn.LeakyReLU(op.attribute("alpha", 0.01)), op.input())


@operator("Elu")
def elu(op: Operator) -> fx.Node:
    """Convert Elu."""
    return op.module(nn.ELU(op.attribute("alpha", 1.0)), op.input())


@operator("Celu")
def celu(op: Operator) -> fx.Node:
    """Convert Celu."""
    return op.module(nn.CELU(op.attribute("alpha", 1.0)), op.input())


@operator("Selu")
def selu(op: Operator) -> fx.Node:
    """Convert Selu; nn.SELU has the constants fixed."""
    alpha, gamma = op.attribute("alpha", 1.67326324), op.attribute("gamma", 1.05070102)
    if math.isclose(alpha, 1.67326324, rel_tol=1e-6) and math.isclose(gamma, 1.05070102, rel_tol=1e-6):
        return op.module(nn.SELU(), op.input())
    return op.call(scaled_elu, op.input(), alpha, gamma)


def scaled_elu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    """Exponential linear unit, scaled by ``gamma``."""
    return gamma * F.elu(x, alpha)


@operator("ThresholdedRelu")
def thresholded_relu(op: Operator) -> fx.Node:
    """Convert ThresholdedRelu."""
    return op.module(nn.Threshold(op.attribute("alpha", 1.0), 0.0), op.input())


@operator("HardSigmoid")
def hard_sigmoid(op: Operator) -> fx.Node:
    """Convert HardSigmoid; nn.Hardsigmoid has slope 1/6."""
    alpha, beta = op.attribute("alpha", 0.2), op.attribute("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return op.module(nn.Hardsigmoid(), op.input())
    return op.call(hard_sigmoid_of, op.input(), alpha, beta)


def hard_sigmoid_of(x: Tensor, alpha: float, beta: float) -> Tensor:
    """Line of slope ``alpha`` through ``beta``, cut at 0 and 1."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@operator("Gelu", since=20)
def gelu(op: Operator) -> fx.Node:
    """Convert Gelu, exact or with tanh."""
    return op.module(nn.GELU(op.attribute("approximate", "none")), op.input())


@operator("Swish", since=24)
def swish(op: Operator) -> fx.Node:
    """Convert Swish; alpha 1 is SiLU."""
    alpha = op.attribute("alpha", 1.0)
    return op.module(nn.SiLU(), op.input()) if alpha == 1.0 else op.call(swish_of, op.input(), alpha)


def swish_of(x: Tensor, alpha: float) -> Tensor:
    """``x`` times the sigmoid of ``alpha x``."""
    return x * torch.sigmoid(alpha * x)


@operator("PRelu")
def prelu_by_channel(op: Operator) -> fx.Node:
    """Convert PRelu as it was before opset 7: one slope, or one a channel."""
    op.ignore("consumed_inputs")
    return op.call(F.prelu, op.input(), _flat_slope(op))


@operator("PRelu", since=7)
def prelu(op: Operator) -> fx.Node:
    """Convert PRelu; a slope per channel is nn.PReLU, any other broadcasts."""
    shape, slope = op.shape(0), op.weight(1)
    if slope is not None and shape is not None and len(shape) > 1:
        spread = (shape[1], *[1] * (len(shape) - 2))
        if math.prod(slope.shape) == 1 or slope.shape == spread:
            return op.call(F.prelu, op.input(), _flat_slope(op))
    return op.call(prelu_of, op.input(0), op.input(1))


def _flat_slope(op: Operator) -> fx.Node:
    return op.method("flatten", op.input(1))


def prelu_of(x: Tensor, slope: Tensor) -> Tensor:
    """Slope where ``x`` is negative, broadcast from the right."""
    return torch.where(x < 0, x * slope, x)


@operator("Shrink", since=9)
def shrink(op: Operator) -> fx.Node:
    """Convert Shrink."""
    return op.call(shrink_of, op.input(), op.attribute("lambd", 0.5), op.attribute("bias", 0.0))


def shrink_of(x: Tensor, lambd: float, bias: float) -> Tensor:
    """Move values beyond ``lambd`` towards zero by ``bias``; the others become zero."""
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


@operator("Clip")
def clip_by_attributes(op: Operator) -> fx.Node:
    """Convert Clip as it was before opset 11, with bounds as attributes."""
    low: float | None = op.attribute("min", None)
    high: float | None = op.attribute("max", None)
    return _clip(op, low, high)


@operator("Clip", since=11)
def clip(op: Operator) -> fx.Node:
    """Convert Clip with bounds as inputs."""
    op.requires_arithmetic()
    return _clip(op, op.scalar(1, None), op.scalar(2, None))


def _clip(op: Operator, low: fx.Node | Scalar | None, high: fx.Node | Scalar | None) -> fx.Node:
    if (low, high) == (0.0, 6.0) and op.is_float():
        return op.module(nn.ReLU6(), op.input())
    if low is None and high is None:
        return op.input()
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):  # clamp takes two numbers or two tensors
        low = op.input(1) if op.has(1) else None
        high = op.input(2) if op.has(2) else None
    return op.call(torch.clamp, op.input(), min=low, max=high)


@operator("Softmax", "LogSoftmax", "Hardmax", since=13)
def softmax(op: Operator) -> fx.Node:
    """Convert Softmax, LogSoftmax or Hardmax over one axis."""
    axis = op.attribute("axis", -1)
    return op.call(hardmax, op.input(), axis) if op.type == "Hardmax" else op.module(_module(op, axis), op.input())


@operator("Softmax", "LogSoftmax", "Hardmax")
def softmax_of_flat(op: Operator) -> fx.Node:
    """Convert them as they were before opset 13: over all axes from the given one on, taken as one."""
    axis = op.attribute("axis", 1)
    rank = op.rank()
    if axis % rank == rank - 1:
        return op.call(hardmax, op.input(), -1) if op.type == "Hardmax" else op.module(_module(op, axis), op.input())
    flat = op.call(torch.flatten, op.input(), axis)
    made = op.call(hardmax, flat, -1) if op.type == "Hardmax" else op.module(_module(op, -1), flat)
    return op.call(torch.reshape, made, op.method("size", op.input()))


def _module(op: Operator, axis: int) -> nn.Module:
    return nn.Softmax(dim=axis) if op.type == "Softmax" else nn.LogSoftmax(dim=axis)


def hardmax(x: Tensor, axis: int) -> Tensor:
    """Return 1 at the first maximum along an axis, else 0."""
    return torch.zeros_like(x).scatter_(axis, x.argmax(axis, keepdim=True), 1)
