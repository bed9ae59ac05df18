"""Properties of representations along a network: fitting, linear separability and robustness.

A linear probe is fitted to the representations at every boundary. What it gets right of the samples that it was fitted
to is the boundary's *fitting*; of samples held out, its *linear separability*; of perturbed samples held out, its
*robustness*. Within a module they should change little, from one module to the next more.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from graphmod.arguments import check_whole
from graphmod.data import Data, as_data, as_splits, check_labels
from graphmod.errors import RefusedError
from graphmod.methods.deeparc.linear_probe import RIDGE, fit_probe
from graphmod.methods.drawing import drawn
from graphmod.model import Model
from graphmod.modules import ModuleMap
from graphmod.probe import gathered

PROPERTIES = ("fitting", "separability", "robustness")

MOST = 2000
"""Samples of each part that probes look at, at most."""

_BUDGET = 1 << 29
"""Bytes of activations that are held at a time."""


@dataclass(frozen=True, eq=False)
class Properties:
    """Accuracies of linear probes along a network.

    Parameters
    ----------
    boundaries : tuple of str
    module : tuple of int
        Of which module each boundary is, from 0.
    fitting, separability, robustness : float64 array, shape (boundaries,)
    """

    boundaries: tuple[str, ...] = field(repr=False)
    module: tuple[int, ...] = field(repr=False)
    fitting: NDArray[np.float64]
    separability: NDArray[np.float64]
    robustness: NDArray[np.float64]

    def steps(self, name: str) -> tuple[float, float]:
        """Return how much a property changes from one boundary to the next: within modules, and between them.

        Means of absolute differences of neighbours; NaN, with a warning, where there are none of a kind: nothing is
        between modules where there is but one, and nothing within modules that are single boundaries.

        Raises
        ------
        RefusedError
            There is no such property.
        """
        if name not in PROPERTIES:
            raise RefusedError(f"there is no property '{name}'; choose {', '.join(PROPERTIES)}")
        change = np.abs(np.diff(getattr(self, name)))
        within = np.diff(self.module) == 0
        for kind, own in (("within modules", within), ("between modules", ~within)):
            if not own.any():
                told = f"boundaries: {len(self.boundaries)}, modules: {len(set(self.module))}"
                warnings.warn(f"no step is {kind} ({told}): its mean is NaN; take another threshold", stacklevel=2)
        return _mean(change[within]), _mean(change[~within])


def properties(
    model: Model,
    data: object,
    modules: ModuleMap,
    *,
    perturbed: object = None,
    noise: float = 0.5,
    ridge: float = RIDGE,
    seed: int = 0,
) -> Properties:
    """Measure what linear probes tell at every boundary of a module map.

    Parameters
    ----------
    model : Model
        A classifier.
    data : anything that :func:`graphmod.data.as_splits` takes
        Probes are fitted on the training part and judged on the test part, on at most 2,000 samples of each.
    modules : ModuleMap
        Of this model.
    perturbed : anything that :func:`graphmod.data.as_data` takes, optional
        Perturbed samples with labels, adversarial ones for example; the test part with normal noise if None.
    noise : float
        Standard deviation of that noise, over the samples' own.
    ridge : float
        Of the probes.
    seed : int
        Of the noise, and of the choice of samples.

    Raises
    ------
    RefusedError
        The map is of another model, the first axis of a boundary is not the batch, there is no input to add noise to,
        or the ridge, the noise or the seed is out of range.
    InvalidDataError
        The data does not fit, or has no labels, or activations are not finite.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods import deeparc
    >>> m, data = gm.load(gm.demo.model_path()), gm.demo.splits()
    >>> modules = deeparc.decompose(deeparc.similarity(m, data.train, passes=1), 0.9)
    >>> found = properties(m, data, modules)
    >>> bool(found.separability[-1] > 0.95)
    True
    """
    if not 0 <= noise < np.inf:
        raise RefusedError(f"noise={noise} is out of range; it is a standard deviation of at least 0")
    check_whole(0, seed=seed)
    modules.check(model)
    splits = as_splits(model, data, seed, labels=True)
    train, test = (drawn(model, part, MOST, seed) for part in (splits.train, splits.test))
    if perturbed is None:
        moved = _noisy(test, noise, np.random.default_rng(seed))
    else:
        moved = drawn(model, as_data(model, perturbed, targets=True), MOST, seed)
    names = tuple(name for module in modules for name in module.boundaries)
    parts = [train, test, moved]
    labels = [check_labels(model, part) for part in parts]
    found = []
    for group in _groups(model, names, sum(map(len, parts))):
        values = [gathered(model, part, group) for part in parts]
        for name in group:
            probe = fit_probe(values[0][name], labels[0], ridge)
            found.append([probe.accuracy(seen[name], own) for seen, own in zip(values, labels, strict=True)])
    module = tuple(number for number, own in enumerate(modules) for _ in own.boundaries)
    return Properties(names, module, *np.array(found).T)


def _noisy(data: Data, noise: float, rng: np.random.Generator) -> Data:
    """Return samples with noise added to every input that is of floats."""
    moved = {
        name: (array + noise * array.std() * rng.normal(size=array.shape)).astype(array.dtype)
        for name, array in data.inputs.items()
        if np.issubdtype(array.dtype, np.floating)
    }
    if not moved:
        raise RefusedError("no input is of floats, so there is nothing to add noise to; give perturbed samples")
    return Data({**data.inputs, **moved}, data.targets)


def _groups(model: Model, names: Sequence[str], n: int) -> Iterator[list[str]]:
    """Cut boundaries into groups whose activations can be held at a time."""
    sizes = np.cumsum([4 * n * model.tensors[name].size if name in model.tensors else 0 for name in names])
    for _, own in groupby(zip(names, sizes // _BUDGET, strict=True), key=lambda pair: pair[1]):
        yield [name for name, _ in own]


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")
