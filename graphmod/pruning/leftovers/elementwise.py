"""Elementwise operators map constants on, as onnx's reference implementation computes them, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference import ReferenceEvaluator
from scipy.special import expit, ndtr

from graphmod.pruning.leftovers.known import Known
from graphmod.pruning.leftovers.reading import Reading
from graphmod.pruning.leftovers.registry import settles
from graphmod.pruning.registry import MICROSOFT
from graphmod.pruning.rules.elementwise import BROADCASTING, UNARY

NOT_FOLLOWED = {
    "And", "Bernoulli", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "DynamicQuantizeLinear",
    "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "RandomNormalLike",
    "RandomUniformLike", "Where", "Xor",
}  # fmt: skip
"""Operators whose results are random, no numbers, or chosen by data."""

HANDED_ON = {"Identity", "Cast", "CastLike", "Dropout"}


@settles(*sorted({*UNARY, *BROADCASTING} - NOT_FOLLOWED - HANDED_ON))
def mapped(reading: Reading) -> list[Known | None]:
    """Compute what is made of constants; zero times anything is zero."""
    places = [place for place in range(len(reading.operator.input)) if reading.site.has(place)]
    read = {reading.operator.input[place]: reading.known(place) for place in places}
    shape = np.broadcast_shapes(*(known.shape for known in read.values()))
    is_missing = np.zeros(shape, bool)
    for known in read.values():
        is_missing = is_missing | np.isnan(known)
    made = np.full(shape, np.nan)
    if not is_missing.all():
        found = _computed(reading, read)
        if found is not None and found.shape == shape and found.dtype.kind == "f":
            made = np.where(is_missing | ~np.isfinite(found), np.nan, found)
    if reading.operator.op_type == "Mul":
        for known in read.values():
            made = np.where(known == 0, 0.0, made)
    return [made]


def _computed(reading: Reading, read: dict[str, Known]) -> Known | None:
    opsets = {"": reading.site.opset}
    try:
        with np.errstate(all="ignore"):
            evaluator = ReferenceEvaluator(reading.operator, opsets=opsets)
            found: Any = evaluator.run(None, dict(read))
    except Exception:  # noqa: BLE001  # the reference implementation raises what it likes; then nothing is known
        return None
    return np.asarray(found[0])


@settles("Gelu")
@settles("Gelu", "BiasGelu", "FastGelu", "QuickGelu", domain=MICROSOFT)
def gelu(reading: Reading) -> list[Known | None]:
    """Compute the Gaussian error linear unit of what is read, plus a bias if there is one; to onnx it is a function."""
    site, op_type = reading.site, reading.operator.op_type
    x = reading.known(0) + (reading.known(1) if site.has(1) else 0.0)
    if op_type == "QuickGelu":
        return [x * expit(site.attribute("alpha", 1.702) * x)]
    if op_type == "FastGelu" or site.attribute("approximate", b"none") == b"tanh":
        return [0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))]
    return [x * ndtr(x)]


@settles(*HANDED_ON)
def handed_on(reading: Reading) -> list[Known | None]:
    """Hand constants on, where they stay floats; nothing is dropped out outside training."""
    operator = reading.operator
    kind = reading.state.found.model.tensors.get(operator.output[0])
    if operator.op_type in ("Cast", "CastLike") and (kind is None or not kind.is_float):
        return [None]
    if operator.op_type == "Dropout" and reading.site.has(2) and reading.site.value(2) != np.False_:
        return [None]
    return [reading.known(0)]


@settles(
    *NOT_FOLLOWED, "Shape", "Size", "Softmax", "LogSoftmax", "Hardmax", "CumSum", "Trilu", "TopK", "ArgMax", "ArgMin"
)
@settles("QuantizeLinear", "DequantizeLinear")
def not_followed(reading: Reading) -> list[Known | None]:
    """Leave every index where it is, and know nothing of the values."""
    return [None] * len(reading.operator.output)
