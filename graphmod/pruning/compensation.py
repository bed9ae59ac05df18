"""Compensation: biases take in what removed channels are on average over data, instead of what they would hold at rest.

Approximate, for a channel is seldom its mean; but a network that is pruned so keeps more of its accuracy untrained.
He et al., Channel Pruning for Accelerating Very Deep Neural Networks (ICCV 2017), and Nagel et al., Data-Free
Quantization Through Weight Equalization and Bias Correction (ICCV 2019), section 4.2, correct biases in this way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data
from graphmod.model import Model
from graphmod.probe import stream
from graphmod.pruning.groups import Groups
from graphmod.pruning.leftovers import settle
from graphmod.pruning.leftovers.known import Known
from graphmod.pruning.removal import cut

Place = tuple[str, int]


def compensate(found: Groups, removed: NDArray[np.bool_], data: Data, batch_size: int = 64) -> Model:
    """Remove units from a network, with their mean activations in the biases of what read them.

    Parameters
    ----------
    found : Groups
    removed : array of bool, shape (n_units,)
        Which units go, in the order of the groups.
    data : Data
        Calibration samples; targets are not needed.
    batch_size : int

    Returns
    -------
    Model

    Raises
    ------
    RefusedError
        All units of an axis would go, or a size is computed in a way that cannot follow.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.pruning import groups
    >>> found = groups(gm.load(gm.demo.model_path()))
    >>> small = compensate(found, np.arange(found.n_units) % 2 == 0, gm.demo.splits().calibration)
    >>> small.n_weights / found.model.n_weights < 0.3
    True
    """
    reads = settle(found, removed).reads
    return cut(found, removed, settle(found, removed, means(found.model, data, reads, batch_size)))


def means(model: Model, data: Data, places: Sequence[Place], batch_size: int = 64) -> dict[Place, Known]:
    """Stream the data through the model and return the means of tensors along one axis each, in float64.

    Parameters
    ----------
    model : Model
    data : Data
    places : sequence of (str, int)
        Tensors and axes.
    batch_size : int
    """
    sums: dict[Place, Known] = {}
    counts = dict.fromkeys(places, 0)
    for _, values in stream(model, data, list(dict.fromkeys(name for name, _ in places)), batch_size, reuse=1):
        for name, axis in places:
            value = values[name]
            others = tuple(i for i in range(value.ndim) if i != axis)
            sums[name, axis] = sums.get((name, axis), 0.0) + value.sum(others, dtype=np.float64)
            counts[name, axis] += value.size // value.shape[axis]
    return {place: total / counts[place] for place, total in sums.items()}
