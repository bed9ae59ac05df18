"""Channel groups, by coupling rules of operators: what must go together, what each unit is worth, and its removal."""

from graphmod.pruning.compensation import compensate
from graphmod.pruning.groups import Group, Groups, Kept, Member, groups
from graphmod.pruning.importance import IMPORTANCE, Evidence
from graphmod.pruning.prune import prune
from graphmod.pruning.removal import cut
from graphmod.pruning.restrict import restrict

__all__ = [
    "IMPORTANCE",
    "Evidence",
    "Group",
    "Groups",
    "Kept",
    "Member",
    "compensate",
    "cut",
    "groups",
    "prune",
    "restrict",
]
