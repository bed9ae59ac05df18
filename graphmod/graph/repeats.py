"""Repeated parts: runs of operators that occur several times with equal structure.

Operators are put in the order in which a walk from the outputs, inputs first, leaves them: it depends on the structure
alone, keeps what belongs together side by side, and no path of data leaves a run of neighbours and comes back. Runs are
compared by hashes: of each operator the fingerprint (round 0 of Weisfeiler-Leman), refined with every operator that a
run takes in by what it reads of the run, so that equal hashes mean equal wiring. All runs of one length are hashed at
once, in array arithmetic; a run is given up once nothing longer could save more than what was found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphmod.graph.fingerprint import attribute_key, digest, operator_hashes
from graphmod.graph.scope import common_scope, scope_parts
from graphmod.model import Model, has_bodies

Places = NDArray[np.int64]
Hashes = NDArray[np.uint64]

_OUTSIDE = 2**40
"""A distance that no operator of a graph has from another: what is read comes from outside of the run."""


@dataclass(frozen=True)
class Repeat:
    """A part of a graph that occurs several times.

    Parameters
    ----------
    occurrences : tuple of tuple of int
        Of each occurrence the places of its operators in ``model.operators``, those of the first in the order of the
        file; those at the same position correspond.
    """

    occurrences: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        """How many operators one occurrence has."""
        return len(self.occurrences[0])

    @property
    def saved(self) -> int:
        """How many operators are there but once if the part is."""
        return (len(self.occurrences) - 1) * self.size


def repeats(model: Model, size: int = 4) -> list[Repeat]:
    """Return parts of the main graph that occur several times, none of which share operators.

    Operators correspond if they are of one type, with equal attributes, read constants of equal dtype and shape (short
    integer constants: of equal values) and are wired alike. Parts are taken greedily, the one that saves most operators
    first; of equal ones that whose operators lie deepest in one scope, then that with fewest tensors to the outside. No
    part depends on what depends on it. Operators that carry subgraphs are in none.

    Parameters
    ----------
    model : Model
    size : int
        The fewest operators that a part has.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> [(part.size, len(part.occurrences)) for part in repeats(m)][0]
    (5, 7)
    """
    runs = _Runs(model)
    found = []
    while (part := runs.best(max(size, 1))) is not None:
        found.append(part)
    return found


def structural_order(model: Model) -> list[int]:
    """Return the places of all operators so that each comes after those it reads from, close to the one that reads it.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> sorted(structural_order(m)) == list(range(len(m.operators)))
    True
    """
    roots = [model.producer[name] for name in model.outputs if name in model.producer]
    sources = [list(dict.fromkeys(model.producer[t] for t in reads if t in model.producer)) for reads in model.reads]
    order: list[int] = []
    entered = [False] * len(sources)
    for root in (*roots, *range(len(sources))):
        pending: list[tuple[int, Iterator[int]]] = [] if entered[root] else [(root, iter(sources[root]))]
        entered[root] = True
        while pending:
            place, rest = pending[-1]
            source = next((one for one in rest if not entered[one]), None)
            if source is None:
                order.append(place)
                pending.pop()
            else:
                entered[source] = True
                pending.append((source, iter(sources[source])))
    return order


class _Runs:
    """Runs of neighbours in the structural order, by their first place in it."""

    def __init__(self, model: Model):
        self.model = model
        self.order = structural_order(model)
        self.scopes = [scope_parts(operator) for operator in model.operators]
        self.free = np.ones(len(self.order), bool)
        self.fixed = {*model.initializers, *(tensor.values.name for tensor in model._proto.graph.sparse_initializer)}
        labels = operator_hashes(model, rounds=0)
        rank = {place: i for i, place in enumerate(self.order)}
        slots, distances, readers = [], [], []
        own = np.zeros(len(self.order), np.uint64)
        for i, place in enumerate(self.order):
            operator = model.operators[place]
            own[i] = (
                digest(labels[place], *(attribute_key(a, model.folder) for a in operator.attribute))
                if _is_constant(operator)
                else labels[place]
            )
            self.free[i] = not has_bodies(operator)
            for slot, tensor in enumerate(operator.input):
                source = model.producer.get(tensor)
                if source is None and (not tensor or tensor in self.fixed):
                    continue
                made = 0 if source is None else list(model.operators[source].output).index(tensor)
                slots.append(slot << 16 | made)
                distances.append(_OUTSIDE if source is None else i - rank[source])
                readers.append(i)
        reads, self.distances, self.readers = (np.array(x, np.int64) for x in (slots, distances, readers))
        outside = _scatter((reads >> 16).astype(np.uint64))
        inside = _scatter(_scatter(reads.astype(np.uint64)) ^ self.distances.astype(np.uint64))
        self.gain = inside - outside
        self.alone = own
        np.add.at(self.alone, self.readers, outside)
        nearest = np.argsort(self.distances, kind="stable")
        self.distances, self.readers, self.gain = self.distances[nearest], self.readers[nearest], self.gain[nearest]

    def best(self, size: int) -> Repeat | None:
        """Return the part that saves most among operators that are in no part yet, and take these."""
        leader: tuple[tuple[int, int, int], int, Places] | None = None
        for length, hashes, starts in self._lengths():
            saved = leader[0][0] if leader else 0
            keep, groups = _groups(hashes, starts, saved)
            yielding = [group for group in groups if _bound(group, length) >= max(saved, 1)] if length >= size else []
            for group in yielding:
                chosen = _apart(group, length)
                worth = (len(chosen) - 1) * length
                if worth and (leader is None or worth >= leader[0][0]):
                    key = (worth, *self._cohesion(int(chosen[0]), length))
                    if leader is None or key > leader[0]:
                        leader = key, length, chosen
            self._keep = keep
        if leader is None:
            return None
        _, length, chosen = leader
        for start in chosen:
            self.free[start : start + length] = False
        as_in_file = np.argsort(self.order[chosen[0] : chosen[0] + length])
        return Repeat(tuple(tuple(self.order[start + i] for i in as_in_file.tolist()) for start in chosen.tolist()))

    def _lengths(self) -> Iterator[tuple[int, Hashes, Places]]:
        """Yield lengths with the hashes and starts of runs; :attr:`_keep` then says which of them may become longer."""
        starts = np.flatnonzero(self.free)
        hashes = np.zeros(len(starts), np.uint64)
        seen, n_near = self.alone.copy(), 0
        length = 0
        while len(starts):
            ends = starts + length
            inside = ends < len(self.free)
            inside[inside] = self.free[ends[inside]]
            starts, hashes = starts[inside], hashes[inside]
            n_nearer = int(np.searchsorted(self.distances, length, "right"))
            np.add.at(seen, self.readers[n_near:n_nearer], self.gain[n_near:n_nearer])
            n_near = n_nearer
            hashes = _scatter(hashes + seen[starts + length])
            length += 1
            yield length, hashes, starts
            starts, hashes = starts[self._keep], hashes[self._keep]

    def _cohesion(self, start: int, length: int) -> tuple[int, int]:
        """Return how deep in one scope a run lies, and how few tensors connect it to the outside."""
        places = self.order[start : start + length]
        operators = [self.model.operators[place] for place in places]
        depth = len(common_scope(self.scopes[place] for place in places))
        made = {tensor for operator in operators for tensor in operator.output}
        read = {t for op in operators for t in op.input if t not in made and t not in self.fixed}
        inner = set(places)
        given = {t for t in made if t in self.model.outputs or not inner.issuperset(self.model.readers.get(t, ()))}
        return depth, -len(read) - len(given)


def _is_constant(operator: object) -> bool:
    return getattr(operator, "op_type", "") == "Constant"


def _groups(hashes: Hashes, starts: Places, saved: int) -> tuple[NDArray[np.bool_], list[Places]]:
    """Group runs by hash; drop those that are alone, and those that lie too close together to save more than this."""
    order = np.argsort(hashes, kind="stable")
    first = np.flatnonzero(np.r_[True, np.diff(hashes[order]) != 0]) if len(order) else np.zeros(0, np.int64)
    last = np.r_[first[1:], len(order)] - 1 if len(order) else first
    span = starts[order[last]] - starts[order[first]]
    good = span > saved if saved else last > first
    reach = span >= saved
    groups = [
        starts[order[a : b + 1]]
        for a, b in zip(first[reach & (last > first)], last[reach & (last > first)], strict=True)
    ]
    keep = np.zeros(len(starts), bool)
    keep[order] = np.repeat(good, last - first + 1)
    return keep, groups


def _bound(starts: Places, length: int) -> int:
    """Return what a group of runs saves at most."""
    return int(min(len(starts) - 1, (starts[-1] - starts[0]) // length) * length)


def _apart(starts: Places, length: int) -> Places:
    """Return runs that do not overlap, from the first on."""
    if len(starts) < 2 or np.diff(starts).min() >= length:
        return starts
    chosen, end = [], 0
    for start in starts.tolist():
        if start >= end:
            chosen.append(start)
            end = start + length
    return np.array(chosen, np.int64)


def _scatter(values: Hashes) -> Hashes:
    """Return values scattered over 64 bits (the finalizer of SplitMix64; Steele, Lea & Flood 2014)."""
    found = values + np.uint64(0x9E3779B97F4A7C15)
    found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return found ^ (found >> np.uint64(31))
