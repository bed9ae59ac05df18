"""Elementwise operators: every index stays where it is; what broadcasts is tied where it has the full length."""

from __future__ import annotations

from graphmod.pruning.registry import MICROSOFT, couples
from graphmod.pruning.site import Axes, Site

UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Bernoulli", "BitwiseNot", "Cast", "CastLike", "Ceil",
    "Celu", "Clip", "Cos", "Cosh", "DynamicQuantizeLinear", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "RandomNormalLike",
    "RandomUniformLike", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip

BROADCASTING = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "SwiGLU", "Where",
    "Xor",
)  # fmt: skip


@couples(*UNARY, "BitCast")
@couples("Gelu", "QuickGelu", domain=MICROSOFT)
def unary(site: Site) -> list[Axes]:
    """Hand the labels on."""
    return [site.labels()]


@couples("Dropout")
def dropout(site: Site) -> list[Axes]:
    """Hand the labels on, to the mask too."""
    return [site.labels()] * 2


@couples(*BROADCASTING)
@couples("BiasGelu", "FastGelu", domain=MICROSOFT)
def broadcasting(site: Site) -> list[Axes]:
    """Tie what meets."""
    places = [place for place in range(len(site.operator.input)) if site.has(place)]
    return [site.broadcast([site.labels(place) for place in places], site.made())]
