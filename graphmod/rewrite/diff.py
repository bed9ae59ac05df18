"""The difference of two models, matched by structure: what was added, removed, changed, rewired.

What can change what a model computes, or how it is called, makes two models differ: operators, attributes, wiring,
values of constants, the signature, opsets, functions. What only describes it is told and does not count: names of
operators and inner tensors, inferred shapes, metadata, doc strings, the IR version, the producer. In what order
operators stand in the file, whether a constant is an initializer or a Constant operator, and where its values lie is
not told at all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, ValueInfoProto, numpy_helper

from graphmod.errors import InvalidModelError
from graphmod.graph.fingerprint import attribute_key, attributes
from graphmod.graph.wiring import Point, Wiring, domain_of, function_key, wiring
from graphmod.model import Model, TensorType
from graphmod.model.model import type_of
from graphmod.rewrite.matching import NONE, Matching, match
from graphmod.rewrite.weight_change import WeightChange, equal, norms, stored_alike

_FEW = 8
"""Scalars up to which the value of a tensor attribute is shown."""

_FUNCTION = "function "


@dataclass(frozen=True)
class DifferentOperator:
    """An operator that one of the models has and the other has not."""

    name: str
    op_type: str


@dataclass(frozen=True)
class OperatorChange:
    """An operator with other attributes; before and after by name, None where it is left out or the default."""

    name: str
    name_after: str
    op_type: str
    attributes: Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Rewiring:
    """An operator, or an output, that reads another tensor than before at one of its slots ("" is nothing).

    A tensor that something else makes is another, whatever its name: ``made_by`` is the operator that makes the one
    after, "" for inputs and constants.
    """

    name: str
    op_type: str
    slot: str
    before: str
    after: str
    made_by: str


@dataclass(frozen=True)
class SignatureChange:
    """An input or output that was "added", "removed", "renamed", "retyped", or of which the order is another."""

    kind: str
    what: str
    before: str
    after: str


@dataclass(frozen=True)
class ShapeChange:
    """A tensor whose inferred dtype or shape is another."""

    name: str
    name_after: str
    before: str
    after: str


@dataclass(frozen=True)
class Difference:
    """What is different between two models; true where something is that counts.

    Parameters
    ----------
    added, removed : tuple of DifferentOperator
    changed : tuple of OperatorChange
    rewired : tuple of Rewiring
    weights : tuple of WeightChange
        Constants that are read in the same place and hold other values.
    signature : tuple of SignatureChange
    opsets : mapping of str to (int or None, int or None)
        By domain, before and after.
    functions : mapping of str to str
        "added", "removed" or what about them changed. Operators in functions that both models have are compared like
        all others.
    shapes : tuple of ShapeChange
        A consequence of the others: does not count.
    header : mapping of str to (before, after)
        IR version, producer, doc string and the like: does not count.
    metadata : mapping of str to (before, after)
        Does not count.
    notes : tuple of str
        What else is different and does not count, such as names.
    """

    added: tuple[DifferentOperator, ...]
    removed: tuple[DifferentOperator, ...]
    changed: tuple[OperatorChange, ...]
    rewired: tuple[Rewiring, ...]
    weights: tuple[WeightChange, ...]
    signature: tuple[SignatureChange, ...]
    opsets: Mapping[str, tuple[int | None, int | None]]
    functions: Mapping[str, str]
    shapes: tuple[ShapeChange, ...]
    header: Mapping[str, tuple[Any, Any]]
    metadata: Mapping[str, tuple[str | None, str | None]]
    notes: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether nothing that counts is different."""
        told = ("shapes", "header", "metadata", "notes")
        return not any(getattr(self, field.name) for field in fields(self) if field.name not in told)

    def __bool__(self) -> bool:
        """Whether something that counts is different."""
        return not self.same

    def as_dict(self) -> dict[str, Any]:
        """Return everything in lists and mappings that JSON can hold; numbers that it cannot are null."""
        plain: dict[str, Any] = _plain({"same": self.same, **asdict(self)})
        return plain


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def diff(a: Model, b: Model) -> Difference:
    """Return what is different between two models.

    Operators are matched by what they are, by their weights and by how they are wired; names only help where these
    leave a choice. Weights of any size are read a chunk at a time; those at one place of one file are not read.

    Parameters
    ----------
    a, b : Model
        Before and after.

    Raises
    ------
    InvalidModelError
        An operator reads a tensor that nothing makes, or the data of an external initializer is missing.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> gm.diff(m, m).same
    True
    >>> shorter = gm.remove(m, "layer1.3")
    >>> [operator.op_type for operator in gm.diff(m, shorter).removed]
    ['Conv', 'Relu', 'Conv', 'Add', 'Relu']
    """
    found = match(wiring(a), wiring(b))
    functions = _functions(a, b)
    absent = {f"{_FUNCTION}{key}" for key, what in functions.items() if what in ("added", "removed")}
    shapes, failures = _shapes(a, b, found)
    return Difference(
        added=_unmatched(found.b, found.back, absent),
        removed=_unmatched(found.a, found.to, absent),
        changed=tuple(_changed(found)),
        rewired=tuple(_rewired(found)),
        weights=tuple(_weights(found)),
        signature=tuple(_signature(a, b, found)),
        opsets=_mismatch(_opsets(a._proto.opset_import), _opsets(b._proto.opset_import)),
        functions=functions,
        shapes=shapes,
        header=_mismatch(_header(a), _header(b)),
        metadata=_mismatch(a.metadata, b.metadata),
        notes=(*_notes(found), *failures),
    )


def _mismatch(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    both = {key: (a.get(key), b.get(key)) for key in (*a, *b)}
    return {key: (before, after) for key, (before, after) in both.items() if before != after}


def _unmatched(wired: Wiring, other: Sequence[int], absent: set[str]) -> tuple[DifferentOperator, ...]:
    return tuple(
        DifferentOperator(point.name, _what(point))
        for point, match in zip(wired.points, other, strict=True)
        if match == NONE and point.operator is not None and point.scope.partition(">")[0] not in absent
    )


def _changed(found: Matching) -> Iterator[OperatorChange]:
    for i, j in found.pairs:
        one, other = found.a.points[i], found.b.points[j]
        changes = _attribute_changes(one, other) if one.kind == "operator" else {}
        if changes:
            yield OperatorChange(one.name, other.name, _what(one), changes)


def _what(point: Point) -> str:
    return point.kind if point.operator is None else point.operator.op_type


def _attribute_changes(a: Point, b: Point) -> dict[str, tuple[Any, Any]]:
    left, right = attributes(a), attributes(b)
    changes = {}
    for name in sorted({*left, *right}):
        one, other = left.get(name), right.get(name)
        if one is None or other is None or attribute_key(one) != attribute_key(other):
            changes[name] = _shown(one), _shown(other)
    made = [[i for i, tensor in enumerate(side.tensors) if tensor] for side in (a, b)]
    if made[0] != made[1]:
        changes["outputs made"] = made[0], made[1]
    return changes


def _shown(attribute: AttributeProto | None) -> Any:
    if attribute is None:
        return None
    if attribute.ref_attr_name:
        return f"attribute '{attribute.ref_attr_name}' of the function"
    if attribute.type == AttributeProto.TENSOR:
        kind = TensorType(onnx.helper.tensor_dtype_to_np_dtype(attribute.t.data_type), tuple(attribute.t.dims))
        return f"{kind} {numpy_helper.to_array(attribute.t).tolist()}" if kind.size <= _FEW else str(kind)
    value = onnx.helper.get_attribute_value(attribute)
    return _readable(list(value) if attribute.type in _LISTS else value)


_LISTS = (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.STRINGS, AttributeProto.TENSORS)


def _readable(value: Any) -> Any:
    if isinstance(value, list):
        return [_readable(one) for one in value]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, int | float | str) else str(value)


def _rewired(found: Matching) -> Iterator[Rewiring]:
    for i, j in found.pairs:
        left, right = _sources(found.a, i), _sources(found.b, j)
        for slot in sorted({*left, *right}, key=_by_position):
            one, other = left.get(slot, _NOTHING), right.get(slot, _NOTHING)
            source = found.to[one[0]] if one[0] >= 0 else one[0]
            if (source, one[1]) != (other[0], other[1]):
                point, maker = found.a.points[i], _maker(found.b, other[0])
                yield Rewiring(point.name, _what(point), slot, one[2], other[2], maker)


_NOTHING = (-2, 0, "")
_CONSTANT = -3


def _maker(wired: Wiring, source: int) -> str:
    point = wired.points[source] if source >= 0 else None
    return "" if point is None or point.operator is None else f"{point.operator.op_type} '{point.name}'"


def _sources(wired: Wiring, point: int) -> dict[str, tuple[int, int, str]]:
    """Return, by slot, the point that is read, which of its outputs, and the tensor's name; all constants are one."""
    found = {read.slot: (read.source, read.position, wired.tensor(read)) for read in wired.reads[point]}
    found.update({slot: (_CONSTANT, 0, wired.constants[c].name) for slot, c in wired.held[point].items()})
    return found


def _by_position(slot: str) -> tuple[str, int]:
    name, _, number = slot.rpartition(" ")
    return name, int(number)


def _weights(found: Matching) -> Iterator[WeightChange]:
    sampled = [mark.constant_weights.tolist() for mark in found.marks]
    for (c, d), names in _held_by_both(found).items():
        one, other = found.a.constants[c], found.b.constants[d]
        if (stored_alike(one, other) and sampled[0][c] != sampled[1][d]) or not equal(one, other):
            l2, relative, largest = norms(one, other) or (None, None, None)
            yield WeightChange(one.name, other.name, str(one), str(other), l2, relative, largest, tuple(names))


def _held_by_both(found: Matching) -> dict[tuple[int, int], dict[str, None]]:
    """Return the pairs of constants that are read in the same place, with the operators of the first that read them."""
    readers: defaultdict[tuple[int, int], dict[str, None]] = defaultdict(dict)
    for i, j in found.pairs:
        for slot, c in found.a.held[i].items():
            if slot in found.b.held[j]:
                readers[c, found.b.held[j][slot]][found.a.points[i].name] = None
    return readers


def _signature(a: Model, b: Model, found: Matching) -> Iterator[SignatureChange]:
    for kind, left, right in (
        ("input", a.proto_inputs, b.proto_inputs),
        ("output", a.proto_outputs, b.proto_outputs),
    ):
        before, after = ({v.name: v for v in values} for values in (left, right))
        pairs = [
            (found.a.points[i].name, found.b.points[j].name) for i, j in found.pairs if _is_signature(found, i, kind)
        ]
        known = {name for name, _ in pairs}, {name for _, name in pairs}
        for name in before:
            if name not in known[0]:
                yield SignatureChange(kind, "removed", f"{name}: {_type_text(before[name])}", "")
        for name in after:
            if name not in known[1]:
                yield SignatureChange(kind, "added", "", f"{name}: {_type_text(after[name])}")
        for old, new in pairs:
            if old != new:
                yield SignatureChange(kind, "renamed", old, new)
            if before[old].type != after[new].type:
                texts = (f"{name}: {_type_text(value)}" for name, value in ((old, before[old]), (new, after[new])))
                yield SignatureChange(kind, "retyped", *texts)
        order = {name: position for position, name in enumerate(after)}
        if pairs != sorted(pairs, key=lambda pair: order[pair[1]]):
            yield SignatureChange(kind, "reordered", ", ".join(before), ", ".join(after))


def _is_signature(found: Matching, i: int, kind: str) -> bool:
    return found.a.points[i].kind == kind and not found.a.points[i].scope


def _type_text(value: ValueInfoProto) -> str:
    return str(type_of(value)) if value.type.HasField("tensor_type") else " ".join(str(value.type).split())


def _shapes(a: Model, b: Model, found: Matching) -> tuple[tuple[ShapeChange, ...], tuple[str, ...]]:
    """Return the tensors of the main graph with another inferred type, and what inference fails on."""
    types, failures = [], []
    for which, model in (("first", a), ("second", b)):
        try:
            types.append(model.tensors)
        except InvalidModelError as error:
            failures.append(f"shapes are not compared, of the {which} model {error}")
    if failures:
        return (), tuple(failures)
    changes = []
    for i, j in found.pairs:
        left, right = found.a.points[i], found.b.points[j]
        for old, new in zip(left.tensors, right.tensors, strict=False):
            before, after = types[0].get(old), types[1].get(new)
            if left.operator is not None and not left.scope and before and after and _is_other(before, after):
                changes.append(ShapeChange(old, new, str(before), str(after)))
    return tuple(changes), ()


def _is_other(a: TensorType, b: TensorType) -> bool:
    """Whether two types differ; the names of symbolic dimensions do not count: inference makes them up."""
    if a.dtype is not None and b.dtype is not None and a.dtype != b.dtype:
        return True
    if a.shape is None or b.shape is None:
        return False
    left, right = ([d if isinstance(d, int) else None for d in shape] for shape in (a.shape, b.shape))
    return left != right


def _opsets(imports: Sequence[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {domain_of(entry) or "ai.onnx": entry.version for entry in imports}


def _functions(a: Model, b: Model) -> dict[str, str]:
    left, right = ({function_key(f): f for f in model.functions} for model in (a, b))
    found = dict.fromkeys(left.keys() - right.keys(), "removed") | dict.fromkeys(right.keys() - left.keys(), "added")
    for key in left.keys() & right.keys():
        changed = [name for name, one in _declared(left[key]).items() if one != _declared(right[key])[name]]
        if changed:
            found[key] = f"changed: {', '.join(changed)}"
    return dict(sorted(found.items()))


def _declared(function: FunctionProto) -> dict[str, object]:
    return {
        "opsets": _opsets(function.opset_import),
        "number of inputs": len(function.input),
        "number of outputs": len(function.output),
        "attributes": sorted(function.attribute),
        "defaults of attributes": {entry.name: attribute_key(entry) for entry in function.attribute_proto},
    }


def _header(model: Model) -> dict[str, Any]:
    proto = model._proto
    names = ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")
    return {
        **{name: getattr(proto, name) for name in names},
        "graph name": proto.graph.name,
        "graph doc_string": proto.graph.doc_string,
    }


def _notes(found: Matching) -> Iterator[str]:
    """Yield how many names and metadata are different."""
    pairs = [(found.a.points[i], found.b.points[j]) for i, j in found.pairs if found.a.points[i].operator is not None]
    tensors = [pair for one, other in pairs for pair in zip(one.tensors, other.tensors, strict=False)]
    counts = {
        "operators are renamed": sum(one.name != other.name for one, other in pairs),
        "inner tensors are renamed": sum(old != new for old, new in tensors),
        "operators have other metadata or doc strings": sum(_said(one) != _said(other) for one, other in pairs),
        "constants are stored sparsely in one of the models": sum(
            not stored_alike(found.a.constants[c], found.b.constants[d]) for c, d in _held_by_both(found)
        ),
    }
    for what, number in counts.items():
        if number:
            yield f"{number:,} {what}"
    unread = [
        len(side.constants) - len({c for held in side.held for c in held.values()}) for side in (found.a, found.b)
    ]
    if unread[0] != unread[1]:
        yield f"constants that nothing reads: {unread[0]:,} before, {unread[1]:,} after"


def _said(point: Point) -> tuple[dict[str, str], str]:
    assert point.operator is not None
    return {entry.key: entry.value for entry in point.operator.metadata_props}, point.operator.doc_string
