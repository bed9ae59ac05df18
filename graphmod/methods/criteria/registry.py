"""The registry of criteria: how much a network would miss a block, in numbers that can be compared among its blocks.

A new criterion is a function with ``@criterion("name")`` in a file of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data
from graphmod.graph import logits
from graphmod.methods.skipping import outputs_without
from graphmod.model import Model
from graphmod.registry import Registry
from graphmod.rewrite import Region

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a criterion may look at.

    Parameters
    ----------
    model : Model
    regions : sequence of Region
        The blocks, of which entry and exit have one type.
    data : Data
        Samples, with labels.
    reference : float64 array, shape (samples, classes), optional
        Logarithms of the probabilities to compare with: those of a network that this one was made of. Its own if None.
    """

    model: Model
    regions: Sequence[Region]
    data: Data
    reference: Scores | None = field(default=None, repr=False)

    @cached_property
    def output(self) -> str:
        """The tensor of the logits: the first output, or what a softmax at its end reads."""
        return logits(self.model)

    @cached_property
    def predictions(self) -> tuple[Scores, list[Scores]]:
        """Logarithms of class probabilities, float64, shape (samples, classes).

        First what the network should predict, ``reference`` if that is given; then what it predicts without each of
        the blocks.
        """
        whole, without = outputs_without(self.model, self.regions, self.data, self.output)
        own = log_softmax(whole) if self.reference is None else self.reference
        return own, [log_softmax(one) for one in without]


Criterion = Callable[[Evidence], Scores]
"""Returns an array of shape (blocks,), finite, larger for blocks that are missed more."""

CRITERIA: Registry[Criterion] = Registry("a criterion")
"""All criteria by name."""

criterion = CRITERIA.register


def log_softmax(outputs: NDArray[np.generic]) -> Scores:
    """Return the logarithms of class probabilities, shape (samples, classes), from logits.

    >>> bool(np.allclose(np.exp(log_softmax(np.array([[0.0, np.log(3)]]))), [[0.25, 0.75]]))
    True
    """
    values: Scores = outputs.reshape(len(outputs), -1).astype(np.float64)
    shifted = values - values.max(axis=1, keepdims=True)
    found: Scores = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
