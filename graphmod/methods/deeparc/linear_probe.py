r"""A linear probe in closed form: ridge regression of one-hot labels, the largest output wins.

With centred features :math:`X` (n, d), one-hot labels :math:`Y` less their means, and :math:`\lambda` a share of the
mean squared norm of a sample's features, :math:`W = (X^TX + \lambda I)^{-1} X^TY = X^T (XX^T + \lambda I)^{-1} Y`;
whichever of the two systems is smaller is solved. Alain & Bengio (2017) train such probes by descent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

from graphmod.probe import share_correct

RIDGE = 1e-2
"""Default ridge, as a share of the features' variance."""


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier: the class with the largest ``(x - mean) @ weight + bias``.

    Parameters
    ----------
    weight : array, shape (features, classes)
    bias : array, shape (classes,)
    mean : array, shape (features,)
    """

    weight: NDArray[np.float64] = field(repr=False)
    bias: NDArray[np.float64] = field(repr=False)
    mean: NDArray[np.float64] = field(repr=False)

    def accuracy(self, features: NDArray[np.generic], labels: NDArray[np.integer]) -> float:
        """Return the share of samples, shape (n, ...), whose label it tells."""
        return share_correct((_rows(features) - self.mean) @ self.weight + self.bias, labels)


def fit_probe(features: NDArray[np.generic], labels: NDArray[np.integer], ridge: float = RIDGE) -> Probe:
    """Fit a probe.

    Parameters
    ----------
    features : array, shape (n, ...)
    labels : integer array, shape (n,)
        From 0.
    ridge : float
        Share of the sum of the features' variances, a feature or sample of which there are fewer.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1], 50)
    >>> apart = rng.normal(size=(100, 3)) + 8 * labels[:, None]
    >>> fit_probe(apart, labels).accuracy(apart, labels)
    1.0
    """
    rows = _rows(features)
    mean = rows.mean(axis=0)
    x = rows - mean
    one_hot = np.eye(int(labels.max()) + 1)[labels]
    bias = one_hot.mean(axis=0)
    n, d = x.shape
    gram = x.T @ x if d <= n else x @ x.T
    gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / len(gram) + np.finfo(float).tiny
    y = one_hot - bias
    weight = solve(gram, x.T @ y, assume_a="pos") if d <= n else x.T @ solve(gram, y, assume_a="pos")
    return Probe(weight, bias, mean)


def _rows(features: NDArray[np.generic]) -> NDArray[np.float64]:
    return features.reshape(len(features), -1).astype(np.float64)
