"""The estimate: what removed channels are on average over data, and what those that are left tell of all."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

from graphmod.pruning.leftovers.known import Known

RIDGE = 1e-3
"""Penalty on how far predictions are from channels themselves, in units of their mean variance."""

PRIOR = 1.0
"""Samples that the penalty counts for besides, so that few of them leave channels what they are."""

ROUNDING = float(np.finfo(np.float32).eps) ** 2
"""Variance, in units of the squared mean, that is nothing but rounding."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Estimate:
    """Moments, over data and positions, of a tensor's channels and of those that are left of them.

    Parameters
    ----------
    mean : float64 array, shape (channels,)
    left_mean : float64 array, shape (left,), optional
        Of what stands for the channels: they themselves, or what a pruned network makes of them.
    covariance : float64 array, shape (left, left), optional
        None where means have to do.
    across : float64 array, shape (channels, left), optional
        Covariance of the channels with what is left of them.
    n_samples : int, optional
        That the moments are of; None where there are so many that it does not matter.
    """

    mean: Known
    left_mean: Known | None = None
    covariance: Matrix | None = None
    across: Matrix | None = None
    n_samples: int | None = None
    _predicted: dict[tuple[bool, bytes], tuple[Matrix, Known] | None] = field(default_factory=dict, repr=False)

    def predicted(self, gone: NDArray[np.bool_], offset: bool = True) -> tuple[Matrix, Known] | None:
        """Return how all channels follow from what is left, ``x ~ slopes @ left + offsets``.

        None where means have to do. A ridge regression in closed form: what is left is penalised for anything but
        being itself, the others for anything but their mean, the more so the fewer samples there are.

        Parameters
        ----------
        gone : array of bool, shape (channels,)
        offset : bool
            Whether there are offsets; zero if not.

        Examples
        --------
        >>> x = np.array([[1.0, 3.0], [2.0, 5.0], [3.0, 7.0]])
        >>> mean, covariance = x.mean(0), np.cov(x.T)
        >>> estimate = Estimate(mean, mean[:1], covariance[:1, :1], covariance[:, :1])
        >>> slopes, offsets = estimate.predicted(np.array([False, True]))
        >>> slopes.round(2).tolist(), offsets.round(2).tolist()
        ([[1.0], [2.0]], [0.0, 1.0])
        """
        key = offset, gone.tobytes()
        if key not in self._predicted:
            self._predicted[key] = self._solved(gone, offset)
        return self._predicted[key]

    def _solved(self, gone: NDArray[np.bool_], offset: bool) -> tuple[Matrix, Known] | None:
        if self.left_mean is None or self.covariance is None or self.across is None:
            return None
        covariance, across = self.covariance.copy(), self.across.copy()
        if not offset:
            covariance += np.outer(self.left_mean, self.left_mean)
            across += np.outer(self.mean, self.left_mean)
        total = float(np.trace(covariance))
        if total <= ROUNDING * float(np.square(self.left_mean).sum()):
            slopes = np.eye(len(gone))[:, ~gone]
        else:
            weight = RIDGE + (PRIOR / self.n_samples if self.n_samples else 0)
            penalty = weight * total / len(covariance)
            covariance[np.diag_indices_from(covariance)] += penalty
            across[np.flatnonzero(~gone), np.arange(len(covariance))] += penalty
            slopes = solve(covariance, across.T, assume_a="pos", overwrite_a=True, overwrite_b=True).T
        return slopes, self.mean - slopes @ self.left_mean if offset else np.zeros(len(gone))
