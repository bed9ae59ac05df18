"""Sparsity schedules: weights set to zero by LAMP, global magnitude, Uniform+ or ERK, and trained in between.

Every file of this package is read: a new schedule is one more.
"""

from importlib import import_module
from pkgutil import iter_modules

from graphmod.methods.deeparc.sparsity.layers import Layer, Mask, layers, n_parameters
from graphmod.methods.deeparc.sparsity.prune_retrain import Iteration, SparseRun, prune_retrain
from graphmod.methods.deeparc.sparsity.registry import SCHEDULES, Schedule, schedule
from graphmod.methods.deeparc.sparsity.shorten import shorten
from graphmod.methods.deeparc.sparsity.sparsify import sparsify

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "SCHEDULES",
    "Iteration",
    "Layer",
    "Mask",
    "Schedule",
    "SparseRun",
    "layers",
    "n_parameters",
    "prune_retrain",
    "schedule",
    "shorten",
    "sparsify",
]
