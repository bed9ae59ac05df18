"""``compress``: parts in the place of runs of the trunk, chosen along a measured front of latency and damage."""

from graphmod.methods.compress.verb import compress

__all__ = ["compress"]
