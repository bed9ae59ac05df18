"""Operators that change nothing are taken out; Transposes and Reshapes in a row become one."""

from __future__ import annotations

from onnx import NodeProto

from graphmod.rewrite.fusions.bench import Bench, is_a
from graphmod.rewrite.fusions.registry import Plan, fusion

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def _bypass(bench: Bench, operator: NodeProto) -> Plan | str:
    return bench.why_not_bypass(operator) or Plan((operator,), lambda: bench.bypass(operator))


@fusion("identity", "Identity")
def _identity(bench: Bench, operator: NodeProto) -> Plan | str | None:
    return _bypass(bench, operator)


@fusion("identity", "Dropout")
def _dropout(bench: Bench, operator: NodeProto) -> Plan | str | None:
    if len(operator.input) > 2 and operator.input[2]:
        training = bench.constant(operator.input[2])
        if training is None or training.any():
            return f"{bench.told(operator)} may be in training mode"
    return _bypass(bench, operator)


@fusion("identity", "Cast")
def _cast(bench: Bench, operator: NodeProto) -> Plan | str | None:
    before, after = bench.kind(operator.input[0]), bench.kind(operator.output[0])
    if before is None or after is None or before.dtype is None or before.dtype != after.dtype:
        return None
    return _bypass(bench, operator)


@fusion("layout", "Transpose")
def _transpose(bench: Bench, operator: NodeProto) -> Plan | str | None:
    order = _order(bench, operator)
    if order is None:
        return None
    if order == sorted(order):
        return _bypass(bench, operator)
    first = bench.draft.producer(operator.input[0])
    inner = _order(bench, first) if is_a(first, "Transpose") else None
    if first is None or inner is None:
        return None
    both = [inner[axis] for axis in order]

    def apply() -> list[NodeProto]:
        bench.set_attributes(operator, perm=both)
        bench.set_input(operator, 0, first.input[0])
        return [operator]

    return Plan((first, operator), apply)


def _order(bench: Bench, transpose: NodeProto) -> list[int] | None:
    order = bench.attributes(transpose).get("perm")
    rank = bench.rank(transpose.input[0])
    return list(order) if order else None if rank is None else list(reversed(range(rank)))


@fusion("layout", "Reshape")
def _reshape(bench: Bench, operator: NodeProto) -> Plan | str | None:
    before, after = bench.kind(operator.input[0]), bench.kind(operator.output[0])
    if before is not None and before == after and before.shape is not None:
        dynamic = [size for size in before.shape if not isinstance(size, int)]
        if None not in dynamic:
            return _bypass(bench, operator)
    first = bench.draft.producer(operator.input[0])
    if not is_a(first, *_RESHAPES):
        return None
    target = bench.constant(operator.input[1])
    if target is None or (target == 0).any():
        return f"the shape that {bench.told(operator)} makes depends on what {bench.told(first)} makes"

    def apply() -> list[NodeProto]:
        bench.set_input(operator, 0, first.input[0])
        return [operator]

    return Plan((first, operator), apply)
