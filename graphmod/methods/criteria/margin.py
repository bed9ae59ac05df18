r"""Decisions at stake: how far labels fall behind when a block is skipped, counting only what comes near an error.

.. math:: \frac1n \sum_i \max\Big(0, 1 - \log p_{y_i} + \max_{c \ne y_i} \log p_c\Big)

This is the multiclass hinge loss (Crammer & Singer 2001), less that of the whole network. Unlike a divergence it does
not mind predictions that merely lose confidence, which is most of what skipping a block does.
"""

from __future__ import annotations

import numpy as np

from graphmod.data import check_labels
from graphmod.methods.criteria.registry import Evidence, Scores, criterion


@criterion("margin")
def margin(evidence: Evidence) -> Scores:
    """Return by how much the mean hinge loss rises without each block; below 0 where it falls."""
    labels = check_labels(evidence.model, evidence.data)
    whole, without = evidence.predictions
    return np.array([hinge(one, labels) - hinge(whole, labels) for one in without])


def hinge(log_probabilities: Scores, labels: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Return the mean hinge loss of predictions, shape (samples, classes).

    >>> hinge(np.log([[0.5, 0.5], [0.9, 0.1]]), np.array([0, 0]))
    0.5
    """
    rows = np.arange(len(labels))
    others = log_probabilities.copy()
    others[rows, labels] = -np.inf
    return float(np.maximum(0, 1 - log_probabilities[rows, labels] + others.max(axis=1)).mean())
