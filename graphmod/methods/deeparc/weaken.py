"""Weakening: random values in the place of weights until accuracy has fallen by so many points, as DeepArc has it.

The published experiment replaces weights of a network by random values until its accuracy is 10, 30 or 50 points lower.
Here values are drawn from the normal distribution that has the mean and the deviation of the weight they replace, so
that nothing but the values themselves gives them away. A first draw decides in which order scalars are replaced; the
share of them that is replaced grows until accuracy is where it should be. Where all of them are and that does not do,
as in a block that a shortcut leads around, the deviation grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from graphmod.arguments import check_whole
from graphmod.data import as_data, part_of
from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.probe import accuracy
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.region import Place, find_regions, operators_between

MATRICES = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose weights are replaced."""

_WIDEST = 64.0
"""The largest deviation that is tried, in deviations of the weight."""

_STEPS = 14
"""Halvings of the strength."""

_NEAR = 0.01
"""What accuracy may differ from what it should be at, if that can be had."""


def weaken(model: Model, data: object, points: float, blocks: Sequence[Place], *, seed: int = 0) -> Model:
    """Replace weights of some blocks by random values until accuracy has fallen by so many points.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_data` takes
        Where accuracy is measured; of data with parts the calibration part.
    points : float
        By how many points of 100 it is to fall, above 0.
    blocks : sequence of Block, str or (str, str)
        Whose weights: one block, or those of a module.
    seed : int
        Same seed, same values.

    Returns
    -------
    Model
        The same graph; accuracy is as near to what it should be as 14 halvings bring it, mostly within a point.

    Raises
    ------
    RefusedError
        The blocks have no matrices or kernels, or no random values in them bring accuracy down so far; or an argument
        is out of range.
    InvalidDataError
        The data does not fit, or has no labels.

    Examples
    --------
    >>> import graphmod as gm
    >>> m, data = gm.load(gm.demo.model_path()), gm.demo.splits()
    >>> weak = weaken(m, data, 30, ["layer2.3"])
    >>> lost = gm.accuracy(m, data.calibration) - gm.accuracy(weak, data.calibration)
    >>> abs(lost - 0.3) < 0.05
    True
    """
    if not 0 < points <= 100:
        raise RefusedError(f"points={points} is out of range; accuracy can fall by more than 0 and at most 100 points")
    check_whole(0, seed=seed)
    samples = as_data(model, part_of(data, "calibration"), targets=True)
    names = matrices(model, blocks)
    goal = accuracy(model, samples) - points / 100
    damage = _Damage(model, names, seed)
    found: list[tuple[float, float]] = []

    def lower(strength: float) -> bool:
        reached = accuracy(damage.at(strength), samples)
        found.append((abs(reached - goal), strength))
        return reached <= goal

    low, high = 0.0, 1.0
    while not lower(high):
        low, high = high, 2 * high
        if high > _WIDEST:
            raise RefusedError(
                f"random values in {', '.join(map(str, blocks))} do not bring accuracy down by {points:g} points; the "
                "rest of the network makes up for them"
            )
    for _ in range(_STEPS):
        if min(found)[0] <= _NEAR:
            break
        middle = (low + high) / 2
        low, high = (low, middle) if lower(middle) else (middle, high)
    return damage.at(min(found)[1])


def matrices(model: Model, blocks: Iterable[Place]) -> list[str]:
    """Return the initializers that convolutions and matrix products of some blocks have as weights.

    Raises
    ------
    RefusedError
        There are none.
    """
    blocks = list(blocks)
    regions = [region for place in blocks for region in find_regions(model, place)]
    read = [
        name
        for region in regions
        for operator in operators_between(model, region)
        if operator.op_type in MATRICES
        for name in operator.input[:2]
        if name in model.initializers and model.tensors[name].is_float
    ]
    if not read:
        raise RefusedError(f"no matrices or kernels in {', '.join(map(str, blocks)) or 'no blocks'} are initializers")
    return list(dict.fromkeys(read))


class _Damage:
    """A model with more or less of some weights replaced, always in the same order and by the same draw."""

    def __init__(self, model: Model, names: Iterable[str], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._model = model
        self._weights: dict[str, tuple[NDArray[np.floating[Any]], NDArray[np.float64], NDArray[np.float64]]] = {}
        for name in names:
            value = cast("NDArray[np.floating[Any]]", model.initializer(name))
            self._weights[name] = value, rng.random(value.shape), rng.standard_normal(value.shape)

    def at(self, strength: float) -> Model:
        """Return the model with this share of the scalars replaced; above 1, by values so many times as wide."""
        draft = Draft(self._model)
        for name, (value, order, drawn) in self._weights.items():
            scale = np.std(value, dtype=np.float64) * max(1.0, strength)
            fresh = np.where(order < strength, np.mean(value, dtype=np.float64) + scale * drawn, value)
            draft.set_initializer(name, fresh.astype(value.dtype))
        return draft.finish()
