"""Operators that need not be there: what :func:`graphmod.fuse` takes out, or nearly could.

What gives what it gets comes first, for it can stand between operators that fuse.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from graphmod.rewrite.element_types import STANDARD
from graphmod.rewrite.fuse import Candidate
from graphmod.rewrite.recipe import Edit
from graphmod.rewrite.smells.evidence import Evidence, counted, quoted
from graphmod.rewrite.smells.registry import Finding, smell


def _fused(found: list[Candidate], told: str, *kinds: str) -> Iterator[Finding]:
    """Yield one finding for all operators that some kinds of fusion take out."""
    names = tuple(dict.fromkeys(one.operator for one in found if not one.reason))
    if names:
        message = f"{counted(len(names), 'operator')} {told}, {quoted(names)}"
        yield Finding(message, names, (), Edit("fuse", {"kinds": list(kinds)}), n_operators=len(names))


@smell("identity_operator")
def _identity_operators(evidence: Evidence) -> Iterator[Finding]:
    """Operators whose output is their input: Identity, Dropout, Cast to the same type, Add of 0, Mul by 1, and such."""
    found = evidence.fusable("identity")
    yield from _fused(found, "could be left out, as output and input are the same", "identity")
    for one in found:
        if one.reason and evidence.model.operators[evidence.model.position[one.operator]].op_type == "Dropout":
            yield Finding(f"Dropout '{one.operator}' is left in the model", (one.operator,), (), None, one.reason)


@smell("repeated_layout")
def _repeated_layouts(evidence: Evidence) -> Iterator[Finding]:
    """Transposes or Reshapes that undo or repeat each other, or change nothing."""
    yield from _fused(evidence.fusable("layout"), "could be left out, or one with those before", "layout")


@smell("cancelling_casts")
def _cancelling_casts(evidence: Evidence) -> Iterator[Finding]:
    """Casts to a wider type and back."""
    yield from _fused(evidence.fusable("cast"), "could be left out, casting back what another Cast made wider", "cast")


@smell("unfused_batchnorm")
def _unfused_batchnorms(evidence: Evidence) -> Iterator[Finding]:
    """BatchNormalization beside a convolution or a matrix product that could do its work."""
    found = evidence.fusable("batchnorm")
    yield from _fused(found, "could be part of the linear map beside", "batchnorm")
    for one in found:
        if one.reason:
            told = f"BatchNormalization '{one.operator}' is no part of a linear map"
            yield Finding(told, (one.operator,), (), None, one.reason)


@smell("unfused_map")
def _unfused_maps(evidence: Evidence) -> Iterator[Finding]:
    """Linear maps in a row or side by side, scales by constants and Pads that could be part of one linear map."""
    kinds = ("scale", "chain", "sum", "pad")
    idle = {one.operator for one in evidence.fusable("identity") if not one.reason}
    found = [one for one in evidence.fusable(*kinds) if one.operator not in idle]
    yield from _fused(found, "could be part of a linear map beside", *kinds)


@smell("large_constant")
def _large_constants(evidence: Evidence) -> Iterator[Finding]:
    """Constant operators that hold weights: these cannot lie in an external file or be mapped into memory."""
    model = evidence.model
    large = [
        (name, operator, kind)
        for name, operator in zip(model.operator_names, model.operators, strict=True)
        if operator.op_type == "Constant"
        and operator.domain in STANDARD
        and (kind := model.constants.get(operator.output[0])) is not None
        and kind.size > LARGE
        and any(attribute.type == onnx.AttributeProto.TENSOR for attribute in operator.attribute)
    ]
    if large:
        names = tuple(name for name, _, _ in large)
        size = sum(kind.size * kind.dtype.itemsize for _, _, kind in large if kind.dtype is not None)
        told = f"{size:,} bytes are held by {counted(len(names), 'Constant operator')}, {quoted(names)}"
        tensors = tuple(operator.output[0] for _, operator, _ in large)
        yield Finding(told, names, tensors, Edit("simplify"), n_operators=len(names))


LARGE = 1024
"""Scalars from which a constant is a weight rather than a shape or a scale."""
