r"""Conditions: normalisations whose scale and shift depend on which modules are composed.

With the sets' matrix s, shape (samples, conditions), and a table T of a scale (or shift) for every condition, a
normalisation has

.. math:: \gamma_i = \sum_q s_{iq} T_q .

Conditions are the classes, each counting 1 / k in a set of k; the size of the set; and the set of all classes, for
which nothing else counts. What is composed has one set, so that its scales are constants as any network's: they cost
nothing. Slimmable networks (Yu et al., ICLR 2019) have a normalisation for each width for the same reason: what is
summed over fewer channels has other statistics.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from graphmod.methods.gates.left_norm import LeftNorm

Tables = dict[str, NDArray[np.float32]]
"""By the constant that it stands for, a row for every condition."""


def conditions(classes: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return how much each condition counts, for sets of classes as rows.

    Examples
    --------
    >>> conditions(np.array([[True, False, True], [True, True, True]])).tolist()
    [[0.5, 0.0, 0.5, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]
    """
    sizes, n = classes.sum(1), classes.shape[1]
    shares = np.where((sizes < n)[:, None], classes / sizes[:, None], 0)
    return np.hstack([shares, np.eye(n)[sizes - 1]]).astype(np.float32)


class Conditional(nn.Module):
    """A normalisation over channels with a scale and a shift by conditions.

    Parameters
    ----------
    layer : batch normalisation or LeftNorm
        Whose scale and shift all classes begin with.
    n_classes : int
    """

    layer: _BatchNorm | LeftNorm

    def __init__(self, layer: _BatchNorm | LeftNorm, n_classes: int) -> None:
        super().__init__()
        self.layer = layer
        self.scales, self.shifts = (nn.Parameter(_table(given, n_classes)) for given in (layer.weight, layer.bias))

    def forward(self, x: Tensor, gates: Tensor, sets: Tensor) -> Tensor:
        """Normalise ``x``; ``sets``, shape (samples, conditions)."""
        layer, scale, shift = self.layer, sets @ self.scales, sets @ self.shifts
        if isinstance(layer, LeftNorm):
            shape = (len(x), *(1,) * (x.dim() - 2), -1)
            return layer.normalised(x, gates) * scale.reshape(shape) + shift.reshape(shape)
        shape = (len(x), -1, *(1,) * (x.dim() - 2))
        mean, variance = layer.running_mean, layer.running_var
        assert isinstance(mean, Tensor), "what is imported has statistics"
        assert isinstance(variance, Tensor), "as above"
        rate: Tensor = scale * (variance + layer.eps).rsqrt()
        return x * rate.reshape(shape) + (shift - rate * mean).reshape(shape)


def _table(given: object, n_classes: int) -> Tensor:
    """Return a row for every class, one for every size, which counts beside those, and one for all classes."""
    assert isinstance(given, Tensor), "who makes a conditional one has looked for it"
    value = given.detach()
    sizes = torch.zeros(n_classes - 1, len(value))
    return torch.cat([value.repeat(n_classes, 1), sizes, value[None]])
