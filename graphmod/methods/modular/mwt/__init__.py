"""MwT (Qi et al., ICSE 2024), as published: a CNN is trained with gates that make it modular.

run = mwt.train(m, data)            # the original's graph, with gates while it is trained
run.kernels                         # which kernels belong to each class
small = run.compose([3, 5, 8])      # zeros for kernels of other classes, and the rows of these in the last layer
"""

from graphmod.methods.modular.mwt.losses import cohesion, coupling
from graphmod.methods.modular.mwt.training import MwtRun, train

__all__ = ["MwtRun", "cohesion", "coupling", "train"]
