"""The true loss: cross-entropy with the labels when a block is skipped, less that of the whole network."""

from __future__ import annotations

import numpy as np

from graphmod.data import check_labels
from graphmod.methods.criteria.registry import Evidence, Scores, criterion


@criterion("loss")
def loss(evidence: Evidence) -> Scores:
    """Return by how much the mean cross-entropy rises without each block, in nats; below 0 where it falls."""
    labels = check_labels(evidence.model, evidence.data)
    rows = np.arange(len(labels))
    whole, without = evidence.predictions
    return np.array([(whole - one)[rows, labels].mean() for one in without])
