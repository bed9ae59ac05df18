"""Random samples that fit a model, for checks that need no real data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphmod.data.data import Data, fixed_batch
from graphmod.errors import InvalidDataError
from graphmod.model import Model, TensorType

FREE_SIZE = 32
"""Size of a dynamic dimension other than the batch: long enough for images that are halved five times."""


def noise(model: Model, n_samples: int = 4, seed: int = 0) -> Data:
    """Return random samples: normal floats, and zeros and ones for integers and booleans.

    Parameters
    ----------
    model : Model
    n_samples : int
        Size of axis 0, unless the model fixes it. Other dynamic dimensions are 32.
    seed : int

    Raises
    ------
    InvalidDataError
        An input holds neither numbers nor booleans, or its rank is unknown.

    Examples
    --------
    >>> import graphmod as gm
    >>> len(gm.data.noise(gm.load(gm.demo.model_path())))
    4
    """
    rng = np.random.default_rng(seed)
    batch = fixed_batch(model) or n_samples
    return Data({name: _draw(name, kind, batch, rng) for name, kind in model.inputs.items()})


def _draw(name: str, kind: TensorType, batch: int, rng: np.random.Generator) -> NDArray[np.generic]:
    if kind.dtype is None or kind.shape is None or not (kind.is_float or kind.dtype.kind in "iub"):
        raise InvalidDataError(f"input '{name}' is {kind}, for which no random samples can be drawn; pass data")
    free = [batch, *(FREE_SIZE for _ in kind.shape[1:])]
    shape = [size if isinstance(size, int) else default for size, default in zip(kind.shape, free, strict=False)]
    return (rng.normal(size=shape) if kind.is_float else rng.integers(0, 2, shape)).astype(kind.dtype)
