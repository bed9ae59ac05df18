"""The rule by which a trunk is cut into modules: the arguments of ``modularize``, checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphmod.errors import RefusedError
from graphmod.modules.segmentation import Matrix, fewest, greedy, optimal
from graphmod.probe import Similarity


@dataclass(frozen=True)
class Rule:
    """How modules are found; see :func:`graphmod.modularize`.

    Parameters
    ----------
    method : {"optimal", "greedy"}
    threshold : float or None
    n_modules : int or None
    floor : float or None
    cuts : tuple of int
        Positions of boundaries.
    """

    method: str
    threshold: float | None
    n_modules: int | None
    floor: float | None
    cuts: tuple[int, ...]

    @classmethod
    def of(
        cls,
        similarity: Similarity,
        method: str,
        threshold: float | None,
        n_modules: int | None,
        floor: float | None,
        cuts: Sequence[str],
    ) -> Rule:
        """Check the arguments.

        Raises
        ------
        RefusedError
            They contradict each other, are out of range, or name what is not there.
        """
        n = len(similarity.boundaries)
        if method not in ("optimal", "greedy"):
            raise RefusedError(f"there is no method '{method}'; choose 'optimal' or 'greedy'")
        if (threshold is None) == (n_modules is None):
            raise RefusedError("give either a threshold or a number of modules, not both")
        for name, value in (("threshold", threshold), ("floor", floor)):
            if value is not None and not 0 <= value <= 1:
                raise RefusedError(f"the {name} {value} is out of range; similarities lie between 0 and 1")
        if n_modules is not None and not 1 <= n_modules <= n:
            raise RefusedError(f"{n} boundaries cannot form {n_modules} modules; ask for 1 to {n}")
        if floor is not None and (n_modules is None or method == "greedy"):
            raise RefusedError("a floor goes with a number of modules and the method 'optimal', whose threshold is one")
        place = {name: i for i, name in enumerate(similarity.boundaries)}
        for name in cuts:
            if name not in place:
                raise RefusedError(f"'{name}' is none of the {n} boundaries, so no module can begin there")
        return cls(method, threshold, n_modules, floor, tuple(place[name] for name in cuts))

    def starts(self, matrix: Matrix) -> list[int]:
        """Return the boundaries at which modules begin.

        Raises
        ------
        RefusedError
            There are not as many modules as were asked for.
        """
        if self.method == "greedy":
            starts = greedy(matrix, self.threshold_for(matrix) or 0.0, self.cuts)
            if self.n_modules is not None and len(starts) != self.n_modules:
                raise RefusedError(
                    f"no threshold gives exactly {self.n_modules} modules by the greedy rule (neighbours are equally "
                    "similar or not similar at all, or there are more cuts); ask for another number or for "
                    "method='optimal'"
                )
            return starts
        if self.n_modules is not None:
            return optimal(matrix, self.n_modules, floor=self.floor, cuts=self.cuts)
        return fewest(matrix, self.threshold or 0.0, self.cuts)

    def threshold_for(self, matrix: Matrix) -> float | None:
        """Return the threshold: for "greedy" with a number of modules that which cuts the least similar neighbours."""
        if self.method != "greedy" or self.n_modules is None:
            return self.threshold
        free = [i for i in range(len(matrix) - 1) if i + 1 not in set(self.cuts)]
        neighbours = np.sort(np.nan_to_num(np.diagonal(matrix, offset=1)[free], nan=-np.inf))
        n_chosen = self.n_modules - (len(matrix) - len(free))
        if n_chosen < 1:
            return max(0.0, float(np.nextafter(neighbours[0], -np.inf))) if len(neighbours) else 0.0
        return float(max(0.0, neighbours[min(n_chosen, len(neighbours)) - 1])) if len(neighbours) else 0.0
