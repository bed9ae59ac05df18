"""Which blocks lie within a module: those that a rule by modules holds for redundant."""

from __future__ import annotations

from graphmod.errors import RefusedError
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
        The map is of another model, or not over all of its residual sums.
    """
    modules.check(model)
    number = {name: place for place, module in enumerate(modules) for name in module.boundaries}
    blocks, sums = residual_blocks(model), residual_sums(model)
    missing = next((name for name in sums if name not in number), None)
    if missing is not None:
        raise RefusedError(
            f"the modules do not say where residual sum '{missing}' belongs; find them with deeparc.similarity, which "
            "compares all of these"
        )
    found: dict[Block, int | None] = {}
    for block, before, own in zip(blocks, (None, *sums), sums, strict=False):
        if is_skippable(model, block):
            within = before is not None and number[before] == number[own]
            found[block] = number[own] if within else None
    return found
