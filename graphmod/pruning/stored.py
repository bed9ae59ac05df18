"""What a cut network stores: constants without what is removed, and with what is left of it taken in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from graphmod.errors import RefusedError
from graphmod.model import consumed
from graphmod.pruning.cutting import Cutting
from graphmod.pruning.labels import Labels
from graphmod.pruning.leftovers import Fold, Leftovers, Mix
from graphmod.pruning.site import Array


def slice_initializers(cutting: Cutting, leftovers: Leftovers) -> None:
    """Take what is removed out of all initializers, and let those that can take its leftovers in."""
    taken = _folded(cutting, leftovers.folds) | _mixed(cutting, leftovers.mixes)
    for name in cutting.found.model.initializers:
        is_whole = cutting.is_whole(name)
        if is_whole and name not in taken:
            continue
        value = cutting.sliced(name, taken[name] if name in taken else cutting.found.model.initializer(name))
        cutting.draft.set_initializer(name, value)
        cutting.note(name, value)
        if not is_whole:
            cutting.shrunk.add(name)


def slice_constant(cutting: Cutting, operator: NodeProto) -> None:
    """Take what is removed out of what a Constant holds."""
    name = operator.output[0]
    if cutting.is_whole(name):
        return
    (attribute,) = operator.attribute
    if attribute.name == "value":
        value = cutting.sliced(name, numpy_helper.to_array(attribute.t))
        tensor = numpy_helper.from_array(value, attribute.t.name)
        tensor.doc_string = attribute.t.doc_string
        attribute.t.CopyFrom(tensor)
    else:  # value_floats, value_ints or value_strings
        value = cutting.sliced(name, np.array(helper.get_attribute_value(attribute)))
        attribute.CopyFrom(helper.make_attribute(attribute.name, value.tolist(), attribute.doc_string))
    cutting.shrunk.add(name)


def _folded(cutting: Cutting, folds: Sequence[Fold]) -> dict[str, Array]:
    """Let biases take values in; return those of initializers, whole, new ones are stored where others stay or none is.

    An initializer is given another value where all that read it want the same one.
    """
    by_tensor: dict[str, list[tuple[Fold, Array]]] = {}
    for fold in folds:
        operator = cutting.draft.operator(fold.operator)
        tensor = operator.input[fold.place] if fold.place < len(operator.input) else ""
        by_tensor.setdefault(tensor, []).append((fold, _with(cutting, fold, operator, tensor)))
    taken: dict[str, Array] = {}
    for tensor, wanted in by_tensor.items():
        first, labels = wanted[0][1], cutting.axes.get(tensor, [])
        is_same = len(labels) == first.ndim and all(np.array_equal(first, value) for _, value in wanted)
        if is_same and first.shape == tuple(map(len, labels)) and _is_read_by(cutting, tensor, len(wanted)):
            taken[tensor] = first
            continue
        for fold, value in wanted:
            _replace(cutting, cutting.draft.operator(fold.operator), fold.place, value, [*labels[:-1], fold.labels])
    return taken


def _with(cutting: Cutting, fold: Fold, operator: NodeProto, tensor: str) -> Array:
    """Return a constant with what it has to take in; a missing bias has the type of the weights."""
    before = cutting.found.weight(tensor) if tensor else None
    like = cutting.found.weight(operator.input[1]) if before is None else before
    assert like is not None, "operators of stored weights alone take values in"
    value = fold.value if before is None else before.astype(np.float64) + fold.value
    return _held(value.astype(like.dtype), value, f"a bias of {cutting.told(operator)}")


def _mixed(cutting: Cutting, mixes: Sequence[Mix]) -> dict[str, Array]:
    """Let weights of contractions take in what they read of removed channels; return those of initializers, whole."""
    taken: dict[str, Array] = {}
    for mix in mixes:
        operator = cutting.draft.operator(mix.operator)
        tensor = operator.input[mix.place]
        before = cutting.found.weight(tensor)
        assert before is not None, "it is stored"
        value = _held(mix.applied(before), before, f"'{tensor}'")
        if _is_read_by(cutting, tensor, 1):
            taken[tensor] = value
        else:
            _replace(cutting, operator, mix.place, value, cutting.axes[tensor])
    return taken


def _held(value: Array, meant: Array, told: str) -> Array:
    """Return a value, once it is known that its type can hold it.

    Raises
    ------
    RefusedError
        It is too large.
    """
    if not np.isfinite(value).all() and np.isfinite(meant).all():
        raise RefusedError(f"{told} would be too large for {value.dtype}; leftovers=False takes nothing in")
    return value


def _is_read_by(cutting: Cutting, tensor: str, n_reads: int) -> bool:
    """Whether a tensor is an initializer that is read so many times, and needed by nothing else."""
    draft = cutting.draft
    reads = sum(list(consumed(reader)).count(tensor) for reader in draft.readers(tensor))
    return tensor in cutting.found.model.initializers and tensor not in draft.outputs and reads == n_reads


def _replace(cutting: Cutting, operator: NodeProto, place: int, value: Array, labels: Sequence[Labels]) -> None:
    """Let an operator read a new constant, of which only what is left is stored."""
    made = next(filter(None, operator.output))
    tensor = operator.input[place] if place < len(operator.input) else ""
    for axis, one in enumerate(labels):
        value = np.compress(cutting.alive(one), value, axis)
    name = cutting.store(tensor or f"{made}_bias", value, tensor or made)
    cutting.axes[name] = list(labels)
    cutting.read(operator, place, name)
