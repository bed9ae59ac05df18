"""Operators that change nothing for what they are given: Add of 0, Mul by 1, Pad by 0, Casts to and fro."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from graphmod.rewrite.element_types import STANDARD
from graphmod.rewrite.fusions.bench import Bench
from graphmod.rewrite.fusions.registry import Plan, fusion

LARGE = 1024
"""Scalars up to which a constant is read to see whether it is neutral."""

_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
_JOINING = ("Concat", "Max", "Mean", "Min", "Sum")
_SHAPING = ("Expand", "Flatten", "Squeeze", "Tile", "Unsqueeze")


@fusion("identity", *_NEUTRAL)
def _arithmetic(bench: Bench, operator: NodeProto) -> Plan | str | None:
    for place in (1, 0) if operator.op_type in ("Add", "Mul") else (1,):
        kind = bench.kind(operator.input[place])
        held = bench.constant(operator.input[place]) if kind is not None and kind.size <= LARGE else None
        if held is not None and (held == _NEUTRAL[operator.op_type]).all():
            return _handed_on(bench, operator, 1 - place)
    return None


@fusion("identity", "Pad")
def _pad(bench: Bench, operator: NodeProto) -> Plan | str | None:
    widths = bench.constant(operator.input[1]) if len(operator.input) > 1 else bench.attributes(operator).get("pads")
    return _handed_on(bench, operator) if widths is not None and not any(widths) else None


@fusion("identity", *_JOINING)
def _joining(bench: Bench, operator: NodeProto) -> Plan | str | None:
    return _handed_on(bench, operator) if len(operator.input) == 1 else None


@fusion("identity", *_SHAPING)
def _shaping(bench: Bench, operator: NodeProto) -> Plan | str | None:
    return _handed_on(bench, operator)


@fusion("cast", "Cast")
def _there_and_back(bench: Bench, operator: NodeProto) -> Plan | str | None:
    first = bench.draft.producer(operator.input[0])
    if first is None or first.op_type != "Cast" or first.domain not in STANDARD:
        return None
    before, inner, after = (bench.kind(name) for name in (first.input[0], first.output[0], operator.output[0]))
    if before is None or inner is None or after is None or before.dtype is None or before.dtype != after.dtype:
        return None
    return _instead(bench, operator, first.input[0], first) if _holds(inner.dtype, before.dtype) else None


def _holds(wide: np.dtype[np.generic] | None, narrow: np.dtype[np.generic]) -> bool:
    """Whether a type has every value of another; nothing is said of types that NumPy does not know of itself."""
    if wide is None or not wide.isbuiltin == narrow.isbuiltin == 1 or "O" in (wide.kind, narrow.kind):
        return False
    exact = wide.kind != "f" or narrow.kind not in "iu" or narrow.itemsize < wide.itemsize  # float64 for int64 is not
    return exact and np.can_cast(narrow, wide, "safe")


def _handed_on(bench: Bench, operator: NodeProto, place: int = 0) -> Plan | str | None:
    """Return the plan that lets one of an operator's inputs stand for its output, if both have the same known type."""
    before, after = bench.kind(operator.input[place]), bench.kind(operator.output[0])
    if before is None or before != after or before.shape is None or None in before.shape:
        return None
    return _instead(bench, operator, operator.input[place])


def _instead(bench: Bench, operator: NodeProto, tensor: str, *others: NodeProto) -> Plan | str:
    """Return the plan that lets a tensor stand for an operator's output, or why that cannot be."""
    reads = [tensor, *(name for name in operator.input if name != tensor)]
    reason = bench.why_not_bypass(NodeProto(input=reads, output=operator.output))
    if reason:
        return reason

    def apply() -> list[NodeProto]:
        bench.draft.set_inputs(operator, reads)
        return bench.bypass(operator)

    return Plan((*others, operator), apply)
