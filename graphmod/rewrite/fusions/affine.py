r"""BatchNormalization, and Mul, Div, Add and Sub by constants, into the linear map before or after them.

A scale :math:`s` and a shift :math:`t` of every channel behind a linear map,

.. math:: s (W x + b) + t = (\mathrm{diag}(s) W) x + (s b + t),

and before one,

.. math:: W (s x + t) + b = (W \mathrm{diag}(s)) x + (W t + b),

the latter for a convolution that pads only if :math:`t = 0`: its zeros stand where :math:`s x + t` would. Two of
them in a row are one BatchNormalization where one of them is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from graphmod.rewrite.fusions.bench import Array, Bench
from graphmod.rewrite.fusions.maps import FIRST, Float, Map, read_map, read_map_of
from graphmod.rewrite.fusions.registry import Plan, fusion
from graphmod.rewrite.fusions.windows import window

UNFUSED = "graphmod.unfused"
"""Metadata key of a BatchNormalization that :func:`graphmod.unfuse` put in; the name of the bias that it took."""

_ARITHMETIC = ("Mul", "Div", "Add", "Sub")


@dataclass(frozen=True, eq=False)
class Affine:
    """A scale and a shift: constants that broadcast against a tensor.

    Parameters
    ----------
    operator : NodeProto
    entry : str
        The tensor that is scaled and shifted.
    scale, shift : float64 array
    by_channel : bool
        Whether the constants lie along axis 1 whatever their shape, as those of BatchNormalization do.
    """

    operator: NodeProto
    entry: str
    scale: Float
    shift: Float
    by_channel: bool

    def along(self, axis: int, rank: int | None, n: int) -> tuple[Float, Float] | str:
        """Return scale and shift of the ``n`` channels on an axis, or why they are not constant elsewhere."""
        found = []
        for value in (self.scale, self.shift):
            if self.by_channel:
                if axis != 1:
                    return "it normalises axis 1, and the channels of the linear map are on its last"
                found.append(value)
                continue
            if value.ndim == 0:
                found.append(np.full(n, value))
                continue
            if rank is None and (axis != -1 or value.ndim > 1):
                return "how many axes it scales is not known"
            if rank is not None and value.ndim > rank:
                return "its constant has more axes than what it scales"
            shape = (1,) * ((rank or 1) - value.ndim) + value.shape
            own = shape[axis]
            if value.size != own or own not in (1, n):
                return f"its constant of shape {list(value.shape)} is not one number a channel"
            found.append(np.broadcast_to(value.ravel(), (n,)))
        scale, shift = found
        return scale, shift


def read_affine(bench: Bench, operator: NodeProto) -> Affine | str | None:
    """Return what an operator scales and shifts by; why that is not known; None if it does something else."""
    if operator.op_type == "BatchNormalization":
        found = read_map(bench, operator)
        if isinstance(found, str):
            return found
        bias = found.bias()
        assert bias is not None
        return Affine(operator, found.entry, found.weight().ravel(), bias, True)
    values = [bench.constant(name) for name in operator.input]
    if len(values) != 2 or (values[0] is None) == (values[1] is None):
        return None
    place = 0 if values[1] is None else 1
    held = values[place]
    assert held is not None
    pair = _arithmetic(operator.op_type, held, first=not place)
    return None if pair is None else Affine(operator, operator.input[1 - place], *pair, False)


def _arithmetic(op_type: str, held: Array, first: bool) -> tuple[Float, Float] | None:
    """Return scale and shift of ``held <op> x`` or ``x <op> held``."""
    if held.dtype.kind != "f" and held.dtype.name != "bfloat16":
        return None
    value = held.astype(np.float64)
    one, nothing = np.ones(()), np.zeros(())
    match op_type:
        case "Mul":
            return value, nothing
        case "Add":
            return one, value
        case "Sub":
            return (-one, value) if first else (one, -value)
        case "Div" if not first and value.all():
            return 1 / value, nothing
    return None


@fusion("unfused", "BatchNormalization")
def _unfused(bench: Bench, operator: NodeProto) -> Plan | None:
    """Take back what graphmod.unfuse put in; why that cannot be done, the next kind says."""
    marks = [str(entry.value) for entry in operator.metadata_props if entry.key == UNFUSED]
    affine = read_affine(bench, operator) if marks else None
    plan = _into_before(bench, affine) if isinstance(affine, Affine) else None
    if not isinstance(plan, Plan):
        return None
    host = plan.operators[0]

    def apply() -> list[NodeProto]:
        changed = plan.apply()
        value = bench.draft.constant(host.input[2]) if len(host.input) > 2 else None
        if value is not None and marks[0] not in ("", host.input[2]):
            bench.set_input(host, 2, bench.weight(marks[0], value))
        return changed

    return Plan(plan.operators, apply)


@fusion("batchnorm", "BatchNormalization")
def _normalization(bench: Bench, operator: NodeProto) -> Plan | str | None:
    affine = read_affine(bench, operator)
    if not isinstance(affine, Affine):
        return affine
    before, after = _into_before(bench, affine), _into_after(bench, affine)
    if isinstance(before, Plan) or isinstance(after, Plan):
        return before if isinstance(before, Plan) else after
    return f"into what is before it: {before}; into what is after it: {after}"


@fusion("scale", *_ARITHMETIC)
def _scale(bench: Bench, operator: NodeProto) -> Plan | str | None:
    affine = read_affine(bench, operator)
    if not isinstance(affine, Affine):
        return affine
    source = bench.draft.producer(affine.entry)
    is_bias = operator.op_type in ("Add", "Sub") and source is not None and source.op_type == "MatMul"
    reasons = []
    for near, look in ((_has_map_before(bench, affine), _into_before), (_has_map_after(bench, operator), _into_after)):
        found = look(bench, affine) if near and not (is_bias and look is _into_before) else ""
        if isinstance(found, Plan):
            return found
        reasons += [found] if found else []
    return "; ".join(reasons) or None


def _has_map_before(bench: Bench, affine: Affine) -> bool:
    return isinstance(read_map_of(bench, affine.entry), Map)


def _has_map_after(bench: Bench, operator: NodeProto) -> bool:
    made = operator.output[0]
    maps = (read_map(bench, reader) for reader in bench.draft.readers(made) if reader.op_type in FIRST)
    return any(isinstance(found, Map) and found.entry == made for found in maps)


def _into_before(bench: Bench, affine: Affine) -> Plan | str:
    host = read_map_of(bench, affine.entry)
    if isinstance(host, str):
        return host
    reader = bench.sole_reader(affine.entry)
    if isinstance(reader, str):
        return reader
    found = affine.along(host.axis, host.rank, host.n_out)
    if isinstance(found, str):
        return found
    scale, shift = found
    if shift.any() and not host.has_room:
        return f"{bench.told(host.operator)} has no bias"
    kept = host.why_not_change()
    if kept:
        return kept

    def apply() -> list[NodeProto]:
        weight, bias = host.weight(), host.bias()
        g, n_out, *rest = weight.shape
        scaled = weight * scale.reshape(g, n_out, *(1,) * len(rest)) + 0.0  # a zero stays one without a sign
        moved = scale * (0 if bias is None else bias) + shift
        new = host.store(scaled, moved if bias is not None or shift.any() else None)
        host.move(affine.operator.output[0])
        bench.discard(affine.operator)
        return [*host.operators, *new]

    return Plan((*host.operators, affine.operator), apply)


def _into_after(bench: Bench, affine: Affine) -> Plan | str:
    made = affine.operator.output[0]
    reader = bench.sole_reader(made)
    if isinstance(reader, str):
        return reader
    host = read_map(bench, reader)
    if isinstance(host, str):
        return host
    if host.entry != made:
        return f"'{made}' is no activation that {bench.told(reader)} reads"
    if host.is_dense and host.rank is None:
        return f"the number of axes of '{made}' is not known"
    found = affine.along(host.axis, host.rank, host.n_in)
    if isinstance(found, str):
        return found
    reason = (
        _why_not_shift(bench, host, bool(found[1].any())) or host.why_not_change() or _broadens(bench, affine, host)
    )
    return reason or Plan((affine.operator, *host.operators), lambda: _apply_after(bench, affine, host, *found))


def _broadens(bench: Bench, affine: Affine, host: Map) -> str | None:
    """Return that a constant may give its tensor axes or sizes that it does not have without it."""
    if affine.by_channel or affine.scale.ndim == affine.shift.ndim == 0:
        return None
    kind = bench.kind(affine.entry)
    if kind is None or kind.shape is None or len(kind.shape) != host.rank or kind.shape[host.axis] != host.n_in:
        return f"its constant may broaden '{affine.entry}'"
    return None


def _why_not_shift(bench: Bench, host: Map, shifts: bool) -> str | None:
    if not shifts:
        return None
    if host.op_type == "ConvTranspose":
        return f"{bench.told(host.operator)} does not reach all of its output with all of its kernel"
    if not host.has_room:
        return f"{bench.told(host.operator)} has no bias"
    if host.op_type == "Conv":
        found = window(host)
        if isinstance(found, str) or any(found.pads):
            return f"{bench.told(host.operator)} pads with zeros where the shift would be"
    return None


def _apply_after(bench: Bench, affine: Affine, host: Map, scale: Float, shift: Float) -> list[NodeProto]:
    weight, bias = host.weight(), host.bias()
    g, _, n_in, *kernel = weight.shape
    summed = weight.reshape(*weight.shape[:3], -1).sum(axis=3)
    moved = np.einsum("goi,gi->go", summed, shift.reshape(g, n_in)).ravel() + (0 if bias is None else bias)
    scaled = weight * scale.reshape(g, 1, n_in, *(1,) * len(kernel)) + 0.0  # a zero stays one without a sign
    new = host.store(scaled, moved if bias is not None or shift.any() else None)
    bench.draft.set_inputs(host.operator, [affine.entry, *host.operator.input[1:]])
    bench.discard(affine.operator)
    return [*host.operators, *new]
