"""Parts of a network run on arrays, by a session that stays open."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch
from graphmod.graph import subgraph
from graphmod.model import Model
from graphmod.model.session import run

Array = NDArray[np.generic]

BATCH = 256
"""Samples at a time."""


class Runner:
    """A model with one output that is wanted, on as many threads as PyTorch uses.

    Parameters
    ----------
    model : Model
    output : str
        One of its outputs, or its input, which is handed on.
    """

    def __init__(self, model: Model, output: str) -> None:
        self._inputs, self._output = list(model.inputs), output
        self._fixed = fixed_batch(model)
        self._session = None if output in model.inputs else model.session(torch.get_num_threads())

    @classmethod
    def between(cls, model: Model, entry: str, exit_: str) -> Runner:
        """Return what lies between two tensors of a model."""
        return cls(subgraph(model, [entry], [exit_]), exit_)

    def __call__(self, given: Mapping[str, Array]) -> Array:
        """Return the output for arrays by name, of which some may not be needed; samples along axis 0."""
        if self._session is None:
            return given[self._output]
        data = Data({name: given[name] for name in self._inputs})
        batches = data.batches(self._fixed or BATCH, self._fixed or 1)
        return np.concatenate([run(self._session, [self._output], batch.inputs)[0] for batch in batches])
