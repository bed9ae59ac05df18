"""Modular networks: a module a class, and classifiers composed of modules without training again."""

from graphmod.methods.modular.build import extract, train
from graphmod.methods.modular.library import Library

__all__ = ["Library", "extract", "train"]
