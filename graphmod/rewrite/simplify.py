"""Simplifying: what can be computed now is, and what is there twice or for nothing goes.

Constants are folded by ONNX Runtime itself, all in one session, so that they are what inference would compute. The rest
is bookkeeping on the draft, which keeps names, metadata, signature, functions and external weights by not touching
them. That is why no simplifier of others is used. Operators left of bert, gpt2 and vit12, networks of the tests as
torch's TorchScript exporter writes them (321, 528 and 911 operators), and time for a transformer of 10,000:

================  =============  =========================  ===================================================
by                operators      10,000                     what else
================  =============  =========================  ===================================================
this file         127, 168, 378  4 s, checks and a session  names of constants that became part of others go
onnxsim 0.8.1     138, 165, 406  3 s                        loses metadata and declarations; fuses, inexactly
onnxslim 0.1.98   137, 175, 375  over 60 s                  loses metadata and declarations; fuses
onnxoptimizer     206, 294, 646                             loses metadata and declarations; no constants
onnxscript 0.7.2  174, 279, 585  1 s                        computes a constant before it looks at its size
ONNX Runtime      176, 257, 608                             loses metadata
================  =============  =========================  ===================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from graphmod.errors import InvalidDataError, InvalidModelError, RefusedError
from graphmod.graph.fingerprint import attribute_key
from graphmod.graph.shape_values import Values, shape_values
from graphmod.model import Model, TensorType, copy_without, has_bodies
from graphmod.model.initializers import embed_all, tensors
from graphmod.model.stored import Stored
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.verb import verb

Array = NDArray[np.generic]

LIMIT = 2**14

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
"""Operators that give something else each time."""

ALONE = {"Concat", "Sum", "Mean", "Max", "Min"}
"""Operators that hand on the only tensor that they read."""

RESHAPING = {"Reshape", "Flatten", "Expand", "Squeeze", "Unsqueeze", "Tile"}
"""Operators that hand on their first input where its shape does not change."""

KEPT = {"QuantizeLinear", "DequantizeLinear"}
"""Operators that stay, for they say that a weight is quantised."""

FOLDED = {np.dtype(name) for name in ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]}
"""What folding takes and gives."""

GROWTH = 1024
"""Scalars up to which folding may give more than it takes: the file is to become no larger."""

_ROUNDS = 10


@verb(exact=True, example="graphmod simplify exported.onnx --out simple.onnx")
def simplify(model: Model, limit: int = LIMIT) -> Model:
    """Fold constants, and drop operators and weights that are dead, without effect, or there twice.

    Arithmetic on shapes is folded as far as the declared dimensions tell; a Reshape to a shape of which one size is not
    known gets -1 there. Constant operators become initializers. Nothing is fused (that is ``fuse``), and operators in
    subgraphs and functions stay as they are.

    Parameters
    ----------
    model : Model
    limit : int
        The most scalars that a constant may have to be folded, or to come from folding; over 1,024 it is also to have
        no more of them than what it comes from.

    Returns
    -------
    Model
        Same signature, same results.

    Raises
    ------
    RefusedError
        ``limit`` is below 0, or the constants cannot be computed.
    InvalidModelError
        Shape inference fails.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> len(gm.simplify(m).operators) <= len(m.operators)
    True
    """
    if limit < 0:
        raise RefusedError(f"a constant has no fewer than 0 scalars; give a limit of at least 0, not {limit}")
    draft = Draft(model)
    changed = False
    for _ in range(_ROUNDS):
        done = [draft.sweep(), _merge_initializers(draft)]
        draft.prune()
        types = _types(draft)
        done += [_fold_shapes(draft, types), _fold(draft, types, limit)]
        done += [_hand_on(draft, types), _merge_operators(draft)]
        if not any(done):
            break
        changed = True
    return draft.finish() if changed else model


def _types(draft: Draft) -> dict[str, TensorType]:
    """Return what inference finds from the inputs on; an exporter's annotations of inner tensors may be wrong."""
    fixed = _fixed(draft)
    proto = copy_without(draft.proto, "node", "value_info", "initializer")
    proto.graph.initializer.extend(tensor for tensor in draft.graph.initializer if tensor.name in fixed)
    proto.graph.node.extend(draft.operators)
    return Model(proto, draft.model.folder).tensors


def _fixed(draft: Draft) -> set[str]:
    """Return the initializers that a caller cannot override; before version 4 of the format all were inputs too."""
    names = {tensor.name for tensor in draft.graph.initializer}
    return names - {value.name for value in draft.graph.input} if draft.proto.ir_version >= 4 else names


def _is_standard(operator: NodeProto, opset: int) -> bool:
    """Whether an operator is the standard's, gives the same each time, and has no subgraphs."""
    return (
        operator.domain in ("", "ai.onnx")
        and operator.op_type not in RANDOM
        and onnx.defs.has(operator.op_type, opset, "")
        and not has_bodies(operator)
    )


# -- folding


def _settle(draft: Draft, operators: Iterable[NodeProto], values: Mapping[str, Array]) -> None:
    """Put initializers in the place of operators, under the names of what these made."""
    for operator in operators:
        draft.discard(operator)
    for name, value in values.items():
        draft.add_initializer(numpy_helper.from_array(value, name))
    draft.forget(values)


def _fold_shapes(draft: Draft, types: Mapping[str, TensorType]) -> bool:
    """Fold what declared dimensions decide, and let Reshape infer the one size that they do not."""
    fixed, outputs = _fixed(draft), set(draft.outputs)
    operators = draft.operators
    found = shape_values(operators, types, lambda name: _value(draft, fixed, name))
    settled: dict[str, Array] = {}
    gone = []
    changed = False
    for operator in operators:
        name = operator.output[0] if operator.output else ""
        if name in found and operator.op_type != "Constant" and name not in outputs and None not in found[name].ravel():
            settled[name] = found[name].astype(types[name].dtype)
            gone.append(operator)
        elif operator.op_type == "Reshape" and operator.domain in ("", "ai.onnx") and len(operator.input) == 2:
            changed |= _infer_one_size(draft, operator, found.get(operator.input[1]))
    _settle(draft, gone, settled)
    return changed or bool(gone)


def _infer_one_size(draft: Draft, operator: NodeProto, sizes: Values | None) -> bool:
    """Give a Reshape -1 for the one size that is not known; the others leave but one value for it."""
    plain = [] if sizes is None else sizes.ravel().tolist()
    if plain.count(None) != 1 or any(size is not None and size < 1 for size in plain):
        return False
    if any(a.name == "allowzero" and a.i for a in operator.attribute):
        return False
    shape = np.array([-1 if size is None else size for size in plain], np.int64)
    name = draft.unused(f"{operator.input[1]}_inferred")
    _settle(draft, [], {name: shape})
    draft.set_inputs(operator, [operator.input[0], name])
    return True


def _value(draft: Draft, fixed: set[str], name: str) -> Array | None:
    return draft.constant(name) if name in fixed or draft.producer(name) is not None else None


def _fold(draft: Draft, types: Mapping[str, TensorType], limit: int) -> bool:
    """Let ONNX Runtime compute all operators that depend on small constants alone."""
    fixed, outputs, opset = _fixed(draft), set(draft.outputs), draft.model.opset

    def is_small(name: str) -> bool:
        kind = types.get(name)
        known = kind is not None and kind.shape is not None and all(isinstance(size, int) for size in kind.shape)
        return known and kind is not None and kind.dtype in FOLDED and kind.size <= limit

    def size(names: Iterable[str]) -> int:
        return sum(types[name].size for name in names)

    constant = {name for name in fixed if is_small(name)}
    folded: list[NodeProto] = []
    for operator in draft.operators:
        reads, gives = set(filter(None, operator.input)), set(filter(None, operator.output))
        if (
            reads <= constant
            and gives.isdisjoint(outputs)
            and all(map(is_small, gives))
            and (operator.op_type == "Constant" or size(gives) <= max(size(reads), GROWTH))
            and _is_standard(operator, opset)
            and operator.op_type not in KEPT
        ):
            folded.append(operator)
            constant |= gives
    inside = {id(operator) for operator in folded}
    made = [name for operator in folded for name in operator.output if name]
    wanted = [name for name in made if any(id(reader) not in inside for reader in draft.readers(name))]
    if not wanted:
        return False
    _settle(draft, folded, _computed(draft, folded, wanted, types))
    return True


def _computed(
    draft: Draft, operators: Sequence[NodeProto], wanted: Iterable[str], types: Mapping[str, TensorType]
) -> dict[str, Array]:
    proto = ModelProto(ir_version=max(draft.proto.ir_version, 4), opset_import=draft.proto.opset_import)
    proto.graph.name = "constants"
    proto.graph.node.extend(operators)
    read = {name for operator in operators for name in operator.input}
    proto.graph.initializer.extend(tensor for tensor in draft.graph.initializer if tensor.name in read)
    embed_all(tensors(proto), draft.model.folder)
    for name in wanted:
        elem = helper.np_dtype_to_tensor_dtype(types[name].dtype)
        proto.graph.output.append(helper.make_tensor_value_info(name, elem, types[name].shape))
    try:
        return Model(proto).run({})
    except (InvalidModelError, InvalidDataError) as error:
        raise RefusedError(f"the model's constants cannot be computed: {error}") from error


# -- what has no effect, and what is there twice


def _becomes(draft: Draft, pairs: Sequence[tuple[str, str]]) -> bool:
    """Whether tensors, of operators about to go, can be others from now on: a graph output needs to keep its name."""
    outputs = {*draft.outputs, *draft.model.inputs}
    kept = [new for old, new in pairs if old in outputs]
    return all(new not in outputs and draft.producer(new) is not None for new in kept) and len(kept) == len(set(kept))


def _become(draft: Draft, operator: NodeProto, pairs: Sequence[tuple[str, str]]) -> None:
    """Take an operator out whose tensors are others from now on."""
    draft.discard(operator)
    for old, new in pairs:
        if old in draft.outputs and draft.producer(new) is not None:
            draft.redirect(new, old)
            draft.make_as(new, old)
        else:
            draft.redirect(old, new)


def _hand_on(draft: Draft, types: Mapping[str, TensorType]) -> bool:
    """Take out operators that make what they read."""
    fixed = _fixed(draft)
    changed = False
    for operator in draft.operators:
        if not _is_standard(operator, draft.model.opset) or not operator.input or not operator.input[0]:
            continue
        others = [name for name in operator.output[1:] if name]
        if any(draft.readers(name) or name in draft.outputs for name in others):
            continue
        pairs = [(operator.output[0], operator.input[0])]
        if _has_no_effect(draft, operator, types, fixed) and _becomes(draft, pairs):
            _become(draft, operator, pairs)
            changed = True
    return changed


def _has_no_effect(draft: Draft, operator: NodeProto, types: Mapping[str, TensorType], fixed: set[str]) -> bool:
    before, after = types.get(operator.input[0]), types.get(operator.output[0])
    attributes = {a.name: helper.get_attribute_value(a) for a in operator.attribute}
    match operator.op_type:
        case "Identity":
            return True
        case "Dropout":
            training = operator.input[2] if len(operator.input) > 2 else ""
            mode = _value(draft, fixed, training) if training else np.array(False)
            return draft.model.opset >= 7 and mode is not None and not mode.any()
        case "Cast":
            wanted = helper.tensor_dtype_to_np_dtype(attributes["to"])
            return before is not None and before.dtype == wanted
        case "Transpose":
            return "perm" in attributes and list(attributes["perm"]) == sorted(attributes["perm"])
        case "Pad" if len(operator.input) > 1:
            pads = _value(draft, fixed, operator.input[1])
            return pads is not None and not pads.any()
        case kind if kind in ALONE:
            return len(operator.input) == 1
        case kind if kind in RESHAPING:
            if before is None or after is None or before.shape is None:
                return False
            return before == after and all(isinstance(size, int) for size in before.shape)
    return False


def _merge_operators(draft: Draft) -> bool:
    """Let one operator stand for all that compute the same."""
    first: dict[tuple[object, ...], NodeProto] = {}
    changed = False
    for operator in draft.operators:
        if not _is_standard(operator, draft.model.opset) or operator.op_type == "Dropout":
            continue
        told = tuple(sorted(attribute_key(attribute) for attribute in operator.attribute))
        key = (operator.op_type, tuple(operator.input), told, tuple(map(bool, operator.output)))
        other = first.setdefault(key, operator)
        pairs = [(old, new) for old, new in zip(operator.output, other.output, strict=True) if old]
        if other is not operator and _becomes(draft, pairs):
            _become(draft, operator, pairs)
            changed = True
    return changed


def _merge_initializers(draft: Draft) -> bool:
    """Let one initializer stand for all of equal type, shape and values."""
    fixed, folder, outputs = _fixed(draft), draft.model.folder, set(draft.outputs)
    alike: dict[tuple[object, ...], list[Stored]] = {}
    changed = False
    for tensor in draft.graph.initializer:
        if tensor.name not in fixed or tensor.name in outputs or not draft.readers(tensor.name):
            continue
        stored = Stored(tensor, folder)
        group = alike.setdefault((tensor.data_type, tuple(tensor.dims), stored.sample()), [])
        other = next((one for one in group if one.equals(stored)), None)
        if other is None:
            group.append(stored)
        else:
            draft.redirect(tensor.name, other.tensor.name)
            changed = True
    return changed
