"""Repair: where a fault enters a network, and how the part that has it is made to work again."""

from graphmod.methods.repair.patching import faults
from graphmod.methods.repair.repair import repair
from graphmod.methods.repair.units import Unit, units

__all__ = ["Unit", "faults", "repair", "units"]
