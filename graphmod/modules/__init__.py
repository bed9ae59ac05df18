"""From a similarity of boundaries to a module map."""

from graphmod.modules.modularize import modularize
from graphmod.modules.module_map import Module, ModuleMap
from graphmod.modules.segmentation import dissimilarity

__all__ = ["Module", "ModuleMap", "dissimilarity", "modularize"]
