"""What a training reads, sample by sample: inputs behind the prefix, and what outputs are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graphmod.data import Data
from graphmod.model import Model
from graphmod.train.cache import Cache, Kept, taken
from graphmod.train.imitation import Imitation
from graphmod.train.prefix import Prefix

Goals = Mapping[str, Tensor]
"""What outputs are compared with: "targets", "taught" (by a teacher) and "wanted" (activations to imitate)."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples as a network takes them.

    Parameters
    ----------
    inputs : tuple
        Of the network, in its order.
    goals : mapping
        What its outputs are compared with.
    """

    inputs: tuple[Kept, ...]
    goals: Mapping[str, Kept]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.inputs[0])

    def take(self, rows: Tensor) -> tuple[list[Tensor], Goals]:
        """Return inputs and goals of some samples."""
        goals = {name: taken(kept, rows) for name, kept in self.goals.items()}
        return [taken(kept, rows) for kept in self.inputs], goals

    def batches(self, size: int) -> Iterator[tuple[list[Tensor], Goals]]:
        """Yield all samples in order, at most ``size`` at a time."""
        for part in Data({"rows": np.arange(len(self))}).batches(size):
            yield self.take(torch.from_numpy(part.inputs["rows"]))


@dataclass(frozen=True, eq=False)
class Material:
    """Where samples come from.

    Parameters
    ----------
    prefix : Prefix
    cache : Cache
    teacher : (Model, str), optional
        A model and the tensor of it that is learnt beside the targets.
    imitate : Imitation, optional
    """

    prefix: Prefix
    cache: Cache
    teacher: tuple[Model, str] | None
    imitate: Imitation | None

    def for_training(self, data: Data, shown: Data) -> Samples:
        """Return samples with all that is learnt; ``shown`` is what the model to imitate gets to see."""
        goals: dict[str, Kept] = {}
        if self.teacher is not None:
            model, tensor = self.teacher
            goals["taught"] = self.cache.kept(self.cache.activations(model, data, tensor, 256))
        if self.imitate is not None:
            goals["wanted"] = self._wanted(self.imitate, shown)
        return self._samples(data, goals)

    def for_checks(self, data: Data, shown: Data) -> Samples:
        """Return samples with what decides which weights are kept."""
        if self.imitate is None or not self.imitate.is_local:
            return self._samples(data, {})
        return self._samples(data, {"wanted": self._wanted(self.imitate, shown)})

    def _samples(self, data: Data, goals: dict[str, Kept]) -> Samples:
        cached = self.prefix.cached(data, self.cache)
        if self.imitate is None or not self.imitate.is_local:
            assert cached.targets is not None, "as_splits is asked for targets"
            goals["targets"] = self.cache.kept(cached.targets)
        return Samples(tuple(self.cache.kept(cached.inputs[name]) for name in self.prefix.suffix.inputs), goals)

    def _wanted(self, imitate: Imitation, shown: Data) -> Kept:
        return self.cache.kept(self.cache.activations(imitate.model, shown, imitate.source))
