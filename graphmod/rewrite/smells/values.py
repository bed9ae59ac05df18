"""What weights hold: the same values as another, no numbers, nothing, or far fewer dimensions than they have.

Values are read a chunk at a time.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from graphmod.graph.wiring import Constant
from graphmod.rewrite.recipe import Edit
from graphmod.rewrite.smells.evidence import Evidence, counted, quoted, stored
from graphmod.rewrite.smells.registry import Finding, smell

SMALL = 256
"""Bytes up to which nobody minds a copy."""

VARIANCE = 1e-10
"""Variance up to which a channel counts as one that never changed."""

MAPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose second input is a matrix, or a kernel of which every position is one."""

_NORMALIZATIONS = ("BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization")


@smell("repeated_constant", weights=True)
def _repeated_constants(evidence: Evidence) -> Iterator[Finding]:
    """Initializers with the same values as another."""
    main = evidence.model.initializers.keys() - evidence.overridable - evidence.model.outputs.keys()
    alike: defaultdict[object, list[Constant]] = defaultdict(list)
    for number, constant in evidence.constants():
        if constant.name in main and number in evidence.holders and stored(constant) > SMALL:
            alike[constant.values.tensor.data_type, constant.shape].append(constant)
    for group in alike.values():
        for equals in _equal(group):
            names, size = tuple(c.name for c in equals), stored(equals[0]) * (len(equals) - 1)
            told = f"{counted(len(names), 'initializer')} hold the same {equals[0]}, {quoted(names)}"
            told += f": {size:,} bytes for nothing"
            yield Finding(told, (), names, Edit("simplify"), n_bytes=size)


def _equal(constants: Sequence[Constant]) -> Iterator[list[Constant]]:
    """Yield the constants of one type that are the same to the bit; of those whose samples differ no more is read."""
    sampled: defaultdict[bytes, list[Constant]] = defaultdict(list)
    for constant in constants if len(constants) > 1 else ():
        sampled[hashlib.sha256(constant.values.sample()).digest()].append(constant)
    for group in sampled.values():
        whole: defaultdict[bytes, list[Constant]] = defaultdict(list)
        for constant in group if len(group) > 1 else ():
            whole[_digest(constant)].append(constant)
        yield from (equals for equals in whole.values() if len(equals) > 1)


def _digest(constant: Constant) -> bytes:
    sha = hashlib.sha256()
    for chunk in constant.values.chunks():
        sha.update(chunk)
    return sha.digest()


@smell("no_number", weights=True)
def _no_numbers(evidence: Evidence) -> Iterator[Finding]:
    """Weights with NaN, or with an infinity where a linear map or a normalization reads it."""
    for number, constant, readers in _weights(evidence):
        n_nan = n_infinite = 0
        for chunk in constant.values.numbers():
            if not np.isfinite(chunk).all():
                n_nan += int(np.isnan(chunk).sum())
                n_infinite += int(np.isinf(chunk).sum())
        reads = [name for name, op_type, _ in readers if op_type in (*MAPS, *_NORMALIZATIONS)]
        found = [f"{n_nan:,} NaN"] * bool(n_nan) + [
            f"{n_infinite:,} {'infinity' if n_infinite == 1 else 'infinities'}"
        ] * bool(n_infinite and reads)
        if found:
            told = f"'{constant.name}', {constant}, holds {' and '.join(found)}"
            operators = tuple(dict.fromkeys(name for name, _, _ in evidence.readers(number)))
            yield Finding(told, operators, (constant.name,), None, "only who trained it knows what should be there")


@smell("zero_channels", weights=True)
def _zero_channels(evidence: Evidence) -> Iterator[Finding]:
    """Linear maps that make channels with weights that are all zero."""
    for _, constant, readers in _weights(evidence):
        maps = [(name, op_type) for name, op_type, slot in readers if op_type in MAPS and slot == "1"]
        axis = _channel_axis(evidence, *maps[0], len(constant.shape)) if maps else None
        if axis is None or not all(constant.shape) or _channel_axis(evidence, *maps[-1], len(constant.shape)) != axis:
            continue
        used = _nonzero(constant, axis)
        n_zero = int((~used).sum())
        if n_zero:
            size = stored(constant) // used.size * n_zero
            told = f"{n_zero} of the {used.size} channels that '{constant.name}' makes {'is' if n_zero == 1 else 'are'}"
            told += f" all zero: {size:,} bytes"
            names = tuple(name for name, _ in maps)
            reason = "taking channels out changes all that reads them"
            yield Finding(told, names, (constant.name,), None, reason, n_bytes=size)


def _weights(evidence: Evidence) -> Iterator[tuple[int, Constant, list[tuple[str, str, str]]]]:
    """Yield number, constant and readers of the float constants that something reads."""
    for number, constant in evidence.constants():
        is_float = constant.values.dtype.kind == "f" or constant.values.dtype.name == "bfloat16"
        if not constant.values.is_text and is_float and constant.indices is None and number in evidence.holders:
            yield number, constant, evidence.readers(number)


def _channel_axis(evidence: Evidence, name: str, op_type: str, rank: int) -> int | None:
    """Return the axis of a weight along which the channels lie that the operator makes; None where it is not known."""
    if op_type == "Conv":
        return 0
    if op_type == "MatMul":
        return rank - 1 if rank > 1 else None
    if op_type == "Gemm":
        operator = evidence.operator(name)
        return 0 if any(a.name == "transB" and a.i for a in operator.attribute) else 1
    return None


def _nonzero(constant: Constant, axis: int) -> NDArray[np.bool_]:
    """Return for every index on an axis whether a scalar there is other than zero."""
    size, inner = constant.shape[axis], prod(constant.shape[axis + 1 :])
    used, start = np.zeros(size, np.bool_), 0
    for chunk in constant.values.numbers():
        if not used.all():
            used[np.unique((start + np.flatnonzero(chunk)) // inner % size)] = True
        start += chunk.size
    return used


@smell("constant_channels", weights=True)
def _constant_channels(evidence: Evidence) -> Iterator[Finding]:
    """BatchNormalization over channels that never changed in training: their variance is next to 0, or negative."""
    for _, constant, readers in _weights(evidence):
        names = tuple(name for name, op_type, slot in readers if op_type == "BatchNormalization" and slot == "4")
        if names and 0 not in constant.shape:
            values = np.concatenate(list(constant.values.numbers())).real
            n_small, n_negative = int((np.abs(values) <= VARIANCE).sum()), int((values < -VARIANCE).sum())
            found = [f"at most {VARIANCE:g} in {n_small}"] * bool(n_small) + [f"negative in {n_negative}"] * bool(
                n_negative
            )
            if found:
                told = (
                    f"the variance in '{constant.name}' is {' and '.join(found)} of {counted(values.size, 'channel')}"
                )
                reason = "it may be an untrained or dead channel; what feeds it has to be looked at"
                yield Finding(told, names, (constant.name,), None, reason)
