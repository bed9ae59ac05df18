r"""Cohesion and coupling: how alike the gates of samples are, of one class and of different ones.

With the gate vector :math:`M_l(i)` of sample :math:`i` at layer :math:`l`, and the pairs :math:`i < j` of a batch that
have one label or two (MwT, equations 2 and 3),

.. math::

    \mathrm{cohesion} = \frac{1}{L} \sum_l \mathrm{mean}_{y_i = y_j} \cos(M_l(i), M_l(j)), \qquad
    \mathrm{coupling} = \frac{1}{L} \sum_l \mathrm{mean}_{y_i \ne y_j} \cos(M_l(i), M_l(j)).

A modular network has a large cohesion and a small coupling: the published code lessens one minus the former and the
latter. There a batch without a pair of a kind gives no number; here such a mean is left out of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def cohesion(gates: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return the mean cosine of the gates of samples of one class, 1 where no two samples are of one.

    Parameters
    ----------
    gates : sequence of Tensor, shape (samples, kernels)
        Those of every layer.
    labels : Tensor, shape (samples,)

    Examples
    --------
    >>> gates = [torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])]
    >>> float(cohesion(gates, torch.tensor([0, 0, 1]))), float(cohesion(gates, torch.tensor([0, 1, 2])))
    (1.0, 1.0)
    """
    return _mean_cosine(gates, _pairs(labels, same=True), 1.0)


def coupling(gates: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return the mean cosine of the gates of samples of different classes, 0 where all samples are of one.

    Parameters are those of :func:`cohesion`.

    Examples
    --------
    >>> gates = [torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])]
    >>> float(coupling(gates, torch.tensor([0, 0, 1]))), float(coupling(gates, torch.tensor([0, 1, 2])))
    (0.0, 0.3333333432674408)
    """
    return _mean_cosine(gates, _pairs(labels, same=False), 0.0)


def _pairs(labels: Tensor, *, same: bool) -> Tensor:
    """Return which pairs of samples have one label, or two; above the diagonal."""
    alike = labels.unsqueeze(0) == labels.unsqueeze(1)
    return (alike if same else ~alike).triu(diagonal=1)


def _mean_cosine(gates: Sequence[Tensor], pairs: Tensor, otherwise: float) -> Tensor:
    if not pairs.any():
        return torch.tensor(otherwise)
    normed = [functional.normalize(one, dim=1) for one in gates]
    return torch.stack([(one @ one.T)[pairs].mean() for one in normed]).mean()
