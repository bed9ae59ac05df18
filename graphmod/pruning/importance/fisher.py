"""Fisher: how much the loss would change, to second order, without a unit, where its weights matter independently.

The diagonal of the Fisher information stands for that of the Hessian: LeCun, Denker & Solla, Optimal Brain Damage
(1989), equation 5; Theis et al., Faster gaze prediction with dense networks and Fisher pruning (2018), equation 6.
"""

from __future__ import annotations

from graphmod.pruning.groups import Group
from graphmod.pruning.importance.gradients import gradients
from graphmod.pruning.importance.registry import Evidence, Scores, importance


@importance("fisher")
def fisher(group: Group, evidence: Evidence) -> Scores:
    """Sum of squared weight times squared gradient over all weights of a unit, mean over batches of 16.

    The gradient is of the mean loss of a batch, not of every sample: 16 times fewer passes, and the noise of samples
    averages out within a batch.
    """
    return evidence.once(gradients).second[group.own]
