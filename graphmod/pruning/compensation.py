"""Compensation: what is left of a tensor's channels stands for the removed ones, in the weights of what reads them.

A convolution or matrix product of weights W reads channels x, of which y are left. With the regression
``x ~ A y + b`` over data and positions, ``W x ~ (W A) y + W b``: W A are its new weights, W b goes into its bias. Layer
after layer, y is what the network that is pruned and compensated so far makes, and x what the original makes, so that
errors are made good where they can be and do not add up. Other readers (grouped convolutions, weights that several
operators share, axes of many thousand indices) get the mean of removed channels in a bias, where there is one.

He et al., Channel Pruning for Accelerating Very Deep Neural Networks (ICCV 2017), section 3.1, fit what a layer makes,
in the same order; Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction (ICCV 2019),
section 4.2, correct means. BatchNormalizations behind need no new statistics: y and b are fitted under the old ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from graphmod.data import Data, fixed_batch
from graphmod.model import Model
from graphmod.pruning.estimates import means, moments
from graphmod.pruning.frontier import Frontier
from graphmod.pruning.groups import Groups
from graphmod.pruning.held_out import generalises
from graphmod.pruning.leftovers import settle
from graphmod.pruning.plan import plan
from graphmod.pruning.removal import cut

FEW = 32
"""Samples up to which it is checked whether what is fitted to them holds for others."""


def compensate(
    found: Groups,
    removed: NDArray[np.bool_],
    data: Data,
    batch_size: int = 64,
    *,
    by_weights: bool = True,
    progress: bool = False,
) -> Model:
    """Remove units from a network, and let weights and biases of what read them make up for it.

    Parameters
    ----------
    found : Groups
    removed : array of bool, shape (n_units,)
        Which units go, in the order of the groups.
    data : Data
        Calibration samples, of which at most 256 are looked at, fewer of large networks; targets are not needed. Up to
        32 can be too few: where what is fitted to some of them does not hold for the others, :func:`cut` it is.
    batch_size : int
        Samples that run at a time, at most.
    by_weights : bool
        Whether weights take part; biases alone take in means if not. Training recovers more from means: weights that
        are fitted hold for the statistics that they were fitted under, and not for those of a training batch.
    progress : bool
        Show a progress bar.

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

    def fit(some: Data) -> Model:
        return _fitted(found, removed, some, batch_size, by_weights, progress)

    fitted = fit(data)
    if not by_weights or len(data) > FEW:
        return fitted
    plain = cut(found, removed)
    return fitted if generalises(found.model, plain, fit, data) else plain


def _fitted(
    found: Groups, removed: NDArray[np.bool_], data: Data, batch_size: int, by_weights: bool, progress: bool
) -> Model:
    """Return the network that is left, with what the data tell taken in, layer after layer."""
    model, planned = found.model, plan(found, settle(found, removed), data, batch_size, by_weights)
    known = means(model, planned.samples, planned.means, planned.batch_sizes[0])
    batches = list(planned.samples.batches(planned.batch_sizes[1], unit=fixed_batch(model) or 1))
    whole, left = Frontier(batches), Frontier(batches)
    for one in track(planned.rounds, "compensation", disable=not progress, transient=True):
        small = cut(found, removed, settle(found, removed, known))
        whole.advance(model, one.held)
        left.advance(small, one.held)
        for part in one.parts:
            names = list(dict.fromkeys(name for name, _ in part))
            values = zip(whole.values(model, names), left.values(small, names), strict=True)
            known |= moments(found, removed, values, part, planned.most, len(planned.samples))
    return cut(found, removed, settle(found, removed, known))
