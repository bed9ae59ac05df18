"""Criteria that tell how much a network would miss a block: one file each, and the verb that compares them."""

from graphmod.methods.criteria import cka, gradient, kl, loss, margin, norm_ratio
from graphmod.methods.criteria.greedy import Step, skip_greedily
from graphmod.methods.criteria.rank import Ranking, rank_blocks
from graphmod.methods.criteria.registry import CRITERIA, Criterion, Evidence, criterion

__all__ = [
    "CRITERIA",
    "Criterion",
    "Evidence",
    "Ranking",
    "Step",
    "cka",
    "criterion",
    "gradient",
    "kl",
    "loss",
    "margin",
    "norm_ratio",
    "rank_blocks",
    "skip_greedily",
]
