"""Matching two models: which operator of one is which of the other, by what they are and how they are wired.

In this order, each step on what the ones before left:

1. inputs and outputs of the models by name;
2. operators whose fingerprint occurs once in each model: with their surroundings some steps wide, then with the values
   of their own constants alone, which is what tells the layers of a repeated block apart; where no values agree,
   without them but with surroundings;
3. operators of one type and name, if names are to be trusted: if they agree with nearly all that was matched without
   them (an exporter that numbers operators shifts every name after an edit);
4. neighbours of what is matched: producers of one input, only readers of their kind of one output; fingerprints become
   coarser from step to step, and where several equal ones are left they are taken by name, else in order;
5. operators with no matched neighbour, where both models have as many of the kind left.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from graphmod.graph.fingerprint import Fingerprints, fingerprints, refine
from graphmod.graph.wiring import Wiring

ROUNDS = 6
"""Steps that surroundings are wide."""

TRUST = 0.9
"""Share of pairs whose names must agree for names to tell more pairs."""

NONE = -1
"""What is matched with nothing."""

Keys = tuple[list[int], list[int]]
K = TypeVar("K")


@dataclass(frozen=True)
class Matching:
    """Two wirings, and which of their points are each other.

    Parameters
    ----------
    a, b : Wiring
    marks : (Fingerprints, Fingerprints)
    to, back : sequence of int
        By point of ``a`` the point of ``b``, and the reverse; -1 where there is none.
    """

    a: Wiring
    b: Wiring
    marks: tuple[Fingerprints, Fingerprints]
    to: Sequence[int]
    back: Sequence[int]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The matched points, in the order of ``a``."""
        return [(i, j) for i, j in enumerate(self.to) if j != NONE]


def match(a: Wiring, b: Wiring) -> Matching:
    """Match the points of two wirings, in time linear in their size."""
    marks = fingerprints(a), fingerprints(b)
    matcher = _Matcher(a, b)

    def keys(level: str, rounds: int = 0) -> Keys:
        left, right = (refine(getattr(mark, level), wired, rounds) for mark, wired in zip(marks, (a, b), strict=True))
        return left.tolist(), right.tolist()

    types, structure, weights = keys("types"), keys("structure"), keys("weights")
    around, shaped = keys("weights", ROUNDS), keys("structure", ROUNDS)
    matcher.by_name(types, "input", "output")
    matcher.unique(around)
    matcher.unique(weights)
    if not matcher.operators:
        matcher.unique(shaped)
    if matcher.names_agree():
        matcher.by_name(types, "operator")
    matcher.grow(around)
    matcher.equal(around)
    matcher.grow(weights)
    matcher.unique(shaped)
    for level in (shaped, structure):
        matcher.grow(level)
    matcher.equal(shaped)
    matcher.grow(types)
    for level in (structure, types):
        matcher.grow(level, ordered=True)
    for level in (weights, structure):
        matcher.equal(level)
    matcher.grow(types, ordered=True)
    return Matching(a, b, marks, matcher.to, matcher.back)


class _Matcher:
    """The pairs found so far, and the steps that find more."""

    def __init__(self, a: Wiring, b: Wiring):
        self.a, self.b = a, b
        self.to = [NONE] * len(a.points)
        self.back = [NONE] * len(b.points)
        self.readers = _readers(a), _readers(b)

    def pair(self, i: int, j: int) -> None:
        self.to[i], self.back[j] = j, i

    def unique(self, keys: Keys) -> None:
        """Pair points whose key occurs once in each model."""
        found = []
        for side in keys:
            counts = Counter(side)
            found.append({key: i for i, key in enumerate(side) if counts[key] == 1})
        for key, i in found[0].items():
            j = found[1].get(key, NONE)
            if j != NONE and self.to[i] == NONE == self.back[j]:
                self.pair(i, j)

    @property
    def operators(self) -> list[tuple[int, int]]:
        """The operators paired so far."""
        return [(i, j) for i, j in enumerate(self.to) if j != NONE and self.a.points[i].kind == "operator"]

    def names_agree(self) -> bool:
        """Whether operators paired without their names have, nearly all, one name."""
        pairs = self.operators
        same = sum(self.a.points[i].name == self.b.points[j].name for i, j in pairs)
        return bool(pairs) and same >= TRUST * len(pairs)

    def by_name(self, types: Keys, *kinds: str) -> None:
        """Pair what is left of some kinds by type and name."""
        named = {
            (types[1][j], point.name): j
            for j, point in enumerate(self.b.points)
            if point.kind in kinds and self.back[j] == NONE
        }
        for i, point in enumerate(self.a.points):
            j = named.get((types[0][i], point.name), NONE) if point.kind in kinds and self.to[i] == NONE else NONE
            if j != NONE:
                self.pair(i, j)

    def equal(self, keys: Keys) -> None:
        """Pair points with one key where both models have as many left, one at a time: each settles its neighbours."""
        groups: list[dict[int, list[int]]] = []
        for side, taken in zip(keys, (self.to, self.back), strict=True):
            groups.append(_grouped((side[i], i) for i, other in enumerate(taken) if other == NONE))
        for key, left in groups[0].items():
            right = groups[1].get(key, [])
            if len(left) != len(right):
                continue
            for i, j in self._ordered(left, right):
                if self.a.points[i].name == self.b.points[j].name:
                    self._settle(i, j, keys)
            free = iter(right)
            for i in left:
                if self.to[i] == NONE:
                    self._settle(i, next((j for j in free if self.back[j] == NONE), NONE), keys)

    def _settle(self, i: int, j: int, keys: Keys) -> None:
        if j != NONE and self.to[i] == NONE == self.back[j]:
            self.pair(i, j)
            self._spread(deque([i]), keys, ordered=False)

    def grow(self, keys: Keys, ordered: bool = False) -> None:
        """Pair neighbours of pairs, and theirs, as far as it goes."""
        self._spread(deque(i for i, j in enumerate(self.to) if j != NONE), keys, ordered)

    def _spread(self, pending: deque[int], keys: Keys, ordered: bool) -> None:
        while pending:
            i = pending.popleft()
            for p, q in self._neighbours(i, self.to[i], keys, ordered):
                if self.to[p] == NONE == self.back[q]:
                    self.pair(p, q)
                    pending.append(p)

    def _neighbours(self, i: int, j: int, keys: Keys, ordered: bool) -> Iterable[tuple[int, int]]:
        there = {read.slot: read for read in self.b.reads[j]}
        for read in self.a.reads[i]:
            other = there.get(read.slot)
            if other is None or other.position != read.position:
                continue
            if keys[0][read.source] == keys[1][other.source]:
                yield read.source, other.source
        left, right = (
            _grouped(
                ((keys[side][reader], slot, position), reader)
                for reader, slot, position in self.readers[side][at]
                if taken[reader] == NONE
            )
            for side, (at, taken) in enumerate(((i, self.to), (j, self.back)))
        )
        for key, readers in left.items():
            others = right.get(key, [])
            if len(readers) == len(others) == 1 or (ordered and others):
                yield from self._ordered(readers, others)

    def _ordered(self, left: Sequence[int], right: Sequence[int]) -> Iterable[tuple[int, int]]:
        """Yield pairs of equal names, then of what is left in order."""
        named = {self.b.points[j].name: j for j in right}
        same = {i: named[self.a.points[i].name] for i in left if self.a.points[i].name in named}
        taken = set(same.values())
        yield from same.items()
        yield from zip((i for i in left if i not in same), (j for j in right if j not in taken), strict=False)


def _readers(wired: Wiring) -> list[list[tuple[int, str, int]]]:
    """Return, by point, who reads it, at which slot, and which of its outputs."""
    readers: list[list[tuple[int, str, int]]] = [[] for _ in wired.points]
    for target, reads in enumerate(wired.reads):
        for slot, source, position in reads:
            readers[source].append((target, slot, position))
    return readers


def _grouped(items: Iterable[tuple[K, int]]) -> dict[K, list[int]]:
    groups: defaultdict[K, list[int]] = defaultdict(list)
    for key, item in items:
        groups[key].append(item)
    return groups
