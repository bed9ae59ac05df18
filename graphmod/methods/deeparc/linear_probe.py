r"""A linear probe in closed form: ridge regression of one-hot labels, the largest output wins.

With centred features :math:`X` (n, d) and one-hot labels :math:`Y` less their means,
:math:`W = (X^TX + \lambda I)^{-1} X^TY = X^T (XX^T + \lambda I)^{-1} Y`; whichever of the two systems is smaller is
solved, with :math:`\lambda` a share of the mean eigenvalue of its Gram matrix. Alain & Bengio (2017) train such probes
by descent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve

from graphmod.errors import InvalidDataError, RefusedError
from graphmod.probe import share_correct

RIDGE = 1e-2
"""Default ridge."""

_LEAST = 1e-9
"""Less than that is lost in the rounding of Gram matrices."""


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
        Share of the mean eigenvalue of the smaller Gram matrix, at least 1e-9.

    Raises
    ------
    RefusedError
        The ridge is out of range.
    InvalidDataError
        Features are infinite or NaN.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1], 50)
    >>> apart = rng.normal(size=(100, 3)) + 8 * labels[:, None]
    >>> fit_probe(apart, labels).accuracy(apart, labels)
    1.0
    """
    if not _LEAST <= ridge < np.inf:
        raise RefusedError(f"ridge={ridge} is out of range; a probe needs at least {_LEAST}")
    rows = _rows(features)
    if not np.isfinite(rows).all():
        raise InvalidDataError("representations are not all finite, so no probe can be fitted to them")
    mean = rows.mean(axis=0)
    x = rows - mean
    one_hot = np.eye(int(labels.max()) + 1)[labels]
    bias = one_hot.mean(axis=0)
    n, d = x.shape
    gram = x.T @ x if d <= n else x @ x.T
    gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / max(1, len(gram)) or 1.0  # any, if nothing varies
    y = one_hot - bias
    weight = solve(gram, x.T @ y, assume_a="pos") if d <= n else x.T @ solve(gram, y, assume_a="pos")
    return Probe(weight, bias, mean)


def _rows(features: NDArray[np.generic]) -> NDArray[np.float64]:
    return features.reshape(len(features), -1).astype(np.float64)
