r"""Damage at the output: how far predictions move when a block is skipped.

.. math:: \frac1n \sum_i \mathrm{KL}\big(p(\cdot\mid x_i) \,\|\, p_{\text{without}}(\cdot\mid x_i)\big)
"""

from __future__ import annotations

import numpy as np

from graphmod.methods.criteria.registry import Evidence, Scores, criterion


@criterion("kl")
def kl(evidence: Evidence) -> Scores:
    """Return the mean divergence of the predictions without each block from the network's, in nats."""
    whole, without = evidence.predictions
    return np.array([divergence(whole, one) for one in without])


def divergence(whole: Scores, other: Scores) -> float:
    """Return the mean over rows of KL(p || q), both given as logarithms; what has no probability in p adds nothing.

    >>> divergence(np.log([[0.5, 0.5]]), np.log([[0.5, 0.5]]))
    0.0
    """
    p = np.exp(whole)
    apart = np.subtract(whole, other, out=np.zeros_like(whole), where=p > 0)
    return float((p * apart).sum(axis=1).mean())
