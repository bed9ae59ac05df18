"""What is computed more often than once: each time from the same tensors, or each time from constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx
from onnx import NodeProto

from graphmod.graph.fingerprint import attribute_key
from graphmod.model import Model, has_bodies
from graphmod.rewrite.element_types import STANDARD
from graphmod.rewrite.recipe import Edit
from graphmod.rewrite.simplify import FOLDED, GROWTH, KEPT, LIMIT, RANDOM
from graphmod.rewrite.smells.evidence import Evidence, counted, quoted
from graphmod.rewrite.smells.registry import Finding, smell


@smell("constant_result")
def _constant_results(evidence: Evidence) -> Iterator[Finding]:
    """Operators that compute the same at every run, because all that they read is constant and small."""
    model = evidence.model
    constant = {name for name in model.initializers if name not in evidence.overridable and _is_small(model, name)}
    names = []

    def size(tensors: Iterable[str]) -> int:
        return sum(model.tensors[tensor].size for tensor in tensors)

    for name, operator in zip(model.operator_names, model.operators, strict=True):
        made = [tensor for tensor in operator.output if tensor]
        reads = {read for read in operator.input if read}
        if (
            _is_steady(operator, model.opset)
            and operator.op_type not in KEPT
            and reads <= constant
            and all(_is_small(model, tensor) and tensor not in model.outputs for tensor in made)
            and (operator.op_type == "Constant" or size(made) <= max(size(reads), GROWTH))
        ):
            constant.update(made)
            if operator.op_type != "Constant":
                names.append(name)
    if names:
        told = f"{counted(len(names), 'operator', 'compute')} the same at every run, {quoted(names)}"
        yield Finding(told, tuple(names), (), Edit("simplify"), n_operators=len(names))


def _is_small(model: Model, tensor: str) -> bool:
    kind = model.tensors.get(tensor)
    if kind is None or kind.shape is None or kind.dtype is None or kind.dtype not in FOLDED:
        return False
    return all(isinstance(size, int) for size in kind.shape) and kind.size <= LIMIT


def _is_steady(operator: NodeProto, opset: int) -> bool:
    """Whether an operator is one of the standard's, gives the same for the same, and has no body."""
    return (
        operator.domain in STANDARD
        and operator.op_type not in RANDOM
        and onnx.defs.has(operator.op_type, opset, "")
        and not has_bodies(operator)
    )


@smell("repeated_operator")
def _repeated_operators(evidence: Evidence) -> Iterator[Finding]:
    """Operators that compute what another has computed."""
    model = evidence.model
    first: dict[object, tuple[str, ...]] = {}
    same: dict[str, str] = {}  # for tensors of repeated operators, those of the first
    names = []
    for name, operator in zip(model.operator_names, model.operators, strict=True):
        made = tuple(operator.output)
        if not _is_steady(operator, model.opset) or operator.op_type in ("Constant", "Dropout"):
            continue
        reads = tuple(same.get(read, read) for read in operator.input)
        attributes = tuple(sorted(attribute_key(attribute) for attribute in operator.attribute))
        other = first.setdefault((operator.op_type, reads, attributes, tuple(map(bool, made))), made)
        if other != made and not any(tensor in model.outputs for tensor in made):
            same.update(zip(made, other, strict=True))
            names.append(name)
    if names:
        told = f"{counted(len(names), 'operator', 'compute')} what another has computed, {quoted(names)}"
        yield Finding(told, tuple(names), (), Edit("simplify"), n_operators=len(names))
