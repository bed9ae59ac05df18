"""Channel groups, by coupling rules of operators: what must go together, what each unit is worth, and its removal."""

from graphmod.prune.groups import Group, Groups, Kept, Member, groups
from graphmod.prune.importance import IMPORTANCE, Evidence, importance
from graphmod.prune.prune import prune
from graphmod.prune.removal import cut

__all__ = ["IMPORTANCE", "Evidence", "Group", "Groups", "Kept", "Member", "cut", "groups", "importance", "prune"]
