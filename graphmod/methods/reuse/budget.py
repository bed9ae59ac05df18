"""A budget: what may be left of one cost as a search goes on, and what is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from graphmod.methods.reuse.price import Prices
from graphmod.model import Model

HARDER = 0.8
"""Times what is allowed, once nothing went where something had to: rounded widths took all of it back."""

LEAST = 1e-9
"""Share that a network is counted as that costs nothing: an identity."""


@dataclass(eq=False)
class Budget:
    """What may be left of one cost.

    Parameters
    ----------
    target : float
        Share of the original's cost that may be left in the end.
    first : float
        The original's cost, as prices add it up.
    measure : callable, optional
        Returns the share of the cost that a model as a whole has left. Prices, which add up operators, are then in
        proportion to it; if None they tell it themselves.
    share, begun : float
        What is left now, and what was before anything went.
    """

    target: float
    first: float
    measure: Callable[[Model], float] | None = None
    share: float = field(default=1.0, init=False)
    begun: float = field(default=1.0, init=False)
    _aim: float = field(default=1.0, init=False)

    def begin(self, model: Model, prices: Prices) -> None:
        """Take note of what a network costs before anything goes."""
        self.begun = self.share = self._of(model, prices)

    def see(self, model: Model, prices: Prices, *, late: bool) -> None:
        """Take note of what a network costs; once it is late, aim lower where more is left than may be."""
        before, self.share = self.share, self._of(model, prices)
        if late:  # rounded widths leave more than is allowed, or all that there was
            self._aim *= min(1.0, self.target / self.share)
            self._aim *= HARDER if self.target < self.share >= before else 1.0

    @property
    def is_met(self) -> bool:
        """Whether no more is left than may be in the end."""
        return self.share <= self.target

    def allowed(self, prices: Prices, way: float) -> float:
        """Return the cost that may be left after a part of the way: what there is at first, less ever more slowly.

        Examples
        --------
        >>> import numpy as np
        >>> budget, prices = Budget(0.2, 10.0), Prices(10.0, np.zeros(0), np.zeros(0), np.zeros(0, np.int64))
        >>> [round(budget.allowed(prices, way), 2) for way in (0, 0.5, 1)]
        [10.0, 4.0, 2.0]
        """
        share = self.target + max(0.0, self.begun - self.target) * (1 - way) ** 2
        return self._aim * share * prices.total / self.share

    def _of(self, model: Model, prices: Prices) -> float:
        return max(LEAST, prices.total / self.first if self.measure is None else self.measure(model))
