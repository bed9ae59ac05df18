"""Global magnitude: the largest weights of the whole network stay, whichever layer they are in (Han et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graphmod.methods.deeparc.sparsity.layers import Layer, Mask
from graphmod.methods.deeparc.sparsity.registry import schedule


@schedule("global")
def global_magnitude(layers: Sequence[Layer], keep: int) -> list[Mask]:
    """Keep the weights of the largest magnitude."""
    return highest([layer.magnitude for layer in layers], keep)


def highest(scores: Sequence[NDArray[np.floating]], n: int) -> list[Mask]:
    """Return masks of the ``n`` highest scores of all arrays together; of equal ones the first."""
    flat = np.concatenate([one.reshape(-1) for one in scores])
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-flat, kind="stable")[:n]] = True
    ends = np.cumsum([one.size for one in scores])[:-1]
    return [part.reshape(one.shape) for part, one in zip(np.split(mask, ends), scores, strict=True)]
