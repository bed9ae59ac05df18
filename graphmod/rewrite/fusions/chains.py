r"""Two linear maps with nothing between them into one, where that takes no more multiply-accumulates.

.. math:: B (A x + a) + b = (B A) x + (B a + b)

For convolutions one of the two must be pointwise (1x1): its matrix is multiplied into the other's kernel at every
position. Where the second one pads, :math:`a` must be zero, as its zeros would stand where :math:`a` does. Strides
multiply. A MatMul and an Add of one number a column are a Gemm.
"""

from __future__ import annotations

from math import prod

import numpy as np
from onnx import NodeProto

from graphmod.rewrite.fusions.bench import Bench, is_a
from graphmod.rewrite.fusions.maps import Map, read_map, read_map_of
from graphmod.rewrite.fusions.registry import Plan, fusion
from graphmod.rewrite.fusions.windows import Window, set_window, window


@fusion("chain", "Conv", "Gemm", "MatMul")
def _chain(bench: Bench, operator: NodeProto) -> Plan | str | None:
    second = read_map(bench, operator)
    if isinstance(second, str):
        return None
    first = read_map_of(bench, second.entry)
    if isinstance(first, str) or first.op_type in ("ConvTranspose", "BatchNormalization"):
        return None
    if first.is_dense != second.is_dense:
        return None
    composed = None if second.is_dense else _compose(first, second)
    if isinstance(composed, str):
        return composed or None
    reader = bench.sole_reader(first.exit)
    if isinstance(reader, str):
        return reader
    reason = _why_not_cheaper(first, second, composed) or second.why_not_change()
    if reason is None and first.offset is not None and not second.has_room and first.add is None:
        reason = f"{bench.told(operator)} has no bias"
    return reason or Plan((*first.operators, *second.operators), lambda: _apply(bench, first, second, composed))


def _compose(first: Map, second: Map) -> Window | str:
    """Return the window of two convolutions in one, why there is none, or "" where neither is pointwise."""
    told = first.bench.told
    inner, outer = window(first), window(second)
    if isinstance(inner, str) or isinstance(outer, str):
        return inner if isinstance(inner, str) else str(outer)
    if not inner.is_point and not outer.is_point:
        return ""
    if first.groups != second.groups:
        return f"{told(first.operator)} has {first.groups} groups, and {told(second.operator)} {second.groups}"
    strides = tuple(a * b for a, b in zip(inner.strides, outer.strides, strict=True))
    if outer.is_point:
        return Window(inner.kernel, strides, inner.dilations, inner.pads)
    if set(inner.strides) != {1}:
        return f"{told(first.operator)} strides, and {told(second.operator)} has a kernel"
    bias = first.bias()
    if any(outer.pads) and bias is not None and bias.any():
        return f"{told(second.operator)} pads with zeros where the bias of {told(first.operator)} would be"
    return Window(outer.kernel, strides, outer.dilations, outer.pads)


def _why_not_cheaper(first: Map, second: Map, composed: Window | None) -> str | None:
    """Return that one map would take more multiply-accumulates than the two, for each position of the output."""
    kernel = 1 if composed is None else prod(composed.kernel)
    merged = kernel * first.n_in // first.groups * second.n_out
    inner = prod(first.kernel) * first.n_in // first.groups * first.n_out * _positions(first, second)
    outer = prod(second.kernel) * second.n_in // second.groups * second.n_out
    if merged > inner + outer:
        return f"one map would take {merged:,} multiply-accumulates a position, and the two take {inner + outer:,.0f}"
    return None


def _positions(first: Map, second: Map) -> float:
    """Return how many positions the first one makes for one of the second."""
    sizes = []
    for found in (first, second):
        shape = getattr(found.kind, "shape", None) or (None,)
        spatial = [] if found.is_dense else [d for d in shape[2:] if isinstance(d, int)]
        sizes.append(prod(spatial) if len(spatial) == len(found.kernel) else 0)
    if all(sizes):
        return sizes[0] / sizes[1]
    outer = None if second.is_dense else window(second)
    return prod(outer.strides) if isinstance(outer, Window) else 1


def _apply(bench: Bench, first: Map, second: Map, composed: Window | None) -> list[NodeProto]:
    inner, outer = first.weight(), second.weight()
    a, b = first.bias(), second.bias()
    point = prod(first.kernel) == 1
    if point:
        weight = np.einsum("gom...,gmi->goi...", outer, inner.reshape(inner.shape[:3]))
    else:
        weight = np.einsum("gom,gmi...->goi...", outer.reshape(outer.shape[:3]), inner)
    bias = b
    if a is not None:
        summed = outer.reshape(*outer.shape[:3], -1).sum(axis=3)
        moved = np.einsum("gom,gm->go", summed, a.reshape(first.groups, -1)).ravel()
        bias = moved if b is None else moved + b
    new = second.store(weight, bias)
    if composed is not None:
        set_window(second, composed)
    bench.draft.set_inputs(second.operator, [first.entry, *second.operator.input[1:]])
    bench.drop_unread([first.exit])
    return [*second.operators, *new]


@fusion("gemm", "Add")
def _gemm(bench: Bench, operator: NodeProto) -> Plan | str | None:
    """Turn MatMul + Add into Gemm, whatever the MatMul multiplies; and give a Gemm without bias the Add's."""
    for place, name in enumerate(operator.input):
        product = bench.draft.producer(name)
        offset = bench.constant(operator.input[1 - place])
        if offset is None or not is_a(product, "MatMul", "Gemm"):
            continue
        if any(product.input[2:]):
            return None
        if any(bench.rank(read) != 2 for read in (*product.input[:2], name)):
            return None
        reader = bench.sole_reader(name)
        if isinstance(reader, str):
            return reader
        kind = bench.kind(name)
        columns = kind.shape[1] if kind is not None and kind.shape is not None else None
        if kind is None or not kind.is_float or offset.size not in (1, columns) or offset.ndim > 2:
            return None
        if prod(offset.shape[:-1]) != 1:
            return None
        return Plan((product, operator), lambda: _to_gemm(bench, product, operator, operator.input[1 - place]))  # noqa: B023  # returned at once
    return None


def _to_gemm(bench: Bench, product: NodeProto, add: NodeProto, offset: str) -> list[NodeProto]:
    product.op_type = "Gemm"
    bench.set_attributes(product, beta=None)  # it scaled nothing so far
    bench.draft.set_inputs(product, [*product.input[:2], offset])
    bench.draft.set_outputs(product, [add.output[0]])
    bench.discard(add)
    return [product]
