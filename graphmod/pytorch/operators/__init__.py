"""Converters, one file an operator family; see :mod:`graphmod.pytorch.registry` for how to add one."""
