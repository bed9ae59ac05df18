"""Predicates of selectors: what can be asked of an operator, and whether its answer fits."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto

from graphmod.errors import InvalidModelError, RefusedError
from graphmod.graph.blocks import blocks
from graphmod.graph.costs import cost
from graphmod.graph.flow import data_flow
from graphmod.graph.scope import scope_parts
from graphmod.graph.selector import Kind, Predicate
from graphmod.model import Model

Answer = Callable[[int], Sequence[object]]
"""What holds for the operator at a place: strings, numbers or tuples, none where there is nothing to tell."""

Type = tuple[str, str]
"""Domain and type of an operator; the default domain is ``ai.onnx``."""

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)
_TENSOR = re.compile(r"(in|out)(\d*)(?:\.(shape|rank|dtype))?", re.ASCII)
_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda found, asked: found < asked,
    "<=": lambda found, asked: found <= asked,
    ">": lambda found, asked: found > asked,
    ">=": lambda found, asked: found >= asked,
}


@dataclass(frozen=True)
class Check:
    """A predicate bound to a model.

    Of the answers of an operator, ``=`` and the orders want one that fits, ``!=`` wants that none does; an operator
    without an answer passes neither.
    """

    predicate: Predicate
    answer: Answer

    def holds(self, place: int) -> bool:
        """Whether the operator at a place passes."""
        answers = self.answer(place)
        fits = any(_fits(found, self.predicate) for found in answers)
        return bool(answers) and fits != (self.predicate.relation == "!=")

    def told(self, place: int) -> str:
        """Say what the operator at a place answers, for a message."""
        if self.predicate.key == "between":
            return "it is between them" if self.predicate.relation == "!=" else "it is not between them"
        answers = [_shown(found) for found in self.answer(place)]
        if not answers:
            return "there is none, or it is not known"
        if self.predicate.key in ("scope", "block"):
            return f"it is {answers[0]}"
        return f"it is {answers[0]}" if len(answers) == 1 else f"they are {', '.join(answers)}"


def type_of_operator(operator: NodeProto) -> Type:
    """Return an operator's domain and type."""
    return operator.domain or "ai.onnx", operator.op_type


@cache
def glob(pattern: str) -> re.Pattern[str]:
    """Return the expression for text in which ``*`` stands for anything."""
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), re.DOTALL)


def closest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` where one of the known words is close, else nothing."""
    by_lower = {name.lower(): name for name in sorted(known)}
    found = get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean '{by_lower[found[0]]}'?" if found else ""


def bind(model: Model, kind: Kind, types: Iterable[Type], predicate: Predicate) -> Check:
    """Return the check that a predicate is for operators of some types in a model.

    Raises
    ------
    RefusedError
        There is no such attribute, block or tensor, or the value is not of the sort that can be compared.
    """
    key = predicate.key
    if key == "between":
        _check_sort(predicate, "pair")
        return Check(predicate, _between(model, predicate))
    tensor = _TENSOR.fullmatch(key)
    if tensor:
        _check_sort(predicate, {"shape": "list", "rank": "number"}.get(tensor[3], "text"))
        return Check(predicate, _of_tensors(model, tensor[1], tensor[2], tensor[3]))
    if key in _FACTS:
        sort, fact = _FACTS[key]
        _check_sort(predicate, sort)
        answer = fact(model)
        if key == "block":
            _check_block(model, predicate, answer)
        return Check(predicate, answer)
    _check_sort(predicate, "any")
    _check_attribute(model, kind, types, predicate)
    return Check(predicate, _attribute(model, key.removeprefix("@")))


# -- whether a value fits


def _fits(found: object, predicate: Predicate) -> bool:
    asked = predicate.value
    if predicate.relation in _ORDERS:
        return isinstance(found, int | float) and _ORDERS[predicate.relation](found, _number(str(asked)))
    if isinstance(found, tuple):
        return isinstance(asked, tuple) and _fits_list(found, asked)
    return isinstance(asked, str) and _fits_word(found, asked)


def _fits_word(found: object, asked: str) -> bool:
    if isinstance(found, str):
        return glob(asked).fullmatch(found) is not None if found else not asked
    return isinstance(found, int | float) and _NUMBER.fullmatch(asked) is not None and found == _number(asked)


def _fits_list(found: tuple[object, ...], asked: tuple[str, ...]) -> bool:
    """Compare item by item; ``...`` stands for any number of items, ``*`` for one, ``?`` for one that is no number."""
    reached = {0}
    for item in asked:
        if item == "...":
            reached = set(range(min(reached, default=len(found) + 1), len(found) + 1))
        else:
            reached = {i + 1 for i in reached if i < len(found) and _fits_item(found[i], item)}
    return len(found) in reached


def _fits_item(found: object, asked: str) -> bool:
    if asked == "?":
        return not isinstance(found, int | float)
    return asked == "*" or _fits_word(found, asked)


def _number(text: str) -> float:
    """Return a number; whole ones exactly, so that the largest of 64 bits is itself."""
    return int(text) if re.fullmatch(r"[-+]?[0-9]{1,19}", text) else float(text)


def _shown(found: object) -> str:
    if isinstance(found, tuple):
        return f"[{', '.join('?' if item is None else str(item) for item in found)}]"
    if isinstance(found, str):
        return f"'{found}'" if found else "none"
    return f"{found:g}" if isinstance(found, float) else str(found)


def _check_sort(predicate: Predicate, sort: str) -> None:
    value, key = predicate.value, predicate.key
    numeric = isinstance(value, str) and _NUMBER.fullmatch(value) is not None
    if predicate.relation in _ORDERS and sort not in ("number", "any"):
        raise RefusedError(f"'{key}' is compared with = or !=, not with {predicate.relation}")
    if not numeric and (predicate.relation in _ORDERS or sort == "number"):
        raise RefusedError(f"'{key}' is compared with a number here, such as {key}{predicate.relation}4")
    if sort == "list" and not isinstance(value, tuple):
        raise RefusedError(f"'{key}' is compared with a list, such as {key}=[*,64,...]")
    if sort == "text" and not isinstance(value, str):
        raise RefusedError(f"'{key}' is compared with one word, not with a list")


# -- what can be asked


def _name(model: Model) -> Answer:
    return lambda place: (model.operator_names[place],)


def _scopes(model: Model) -> Answer:
    """Answer with an operator's scope and all that it lies in."""

    def answer(place: int) -> Sequence[str]:
        parts = scope_parts(model.operators[place])
        return tuple(".".join(parts[:depth]) for depth in range(len(parts), 0, -1)) or ("",)

    return answer


def _blocks(model: Model) -> Answer:
    """Answer with the paths of all blocks that an operator lies in, the innermost first."""
    try:
        tree = blocks(model)
    except InvalidModelError as error:
        raise RefusedError(f"the model has no blocks: {error}") from error
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for block in tree.walk():
        for name in block.operators:
            paths[name].append(block.path)
    return lambda place: tuple(reversed(paths.get(model.operator_names[place], [""])))


def _check_block(model: Model, predicate: Predicate, answer: Answer) -> None:
    paths = {str(path) for place in range(len(model.operators)) for path in answer(place)} - {""}
    if not any(_fits_word(path, str(predicate.value)) for path in paths):
        raise RefusedError(
            f"there is no block '{predicate.value}'{closest(str(predicate.value), paths)}"
            " ('graphmod blocks' lists them)"
        )


def readers_of(model: Model, place: int) -> tuple[int, ...]:
    """Return the places of the operators that read any output of an operator, in order, captures included."""
    made = model.operators[place].output
    return tuple(sorted({reader for tensor in made if tensor for reader in model.readers.get(tensor, ())}))


def _n_readers(model: Model) -> Answer:
    """Answer with how many operators and outputs of the model read an operator."""

    def answer(place: int) -> Sequence[int]:
        outputs = sum(tensor in model.outputs for tensor in model.operators[place].output)
        return (len(readers_of(model, place)) + outputs,)

    return answer


def _cost(part: str) -> Callable[[Model], Answer]:
    return lambda model: lambda place: (getattr(cost(model, [model.operator_names[place]]), part),)


_FACTS: dict[str, tuple[str, Callable[[Model], Answer]]] = {
    "name": ("text", _name),
    "scope": ("text", _scopes),
    "block": ("text", _blocks),
    "readers": ("number", _n_readers),
    "weights": ("number", _cost("weights")),
    "bytes": ("number", _cost("bytes")),
    "macs": ("number", _cost("macs")),
}
"""What can be asked besides tensors and attributes: the sort of value, and who answers."""


def _of_tensors(model: Model, side: str, number: str, what: str | None) -> Answer:
    """Answer with names, shapes, ranks or dtypes of an operator's inputs or outputs: of all, or of one."""

    def tensors(place: int) -> Sequence[str]:
        operator = model.operators[place]
        if number:
            return tuple(operator.input if side == "in" else operator.output)[int(number[:9]) :][:1]
        return model.reads[place] if side == "in" else tuple(operator.output)

    def answer(place: int) -> Sequence[object]:
        names = [name for name in tensors(place) if name]
        if what is None:
            return names
        kinds = [model.inputs.get(name) or model.tensors.get(name) for name in names]
        if what == "dtype":
            return [str(kind.dtype) for kind in kinds if kind and kind.dtype]
        shapes = [kind.shape for kind in kinds if kind and kind.shape is not None]
        return [len(shape) for shape in shapes] if what == "rank" else shapes

    return answer


def _between(model: Model, predicate: Predicate) -> Answer:
    """Answer with the predicate's own value for operators on paths of data between its two tensors."""
    first, last = tuple(predicate.value)
    known = {*model.inputs, *model.producer}
    for name in (first, last):
        if name and name not in known:
            raise RefusedError(f"no input and no operator's output is named '{name}'{closest(name, known)}")
    try:
        flow = data_flow(model, first or None, last or None)
    except InvalidModelError as error:
        raise RefusedError(str(error)) from error
    inside = {name for _, _, name in flow.edges(data="operator")}
    return lambda place: (predicate.value if model.operator_names[place] in inside else ("elsewhere",),)


# -- attributes


def _check_attribute(model: Model, kind: Kind, types: Iterable[Type], predicate: Predicate) -> None:
    """Refuse an attribute that no operator of these types has; of types that ONNX does not know, it may be left out."""
    wanted = set(types)
    declared = [_declared(model, *known) for known in wanted]
    if not wanted or ("*" not in kind.op_type and None in declared):
        return
    known = {name for attributes in declared for name in attributes or ()}
    for operator in model.operators:
        if type_of_operator(operator) in wanted:
            known.update(attribute.name for attribute in operator.attribute)
    key = predicate.key.removeprefix("@")
    if key not in known:
        words = (
            set() if key != predicate.key else {*_FACTS, "in", "out", "between", "out.shape", "out.rank", "out.dtype"}
        )
        raise RefusedError(
            f"'{key}' is neither a predicate nor an attribute of {kind.type_text}{closest(key, known | words)}"
        )


def _declared(model: Model, domain: str, op_type: str) -> dict[str, AttributeProto | None] | None:
    """Return the attributes that a type of operator is declared to have, with their defaults; None if it is unknown."""
    for function in model.functions:
        if (function.domain or "ai.onnx", function.name) == (domain, op_type):
            return {**dict.fromkeys(function.attribute), **{a.name: a for a in function.attribute_proto}}
    short = "" if domain == "ai.onnx" else domain
    version = model.opsets.get(short, 1)
    if not onnx.defs.has(op_type, version, short):
        return None
    schema = onnx.defs.get_schema(op_type, version, short)
    defaults = {name: attribute.default_value for name, attribute in schema.attributes.items()}
    return {name: default if default.type else None for name, default in defaults.items()}


def _attribute(model: Model, name: str) -> Answer:
    """Answer with an attribute's value, with ONNX's default where it is left out."""

    @cache
    def default(domain: str, op_type: str) -> AttributeProto | None:
        return (_declared(model, domain, op_type) or {}).get(name)

    def answer(place: int) -> Sequence[object]:
        operator = model.operators[place]
        given = next((a for a in operator.attribute if a.name == name), None)
        given = given or default(*type_of_operator(operator))
        return _implied(model, operator, name) if given is None else _value(given)

    return answer


def _value(attribute: AttributeProto) -> Sequence[object]:
    match attribute.type:
        case AttributeProto.INT:
            return (attribute.i,)
        case AttributeProto.FLOAT:
            return (_shortest(attribute.f),)
        case AttributeProto.STRING:
            return (attribute.s.decode(errors="replace"),)
        case AttributeProto.INTS:
            return (tuple(attribute.ints),)
        case AttributeProto.FLOATS:
            return (tuple(_shortest(value) for value in attribute.floats),)
        case AttributeProto.STRINGS:
            return (tuple(value.decode(errors="replace") for value in attribute.strings),)
    return ()  # a tensor or a graph, which no text equals


def _shortest(value: float) -> float:
    """Return a float32 as the number that one would write for it: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


_WINDOWED = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Convolutions, and which of their inputs is the weight."""


def _implied(model: Model, operator: NodeProto, name: str) -> Sequence[object]:
    """Return what the words of ONNX's specification, not its schemas, say of an attribute that is left out."""
    given = next((a.ints for a in operator.attribute if a.name == "kernel_shape"), None)
    if operator.op_type in _WINDOWED and given is None:
        place = _WINDOWED[operator.op_type]
        kind = model.tensors.get(operator.input[place]) if len(operator.input) > place else None
        if kind is None or kind.shape is None or not all(isinstance(d, int) for d in kind.shape):
            return ()
        given = kind.shape[2:]
    if given is None:
        return ()
    match name:
        case "kernel_shape":
            return (tuple(given),)
        case "strides" | "dilations":
            return ((1,) * len(given),)
        case "pads":
            return ((0,) * (2 * len(given)),)
    return ()
