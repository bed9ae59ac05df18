"""Outlining: parts that occur several times become functions of the model, written once and called.

A call hands the weights of its occurrence to the function as inputs, as well as any tensor from outside. What is each
operator's own (its name, those of its tensors, doc string, metadata) stays with the call, so that ``inline`` gives back
the operators as they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Sequence

from onnx import NodeProto

from graphmod.errors import RefusedError
from graphmod.graph.repeats import repeats
from graphmod.graph.scope import GRAPHMOD_SCOPE, common_scope, scope
from graphmod.model import Model
from graphmod.rewrite.draft import Draft, claim, shared_scope
from graphmod.rewrite.graft import FUNCTIONS_SINCE, raise_format
from graphmod.rewrite.inline import ORIGINALS
from graphmod.rewrite.verb import verb

DOMAIN = "graphmod.outlined"
"""The domain of the functions."""

Occurrence = Sequence[NodeProto]


@verb(exact=True, example="graphmod outline bert.onnx --out outlined.onnx")
def outline(model: Model, size: int = 4) -> Model:
    """Make repeated parts into model-local functions, called once an occurrence.

    Parts are equal in structure and in the shapes of their weights, whose values are inputs of the call. The one that
    saves most operators goes first. Operators with subgraphs stay where they are, as do parts that nothing depends on.

    Parameters
    ----------
    model : Model
    size : int
        The fewest operators that a function has, at least 2.

    Returns
    -------
    Model
        With functions of the domain ``graphmod.outlined``, named after the scopes that the parts share. A file of a
        format before version 8, which knew no functions, becomes one of version 8.

    Raises
    ------
    RefusedError
        ``size`` is below 2.
    InvalidModelError
        An operator reads a tensor that nothing makes.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> short = gm.outline(m)
    >>> len(short.operators) < len(m.operators) / 3, short.functions[0].name
    (True, 'layer_block')
    """
    if size < 2:
        raise RefusedError(f"a function of fewer than 2 operators is none; give a size of at least 2, not {size}")
    draft = Draft(model)
    names = model.operator_names
    taken = {function.name: 1 for function in model.functions if function.domain == DOMAIN}
    made = [
        _function(draft, [[draft.operator(names[place]) for place in places] for places in part.occurrences], taken)
        for part in repeats(model, size)
    ]
    if not any(made):
        return model
    raise_format(draft.proto, FUNCTIONS_SINCE)
    if not any(entry.domain == DOMAIN for entry in draft.proto.opset_import):
        draft.proto.opset_import.add(domain=DOMAIN, version=1)
    return draft.finish()


def _function(draft: Draft, occurrences: Sequence[Occurrence], taken: dict[str, int]) -> bool:
    """Add the function that stands for all occurrences, and put calls in their places; False if nothing reads them."""
    given = _needed_outside(draft, occurrences)
    if not given:
        return False
    scopes = [shared_scope(operators) for operators in occurrences]
    first, names = occurrences[0], _Names(scopes[0])
    made = {tensor: "" for operator in first for tensor in operator.output if tensor}
    read = {tensors: names.local(tensors[0]) for tensors in _read_from_outside(occurrences, made)}
    made = {tensor: names.local(tensor) for tensor in made}
    function = draft.proto.functions.add(domain=DOMAIN, name=claim(_title(scopes), taken))
    function.input.extend(read.values())
    function.output.extend(made[first[i].output[j]] for i, j in given)
    for alike in zip(*occurrences, strict=True):
        body = function.node.add()
        body.CopyFrom(alike[0])
        for field in ("input", "output", "doc_string", "metadata_props"):
            body.ClearField(field)
        body.output.extend(made.get(tensor, "") for tensor in alike[0].output)
        body.input.extend(made.get(tensors[0]) or read.get(tensors, "") for tensors in _inputs(alike))
        inner = scope(alike[0]).removeprefix(scopes[0]).removeprefix(".")
        body.name = names.local(f"{inner}.{body.op_type}" if inner else body.op_type)
        if inner:
            body.metadata_props.add(key=GRAPHMOD_SCOPE, value=inner)
    domains = {operator.domain.removeprefix("ai.onnx") or "" for operator in first}
    function.opset_import.extend(e for e in draft.proto.opset_import if e.domain.removeprefix("ai.onnx") in domains)
    for number, (operators, around) in enumerate(zip(occurrences, scopes, strict=True)):
        call = NodeProto(
            op_type=function.name,
            domain=DOMAIN,
            name=draft.unused_operator(around or f"{function.name}_{number}"),
            input=[tensors[number] for tensors in read],
            output=[operators[i].output[j] for i, j in given],
        )
        call.metadata_props.add(key=ORIGINALS, value=json.dumps(list(map(_own, operators)), separators=(",", ":")))
        draft.add([call], at=operators[0], scope=around or None)
        for operator in operators:
            draft.discard(operator)
    return True


def _inputs(alike: Sequence[NodeProto]) -> Iterator[tuple[str, ...]]:
    """Yield the tensors that corresponding operators read, input by input; "" where an optional one is left out."""
    for i in range(max(len(operator.input) for operator in alike)):
        yield tuple(operator.input[i] if i < len(operator.input) else "" for operator in alike)


def _read_from_outside(occurrences: Sequence[Occurrence], made: Container[str]) -> list[tuple[str, ...]]:
    """Return the tensors that are read from outside, each by its names in all occurrences."""
    found = (tensors for alike in zip(*occurrences, strict=True) for tensors in _inputs(alike))
    return list(dict.fromkeys(tensors for tensors in found if tensors[0] and tensors[0] not in made))


def _needed_outside(draft: Draft, occurrences: Sequence[Occurrence]) -> list[tuple[int, int]]:
    """Return the tensors that any occurrence gives to the outside, as operator and output."""
    outputs = set(draft.outputs)
    found = set()
    for operators in occurrences:
        inside = {id(operator) for operator in operators}
        for i, operator in enumerate(operators):
            for j, name in enumerate(operator.output):
                if name and (name in outputs or any(id(reader) not in inside for reader in draft.readers(name))):
                    found.add((i, j))
    return sorted(found)


def _own(operator: NodeProto) -> dict[str, object]:
    """Return what an operator has that the function says nothing about."""
    metadata = {entry.key: entry.value for entry in operator.metadata_props}
    told = {"name": operator.name, "doc_string": operator.doc_string, "metadata_props": metadata}
    return {"outputs": list(operator.output), **{field: value for field, value in told.items() if value}}


def _title(scopes: Sequence[str]) -> str:
    """Return a name for a function from the scopes of its occurrences: what they share, numbers aside.

    >>> _title(["encoder.layer.0", "encoder.layer.1"]), _title(["layer1.0", "layer2.3"]), _title(["", "a"])
    ('encoder_layer_block', 'layer_block', 'block')
    """
    plain = (tuple(part for part in re.sub(r"\d+", "", one).split(".") if part) for one in scopes)
    return re.sub(r"\W", "_", "_".join((*common_scope(plain), "block")))


class _Names:
    """Names within a function: those of the first occurrence, without its scope."""

    def __init__(self, around: str):
        self.around = around
        self.taken: dict[str, int] = {}

    def local(self, name: str) -> str:
        return claim(name.removeprefix(f"{self.around}."), self.taken)
