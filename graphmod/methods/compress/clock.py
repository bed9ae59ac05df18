"""What steps and parts take in ONNX Runtime, as shares of what the network takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data
from graphmod.graph import Block
from graphmod.methods.compress.line import Line
from graphmod.methods.compress.part import Part
from graphmod.model import Model
from graphmod.probe import block_latency, latency

ROUNDS = 9
"""Rounds in which whole networks are timed side by side."""


@dataclass(frozen=True, eq=False)
class Clock:
    """Times on one machine, averaged over batch sizes.

    Parameters
    ----------
    line : Line
    data : Data
        Samples that the network is timed on.
    batch_sizes : tuple of int
    """

    line: Line
    data: Data
    batch_sizes: tuple[int, ...]
    _known: dict[tuple[object, ...], float] = field(default_factory=dict)

    @cached_property
    def _timed(self) -> NDArray[np.float64]:
        """Microseconds of every step, a row a batch size."""
        parts = [Block(str(i), step.entry, step.exit, ()) for i, step in enumerate(self.line.steps())]
        times = np.zeros((len(self.batch_sizes), len(parts)))
        for row, size in zip(times, self.batch_sizes, strict=True):
            timed = block_latency(self.line.original, parts, self.data, batch_size=size)
            row[:] = [timed[part.path] for part in parts]
        return times

    @cached_property
    def steps(self) -> NDArray[np.float64]:
        """Share of the latency between each position and the next."""
        share: NDArray[np.float64] = (self._timed / self._timed.sum(axis=1, keepdims=True)).mean(axis=0)
        return share

    def part(self, part: Part, activations: Mapping[str, NDArray[np.generic]]) -> float:
        """Return the share that a part takes; parts of one kind between tensors of the same types take the same.

        Parameters
        ----------
        part : Part
        activations : mapping of str to array
            What its inputs are fed from: at its entry, and the context.
        """
        if part.make is None:
            return 0.0
        tensors = self.line.original.tensors
        key = (part.kind, tensors.get(part.entry), tensors[part.exit], *(() if part.is_exact else _size(part)))
        if key not in self._known:
            assert part.model is not None, "it has something to compute"
            samples = Data({name: activations[name] for name in part.model.inputs})
            block = [Block("part", part.entry, part.exit, ())]
            times = [block_latency(part.model, block, samples, batch_size=size)["part"] for size in self.batch_sizes]
            self._known[key] = float((np.array(times) / self._timed.sum(axis=1)).mean())
        return self._known[key]

    def ratio(self, model: Model) -> float:
        """Return the latency of a whole network over that of the original, run side by side."""
        return self.ratios([model])[0]

    def ratios(self, models: Sequence[Model]) -> list[float]:
        """Return the latencies of whole networks over that of the original, all run side by side."""
        shares = np.zeros((len(self.batch_sizes), len(models)))
        named = {"original": self.line.original, **{str(i): one for i, one in enumerate(models)}}
        for row, size in zip(shares, self.batch_sizes, strict=True):
            feeds = self.data[np.arange(size) % len(self.data)].inputs
            found = latency(named, feeds, rounds=ROUNDS)
            row[:] = [found[str(i)].least / found["original"].least for i in range(len(models))]
        return [float(share) for share in shares.mean(axis=0)]


def _size(part: Part) -> tuple[int, int]:
    """Return what tells parts of one kind apart where they were made of different operators."""
    return (0, 0) if part.model is None else (len(part.model.operators), part.model.n_weights)
