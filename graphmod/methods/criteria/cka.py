"""Dissimilarity of representations: 1 - CKA between what goes into a block and what comes out, DeepArc's measure."""

from __future__ import annotations

import warnings

import numpy as np

from graphmod.methods.criteria.registry import Evidence, Scores, criterion
from graphmod.probe import similarity


@criterion("cka")
def cka(evidence: Evidence) -> Scores:
    """Return 1 - CKA of entry and exit; 1 where activations never change, so that nothing is known."""
    tensors = dict.fromkeys(name for region in evidence.regions for name in (region.entry, region.exit))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "activations never change, or")
        found = similarity(evidence.model, evidence.data, list(tensors))
    place = {name: i for i, name in enumerate(found.boundaries)}
    alike = [found.matrix[place[region.entry], place[region.exit]] for region in evidence.regions]
    return np.array([1.0 if np.isnan(value) else 1 - value for value in alike])
