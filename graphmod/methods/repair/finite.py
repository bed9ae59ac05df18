"""Weights that are no numbers: where they stand is a fault for certain, and no training can start from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from graphmod.methods.repair.units import Unit
from graphmod.model import Model
from graphmod.rewrite.draft import Draft

Floats = NDArray[np.floating[Any]]


def finite(model: Model, parts: Sequence[Unit], works: Callable[[Model], bool]) -> tuple[Model, dict[Unit, int]]:
    """Return a model with others in the place of weights that are no numbers, and how many these are of each unit.

    A scalar starts anew at the median of its tensor: about zero in a kernel, and no zero in a variance. Infinite ones
    can be meant, minus infinity in a mask above all: they go only where the model does not work with them.

    Parameters
    ----------
    model : Model
    parts : sequence of Unit
        Those that are looked at.
    works : callable
        Whether what a model computes is finite.
    """
    draft = Draft(model)
    held = {name: draft.constant(name) for unit in parts for name in unit.tensors if name in model.initializers}
    odd = {name: cast("Floats", value) for name, value in held.items() if not np.isfinite(cast("Floats", value)).all()}
    counts = dict.fromkeys(parts, 0)
    for kind in (np.isnan, np.isposinf, np.isneginf):
        found = {name: mask for name, value in odd.items() if (mask := kind(value)).any()}
        if not found or (kind is not np.isnan and works(model)):
            continue
        draft = Draft(model)
        for name, mask in found.items():
            odd[name] = np.where(mask, _median(odd[name]), odd[name])
            draft.set_initializer(name, odd[name])
        model = draft.finish()
        for unit in parts:
            counts[unit] += sum(int(mask.sum()) for name, mask in found.items() if name in unit.tensors)
    return model, {unit: n for unit, n in counts.items() if n}


def _median(value: Floats) -> np.floating[Any]:
    """Return the median of what is finite, 0 where nothing is, in the type of the array."""
    kept = value[np.isfinite(value)].astype(np.float64)
    return value.dtype.type(np.median(kept) if len(kept) else 0.0)
