"""Criteria that tell how much a network would miss a block: one file each, and the verb that compares them.

Every file of this package is read: a new criterion is one more.
"""

from importlib import import_module
from pkgutil import iter_modules

from graphmod.methods.criteria.greedy import Step, skip_greedily
from graphmod.methods.criteria.rank import Ranking, rank_blocks
from graphmod.methods.criteria.registry import CRITERIA, Criterion, Evidence, criterion

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "CRITERIA",
    "Criterion",
    "Evidence",
    "Ranking",
    "Step",
    "criterion",
    "rank_blocks",
    "skip_greedily",
]
