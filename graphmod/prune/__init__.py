"""Channel groups, by coupling rules of operators: what must go together, what each unit is worth, and its removal."""

from graphmod.prune.groups import Group, Groups, Kept, Member, groups
from graphmod.prune.removal import cut

__all__ = ["Group", "Groups", "Kept", "Member", "cut", "groups"]
