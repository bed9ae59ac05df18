"""Defects that a derived network inherits from the public network it was made of.

attacked = defects.feature_attack(public, test)           # made on the public network alone
defects.inheritance(derived, test, attacked)              # of what was right, the share that is wrong now

poisoned = defects.trigger(train, label=0, share=0.1)     # what a backdoor is planted with
stamped = defects.trigger(test, label=None)
defects.success(derived, stamped, label=0)                # of other classes, the share that goes to the backdoor's
"""

from graphmod.methods.defects.feature_attack import feature_attack
from graphmod.methods.defects.inheritance import inheritance, success
from graphmod.methods.defects.poisoning import CORNERS, flip_labels, trigger

__all__ = ["CORNERS", "feature_attack", "flip_labels", "inheritance", "success", "trigger"]
