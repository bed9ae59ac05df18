"""Inserting operators, another model or a torch module on a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto

from graphmod.errors import InvalidModelError, RefusedError
from graphmod.graph import blocks, find
from graphmod.graph.scope import scope
from graphmod.model import Model, TensorType
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.expression import as_type, declared
from graphmod.rewrite.graft import graft
from graphmod.rewrite.parts import (
    Fitted,
    Fitter,
    OtherPart,
    Part,
    chosen,
    contradict,
    known_type,
    misfit,
    unified,
    with_symbols,
)
from graphmod.rewrite.tensors import named_tensors
from graphmod.rewrite.verb import verb


@verb(exact=False, example="graphmod insert resnet.onnx logits --by 'Softmax(axis=-1)' --out probabilities.onnx")
def insert(
    model: Model,
    tensor: str,
    by: str | None = None,
    *,
    other: OtherPart = None,
    readers: str | None = None,
    before: bool = False,
    takes: str | None = None,
) -> Model:
    """Put operators, a model or a torch module on a tensor: what read the tensor reads what they make of it.

    On a graph output the output keeps its name, and may change its type if nothing else reads it. On a graph input the
    input keeps its name and takes what the inserted part takes, such as ``uint8[batch, 224, 224, 3]``: a preprocessing
    step. Elsewhere the type stays.

    Parameters
    ----------
    model : Model
    tensor : str
        A tensor; or a block, an operator, or a selector, for the tensors that they make.
    by : str, optional
        An operator with attributes and constant inputs, ``"Clip(min=0, max=6)"``, or several,
        ``"Cast(to='float32') > Div(B=255)"``.
    other : path, Model or torch.nn.Module, optional
        A model of one input and one output; further inputs bear the names of tensors that they read here. A module is
        exported in place.
    readers : str, optional
        A selector of the operators that read the result; the other readers, and graph outputs, keep the tensor.
    before : bool
        Whether to put it on what a block or operators read (their first tensor that is no constant), for them alone.
    takes : str, optional
        On a graph input, its type from now on.

    Raises
    ------
    RefusedError
        There is no such tensor, reader or operator, or a type does not fit.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> pixels = gm.insert(m, "image", "Cast(to='float32') > Div(B=16)", takes="uint8[batch, 1, 8, 8]")
    >>> print(pixels.inputs["image"])
    uint8[batch, 1, 8, 8]
    >>> gm.insert(m, "logits", "ArgMax(axis=1, keepdims=0)").outputs
    {'logits': TensorType(dtype=dtype('int64'), shape=('batch',))}
    """
    part = chosen(by, other)
    draft, fitter = Draft(model), Fitter(part, model)
    if before and readers is not None:
        raise RefusedError("'before' already says who reads the result: leave out 'readers'")
    found = list(_before(model, draft, tensor)) if before else list(_after(model, draft, tensor, readers))
    for place in found:
        if place.tensor in model.inputs and place.readers is None:
            _in_front(draft, fitter, place.tensor, _taken(part, model.inputs[place.tensor], takes))
        elif takes is not None:
            raise RefusedError(f"'takes' changes the type of a graph input, and '{place.tensor}' is none")
        elif place.tensor in draft.outputs and place.readers is None:
            _at_the_end(draft, fitter, place.tensor)
        else:
            _between(draft, fitter, place)
    return draft.finish()


@dataclass(frozen=True)
class _Place:
    """A tensor, and the operators for which to change it; all readers and the graph output if None."""

    tensor: str
    readers: list[NodeProto] | None = None


def _after(model: Model, draft: Draft, place: str, readers: str | None) -> Iterator[_Place]:
    wanted = None if readers is None else {match.operators[-1] for match in find(model, readers)}
    for tensor in named_tensors(model, place):
        if wanted is None:
            yield _Place(tensor)
            continue
        places = model.readers.get(tensor, ())
        chosen_ones = [draft.operator(name) for p in places if (name := model.operator_names[p]) in wanted]
        if not chosen_ones:
            told = ", ".join(model.operator_names[p] for p in places) or "none"
            raise RefusedError(f"no operator that reads '{tensor}' matches '{readers}'; its readers are {told}")
        yield _Place(tensor, chosen_ones)


def _before(model: Model, draft: Draft, place: str) -> Iterator[_Place]:
    try:
        block = next((block for block in blocks(model).walk() if block.path == place and block.path), None)
    except InvalidModelError:  # the model has no trunk
        block = None
    if block is not None:
        inside = [draft.operator(name) for name in block.operators]
        reading = {id(operator) for operator in draft.readers(block.entry)}
        yield _Place(block.entry, [operator for operator in inside if id(operator) in reading])
        return
    name = place.replace('"', "")
    for match in find(model, f'[name="{name}"]' if place in model.position else place):
        if not match.entry:
            raise RefusedError(f"operator '{match.operators[0]}' reads no tensor but constants")
        yield _Place(match.entry, [draft.operator(match.operators[0])])


def _taken(part: Part, kind: TensorType, takes: str | None) -> TensorType:
    """Return the type of a graph input from now on: the one asked for, else the other model's where it differs."""
    if takes is not None:
        return as_type(takes)
    own = part.takes
    return kind if own is None or not misfit(own, kind) else own


def _in_front(draft: Draft, fitter: Fitter, tensor: str, kind: TensorType) -> None:
    """Put a part between a graph input and all its readers; the input changes its type to what the part takes."""
    readers = draft.readers(tensor)
    if tensor in draft.outputs:
        raise RefusedError(f"'{tensor}' is input and output of the model at once; name its 'readers'")
    old = draft.model.inputs[tensor]
    fitted = fitter.at(kind, tensor)
    if kind == old:
        _check(tensor, fitted, old)
    else:
        kind = with_symbols(kind, unified(fitted.kind, old))  # the part's names for sizes are the model's from now on
        fitted = fitter.at(kind, tensor)
        if problem := misfit(old, fitted.kind):
            raise RefusedError(f"'{tensor}' is {old} to those that read it, and would become {fitted.kind}: {problem}")
    made = draft.unused(f"{tensor}/{fitted.exit}")
    at = readers[0] if readers else None
    graft(draft, fitted.model, fitted.reads(tensor), {fitted.exit: made}, prefix=tensor, at=at)
    draft.redirect(tensor, made, readers)
    value = next(value for value in draft.graph.input if value.name == tensor)
    value.type.CopyFrom(declared(tensor, kind).type)


def _at_the_end(draft: Draft, fitter: Fitter, tensor: str) -> None:
    """Put a part between the operator that makes a graph output and all that reads it."""
    producer = draft.producer(tensor)
    if producer is None:
        raise RefusedError(f"no operator makes the output '{tensor}', so nothing can be put before it")
    kind = known_type(draft.model, tensor)
    fitted = fitter.at(kind, tensor, tensor)
    if contradict(fitted.kind, kind):
        if draft.readers(tensor):
            _check(tensor, fitted, kind)
        value = next(value for value in draft.graph.output if value.name == tensor)
        value.type.CopyFrom(declared(tensor, fitted.kind).type)
        draft.forget([tensor])
    before = draft.unused(f"{tensor}/before")
    draft.make_as(tensor, before)
    graft(
        draft,
        fitted.model,
        fitted.reads(before),
        {fitted.exit: tensor},
        prefix=tensor,
        at=producer,
        within=scope(producer),
    )


def _between(draft: Draft, fitter: Fitter, place: _Place) -> None:
    """Put a part between a tensor and operators that read it."""
    kind = known_type(draft.model, place.tensor)
    fitted = fitter.at(kind, place.tensor)
    _check(place.tensor, fitted, kind)
    readers = draft.readers(place.tensor) if place.readers is None else place.readers
    producer = draft.producer(place.tensor)
    made = draft.unused(f"{place.tensor}/{fitted.exit}")
    graft(
        draft,
        fitted.model,
        fitted.reads(place.tensor),
        {fitted.exit: made},
        prefix=place.tensor,
        at=producer or (readers[0] if readers else None),
        within=scope(producer) if producer else "",
    )
    draft.redirect(place.tensor, made, readers)


def _check(tensor: str, fitted: Fitted, kind: TensorType) -> None:
    if contradict(fitted.kind, kind):
        raise RefusedError(f"'{tensor}' is {kind} to those that read it, and would become {fitted.kind}")
