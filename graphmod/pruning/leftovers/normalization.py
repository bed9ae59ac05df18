"""Normalisations by known statistics turn constants into constants."""

from __future__ import annotations

import numpy as np

from graphmod.pruning.leftovers.known import Known, spread, unknown
from graphmod.pruning.leftovers.reading import Reading
from graphmod.pruning.leftovers.registry import settles


@settles("BatchNormalization")
def batch_normalization(reading: Reading) -> list[Known | None]:
    """Scale and shift: bias + (x - mean) * scale / sqrt(var + epsilon)."""
    data = reading.known(0)
    if reading.site.attribute("training_mode", 0) or data.ndim < 2:
        return [None]
    scale, bias, mean, variance = (spread(reading.known(place), data.ndim, 1) for place in range(1, 5))
    deviation = np.sqrt(variance + reading.site.attribute("epsilon", 1e-5))
    return [bias + (data - mean) * scale / deviation]


@settles("InstanceNormalization")
def instance_normalization(reading: Reading) -> list[Known | None]:
    """Leave the bias of what is the same everywhere: it equals its mean."""
    data = reading.known(0)
    for axis in range(2, data.ndim):
        reading.drop(0, axis, reading.gone(0, axis), f"{reading.site} normalises over what is left")
    if any(size > 1 for size in data.shape[2:]):
        return [unknown(data.ndim)]
    return [np.where(np.isnan(data), np.nan, spread(reading.known(2), data.ndim, 1))]
