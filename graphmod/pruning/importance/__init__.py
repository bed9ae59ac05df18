"""Importances: what a unit of a channel group is worth; one file each, all files of this package are read."""

from importlib import import_module
from pkgutil import iter_modules

from graphmod.pruning.importance.registry import IMPORTANCE, Evidence, Importance, Scores, importance

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["IMPORTANCE", "Evidence", "Importance", "Scores", "importance"]
