"""Fingerprints of operators: what each is and, in rounds, what stands around it; names have no part in them.

The refinement is that of Weisfeiler and Leman: each round hashes what a point is together with what its neighbours
were in the round before, in both directions and with the positions of inputs and outputs, so that after k rounds equal
hashes mean equal surroundings k steps wide. All rounds are array arithmetic, linear in the number of reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto

from graphmod.graph.wiring import Constant, Point, Wiring, domain_of, wiring
from graphmod.model import Model
from graphmod.model.stored import Stored

Hashes = NDArray[np.uint64]

_SHORT = 64
"""Scalars up to which the values of an integer constant belong to the structure: shapes, axes, pads."""


def operator_hashes(model: Model, rounds: int = 3, weights: bool = False) -> list[int]:
    """Return a hash of each operator of the main graph and of what stands within some steps of it.

    Operators with equal hashes are of one type, with equal attributes and bodies, read constants of equal dtype and
    shape (short integer constants, such as shapes and axes: of equal values), and so do those around them, wired alike.
    Names, doc strings and metadata do not count, nor does the order of operators in the file. Hashes are 64 bits and
    the same in every process.

    Parameters
    ----------
    model : Model
    rounds : int
        Steps, up and down the graph, that a hash sees. 0: the operator alone, with the constants that it reads.
    weights : bool
        Whether the values of all constants count. Of a constant over 4 KiB only a sample is read, so that hashes stay
        cheap however large the weights are: other hashes mean other values, equal hashes hardly ever do.

    Returns
    -------
    list of int
        In the order of ``model.operators``.

    Raises
    ------
    InvalidModelError
        An operator reads a tensor that nothing makes, or the data of an external initializer is missing.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> alone, around = operator_hashes(m, rounds=0), operator_hashes(m, rounds=4)
    >>> len(set(alone)) < len(set(around)) < len(m.operators) == len(alone)
    True
    """
    wired = wiring(model)
    marks = fingerprints(wired)
    start = marks.weights if weights else marks.structure
    hashes = refine(start, wired, rounds).tolist()
    constants = (marks.constant_weights if weights else marks.constant_structure).tolist()
    return [hashes[number] if is_point else constants[number] for is_point, number in wired.positions]


@dataclass(frozen=True)
class Fingerprints:
    """Hashes of the points of a wiring alone, at three levels, each of which tells more apart than the one before.

    Parameters
    ----------
    types : array of uint64
        Operator types.
    structure : array of uint64
        Attributes, and dtypes and shapes of constants.
    weights : array of uint64
        Values of constants, by a sample of large ones.
    constant_structure, constant_weights : array of uint64
        The same of the constants.
    """

    types: Hashes
    structure: Hashes
    weights: Hashes
    constant_structure: Hashes
    constant_weights: Hashes


def fingerprints(wired: Wiring) -> Fingerprints:
    """Return the hashes of the points of a wiring alone, and of its constants."""
    inner: defaultdict[str, int] = defaultdict(int)
    types, own = [], []
    for point in wired.points:
        kind = _type(point)
        if point.kind != "operator" and point.scope:  # inputs and outputs of bodies and functions go by position
            group = f"{point.kind} {point.name.rpartition('/')[0]}"
            kind = digest(kind, str(inner[group]).encode())
            inner[group] += 1
        types.append(kind)
        own.append(kind if point.operator is None else _attributes(point, kind))
    plain = np.array([_constant(constant) for constant in wired.constants], np.uint64)
    valued = np.array(
        [digest(one, _sample(constant)) for one, constant in zip(plain.tolist(), wired.constants, strict=True)],
        np.uint64,
    )
    readers = np.array([i for i, held in enumerate(wired.held) for _ in held], np.int64)
    slots = np.array([_port(slot, 0) for held in wired.held for slot in held], np.uint64)
    read = np.array([number for held in wired.held for number in held.values()], np.int64)

    def with_constants(constants: Hashes) -> Hashes:
        start = np.array(own, np.uint64)
        if read.size:
            np.add.at(start, readers, _mix(constants[read] ^ slots))
        return _mix(start)

    return Fingerprints(np.array(types, np.uint64), with_constants(plain), with_constants(valued), plain, valued)


def refine(start: Hashes, wired: Wiring, rounds: int) -> Hashes:
    """Return the hashes of points together with their surroundings, ``rounds`` steps wide."""
    targets = np.array([i for i, reads in enumerate(wired.reads) for _ in reads], np.int64)
    edges = [read for reads in wired.reads for read in reads]
    sources = np.array([read.source for read in edges], np.int64)
    ports = np.array([_port(read.slot, read.position) for read in edges], np.uint64)
    back = ~ports
    hashes = start
    for _ in range(rounds):
        fresh = _mix(hashes)
        if edges:
            np.add.at(fresh, targets, _mix(hashes[sources] ^ ports))
            np.add.at(fresh, sources, _mix(hashes[targets] ^ back))
        hashes = _mix(fresh)
    return hashes


def digest(*parts: bytes | int) -> int:
    """Return 64 bits that tell sequences of byte strings and numbers apart."""
    found = blake2b(digest_size=8)
    for part in parts:
        content = part.to_bytes(8, "little") if isinstance(part, int) else part
        found.update(len(content).to_bytes(8, "little"))
        found.update(content)
    return int.from_bytes(found.digest(), "little")


def attributes(point: Point) -> dict[str, AttributeProto]:
    """Return an operator's attributes by name, in order, without bodies and defaults that are written out."""
    operator = point.operator
    if operator is None:
        return {}
    defaults = _defaults(domain_of(operator), operator.op_type, point.version)
    found = {a.name: a for a in operator.attribute if not a.HasField("g") and not a.graphs}
    return {name: found[name] for name in sorted(found) if attribute_key(found[name]) != defaults.get(name)}


@cache
def _defaults(domain: str, op_type: str, version: int) -> dict[str, bytes]:
    if not version or not onnx.defs.has(op_type, version, domain):
        return {}
    known = onnx.defs.get_schema(op_type, version, domain).attributes
    return {name: attribute_key(one.default_value) for name, one in known.items() if one.default_value.name}


def attribute_key(attribute: AttributeProto, folder: Path | None = None) -> bytes:
    """Return bytes that two attributes share where they say the same, however it is written and wherever it lies."""
    if attribute.type == AttributeProto.TENSOR:
        return b"tensor" + _tensor_key(attribute.t, folder)
    if attribute.type == AttributeProto.TENSORS:
        return b"tensors" + b"".join(_tensor_key(tensor, folder) for tensor in attribute.tensors)
    if attribute.doc_string:
        bare = AttributeProto.FromString(attribute.SerializeToString())
        bare.ClearField("doc_string")
        return bytes(bare.SerializeToString(deterministic=True))
    return bytes(attribute.SerializeToString(deterministic=True))


def _tensor_key(tensor: TensorProto, folder: Path | None) -> bytes:
    content = b"".join(Stored(tensor, folder).chunks())
    return digest(tensor.data_type, str(list(tensor.dims)).encode(), content).to_bytes(8, "little")


def _type(point: Point) -> int:
    operator = point.operator
    domain, op_type = ("", "") if operator is None else (domain_of(operator), operator.op_type)
    return _digest_of_texts(point.kind, point.scope, domain, op_type)


@cache
def _digest_of_texts(*texts: str) -> int:
    return digest(*(text.encode() for text in texts))


def _attributes(point: Point, kind: int) -> int:
    made = bytes(bool(tensor) for tensor in point.tensors)
    keys = (attribute_key(a) for a in attributes(point).values())
    return digest(kind, made, *keys)


def _constant(constant: Constant) -> int:
    values = constant.values
    shape = str(constant.shape).encode()
    key = digest(values.tensor.data_type, shape, constant.indices is None)
    short = values.dtype.kind in "iub" and int(np.prod(constant.shape)) <= _SHORT
    return digest(key, _sample(constant)) if short else key


def _sample(constant: Constant) -> bytes:
    return b"".join(part.sample() for part in constant.parts)


@cache
def _port(slot: str, position: int) -> int:
    return digest(slot.encode(), str(position).encode())


def _mix(values: Hashes | Sequence[int]) -> Hashes:
    """Return values scattered over 64 bits (the finalizer of SplitMix64; Steele, Lea & Flood 2014)."""
    found = np.asarray(values, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return found ^ (found >> np.uint64(31))
