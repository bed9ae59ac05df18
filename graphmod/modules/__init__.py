"""From a similarity of boundaries to a module map."""

from graphmod.modules.modularize import modularize
from graphmod.modules.module_map import Module, ModuleMap
from graphmod.modules.segmentation import dissimilarity
from graphmod.modules.shape_cuts import shape_cuts
from graphmod.modules.stability import Stability, stability

__all__ = ["Module", "ModuleMap", "Stability", "dissimilarity", "modularize", "shape_cuts", "stability"]
