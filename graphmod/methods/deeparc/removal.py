"""Removal and duplication: what a block is worth within a module, and where two modules meet."""

from __future__ import annotations

from dataclasses import dataclass

from graphmod.data import as_data
from graphmod.methods.deeparc.inside import module_of
from graphmod.methods.skipping import skip
from graphmod.model import Model
from graphmod.modules import ModuleMap
from graphmod.probe import accuracy
from graphmod.rewrite import duplicate


@dataclass(frozen=True)
class Effect:
    """What becomes of the accuracy without a block, and with two of it.

    Parameters
    ----------
    block : str
    module : int or None
        The module that the block lies in, from 0; None where it joins two.
    removed, duplicated : float
        Accuracy, a share.
    """

    block: str
    module: int | None
    removed: float
    duplicated: float


def removal(model: Model, data: object, modules: ModuleMap) -> tuple[Effect, ...]:
    """Remove, and duplicate, each block that keeps the type, by itself, and measure the accuracy.

    Parameters
    ----------
    model : Model
        A classifier.
    data : anything that :func:`graphmod.data.as_data` takes
        Samples with labels.
    modules : ModuleMap
        Of :func:`graphmod.methods.deeparc.decompose`.

    Raises
    ------
    RefusedError
        The map is of another model.
    InvalidDataError
        The data does not fit, or has no labels.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods import deeparc
    >>> m, data = gm.load(gm.demo.model_path()), gm.demo.splits()
    >>> modules = deeparc.decompose(deeparc.similarity(m, data.train, passes=1), 0.9)
    >>> len(removal(m, data.calibration[:50], modules))
    19
    """
    samples = as_data(model, data, targets=True)
    return tuple(
        Effect(block.path, module, accuracy(skip(model, [block]), samples), accuracy(duplicate(model, block), samples))
        for block, module in module_of(model, modules).items()
    )
