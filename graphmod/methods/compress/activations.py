"""Activations at the positions of a line: streamed once, kept in memory-mapped files of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch
from graphmod.model import Model
from graphmod.probe import stream

Array = NDArray[np.generic]

BYTES = 1 << 32
"""Bytes on disk that the activations of one part of the data take at most."""

LEAST = 32
"""Samples of which they are kept, however many bytes these take."""


@dataclass(frozen=True, eq=False)
class Activations:
    """Values of tensors for some samples.

    Parameters
    ----------
    data : Data
        The samples.
    of : dict of str to array
        Memory-mapped; samples along axis 0. Tensors that do not have them there are left out.
    """

    data: Data
    of: dict[str, Array] = field(repr=False)

    @classmethod
    def stream(cls, model: Model, data: Data, tensors: Sequence[str], folder: Path, n: int) -> Activations:
        """Run the model once on at most ``n`` samples, fewer where their activations would take too many bytes.

        They are drawn at random, always the same: data may be in the order of their classes.
        """
        unit = fixed_batch(model) or 1
        n = max(1, min(n, len(data)) // unit) * unit
        probe = data[:unit]
        ((_, first),) = stream(model, probe, tensors, unit)
        each = sum(value.nbytes for value in first.values()) // unit
        n = max(min(n, LEAST) // unit, min(n, BYTES // max(1, each)) // unit, 1) * unit
        samples = data[np.random.default_rng(0).permutation(len(data))[:n]]
        kept: dict[str, Array] = {}
        start = 0
        for batch, values in stream(model, samples, tensors):
            stop = start + len(batch)
            for number, name in enumerate(tensors):
                value = values[name]
                is_of_samples = value.ndim and len(value) == len(batch) and not value.dtype.hasobject
                if not is_of_samples or (start and name not in kept):
                    kept.pop(name, None)
                    continue
                if name not in kept:
                    shape = (len(samples), *value.shape[1:])
                    kept[name] = np.lib.format.open_memmap(folder / f"{number}.npy", "w+", value.dtype, shape)
                kept[name][start:stop] = value
            start = stop
        return cls(samples, kept)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.data)
