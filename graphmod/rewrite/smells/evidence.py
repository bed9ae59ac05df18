"""The evidence: what several smells ask of a model, computed when the first one asks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property

from onnx import NodeProto

from graphmod.data import Data
from graphmod.errors import GraphmodError
from graphmod.graph.wiring import Constant, Wiring, wiring
from graphmod.model import Model
from graphmod.model.initializers import n_stored_bytes
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.element_types import STANDARD
from graphmod.rewrite.fuse import OPSET, Candidate, candidates
from graphmod.rewrite.fusions import Bench
from graphmod.rewrite.recipe import Edit, apply


class Evidence:
    """A model, and what follows from it.

    Parameters
    ----------
    model : Model
    data : Data, optional
        Samples to run it on.
    data_record : mapping, optional
        How a recipe points to the data.
    """

    def __init__(self, model: Model, data: Data | None = None, data_record: Mapping[str, str] | None = None):
        self.model = model
        self.data = data
        self.data_record = data_record

    @cached_property
    def wiring(self) -> Wiring:
        """Operators and constants, those of bodies and functions too."""
        return wiring(self.model)

    @cached_property
    def live(self) -> frozenset[int]:
        """The points of the wiring on which an output depends."""
        reads = self.wiring.reads
        pending = [i for i, point in enumerate(self.wiring.points) if point.kind == "output"]
        live = set(pending)
        while pending:
            fresh = {read.source for read in reads[pending.pop()]} - live
            live |= fresh
            pending.extend(fresh)
        return frozenset(live)

    @cached_property
    def holders(self) -> Mapping[int, list[tuple[int, str]]]:
        """For every constant of the wiring, the points that read it, and at which slot."""
        found: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
        for point, held in enumerate(self.wiring.held):
            for slot, constant in held.items():
                found[constant].append((point, slot))
        return found

    def readers(self, constant: int) -> list[tuple[str, str, str]]:
        """Return name, type and slot of the operators that read a constant of the wiring."""
        points = self.wiring.points
        return [
            (points[i].name, operator.op_type, slot)
            for i, slot in self.holders.get(constant, ())
            if (operator := points[i].operator) is not None and operator.domain in STANDARD
        ]

    @cached_property
    def overridable(self) -> frozenset[str]:
        """The initializers that a caller may override; before version 4 of the format all were listed as inputs."""
        proto = self.model._proto
        declared = {value.name for value in proto.graph.input} if proto.ir_version >= 4 else set()
        return frozenset(declared & self.model.initializers.keys())

    def constants(self) -> Iterator[tuple[int, Constant]]:
        """Yield the numbers and the constants of the wiring."""
        yield from enumerate(self.wiring.constants)

    def fusable(self, *kinds: str) -> list[Candidate]:
        """Return what could be fused or nearly could; nothing where the opset is too old for it, a smell of its own."""
        return [one for one in self._candidates if one.kind in kinds]

    @cached_property
    def _candidates(self) -> list[Candidate]:
        return candidates(self.model) if self.model.opset >= OPSET else []

    @cached_property
    def bench(self) -> Bench:
        """A bench on which nothing is changed, to read linear maps."""
        return Bench(Draft(self.model))

    def operator(self, name: str) -> NodeProto:
        """Return the operator of a point of the wiring."""
        return self._operators[name]

    @cached_property
    def _operators(self) -> dict[str, NodeProto]:
        return {point.name: point.operator for point in self.wiring.points if point.operator is not None}

    def tried(self, edit: Edit) -> tuple[Edit | None, str]:
        """Return what a finding holds of an edit that may be refused here: the edit, or why it is refused."""
        outcome = self.attempt(edit)
        return (None, outcome) if isinstance(outcome, str) else (edit, "")

    def attempt(self, edit: Edit) -> Model | str:
        """Return the model that an edit makes, or why it is refused."""
        try:
            return apply([edit], self.model, given=[] if self.data is None else [self.data])
        except GraphmodError as error:
            return f"{edit.verb} refuses: {error}"


def stored(constant: Constant) -> int:
    """Return the bytes of a constant's values; 0 for text."""
    return 0 if constant.values.is_text else sum(n_stored_bytes(part.tensor) for part in constant.parts)


def quoted(names: tuple[str, ...] | list[str], most: int = 3) -> str:
    """Return names for a sentence: the first few in quotes, and how many more there are."""
    told = ", ".join(f"'{name}'" for name in names[:most])
    return f"{told} and {len(names) - most:,} more" if len(names) > most else told


def counted(number: int, thing: str, does: str = "") -> str:
    """Return a number with its noun, and its verb if one is given: ``1 operator reads``, ``2 operators read``."""
    one = number == 1
    return f"{number:,} {thing}{'' if one else 's'}" + (f" {does}{'s' if one else ''}" if does else "")
