"""Own copies: a constant whose entries are all alike couples nothing by being shared, as every reader can have its own.

Exporters store equal constants once: initial states of zeros, scales of ones. Of what is alike everywhere, each reader
needs only as much as its own channels; weights with different entries are tied where they are shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from graphmod.model import Model, bodies, check_model
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.element_types import STANDARD

HANDING_ON = frozenset(
    {"Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators that make a tensor of the entries of their first input alone."""


@dataclass(frozen=True)
class Copied:
    """A network in which constants whose entries are all alike are read once each.

    Parameters
    ----------
    model : Model
    originals : dict of str to str
        For every tensor that was added, the one that it is a copy of: first those that are made of others.
    """

    model: Model
    originals: Mapping[str, str]


def with_own_copies(model: Model) -> Copied:
    """Give every reader of a float constant whose entries are all alike a copy of its own, of what makes it too.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> with_own_copies(m).model is m
    True
    """
    check_model(model)
    alike = list(_all_alike(model))
    if not any(_is_shared(model, name) for name in alike):
        return Copied(model, {})
    draft = Draft(model)
    originals: dict[str, str] = {}
    for name in reversed(alike):  # what a copy reads is copied after it
        readers = [operator for operator in draft.readers(name) if not any(bodies(operator))]
        has_others = name in draft.outputs or len(readers) < len(draft.readers(name))
        for reader in readers if has_others else readers[1:]:
            made = _copy(draft, name)
            draft.redirect(name, made, [reader])
            originals[made] = name
    return Copied(_named_alike(Model(draft.unchecked(), model.folder), model), originals)


def _named_alike(copied: Model, model: Model) -> Model:
    """Let operators without a name, which are called by their places, be called as they are in the file."""
    names = {
        tensor: name
        for name, operator in zip(model.operator_names, model.operators, strict=True)
        for tensor in filter(None, operator.output)
    }
    vars(copied)["operator_names"] = tuple(
        next((names[tensor] for tensor in operator.output if tensor in names), operator.name)
        for operator in copied.operators
    )
    return copied


def rejoin(draft: Draft, originals: Mapping[str, str]) -> None:
    """Let what reads copies that are still what they are copies of read the original."""
    for made, name in reversed([*originals.items()]):
        if _is_same(draft, made, name):
            draft.redirect(made, name)


def _is_same(draft: Draft, made: str, name: str) -> bool:
    """Whether two tensors are the same constants, or made in the same way of the same, sizes included."""
    pending = [(made, name)]
    while pending:
        one, other = pending.pop()
        if one == other:
            continue
        makes, also = draft.producer(one), draft.producer(other)
        if makes is None or also is None:
            value, original = draft.constant(one), draft.constant(other)
            if value is None or original is None or not np.array_equal(value, original):
                return False
        elif _how(makes, one) == _how(also, other):
            pending.extend(zip(makes.input, also.input, strict=True))
        else:
            return False
    return True


def _how(operator: NodeProto, made: str) -> tuple[object, ...]:
    """Return how an operator makes a tensor, whatever it reads and is named."""
    attributes = sorted((one.name, one.SerializeToString(deterministic=True)) for one in operator.attribute)
    return operator.domain, operator.op_type, attributes, len(operator.input), list(operator.output).index(made)


def _copy(draft: Draft, name: str) -> str:
    operator = draft.producer(name)
    if operator is None:
        value = draft.constant(name)
        assert value is not None, "what no operator makes is an initializer"
        return draft.weight(name, value)
    made = draft.unused(name)
    own = NodeProto()
    own.CopyFrom(operator)
    own.output[0], own.name = made, draft.unused_operator(operator.name or made)
    draft.add([own], at=operator)
    return made


def _is_shared(model: Model, name: str) -> bool:
    return len(set(model.readers.get(name, ()))) > 1


def _all_alike(model: Model) -> Iterator[str]:
    """Yield float constants of several entries that are all alike, and what is made of such, in the graph's order."""
    given = {value.name for value in model._proto.graph.input} if model.ir_version >= 4 else set()
    alike = set()
    for name in model.initializers.keys() - given:
        kind = model.constants.get(name)
        readers = [model.operators[position] for position in model.readers.get(name, ())]
        is_of_use = len(readers) > 1 or any(reader.op_type in HANDING_ON for reader in readers)
        if kind is not None and kind.is_float and is_of_use and _has_one_value(model.initializer(name)):
            alike.add(name)
    yield from (name for name in model.initializers if name in alike and _is_wide(model, name))
    for operator in model.operators:
        if _hands_on(model, operator, alike):
            alike.add(operator.output[0])
            if _is_wide(model, operator.output[0]):
                yield operator.output[0]


def _is_wide(model: Model, name: str) -> bool:
    shape = model.tensors[name].shape
    return shape is None or any(size != 1 for size in shape)


def _hands_on(model: Model, operator: NodeProto, alike: set[str]) -> bool:
    """Whether an operator makes floats that are all alike."""
    if operator.domain not in STANDARD or len(operator.output) != 1:
        return False
    kind = model.tensors.get(operator.output[0])
    if kind is None or not kind.is_float:
        return False
    if operator.op_type == "Constant":
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in operator.attribute}
        value = numpy_helper.to_array(given["value"]) if "value" in given else given.get("value_floats", ())
        return _has_one_value(np.asarray(value))
    return operator.op_type == "ConstantOfShape" or (operator.op_type in HANDING_ON and operator.input[0] in alike)


def _has_one_value(value: np.ndarray) -> bool:
    first = value.ravel()[:1]
    return bool(value.size and (value.ravel()[-1:] == first).all() and (value == first).all())
