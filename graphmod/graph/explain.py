"""Why operators nearly match a selector and do not: which operator, which step, which predicate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from graphmod.graph.predicates import Check, Type, closest, readers_of, type_of_operator
from graphmod.graph.select import BoundPattern, BoundStep, State, admits, bind_patterns
from graphmod.model import Model, check_model, inner_operators, with_inner

_SHOWN = 4
"""Names that a message lists before it only counts."""


@dataclass(frozen=True)
class NearMiss:
    """A match that fails.

    Parameters
    ----------
    operators : tuple of str
        The operators that fit one step after the other, and last the one whose predicates fail, if that is the reason.
    step : int
        The step that nothing fits, from 1.
    reason : str
        What is in the way, as a sentence.
    """

    operators: tuple[str, ...]
    step: int
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class _Miss:
    """A near miss, by places, with its rank: a type that is not there, steps that fit, predicates that fail."""

    fitting: int
    failing: int
    places: tuple[int, ...]
    step: int
    reason: str
    hopeless: bool = False

    @property
    def rank(self) -> tuple[bool, int, bool, int, tuple[int, ...], int]:
        return not self.hopeless, -self.fitting, not self.failing, self.failing, self.places, self.step


def explain(model: Model, selector: str) -> list[NearMiss]:
    """Return what nearly matches a selector, and why it does not.

    First comes what nothing can match, a step of which the model has no operator; then what came furthest.

    Parameters
    ----------
    model : Model
    selector : str
        As for :func:`find`.

    Raises
    ------
    RefusedError
        The selector is malformed, or names a type, attribute, block or tensor that does not exist.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> print(gm.explain(m, "Gemm[transB=0]")[0])
    step 1 of 'Gemm[transB=0]': Gemm 'node_linear' fails transB=0: it is 1
    """
    check_model(model)
    hidden = list(_hidden(model))
    misses = [miss for pattern in bind_patterns(model, selector) for miss in _misses(pattern, hidden)]
    names = model.operator_names
    found = (
        NearMiss(tuple(names[place] for place in miss.places), miss.step + 1, miss.reason)
        for miss in sorted(misses, key=lambda miss: miss.rank)
    )
    return list(dict.fromkeys(found))


def _misses(pattern: BoundPattern, hidden: Sequence[tuple[Type, str]]) -> Iterator[_Miss]:
    model = pattern.model
    for step in pattern.following(-1):
        for place in pattern.of_type(step):
            failing = pattern.steps[step].failing(model, place)
            if failing:
                yield _failed_checks(pattern, step, (), place, failing)
    links = pattern.links()
    whole = pattern.whole(links)
    paths: dict[State, tuple[int, ...]] = {}
    told: set[int] = set()
    for state, reached in links.items():
        path = paths.setdefault(state, (state[1],))
        for later in reached:
            paths.setdefault(later, (*path, later[1]))
        if not reached and state not in whole:
            told.add(path[0])
            yield from _dead_end(pattern, state[0], path)
    starts = pattern.following(-1)
    for state in links:  # what ends where another start was told to end
        if state[0] in starts and state not in whole and state[1] not in told:
            end, path = state, (state[1],)
            while links[end]:
                end = links[end][0]
                path += (end[1],)
            yield from _dead_end(pattern, end[0], path)
    for step in range(len(pattern.steps)):
        yield from _absent(pattern, step)
        yield from _in_bodies(pattern, step, hidden)


def _reason(pattern: BoundPattern, step: int, message: str) -> str:
    return f"step {step + 1} of '{pattern.pattern.text}': {message}"


def _failed_checks(
    pattern: BoundPattern, step: int, before: tuple[int, ...], place: int, failing: Sequence[Check]
) -> _Miss:
    told = " and ".join(f"{check.predicate.text}: {check.told(place)}" for check in failing)
    message = f"{_operator(pattern.model, place)} fails {told}"
    return _Miss(len(before), len(failing), (*before, place), step, _reason(pattern, step, message))


def _dead_end(pattern: BoundPattern, step: int, places: tuple[int, ...]) -> Iterator[_Miss]:
    """Say why none of an operator's readers fits a next step."""
    model = pattern.model
    following = pattern.following(step)
    readers = readers_of(model, places[-1])
    wrong = [
        _failed_checks(pattern, later, places, reader, failing)
        for later in following
        for reader in readers
        if (failing := pattern.steps[later].failing(model, reader))
    ]
    if wrong:
        yield from wrong
        return
    wanted = " or ".join(dict.fromkeys(_types(pattern.steps[later]) for later in following))
    read = _what_reads(model, places[-1], readers, wanted)
    message = f"{_operator(model, places[-1])} matches, but {read}{_past(pattern, following, readers)}"
    yield _Miss(len(places), 0, places, following[-1], _reason(pattern, following[-1], message))


def _what_reads(model: Model, place: int, readers: Sequence[int], wanted: str) -> str:
    made = [name for name in model.operators[place].output if name]
    told = _several([f"'{name}'" for name in made])
    outputs = f"its output {told} is" if len(made) == 1 else f"its outputs {told} are"
    if readers:
        return f"{outputs} read by {_several([_operator(model, reader) for reader in readers])}, not by {wanted}"
    ends = " but put out by the model" if any(name in model.outputs for name in made) else ""
    return f"{outputs} read by no operator{ends}"


def _past(pattern: BoundPattern, following: Iterable[int], readers: Sequence[int]) -> str:
    """Say which operator is in between, where one that fits comes after it."""
    model = pattern.model
    for reader in readers:
        for behind in readers_of(model, reader):
            if any(pattern.steps[later].fits(model, behind) for later in following):
                return f"; {_operator(model, reader)} is between it and {_operator(model, behind)}"
    return ""


def _absent(pattern: BoundPattern, step: int) -> Iterator[_Miss]:
    """Say that the model has no operator of a step's types."""
    if pattern.steps[step].checks or pattern.steps[step].step.optional:
        return
    kinds = pattern.steps[step].step.kinds
    near = closest(kinds[0].op_type, {op_type for _, op_type in pattern.by_type})
    message = f"the model's main graph has no operator of type {_types(pattern.steps[step])}{near}"
    yield _Miss(0, 0, (), step, _reason(pattern, step, message), hopeless=True)


def _in_bodies(pattern: BoundPattern, step: int, hidden: Sequence[tuple[Type, str]]) -> Iterator[_Miss]:
    """Say how many operators of a step's types are where :func:`find` does not look."""
    kinds = pattern.steps[step].step.kinds
    where = Counter(place for known, place in hidden if any(admits(kind, known) for kind in kinds))
    if where:
        told = _several([f"{place} ({count})" for place, count in where.items()])
        message = f"operators of type {_types(pattern.steps[step])} are also in {told}, where find does not look"
        yield _Miss(0, 0, (), step, _reason(pattern, step, message))


def _hidden(model: Model) -> Iterator[tuple[Type, str]]:
    """Yield the types of the operators in bodies and in model-local functions, and where each is."""
    for place, operator in enumerate(model.operators):
        for inner in inner_operators(operator):
            yield type_of_operator(inner), f"a body of {_operator(model, place)}"
    for function in model.functions:
        for operator in with_inner(function.node):
            yield type_of_operator(operator), f"function '{function.domain}::{function.name}'"


def _types(bound: BoundStep) -> str:
    return " or ".join(dict.fromkeys(kind.type_text for kind in bound.step.kinds))


def _operator(model: Model, place: int) -> str:
    return f"{model.operators[place].op_type} '{model.operator_names[place]}'"


def _several(names: Sequence[str]) -> str:
    if len(names) > _SHOWN:
        return f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
