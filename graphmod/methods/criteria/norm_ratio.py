"""The size of what a block adds, against what it adds to: the norm of exit less entry over that of the entry."""

from __future__ import annotations

import numpy as np

from graphmod.methods.criteria.registry import Evidence, Scores, criterion
from graphmod.probe import stream


@criterion("norm_ratio")
def norm_ratio(evidence: Evidence) -> Scores:
    """Return the ratio of the two norms, over all samples; where the entry is 0 throughout, that of the branch."""
    tensors = dict.fromkeys(name for region in evidence.regions for name in (region.entry, region.exit))
    added, trunk = np.zeros(len(evidence.regions)), np.zeros(len(evidence.regions))
    for _, values in stream(evidence.model, evidence.data, list(tensors)):
        wide = {name: value.astype(np.float64) for name, value in values.items()}
        added += [np.square(wide[region.exit] - wide[region.entry]).sum() for region in evidence.regions]
        trunk += [np.square(wide[region.entry]).sum() for region in evidence.regions]
    return np.sqrt(added / np.where(trunk > 0, trunk, 1.0))
