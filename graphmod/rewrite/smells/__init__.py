"""Smells: what :func:`graphmod.lint` looks for, one file a family; all files of this package are read."""

from importlib import import_module
from pkgutil import iter_modules

from graphmod.rewrite.smells.evidence import Evidence
from graphmod.rewrite.smells.registry import SMELLS, Finding, Smell, smell

for found in sorted(iter_modules(__path__), key=lambda found: found.name):
    import_module(f"{__name__}.{found.name}")

__all__ = ["SMELLS", "Evidence", "Finding", "Smell", "smell"]
