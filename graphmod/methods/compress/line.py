"""The trunk as a line of positions, runs of which have parts in their place."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from onnx import NodeProto

from graphmod.errors import RefusedError
from graphmod.graph import blocks, boundaries, primary_input
from graphmod.graph.scope import scope
from graphmod.methods.compress.part import Part
from graphmod.model import Model
from graphmod.modules import ModuleMap
from graphmod.rewrite import Region
from graphmod.rewrite.draft import Draft, shared_scope
from graphmod.rewrite.graft import graft
from graphmod.rewrite.region import operators_between, sole_producer


@dataclass(frozen=True, eq=False)
class Line:
    """A model, and the positions on its trunk at which runs may begin and end.

    Parameters
    ----------
    original : Model
    tensors : tuple of str
        The primary input, then boundaries.
    paths : tuple of str
        For each, the path of the block that ends there.
    """

    original: Model
    tensors: tuple[str, ...]
    paths: tuple[str, ...]

    @classmethod
    def of(cls, model: Model) -> Line:
        """Return the line of all boundaries."""
        tensors = (primary_input(model), *boundaries(model))
        ends = {block.exit: block.path for block in blocks(model).walk()}
        return cls(model, tensors, tuple(ends.get(name, name) for name in tensors))

    def at(self, tensors: Collection[str]) -> Line:
        """Return the line with these positions only."""
        kept = [i for i, name in enumerate(self.tensors) if name in tensors]
        return Line(self.original, tuple(self.tensors[i] for i in kept), tuple(self.paths[i] for i in kept))

    def __len__(self) -> int:
        """Return the number of positions."""
        return len(self.tensors)

    def steps(self) -> list[Region]:
        """Return what lies between neighbouring positions."""
        return [Region(a, b) for a, b in pairwise(self.tensors)]

    def runs(self, modules: ModuleMap) -> list[tuple[int, int]]:
        """Return the pairs of positions that lie in one module.

        Raises
        ------
        RefusedError
            A module has a tensor that is no boundary of the trunk.
        """
        place = {tensor: i for i, tensor in enumerate(self.tensors)}
        known = {self.tensors[0], *boundaries(self.original)}
        found = []
        for module in modules:
            unknown = next((tensor for tensor in module.boundaries if tensor not in known), None)
            if unknown is not None:
                raise RefusedError(
                    f"'{unknown}' of the module map is no boundary of the trunk; make the map of boundaries"
                )
            inside = [place[tensor] for tensor in module.boundaries if tensor in place]
            found += [(a, b) for i, a in enumerate(inside) for b in inside[i + 1 :]]
        return found

    def build(self, parts: Iterable[Part]) -> Model:
        """Return the model with parts in the place of what lies between their entries and exits, checked once.

        Raises
        ------
        RefusedError
            The operator at an exit makes other tensors that are needed elsewhere.
        """
        place = {tensor: i for i, tensor in enumerate(self.tensors)}
        draft = Draft(self.original)
        holds: dict[str, str] = {}
        for part in sorted(parts, key=lambda one: place[one.entry]):
            entry = holds.get(part.entry, part.entry)
            if part.model is None and part.exit not in draft.outputs:
                draft.redirect(part.exit, entry)
                holds[part.exit] = entry
                continue
            old = sole_producer(draft, part.exit)
            if part.model is None:
                draft.add([NodeProto(op_type="Identity", input=[entry], output=[part.exit])], old)
            else:
                reads = {name: holds.get(name, name) for name in part.model.inputs}
                within = _scope(self.original, part)
                graft(draft, part.model, reads, {part.exit: part.exit}, prefix=part.exit, at=old, within=within)
            draft.discard(old)
        return draft.finish()


def _scope(model: Model, part: Part) -> str:
    """Return the scope that a part's operators get; those that come from the network have their own."""
    if part.model is not None and any(scope(operator) for operator in part.model.operators):
        return ""
    return shared_scope(operators_between(model, Region(part.entry, part.exit)))


def touched(line: Line, parts: Sequence[Part], weighty: Collection[int]) -> list[tuple[str, str]]:
    """Return the parts that have weights, and behind each part the next step that has, as pairs of tensors.

    Parameters
    ----------
    line : Line
    parts : sequence of Part
    weighty : collection of int
        Positions behind which the next step has weights.
    """
    place = {tensor: i for i, tensor in enumerate(line.tensors)}
    taken = {i for part in parts for i in range(place[part.entry], place[part.exit])}
    holds: dict[str, str] = {}
    places: list[tuple[str, str]] = []
    for part in sorted(parts, key=lambda one: place[one.entry]):
        entry = holds.get(part.entry, part.entry)
        if part.model is None:
            holds[part.exit] = entry
        elif any(kind.is_float for kind in part.model.constants.values()):
            places.append((entry, part.exit))
        behind = next((i for i in range(place[part.exit], len(line) - 1) if i in weighty), None)
        if behind is not None and behind not in taken:
            start = line.tensors[behind]
            places.append((holds.get(start, start), line.tensors[behind + 1]))
    return list(dict.fromkeys(places))
