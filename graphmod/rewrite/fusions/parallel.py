r"""Linear maps side by side on one tensor into one: those that are added, and those that are concatenated.

Added, as in RepVGG (Ding et al. 2021, section 3.3):

.. math:: (W_1 x + b_1) + (W_2 x + b_2) = (W_1 + W_2) x + (b_1 + b_2),

kernels of different size laid over each other where they look at the same positions, the identity and
BatchNormalization as a kernel that is diagonal at the position of its output. Concatenated, weights are stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import NodeProto

from graphmod.model import TensorType
from graphmod.rewrite.fusions.bench import Bench, is_a
from graphmod.rewrite.fusions.maps import Float, Map, read_map_of
from graphmod.rewrite.fusions.registry import Plan, fusion
from graphmod.rewrite.fusions.windows import Window, set_window, window

_SUMS = ("Add", "Sum")

LIMIT = 32
"""Terms of a sum that are looked at together, so that a long chain of Adds takes linear time."""


@dataclass(frozen=True)
class _Sum:
    """A tree of Adds and Sums that nothing else reads: its root, the operators below it, and what they add up."""

    root: NodeProto
    inner: tuple[NodeProto, ...]
    terms: tuple[str, ...]


@fusion("sum", *_SUMS)
def _parallel(bench: Bench, operator: NodeProto) -> Plan | str | None:
    if not _adds_map(bench, operator):
        return None
    root = _root(bench, operator)
    found = _tree(bench, root)
    maps = {term: one for term in found.terms if isinstance(one := read_map_of(bench, term), Map)}
    reasons = []
    for entry in dict.fromkeys(one.entry for one in maps.values()):
        side_by_side = [one for one in maps.values() if one.entry == entry and one.op_type != "ConvTranspose"]
        n_identities = found.terms.count(entry)
        if len(side_by_side) + n_identities < 2 or not side_by_side:
            continue
        plan = _merge(bench, found, side_by_side, entry, n_identities)
        if isinstance(plan, Plan):
            return plan
        reasons.append(plan)
    told_at = next((one for one in (root, *found.inner) if _adds_map(bench, one)), operator)
    return "; ".join(reasons) or None if operator is told_at else None


def _adds_map(bench: Bench, operator: NodeProto) -> bool:
    return any(isinstance(read_map_of(bench, name), Map) for name in operator.input)


def _root(bench: Bench, operator: NodeProto) -> NodeProto:
    for _ in range(LIMIT):
        reader = bench.sole_reader(operator.output[0])
        if isinstance(reader, str) or not is_a(reader, *_SUMS) or not _same_kind(bench, operator, reader):
            break
        operator = reader
    return operator


def _same_kind(bench: Bench, inner: NodeProto, outer: NodeProto) -> bool:
    """Whether a sum is as large as the sum that it is a term of, so that terms can change places."""
    kind = bench.kind(inner.output[0])
    known = kind is not None and kind.shape is not None and None not in kind.shape
    return known and kind == bench.kind(outer.output[0])


def _tree(bench: Bench, root: NodeProto) -> _Sum:
    inner: list[NodeProto] = []
    terms: list[str] = []
    pending = list(reversed(root.input))
    while pending:
        tensor = pending.pop()
        maker = bench.draft.producer(tensor)
        full = len(terms) + len(pending) >= LIMIT
        if is_a(maker, *_SUMS) and not full and _is_part(bench, maker, root):
            inner.append(maker)
            pending += reversed(maker.input)
        else:
            terms.append(tensor)
    return _Sum(root, tuple(inner), tuple(terms))


def _is_part(bench: Bench, inner: NodeProto, root: NodeProto) -> bool:
    """Whether nothing but a sum reads an inner one, and that is no bias of a linear map."""
    tensor = inner.output[0]
    is_map = isinstance(read_map_of(bench, tensor), Map)
    return not is_map and not isinstance(bench.sole_reader(tensor), str) and _same_kind(bench, inner, root)


def _merge(bench: Bench, found: _Sum, maps: Sequence[Map], entry: str, n_identities: int) -> Plan | str:
    """Return how maps of one tensor become one; as many as can, or why none can."""
    host = max(maps, key=lambda one: (one.op_type != "BatchNormalization", prod(one.kernel), one.has_room))
    looks_at = None if host.op_type != "Conv" else window(host)
    if isinstance(looks_at, str):
        return looks_at
    reason = host.why_not_change() or _why_not_alone(bench, host)
    if reason is not None:
        return reason
    frame = looks_at
    members, reasons = [host], []
    for one in maps:
        if one is host:
            continue
        fits = _why_not_alone(bench, one) or _laid_over(host, frame, one)
        if isinstance(fits, str):
            reasons.append(fits)
        elif one.offset is None or host.has_room:
            members.append(one)
            frame = fits.window
    diagonal = _why_not_diagonal(host, frame) if n_identities else None
    reasons += [diagonal] if diagonal else []
    n_identities = 0 if diagonal else n_identities
    if len(members) + n_identities < 2:
        return "; ".join(reasons) or f"{bench.told(host.operator)} has no bias"
    gone = {one.exit for one in members} | ({entry} if n_identities else set())
    left = [term for term in found.terms if term not in gone]
    operators = (*(op for one in members for op in one.operators), found.root, *found.inner)
    return Plan(operators, lambda: _apply(bench, found, members, n_identities, frame, left))


@dataclass(frozen=True)
class _Fits:
    """That a map can be laid over another, and the window of both; None for maps without one."""

    window: Window | None


def _why_not_alone(bench: Bench, one: Map) -> str | None:
    reader = bench.sole_reader(one.exit)
    return reader if isinstance(reader, str) else None


def _laid_over(host: Map, frame: Window | None, one: Map) -> _Fits | str:
    told = host.bench.told
    sizes = (one.n_in, one.n_out) == (host.n_in, host.n_out)
    if one.op_type == "BatchNormalization" and host.op_type != "BatchNormalization":
        if host.axis != 1:
            return f"{told(one.operator)} and {told(host.operator)} have channels on different axes"
        return _why_not_diagonal(host, frame) or _Fits(frame)
    if not sizes or one.is_dense != host.is_dense or one.groups != host.groups:
        return f"{told(one.operator)} and {told(host.operator)} differ in channels or groups"
    if frame is None:
        return _Fits(None)
    other = window(one)
    if isinstance(other, str):
        return other
    both = _union(frame, other)
    if isinstance(both, str):
        return f"{told(one.operator)} and {told(host.operator)} {both}"
    if prod(both.kernel) > prod(frame.kernel) + prod(other.kernel):
        return f"{told(one.operator)} and {told(host.operator)} in one would take more multiply-accumulates"
    return _Fits(both)


def _union(a: Window, b: Window) -> Window | str:
    """Return the smallest window in which both fit, or why there is none."""
    if a.strides != b.strides or a.shrinkage != b.shrinkage:
        return "differ in strides or in the size of what they make"
    kernel, dilations, begins, ends = [], [], [], []
    for axis in range(len(a.kernel)):
        steps = {w.dilations[axis] for w in (a, b) if w.kernel[axis] > 1}
        if len(steps) > 1:
            return "differ in dilation"
        step = steps.pop() if steps else 1
        begin = max(a.begins[axis], b.begins[axis])
        last = max(step * (w.kernel[axis] - 1) - w.begins[axis] for w in (a, b))
        if (a.begins[axis] - b.begins[axis]) % step:
            return "look at different positions"
        size = (last + begin) // step + 1
        kernel.append(size)
        dilations.append(step)
        begins.append(begin)
        ends.append(step * (size - 1) - begin - a.shrinkage[axis])
    return Window(tuple(kernel), a.strides, tuple(dilations), (*begins, *ends))


def _why_not_diagonal(host: Map, frame: Window | None) -> str | None:
    """Return why a host's weight cannot take in a map of each channel to itself."""
    told = host.bench.told(host.operator)
    if host.n_in != host.n_out:
        return f"{told} maps {host.n_in} channels to {host.n_out}, so the identity does not fit into it"
    if frame is None:
        return None
    if set(frame.strides) != {1} or any(frame.shrinkage):
        return f"{told} changes the size, so the identity does not fit into it"
    centres = zip(frame.begins, frame.dilations, frame.kernel, strict=True)
    if any(begin % step or begin // step >= size for begin, step, size in centres):
        return f"no position of the kernel of {told} is that of its output"
    return None


def _apply(
    bench: Bench, found: _Sum, members: Sequence[Map], n_identities: int, frame: Window | None, left: list[str]
) -> list[NodeProto]:
    host = members[0]
    weight = sum((_in_frame(one, host, frame) for one in members), start=np.zeros(()))
    if n_identities:
        weight = weight + n_identities * _diagonal(np.ones(host.n_in), host, frame)
    biases = [bias for one in members if (bias := one.bias()) is not None]
    new = host.store(weight, sum(biases, start=np.zeros(host.n_out)) if biases else None)
    if frame is not None:
        set_window(host, frame)
    made = found.root.output[0]
    if left:
        host.move(bench.tensor(f"{host.exit}/sum", host.kind))
        return [*host.operators, *new, *_add_up(bench, found, [host.exit, *left])]
    bench.draft.discard(found.root)
    host.move(made)
    bench.drop_unread([*found.root.input])
    return [*host.operators, *new]


def _add_up(bench: Bench, found: _Sum, terms: list[str]) -> list[NodeProto]:
    """Let the operators of a sum add up other terms, as few of them as that takes."""
    root, inner = found.root, list(found.inner)
    if any(op.op_type == "Sum" for op in (root, *inner)):
        root.op_type = "Sum"
        bench.draft.set_inputs(root, terms)
    else:
        whole = bench.kind(root.output[0])
        before, *rest = sorted(terms, key=lambda term: bench.kind(term) != whole)
        for operator, term in zip(inner, rest[:-1], strict=False):
            bench.draft.set_inputs(operator, [before, term])
            if bench.kind(before) != whole:  # nor need this sum be as large as the one whose name it has
                bench.draft.set_outputs(operator, [bench.tensor(operator.output[0], None)])
            before = operator.output[0]
        bench.draft.set_inputs(root, [before, rest[-1]])
    bench.drop_unread([*found.terms, *(op.output[0] for op in inner)])
    return [op for op in (root, *inner) if op in bench.draft]


def _in_frame(one: Map, host: Map, frame: Window | None) -> Float:
    """Return a map's weight as the host's would be, in a window that has both."""
    weight = one.weight()
    if one.op_type == "BatchNormalization" and host.op_type != "BatchNormalization":
        return _diagonal(weight.ravel(), host, frame)
    own = window(one) if frame is not None else None
    if frame is None or not isinstance(own, Window):
        return weight
    laid = np.zeros((*weight.shape[:3], *frame.kernel))
    places: list[slice] = []
    for size, own_begin, begin, step in zip(own.kernel, own.begins, frame.begins, frame.dilations, strict=True):
        first = (begin - own_begin) // step
        places.append(slice(first, first + size))
    laid[(slice(None),) * 3 + tuple(places)] = weight
    return laid


def _diagonal(values: Float, host: Map, frame: Window | None) -> Float:
    """Return the weight with which a host multiplies each channel by a value."""
    kernel = () if frame is None else frame.kernel
    size = host.n_in // host.groups
    weight = np.zeros((host.groups, size, size, *kernel))
    centre: tuple[int, ...] = ()
    if frame is not None:
        centre = tuple(begin // step for begin, step in zip(frame.begins, frame.dilations, strict=True))
    for i in range(size):
        place: tuple[slice | int, ...] = (slice(None), i, i, *centre)
        weight[place] = values.reshape(host.groups, size)[:, i]
    return weight


@fusion("concat", "Concat")
def _stacked(bench: Bench, operator: NodeProto) -> Plan | str | None:
    axis = int(bench.attributes(operator).get("axis", 1))
    maps = [read_map_of(bench, name) for name in operator.input]
    reasons = []
    start = 0
    while start < len(maps):
        first = maps[start]
        stop = start + 1
        if not isinstance(first, str):
            while stop < len(maps) and (reason := _why_not_stack(bench, first, maps[stop], axis)) is None:
                stop += 1
            if stop < len(maps) and reason:
                reasons.append(reason)
        run = [one for one in maps[start:stop] if isinstance(one, Map)]
        if len(run) > 1:
            return Plan((operator, *(op for one in run for op in one.operators)), _stack(bench, operator, run, start))
        start = stop
    return "; ".join(reasons) or None


def _why_not_stack(bench: Bench, first: Map, other: Map | str, axis: int) -> str | None:
    """Return why a map cannot join another's channels, "" if nothing suggests it."""
    if isinstance(other, str) or other.entry != first.entry or first.is_dense != other.is_dense:
        return ""
    if first.op_type in ("ConvTranspose", "BatchNormalization") or other.op_type == "ConvTranspose":
        return ""
    if first.axis != (axis if axis >= 0 else axis + (first.rank or 0)):
        return ""
    told = f"{bench.told(first.operator)} and {bench.told(other.operator)}"
    if first.groups * other.groups != 1:
        return f"{told} have groups"
    if not first.is_dense and (isinstance(window(first), str) or window(first) != window(other)):
        return f"{told} look at different positions"
    readers = [bench.sole_reader(one.exit) for one in (first, other)]
    reasons = [reader for reader in readers if isinstance(reader, str)]
    return reasons[0] if reasons else first.why_not_change()


def _stack(bench: Bench, concat: NodeProto, run: Sequence[Map], start: int) -> Callable[[], list[NodeProto]]:
    def apply() -> list[NodeProto]:
        host = next((one for one in run if one.offset is not None), run[0])
        weight = np.concatenate([one.weight() for one in run], axis=1)
        biases = [one.bias() for one in run]
        filled = [np.zeros(one.n_out) if bias is None else bias for one, bias in zip(run, biases, strict=True)]
        bias = None if all(bias is None for bias in biases) else np.concatenate(filled)
        inputs = list(concat.input)
        made, n_out = concat.output[0], weight.shape[1]
        kind = host.kind
        if kind is not None and kind.shape is not None:
            shape = tuple(n_out if axis == host.axis else size for axis, size in enumerate(kind.shape))
            kind = TensorType(kind.dtype, shape)
        new = host.store(weight, bias)
        if host.add is not None:  # what the file says of the product is true no longer
            product = host.operator.output[0]
            bench.draft.set_outputs(host.operator, [bench.tensor(product, kind)])
            bench.draft.redirect(product, host.operator.output[0])
        if len(run) == len(inputs):
            bench.draft.discard(concat)
            host.move(made)
            bench.drop_unread(inputs)
            return [*host.operators, *new]
        host.move(bench.tensor(f"{made}/{start}", kind))
        bench.draft.set_inputs(concat, [*inputs[:start], host.exit, *inputs[start + len(run) :]])
        bench.drop_unread(inputs)
        return [*host.operators, *new, concat]

    return apply
