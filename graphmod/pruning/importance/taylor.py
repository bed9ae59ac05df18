"""Taylor: how much the loss would change, to first order, without a unit.

Molchanov et al., Importance Estimation for Neural Network Pruning (CVPR 2019), equation 8 with absolute values in place
of squares.
"""

from __future__ import annotations

from graphmod.pruning.groups import Group
from graphmod.pruning.importance.gradients import gradients
from graphmod.pruning.importance.registry import Evidence, Scores, importance


@importance("taylor")
def taylor(group: Group, evidence: Evidence) -> Scores:
    """Absolute value of the sum of weight times gradient over all weights of a unit, mean over batches of 16."""
    return evidence.once(gradients).first[group.own]
