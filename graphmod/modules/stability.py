"""How sure the boundaries of modules are: cut anew on resampled batches.

The batches that a similarity was measured on are drawn with replacement (Efron 1979), as many as one pass over the
samples has, so that passing over the same samples again does not feign more of them; their HSIC is summed up, and
modules are found anew by the same rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphmod.errors import RefusedError
from graphmod.modules.modularize import modularize
from graphmod.modules.module_map import ModuleMap
from graphmod.modules.rule import Rule
from graphmod.modules.segmentation import Matrix, fewest
from graphmod.probe import Similarity, cka


@dataclass(frozen=True, eq=False)
class Stability:
    """What modules become when batches are resampled.

    Parameters
    ----------
    modules : ModuleMap
        Found on all batches.
    boundaries : tuple of str
    begins : float64 array, shape (boundaries,)
        The share of resamples in which a module begins at each boundary.
    n_modules : dict of int to float
        The share of resamples that have so many modules, by number.
    agreement : float
        With the map found on all: the adjusted Rand index (Hubert & Arabie 1985) of which boundaries share a module,
        averaged over resamples. 1 is the same, 0 what chance gives.
    same : float
        The share of resamples with exactly the modules that are found on all.
    resamples : int
    """

    modules: ModuleMap
    boundaries: tuple[str, ...] = field(repr=False)
    begins: NDArray[np.float64] = field(repr=False)
    n_modules: dict[int, float]
    agreement: float
    same: float
    resamples: int

    def of(self, boundary: str) -> float:
        """Return the share of resamples in which a module begins at a boundary.

        Raises
        ------
        RefusedError
            It is none of the boundaries.
        """
        if boundary not in self.boundaries:
            raise RefusedError(f"'{boundary}' is none of the {len(self.boundaries)} boundaries")
        return float(self.begins[self.boundaries.index(boundary)])

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it, without the modules."""
        return {
            "begins": dict(zip(self.boundaries, map(float, self.begins), strict=True)),
            "n_modules": {str(number): share for number, share in self.n_modules.items()},
            "agreement": self.agreement,
            "same": self.same,
            "resamples": self.resamples,
        }


def stability(
    similarity: Similarity,
    method: str = "optimal",
    *,
    threshold: float | None = None,
    n_modules: int | None = None,
    floor: float | None = None,
    cuts: Sequence[str] = (),
    resamples: int = 200,
    seed: int = 0,
) -> Stability:
    """Tell how often modules begin at each boundary when the batches are resampled.

    Parameters
    ----------
    similarity : Similarity
        Measured on at least two batches; ten and more tell more.
    method, threshold, n_modules, floor, cuts
        As :func:`graphmod.modularize` takes them. A resample in which so many modules cannot keep the floor is cut into
        the fewest that can.
    resamples : int
    seed : int
        Same seed, same result.

    Raises
    ------
    RefusedError
        The similarity keeps no batches, or a single one; or what :func:`graphmod.modularize` refuses.

    Examples
    --------
    >>> import graphmod as gm
    >>> sim = gm.similarity(gm.load(gm.demo.model_path()), gm.demo.splits().train)
    >>> found = gm.modules.stability(sim, n_modules=4, resamples=20)
    >>> found.of(found.boundaries[0]), found.n_modules
    (1.0, {4: 1.0})
    """
    modules = modularize(similarity, method, threshold=threshold, n_modules=n_modules, floor=floor, cuts=cuts)
    if resamples < 1:
        raise RefusedError(f"resamples={resamples} tells nothing; ask for 1 or more")
    if seed < 0:
        raise RefusedError("the seed must be at least 0")
    if similarity.batches is None or len(similarity.batches) < 2 * similarity.passes:
        n = 0 if similarity.batches is None else len(similarity.batches) // similarity.passes
        raise RefusedError(
            f"the similarity keeps {n or 'no'} batch{'es' * (n != 1)}, too few to resample; measure it on more samples "
            "or in smaller batches"
        )
    rule = Rule.of(similarity, method, threshold, n_modules, floor, cuts)
    first = [similarity.boundaries.index(module.boundaries[0]) for module in modules]
    n = len(similarity.boundaries)
    begins, numbers, agreement, same = np.zeros(n), Counter[int](), 0.0, 0
    for matrix in resampled(similarity, resamples, seed):
        starts = _starts(rule, matrix)
        begins[starts] += 1
        numbers[len(starts)] += 1
        agreement += adjusted_rand(first, starts, n)
        same += starts == first
    shares = {number: count / resamples for number, count in sorted(numbers.items())}
    return Stability(
        modules, similarity.boundaries, begins / resamples, shares, agreement / resamples, same / resamples, resamples
    )


def resampled(similarity: Similarity, resamples: int, seed: int) -> Iterator[Matrix]:
    """Yield a similarity matrix a resample."""
    batches = similarity.batches
    assert batches is not None
    rng = np.random.default_rng(seed)
    flat = batches.reshape(len(batches), -1)
    for _ in range(resamples):
        drawn = rng.integers(len(batches), size=len(batches) // similarity.passes)
        times = np.bincount(drawn, minlength=len(batches)).astype(np.float64)
        yield cka((times @ flat).reshape(batches.shape[1:]))


def _starts(rule: Rule, matrix: Matrix) -> list[int]:
    try:
        return rule.starts(matrix)
    except RefusedError:
        if rule.floor is None:
            raise
        return fewest(matrix, rule.floor, rule.cuts)


def adjusted_rand(one: Sequence[int], other: Sequence[int], n: int) -> float:
    """Return the adjusted Rand index of two ways to cut n boundaries, given where modules begin.

    Source: Hubert & Arabie 1985, equation 5.

    Examples
    --------
    >>> adjusted_rand([0, 3], [0, 3], 6), adjusted_rand([0, 3], [0], 6)
    (1.0, 0.0)
    """

    def pairs(starts: Sequence[int]) -> float:
        lengths = np.diff([*starts, n])
        return float((lengths * (lengths - 1) / 2).sum())

    together, a, b = pairs(sorted({*one, *other})), pairs(one), pairs(other)
    expected = a * b / (n * (n - 1) / 2) if n > 1 else 0.0
    most = (a + b) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)
