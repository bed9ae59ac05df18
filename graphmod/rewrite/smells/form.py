"""The form of the model: versions, names, types, sizes of axes, the batch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np

from graphmod.data import fixed_batch
from graphmod.model import Model
from graphmod.rewrite.element_types import STANDARD
from graphmod.rewrite.recipe import Edit
from graphmod.rewrite.smells.evidence import Evidence, counted, quoted, stored
from graphmod.rewrite.smells.registry import Finding, smell

OPSET = 13
"""The oldest operator set that is not old: the first with bfloat16, quantisation by channel, and axes as inputs."""

IR_VERSION = 4
"""The first version of the file format in which initializers need not be inputs, and so are constants to a runtime."""

UNIT = 8
"""Channels come in multiples of this many: vector registers and tensor cores take them so."""

_MAPS = {"Conv": 1, "ConvTranspose": 1, "Gemm": -1, "MatMul": -1}
"""The axis of the channels that a linear map makes."""


@smell("float64")
def _float64(evidence: Evidence) -> Iterator[Finding]:
    """Constants and tensors in float64, in a model whose inputs are of another type."""
    constants, tensors = _doubles(evidence)
    if not constants and not tensors:
        return
    size = sum(constants.values()) // 2
    parts = [counted(len(constants), "constant")] * bool(constants) + [counted(len(tensors), "tensor")] * bool(tensors)
    names = (*constants, *tensors)
    told = f"{' and '.join(parts)} {'is' if len(names) == 1 else 'are'} float64, {quoted(names)}"
    told += f"; float32 takes {size:,} bytes less" if size else ""
    operators = tuple(evidence.model.operator_names[evidence.model.producer[name]] for name in tensors)
    yield Finding(told, operators, names, *_to_float32(evidence), n_bytes=size)


def _doubles(evidence: Evidence) -> tuple[dict[str, int], list[str]]:
    """Return the constants in float64 with their bytes, and the tensors that operators make in it for themselves."""
    model = evidence.model
    constants = {
        c.name: stored(c) for _, c in evidence.constants() if not c.values.is_text and c.values.dtype == np.float64
    }
    tensors = [
        name
        for name in model.producer
        if name not in model.outputs and name not in model.constants and _dtype(model, name) == np.float64
    ]
    return constants, tensors


def _dtype(model: Model, tensor: str) -> np.dtype[np.generic] | None:
    kind = model.tensors.get(tensor)
    return None if kind is None else kind.dtype


def _to_float32(evidence: Evidence) -> tuple[Edit | None, str]:
    """Return the edit that makes float32 of it, or why there is none."""
    model = evidence.model
    if any(kind.dtype == np.float64 for kind in (*model.inputs.values(), *model.outputs.values())):
        return None, "an input or output is float64, so the precision may be meant"
    half = [
        name for name, kind in model.tensors.items() if kind.is_float and kind.dtype not in (np.float32, np.float64)
    ]
    if half:
        return None, f"'{half[0]}' is {_dtype(model, half[0])}, which 'graphmod retype' would make float32 too"
    edit = Edit("retype", {"to": "float32"})
    outcome = evidence.attempt(edit)
    if isinstance(outcome, str):
        return None, outcome
    left = [name for names in _doubles(Evidence(outcome)) for name in names]
    return (None, f"'{left[0]}' must stay float64 for its operator") if left else (edit, "")


@smell("odd_channels")
def _odd_channels(evidence: Evidence) -> Iterator[Finding]:
    """Linear maps that make a number of channels off a multiple of 8: hardware computes the next multiple."""
    model = evidence.model
    given = {size for kind in model.outputs.values() for size in kind.shape or () if isinstance(size, int)}
    odd: defaultdict[int, list[str]] = defaultdict(list)
    for name, operator in zip(model.operator_names, model.operators, strict=True):
        axis = _MAPS.get(operator.op_type) if operator.domain in STANDARD else None
        if axis is None or not any(read in model.constants for read in operator.input[:2]):
            continue
        kind = model.tensors.get(operator.output[0])
        size = kind.shape[axis] if kind is not None and kind.shape is not None and len(kind.shape) > 1 else None
        if isinstance(size, int) and size > UNIT and size % UNIT and size not in given:
            odd[size].append(name)
    for size, names in sorted(odd.items()):
        full = size + -size % UNIT
        told = f"{counted(len(names), 'linear map', 'make')} {size} channels, {quoted(names)}"
        told += f": of the {full} that are computed {1 - size / full:.0%} are for nothing"
        yield Finding(told, tuple(names), (), None, "how many channels to have is the architecture's choice")


@smell("fixed_batch")
def _fixed_batch(evidence: Evidence) -> Iterator[Finding]:
    """A batch of one size only."""
    size = fixed_batch(evidence.model)
    if size is not None:
        names = tuple(evidence.model.inputs)
        told = f"{quoted(names)}: {counted(size, 'sample')} at a time, no more and no fewer"
        yield Finding(told, (), names, *evidence.tried(Edit("rebatch", {"size": "batch"})))


@smell("old_version")
def _old_versions(evidence: Evidence) -> Iterator[Finding]:
    """An operator set or a file format of long ago."""
    model = evidence.model
    old = []
    if 0 < model.opset < OPSET:
        old.append(f"opset {model.opset} (from {OPSET} on operators know bfloat16 and quantisation by channel)")
    if model.ir_version < IR_VERSION:
        old.append(f"IR version {model.ir_version} (from {IR_VERSION} on initializers are constants)")
    if old:
        yield Finding(f"the model has {' and '.join(old)}", reason="convert it with onnx.version_converter")


@smell("operator_names")
def _operator_names(evidence: Evidence) -> Iterator[Finding]:
    """Operators without a name, or with one that another operator has."""
    model = evidence.model
    counts = Counter(operator.name for operator in model.operators)
    named = list(zip(model.operator_names, model.operators, strict=True))
    missing = tuple(name for name, operator in named if not operator.name)
    shared = tuple(name for name, operator in named if operator.name and counts[operator.name] > 1)
    if missing or shared:
        parts = [f"{counted(len(missing), 'operator')} without a name"] * bool(missing)
        parts += [f"{counted(len(shared), 'operator')} with one that another has"] * bool(shared)
        told = f"{' and '.join(parts)}: {quoted(missing + shared)}"
        yield Finding(told, missing + shared, (), *evidence.tried(Edit("rename", {"missing": True})))
