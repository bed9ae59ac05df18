"""Finding operators by a selector."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import onnx

from graphmod.errors import RefusedError
from graphmod.graph.predicates import Check, Type, bind, closest, glob, readers_of, type_of_operator
from graphmod.graph.selector import Kind, Pattern, Step, parse
from graphmod.model import Model, check_model

State = tuple[int, int]
"""A step of a pattern and the place of an operator that fits it."""


@dataclass(frozen=True)
class Match:
    """Operators that a pattern fits, one a step (an optional step may have none).

    Parameters
    ----------
    operators : tuple of str
        Their names, in the pattern's order (:attr:`Model.operator_names`).
    entry : str
        The first tensor that the first operator reads and that is no constant; "" where it reads none.
    exit : str
        The first tensor that the last operator makes.
    """

    operators: tuple[str, ...]
    entry: str
    exit: str


def find(model: Model, selector: str) -> list[Match]:
    """Return the operators of the main graph that a selector describes.

    Parameters
    ----------
    model : Model
    selector : str
        Such as ``Conv[group=1] > BatchNormalization > Relu|Clip``; docs/selectors.md has the language.

    Returns
    -------
    list of Match
        In the order of the graph; each distinct tuple of operators once.

    Raises
    ------
    RefusedError
        The selector is malformed, or names a type, attribute, block or tensor that does not exist.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> [match.operators[0] for match in gm.find(m, "Conv[scope=layer1.0]")]
    ['node_Conv_644', 'node_Conv_646']
    >>> len(gm.find(m, "Add > Relu"))
    21
    """
    found = {places for pattern in bind_patterns(model, selector) for places in pattern.matches()}
    return [_match(model, places) for places in sorted(found)]


def _match(model: Model, places: Sequence[int]) -> Match:
    first, last = model.operators[places[0]], model.operators[places[-1]]
    read = (name for name in first.input if _is_fed(model, name))
    names = tuple(model.operator_names[place] for place in places)
    return Match(names, next(read, ""), next((name for name in last.output if name), ""))


def _is_fed(model: Model, name: str) -> bool:
    """Whether a tensor is an input or what an operator other than Constant makes; shape inference is not needed."""
    maker = model.producer.get(name)
    return name in model.inputs if maker is None else model.operators[maker].op_type != "Constant"


@dataclass(frozen=True, eq=False)
class BoundStep:
    """A step and what it asks of operators of each type that it admits.

    Parameters
    ----------
    step : Step
    checks : dict
        By type of operator, the checks of every kind in the step that has this type.
    """

    step: Step
    checks: dict[Type, list[tuple[Check, ...]]]

    def fits(self, model: Model, place: int) -> bool:
        """Whether the operator at a place fits."""
        kinds = self.checks.get(type_of_operator(model.operators[place]), ())
        return any(all(check.holds(place) for check in checks) for checks in kinds)

    def failing(self, model: Model, place: int) -> list[Check] | None:
        """Return the checks that an operator of the right type fails, of the kind with fewest; None for other types."""
        kinds = self.checks.get(type_of_operator(model.operators[place]))
        if kinds is None:
            return None
        return min(([check for check in checks if not check.holds(place)] for checks in kinds), key=len)


@dataclass(frozen=True, eq=False)
class BoundPattern:
    """A pattern and a model in which to find it."""

    model: Model
    pattern: Pattern
    steps: tuple[BoundStep, ...]
    by_type: dict[Type, list[int]]

    def following(self, step: int) -> list[int]:
        """Return the steps that may come right after one (-1 is before the first): optional ones can be passed by."""
        found = []
        for number in range(step + 1, len(self.steps)):
            found.append(number)
            if not self.steps[number].step.optional:
                break
        return found

    def can_end(self, step: int) -> bool:
        """Whether every step after one is optional."""
        return all(later.step.optional for later in self.steps[step + 1 :])

    def of_type(self, step: int) -> Iterator[int]:
        """Yield the operators of the types that a step admits."""
        for kind in self.steps[step].checks:
            yield from self.by_type.get(kind, ())

    def links(self) -> dict[State, list[State]]:
        """Return every state that a first step leads to, with the states that may come next; starts come first."""
        pending = [
            (step, place)
            for step in self.following(-1)
            for place in self.of_type(step)
            if self.steps[step].fits(self.model, place)
        ]
        links: dict[State, list[State]] = {state: [] for state in pending}
        while pending:
            step, place = pending.pop()
            links[step, place] = [
                (later, reader)
                for later in self.following(step)
                for reader in readers_of(self.model, place)
                if self.steps[later].fits(self.model, reader)
            ]
            fresh = [state for state in links[step, place] if state not in links]
            links.update((state, []) for state in fresh)
            pending += fresh
        return links

    def whole(self, links: Mapping[State, list[State]]) -> set[State]:
        """Return the states from which the end is reached."""
        found: set[State] = set()
        for state in sorted(links, reverse=True):
            if self.can_end(state[0]) or not found.isdisjoint(links[state]):
                found.add(state)
        return found

    def matches(self) -> list[tuple[int, ...]]:
        """Return the places of operators that fit, step after step."""
        links = self.links()
        ends = {step for step in range(len(self.steps)) if self.can_end(step)}
        whole = self.whole(links)  # nothing else is worth following
        starts = self.following(-1)
        pending: list[tuple[int, tuple[int, ...]]] = [(step, (place,)) for step, place in whole if step in starts]
        found: set[tuple[int, ...]] = set()
        while pending:
            step, places = pending.pop()
            if step in ends:
                found.add(places)
            pending += [
                (later, (*places, place)) for later, place in links[step, places[-1]] if (later, place) in whole
            ]
        optional = any(step.step.optional for step in self.steps)
        return _longest(found) if optional else list(found)


def _longest(found: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Drop matches all of whose operators are in a longer one: an optional step that can be taken is taken."""
    containing: defaultdict[int, list[frozenset[int]]] = defaultdict(list)
    matches = sorted(found)
    for match in matches:
        for place in match:
            containing[place].append(frozenset(match))

    def is_contained(match: tuple[int, ...]) -> bool:
        own = frozenset(match)
        return any(own < other for other in min((containing[place] for place in match), key=len))

    return [match for match in matches if not is_contained(match)]


def bind_patterns(model: Model, selector: str) -> list[BoundPattern]:
    """Parse a selector and look up in a model what it names.

    Raises
    ------
    RefusedError
        As :func:`find` does.
    """
    check_model(model)
    by_type: defaultdict[Type, list[int]] = defaultdict(list)
    for place, operator in enumerate(model.operators):
        by_type[type_of_operator(operator)].append(place)
    patterns = []
    for pattern in parse(selector):
        try:
            steps = tuple(_bind_step(model, step, by_type) for step in pattern.steps)
        except RefusedError as error:
            raise RefusedError(f"in selector '{selector}': {error}") from error
        patterns.append(BoundPattern(model, pattern, steps, by_type))
    return patterns


def _bind_step(model: Model, step: Step, by_type: Iterable[Type]) -> BoundStep:
    checks: defaultdict[Type, list[tuple[Check, ...]]] = defaultdict(list)
    for kind in step.kinds:
        types = [known for known in by_type if admits(kind, known)]
        declared = types or [known for known in _of_onnx() if admits(kind, known)]
        if not declared and kind.domain in (None, *{domain for domain, _ in _of_onnx()}):
            words = {op_type for _, op_type in (*by_type, *_of_onnx())}
            is_name = kind.type_text in model.operator_names
            hint = f"; to pick by name, write [name={kind.type_text}]" if is_name else closest(kind.op_type, words)
            raise RefusedError(f"neither the model nor ONNX has an operator of type '{kind.type_text}'{hint}")
        bound = tuple(bind(model, kind, declared, predicate) for predicate in kind.predicates)
        for known in types:
            checks[known].append(bound)
    return BoundStep(step, dict(checks))


@cache
def _of_onnx() -> frozenset[Type]:
    """Return the types of operator that ONNX itself has."""
    return frozenset((schema.domain or "ai.onnx", schema.name) for schema in onnx.defs.get_all_schemas())


def admits(kind: Kind, known: Type) -> bool:
    """Whether a kind is of a type, predicates apart."""
    domain, op_type = known
    return glob(kind.op_type).fullmatch(op_type) is not None and (
        kind.domain is None or glob(kind.domain).fullmatch(domain) is not None
    )
