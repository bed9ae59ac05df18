"""Compensation: what is left of a tensor's channels stands for the removed ones, in the weights of what reads them.

A convolution or matrix product of weights W reads channels x, of which y are left. With the regression
``x ~ A y + b`` over data and positions, ``W x ~ (W A) y + W b``: W A are its new weights, W b goes into its bias. Layer
after layer, y is what the network that is pruned and compensated so far makes, and x what the original makes, so that
errors are made good where they can be and do not add up. Other readers (grouped convolutions, weights that several
operators share, axes of many thousand indices) get the mean of removed channels in a bias, where there is one.

He et al., Channel Pruning for Accelerating Very Deep Neural Networks (ICCV 2017), section 3.1, fit what a layer makes,
in the same order; Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019),
section 4.2, correct means. BatchNormalizations behind need no new statistics, since y and b are fitted under the old ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch
from graphmod.model import Model
from graphmod.pruning.estimates import Place, means, moments
from graphmod.pruning.groups import Groups
from graphmod.pruning.leftovers import settle
from graphmod.pruning.removal import cut

ROUNDS = 128
"""Times that the samples run at most, each time through what precedes; deeper networks take several layers at once."""

MOST = 256
"""Samples that count, spread over the data."""

WIDEST = 4096
"""Indices of an axis up to which some of them stand for others."""

_BUDGET = 1 << 26
"""Scalars of moments that are summed up at a time; where a round has more, the samples run again."""


def compensate(
    found: Groups, removed: NDArray[np.bool_], data: Data, batch_size: int = 64, *, by_weights: bool = True
) -> Model:
    """Remove units from a network, and let weights and biases of what read them make up for it.

    Parameters
    ----------
    found : Groups
    removed : array of bool, shape (n_units,)
        Which units go, in the order of the groups.
    data : Data
        Calibration samples, of which at most 256 are looked at; targets are not needed.
    batch_size : int
    by_weights : bool
        Whether weights take part; biases alone take in means if not. Training recovers more from means: weights that
        are fitted hold for the statistics that they were fitted under, and not for those of a training batch.

    Returns
    -------
    Model

    Raises
    ------
    RefusedError
        All units of an axis would go, or a size is computed in a way that cannot follow.
    InvalidDataError
        The samples do not fit the network, or make values that are not finite.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.pruning import groups
    >>> found = groups(gm.load(gm.demo.model_path()))
    >>> removed = np.zeros(found.n_units, bool)
    >>> removed[-8:] = True  # of the last group
    >>> small = compensate(found, removed, gm.demo.splits().calibration[:64])
    >>> small.n_weights < found.model.n_weights
    True
    """
    model, settled, samples = found.model, settle(found, removed), _some(found.model, data)
    sizes = {(name, axis): len(found.analysis.axes[name][axis]) for name, axis in settled.reads}
    fitted = {place: None for place in settled.mixable if by_weights and sizes[place] <= WIDEST}
    known = means(model, samples, [place for place in settled.reads if place not in fitted], batch_size)
    for places in _rounds(model, list(fitted)):
        small = cut(found, removed, settle(found, removed, known))
        for part in _parts(places, [sizes[place] ** 2 for place in places]):
            known |= moments(found, removed, small, samples, part, batch_size)
    return cut(found, removed, settle(found, removed, known))


def _some(model: Model, data: Data) -> Data:
    """Return as many samples as are looked at, spread over the data."""
    at_a_time = fixed_batch(model) or 1
    n = max(1, MOST // at_a_time) * at_a_time
    return data if len(data) <= n else data[np.linspace(0, len(data) - 1, n).astype(np.int64)]


def _rounds(model: Model, places: Sequence[Place]) -> Iterator[list[Place]]:
    """Yield places from the inputs on; those of one depth together, since none follows from what reads another."""
    read = {name for name, _ in places}
    depth = dict.fromkeys(model.inputs, 0)
    for operator, names in zip(model.operators, model.reads, strict=True):
        own = max((depth.get(name, 0) + (name in read) for name in names), default=0)
        depth.update(dict.fromkeys(operator.output, own))
    levels: dict[int, list[Place]] = {}
    for name, axis in places:
        levels.setdefault(depth[name], []).append((name, axis))
    together = -(-len(levels) // ROUNDS)
    for start in range(0, len(levels), max(1, together)):
        yield [place for level in sorted(levels)[start : start + together] for place in levels[level]]


def _parts(places: Sequence[Place], scalars: Sequence[int]) -> Iterator[list[Place]]:
    """Yield places whose moments are held at a time."""
    part: list[Place] = []
    n_held = 0
    for place, n in zip(places, scalars, strict=True):
        if part and n_held + n > _BUDGET:
            yield part
            part, n_held = [], 0
        part.append(place)
        n_held += n
    if part:
        yield part
