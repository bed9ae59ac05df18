"""DeepArc (Ren et al., ICSE 2023), as published: what everything beyond it is compared with.

sim = deeparc.similarity(m, data.train)            # CKA between residual sums
modules = deeparc.decompose(sim, threshold=0.95)   # runs of similar blocks
smaller = deeparc.restructure(m, modules, k=3)     # blocks within modules, skipped at random
"""

from graphmod.methods.deeparc.attacks import ATTACKS, Attacked, attack
from graphmod.methods.deeparc.decompose import THRESHOLDS, decompose
from graphmod.methods.deeparc.inside import module_of
from graphmod.methods.deeparc.linear_probe import Probe, fit_probe
from graphmod.methods.deeparc.modularity import modularity
from graphmod.methods.deeparc.properties import PROPERTIES, Properties, properties
from graphmod.methods.deeparc.readapt import readapt
from graphmod.methods.deeparc.removal import Effect, removal
from graphmod.methods.deeparc.repair import repair
from graphmod.methods.deeparc.residual_sums import is_skippable, residual_blocks, residual_sums
from graphmod.methods.deeparc.restructure import restructure
from graphmod.methods.deeparc.similarity import BATCH_SIZE, PASSES, similarity
from graphmod.methods.deeparc.trend import Trend, trend

__all__ = [
    "ATTACKS",
    "BATCH_SIZE",
    "PASSES",
    "PROPERTIES",
    "THRESHOLDS",
    "Attacked",
    "Effect",
    "Probe",
    "Properties",
    "Trend",
    "attack",
    "decompose",
    "fit_probe",
    "is_skippable",
    "modularity",
    "module_of",
    "properties",
    "readapt",
    "removal",
    "repair",
    "residual_blocks",
    "residual_sums",
    "restructure",
    "similarity",
    "trend",
]
