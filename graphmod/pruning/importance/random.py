"""Random: what every other importance has to beat."""

from __future__ import annotations

import zlib

import numpy as np

from graphmod.pruning.groups import Group
from graphmod.pruning.importance.registry import Evidence, Scores, importance


@importance("random")
def random(group: Group, evidence: Evidence) -> Scores:
    """Uniform between 0 and 1, by the seed and the group's name alone."""
    return np.random.default_rng([evidence.seed, zlib.crc32(group.name.encode())]).random(group.n_units)
