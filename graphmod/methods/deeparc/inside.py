"""Which blocks lie within a module: those that a rule by modules holds for redundant."""

from __future__ import annotations

from graphmod.graph import Block
from graphmod.methods.deeparc.residual_sums import is_skippable, residual_blocks, residual_sums
from graphmod.model import Model
from graphmod.modules import ModuleMap


def module_of(model: Model, modules: ModuleMap) -> dict[Block, int | None]:
    """Return the module that each skippable block lies in, None where it joins two.

    A block lies in a module if what it reads and what it makes are both of it, that is, if the residual sum before it
    and its own are: the first block of a module makes another representation of the one before and lies in none.

    Parameters
    ----------
    model : Model
    modules : ModuleMap
        Over the residual sums of this model.

    Raises
    ------
    RefusedError
        The map is of another model.
    """
    modules.check(model)
    number = {name: place for place, module in enumerate(modules) for name in module.boundaries}
    blocks, sums = residual_blocks(model), residual_sums(model)
    found: dict[Block, int | None] = {}
    for block, before, own in zip(blocks, (None, *sums), sums, strict=False):
        if is_skippable(model, block):
            here = number.get(own)
            found[block] = here if before is not None and number.get(before) == here else None
    return found
