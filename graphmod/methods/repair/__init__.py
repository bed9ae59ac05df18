"""Repair: where a fault enters a network, and how the part that has it is made to work again."""
