"""Operators that change nothing for what they are given: Add of 0, Mul by 1, Pad by 0, Concat of one tensor."""

from __future__ import annotations

from onnx import NodeProto

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


def _handed_on(bench: Bench, operator: NodeProto, place: int = 0) -> Plan | str | None:
    """Return the plan that lets one of an operator's inputs stand for its output, if both have the same known type."""
    before, after = bench.kind(operator.input[place]), bench.kind(operator.output[0])
    if before is None or before != after or before.shape is None or None in before.shape:
        return None
    handing = NodeProto()
    handing.CopyFrom(operator)
    del handing.input[:]
    handing.input.extend([operator.input[place], *operator.input[:place], *operator.input[place + 1 :]])
    reason = bench.why_not_bypass(handing)
    if reason:
        return reason

    def apply() -> list[NodeProto]:
        bench.draft.set_inputs(operator, handing.input)
        return bench.bypass(operator)

    return Plan((operator,), apply)
