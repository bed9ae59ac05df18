"""How much the output changes if a part stands in for its run and nothing else changes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from graphmod.methods.compress.activations import Activations
from graphmod.methods.compress.part import Part
from graphmod.methods.compress.running import Runner
from graphmod.model import Model
from graphmod.probe import predict

Array = NDArray[np.generic]

HELD = 1 << 30
"""Bytes of weights in sessions of suffixes that are open at a time."""


@dataclass(frozen=True, eq=False)
class Damage:
    """Measures damage: activations at a part's entry are kept, so that only the part and what lies behind it run.

    Parameters
    ----------
    original : Model
    output : str
        The logits of a classifier, else the main output.
    is_classifier : bool
        Whether damage is the Kullback-Leibler divergence of the predictions, in nats a sample; else it is the squared
        error of the output over its mean square.
    samples : Activations
        Of the original, at all positions.
    """

    original: Model
    output: str
    is_classifier: bool
    samples: Activations
    _suffixes: OrderedDict[str, Runner] = field(default_factory=OrderedDict)

    @cached_property
    def wanted(self) -> NDArray[np.float64]:
        """What the original says."""
        return predict(self.original, self.samples.data, output=self.output).astype(np.float64)

    def of_part(self, part: Part) -> float:
        """Return the damage of one part in the original."""
        given = {**self.samples.data.inputs, part.entry: self.samples.of[part.entry]}
        found = given[part.entry] if part.model is None else Runner(part.model, part.exit)(given)
        return self.between(self.behind(part.exit)({**given, part.exit: found}))

    def between(self, found: Array) -> float:
        """Return how far outputs for the same samples are from the original's."""
        return divergence(found, self.wanted) if self.is_classifier else squared_error(found, self.wanted)

    def behind(self, tensor: str) -> Runner:
        """Return what computes the output from a tensor; the last few are kept open."""
        if tensor not in self._suffixes:
            room = max(2, HELD // max(1, self.original.n_bytes))
            while len(self._suffixes) >= room:
                self._suffixes.popitem(last=False)
            self._suffixes[tensor] = Runner.between(self.original, tensor, self.output)
        self._suffixes.move_to_end(tensor)
        return self._suffixes[tensor]


def divergence(found: Array, wanted: Array) -> float:
    """Return the mean Kullback-Leibler divergence of predictions from those wanted, by logits (n, classes, ...).

    >>> divergence(np.zeros((2, 3)), np.ones((2, 3)))
    0.0
    """
    p, q = (log_softmax(value.reshape(len(value), -1).astype(np.float64), axis=1) for value in (wanted, found))
    value = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    return max(0.0, value) if np.isfinite(value) else float("inf")


def squared_error(found: Array, wanted: Array) -> float:
    """Return the squared error over the mean square of what is wanted.

    >>> squared_error(np.zeros(2), np.ones(2))
    1.0
    """
    error = float(((np.asarray(found, np.float64) - np.asarray(wanted, np.float64)) ** 2).mean())
    square = float((np.asarray(wanted, np.float64) ** 2).mean())
    if not np.isfinite(error):
        return float("inf")
    return error / square if square > 0 else float(error > 0)
