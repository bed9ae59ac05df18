"""The trunk as a line of boundaries, some runs of which are replaced."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, replace

from graphmod.graph import blocks, boundaries, primary_input
from graphmod.model import Model
from graphmod.rewrite import Proposal, Region


@dataclass(frozen=True, eq=False)
class Run:
    """Boundaries ``start`` to ``stop`` (positions on the trunk) with something in their place."""

    start: int
    stop: int
    proposal: Proposal

    def overlaps(self, start: int, stop: int) -> bool:
        """Whether it shares an operator with the run from ``start`` to ``stop``."""
        return self.start < stop and start < self.stop


@dataclass(frozen=True, eq=False)
class Trunk:
    """A model, and the runs of its trunk that are replaced.

    Parameters
    ----------
    original : Model
    tensors : tuple of str
        The primary input, then the boundaries.
    paths : tuple of str
        For each, the path of the block that ends there.
    runs : tuple of Run
        Disjoint.
    """

    original: Model
    tensors: tuple[str, ...]
    paths: tuple[str, ...]
    runs: tuple[Run, ...] = ()

    @classmethod
    def of(cls, model: Model) -> Trunk:
        """Return the trunk of a model with nothing replaced."""
        source = primary_input(model)
        tensors = (source, *boundaries(model))
        ends = {block.exit: block.path for block in blocks(model).walk()}
        return cls(model, tensors, tuple(ends.get(name, name) for name in tensors))

    def without(self, start: int, stop: int) -> Trunk:
        """Return the trunk with the original's operators back in every run that overlaps."""
        return replace(self, runs=tuple(run for run in self.runs if not run.overlaps(start, stop)))

    def with_run(self, run: Run) -> Trunk:
        """Return the trunk with one more run replaced, in place of those that it overlaps."""
        kept = self.without(run.start, run.stop)
        return replace(kept, runs=tuple(sorted((*kept.runs, run), key=lambda one: one.start)))

    def entry(self, position: int) -> str:
        """Return the tensor that holds a boundary's value: one before it, where what lay between was removed."""
        for run in reversed(self.runs):
            if run.stop == position and run.proposal.fit.is_identity:
                position = run.start
        return self.tensors[position]

    def region(self, start: int, stop: int) -> Region:
        """Return the region between two boundaries as it is in the model with its replacements."""
        return Region(self.entry(start), self.tensors[stop])

    def build(self, known: MutableMapping[tuple[Run, ...], Model] | None = None) -> Model:
        """Return the model with all replacements in place.

        Runs can be put in place in any order; ``known`` keeps the models of the runs that it has seen, so that one
        more run costs one more edit.
        """
        known = {} if known is None else known
        if not self.runs:
            return self.original
        if self.runs not in known:
            run = next((run for run in self.runs if self.without(run.start, run.stop).runs in known), self.runs[-1])
            rest = self.without(run.start, run.stop)
            region = rest.region(run.start, run.stop)
            known[self.runs] = replace(run.proposal, region=region).apply(rest.build(known))
        return known[self.runs]

    def touched(self, weighty: Iterable[int]) -> list[tuple[str, str]]:
        """Return the replacements, and behind each the next part with weights, as pairs of tensors.

        ``weighty`` holds the positions of boundaries whose last step has weights.
        """
        heavy = sorted(weighty)
        places: list[tuple[str, str]] = []
        for run in self.runs:
            if not run.proposal.fit.is_identity:
                places.append((self.entry(run.start), self.tensors[run.stop]))
            behind = next((position for position in heavy if position > run.stop), None)
            if behind is not None and not any(other.overlaps(run.stop, behind) for other in self.runs):
                places.append((self.entry(run.stop), self.tensors[behind]))
        return places
