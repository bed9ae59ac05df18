"""SeaM (Qi et al., ICSE 2023), as published: the weights that a target problem needs, found by gradients.

run = seam.search(m, data, accuracy=0.99)   # masks on all weights, a head for the target's classes
run.model, run.kept                         # the same graph with zeros, and the share that is not masked
better = seam.finetune(run, data)           # the weights that are left are trained
other = seam.transfer(m, other_data)        # indirect reuse: a network for another data set
"""

from graphmod.methods.seam.choice import Epoch
from graphmod.methods.seam.finetune import finetune
from graphmod.methods.seam.search import SeamRun, search
from graphmod.methods.seam.transfer import Transferred, transfer

__all__ = ["Epoch", "SeamRun", "Transferred", "finetune", "search", "transfer"]
