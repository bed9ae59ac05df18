"""The figures of a model before and after: size, latency, and the metric on calibration and test data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, Splits
from graphmod.graph import cost
from graphmod.methods.result import Measured
from graphmod.model import Model
from graphmod.probe import latency, predict

ROUNDS = 150
"""How often each model is timed, in turn with the others."""


def latencies(models: Mapping[str, Model], data: Data, batch_sizes: Sequence[int]) -> dict[str, dict[int, float]]:
    """Return the median microseconds of a run of each model, by batch size; samples are taken again where few."""
    timed: dict[str, dict[int, float]] = {name: {} for name in models}
    for size in batch_sizes:
        feeds = data[np.arange(size) % len(data)].inputs
        for name, value in latency(models, feeds, rounds=ROUNDS).items():
            timed[name][size] = value.median
    return timed


def measured(
    model: Model,
    splits: Splits,
    metric: Callable[[NDArray[np.generic], NDArray[np.generic]], float],
    timing: dict[int, float],
) -> Measured:
    """Return the figures of a model whose latencies are known."""
    scores = [metric(predict(model, part), np.asarray(part.targets)) for part in (splits.calibration, splits.test)]
    return Measured(model.n_weights, model.n_bytes, cost(model).macs, timing, *scores)
