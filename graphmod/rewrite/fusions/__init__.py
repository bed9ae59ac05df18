"""Fusions: what :func:`graphmod.fuse` knows to do, one file a family."""

from importlib import import_module

from graphmod.rewrite.fusions.bench import Bench
from graphmod.rewrite.fusions.registry import FUSIONS, Fusion, Plan, fusion, kinds

for _family in ("neutral", "affine", "chains", "parallel", "padding", "layout"):  # the order in which they are tried
    import_module(f"{__name__}.{_family}")

__all__ = ["FUSIONS", "Bench", "Fusion", "Plan", "fusion", "kinds"]
