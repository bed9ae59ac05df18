"""Drawing some samples of many, so that an analysis takes no longer on more data."""

from __future__ import annotations

import numpy as np

from graphmod.arguments import check_whole
from graphmod.data import Data, fixed_batch
from graphmod.errors import InvalidDataError
from graphmod.model import Model


def drawn(model: Model, data: Data, most: int, seed: int) -> Data:
    """Return at most so many samples, in the order of the data: as many as the model takes at a time, or a multiple.

    Of as many samples the same seed draws the same rows.

    Raises
    ------
    InvalidDataError
        There are fewer samples than the model takes at a time.
    RefusedError
        The seed is negative.
    """
    check_whole(0, seed=seed)
    unit = fewest(model, data)
    n = max(1, min(len(data), most) // unit) * unit
    return data if n == len(data) else data[np.sort(np.random.default_rng(seed).choice(len(data), n, replace=False))]


def fewest(model: Model, data: Data) -> int:
    """Return how many samples a model takes at a time, 1 where it takes any number.

    Raises
    ------
    InvalidDataError
        The data has fewer.
    """
    unit = fixed_batch(model) or 1
    if len(data) < unit:
        raise InvalidDataError(f"the model takes {unit} samples at a time, and the data has {len(data)}")
    return unit
