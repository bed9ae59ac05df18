"""The language of selectors: from text to patterns of steps. docs/selectors.md is its manual."""

from __future__ import annotations

import re
from dataclasses import dataclass

from graphmod.errors import RefusedError

_SPACE = re.compile(r"\s*")
_TYPE = re.compile(r"(?:([\w.*-]+)::)?([\w.*-]+)")
_KEY = re.compile(r"@?[\w.]+")
_RELATION = re.compile(r"!=|<=|>=|==?|<|>")
_WORD = re.compile(r'[^\s,\[\]"]+')
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


@dataclass(frozen=True)
class Predicate:
    """A condition in brackets, such as ``group=1``.

    Parameters
    ----------
    text : str
        As it was written.
    key, relation : str
    value : str or tuple of str
        A tuple where a list was written, and for ``between`` its two tensors.
    """

    text: str
    key: str
    relation: str
    value: str | tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """A type of operator and the predicates that it must meet; a domain of None is any."""

    domain: str | None
    op_type: str
    predicates: tuple[Predicate, ...]

    @property
    def type_text(self) -> str:
        """The type as one writes it."""
        return self.op_type if self.domain is None else f"{self.domain}::{self.op_type}"


@dataclass(frozen=True)
class Step:
    """One operator of a pattern: any of several kinds."""

    text: str
    kinds: tuple[Kind, ...]
    optional: bool


@dataclass(frozen=True)
class Pattern:
    """Steps of which each reads an output of the one before."""

    text: str
    steps: tuple[Step, ...]


def parse(selector: str) -> tuple[Pattern, ...]:
    """Return the patterns of which a selector is the union.

    Raises
    ------
    RefusedError
        The text is no selector; the message says where it ceases to be one.

    Examples
    --------
    >>> [[step.text for step in pattern.steps] for pattern in parse("Conv[group=1] > Relu?, Gemm")]
    [['Conv[group=1]', 'Relu?'], ['Gemm']]
    """
    reader = _Reader(selector)
    patterns = [_pattern(reader)]
    while reader.take(","):
        patterns.append(_pattern(reader))
    if not reader.at_end:
        raise reader.error("expected '>', '|', ',', '[', '?' or the end")
    return tuple(patterns)


class _Reader:
    """A selector and how far it has been read; spaces count for nothing."""

    def __init__(self, text: str):
        self.text = text
        self.at = 0
        self._skip()

    @property
    def at_end(self) -> bool:
        return self.at == len(self.text)

    def take(self, mark: str) -> bool:
        found = self.text.startswith(mark, self.at)
        if found:
            self.at += len(mark)
            self._skip()
        return found

    def match(self, expression: re.Pattern[str]) -> re.Match[str] | None:
        found = expression.match(self.text, self.at)
        if found:
            self.at = found.end()
            self._skip()
        return found

    def expect(self, mark: str, what: str) -> None:
        if not self.take(mark):
            raise self.error(f"expected {what}")

    def since(self, start: int) -> str:
        return self.text[start : self.at].strip()

    def error(self, message: str) -> RefusedError:
        read = self.text[: self.at].rstrip()
        where = "at its start" if not read else f"after '{read}'" if not self.at_end else "at its end"
        return RefusedError(f"in selector '{self.text}', {where}: {message}")

    def _skip(self) -> None:
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at


def _pattern(reader: _Reader) -> Pattern:
    start = reader.at
    steps = [_step(reader)]
    while reader.take(">"):
        steps.append(_step(reader))
    text = reader.since(start)
    if all(step.optional for step in steps):
        raise RefusedError(f"in selector '{reader.text}': '{text}' consists of optional steps only")
    return Pattern(text, tuple(steps))


def _step(reader: _Reader) -> Step:
    start = reader.at
    kinds = list(_group(reader))
    while reader.take("|"):
        kinds += _group(reader)
    optional = reader.take("?")
    return Step(reader.since(start), tuple(kinds), optional)


def _group(reader: _Reader) -> tuple[Kind, ...]:
    """Read one kind, or several in parentheses whose predicates they share."""
    if not reader.take("("):
        return (_kind(reader),)
    kinds = [_kind(reader)]
    while reader.take("|"):
        kinds.append(_kind(reader))
    reader.expect(")", "'|' or ')'")
    shared = _predicates(reader)
    return tuple(Kind(kind.domain, kind.op_type, kind.predicates + shared) for kind in kinds)


def _kind(reader: _Reader) -> Kind:
    found = reader.match(_TYPE)
    predicates = _predicates(reader)
    if not found and not predicates:
        raise reader.error("expected an operator type, such as Conv, or a predicate, such as [name=*conv1*]")
    return Kind(found[1], found[2], predicates) if found else Kind(None, "*", predicates)


def _predicates(reader: _Reader) -> tuple[Predicate, ...]:
    found: list[Predicate] = []
    while reader.take("["):
        found.append(_predicate(reader))
        while reader.take(","):
            found.append(_predicate(reader))
        reader.expect("]", "',' or ']'; text with spaces, commas or brackets goes in double quotes")
    return tuple(found)


def _predicate(reader: _Reader) -> Predicate:
    start = reader.at
    key = reader.match(_KEY)
    if not key:
        raise reader.error("expected a predicate, such as group=1 or scope=layer3.*")
    relation = reader.match(_RELATION)
    if not relation:
        raise reader.error("expected '=', '!=', '<', '<=', '>' or '>='")
    value = _between(reader) if key[0] == "between" else _value(reader)
    return Predicate(reader.since(start), key[0], "=" if relation[0] == "==" else relation[0], value)


def _value(reader: _Reader) -> str | tuple[str, ...]:
    if not reader.take("["):
        return _word(reader)
    if reader.take("]"):
        return ()
    words = [_word(reader)]
    while reader.take(","):
        words.append(_word(reader))
    reader.expect("]", "',' or ']'")
    return tuple(words)


def _word(reader: _Reader) -> str:
    quoted = reader.match(_QUOTED)
    if quoted:
        return re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL)
    word = reader.match(_WORD)
    if not word:
        raise reader.error("expected a value; text with spaces, commas or brackets goes in double quotes")
    return word[0]


def _between(reader: _Reader) -> tuple[str, str]:
    """Read ``A..B``; each side may be quoted, or missing."""
    if reader.text.startswith('"', reader.at):
        first = _word(reader)
        reader.expect("..", "'..' and the tensor where the paths end")
        rest = ""
    else:
        word = reader.match(_WORD)
        first, dots, rest = (word[0] if word else "").partition("..")
        if not dots or ".." in rest:
            raise reader.error("expected two tensors as in between=A..B; names with '..' go in double quotes")
    if rest or reader.at_end or reader.text[reader.at] in ",]":
        return first, rest
    return first, _word(reader)
