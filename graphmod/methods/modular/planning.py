"""Planning: how wide and how deep modules may be, so that the largest of a single class is within its budget.

The budget of weights decides what share of every channel group is core; that of latency, how many blocks are: with
fewer of them modules are shallower, and wider at the same number of weights. So modules are as deep as their time
allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from graphmod.errors import BudgetError
from graphmod.methods.gates import Gated
from graphmod.methods.modular.assignment import Modules, assigned
from graphmod.methods.modular.relevance import Relevance
from graphmod.methods.modular.size import Size
from graphmod.pruning.widths import Alive

STEPS = 64
"""Shares of a group that are told apart."""

NARROWER = 0.8
"""Times the budget of weights, where time does not do with the fewest blocks."""


@dataclass(frozen=True, eq=False)
class Planning:
    """What decides about modules.

    Parameters
    ----------
    gated : Gated
    relevance : float64 array, shape (classes, gates)
    fixed : array of bool, shape (gates,)
        What has to be in all modules.
    n_weights : int
        Of the original.
    time_left : callable
        The share of the original's latency that the network with some gates open takes.
    multiple_of : int
        What widths are rounded up to.
    """

    gated: Gated
    relevance: Relevance
    fixed: Alive
    n_weights: int
    time_left: Callable[[Alive], float]
    multiple_of: int

    def within(self, weights: float, latency: float | None) -> Modules:
        """Return modules of which the largest has no more than a share of the original's weights, and takes no longer.

        Raises
        ------
        BudgetError
            There are none.
        """
        n_blocks = len(self.gated.blocks)
        modules = self._widest(n_blocks, weights)
        if modules is None and n_blocks:
            modules = self._widest(0, weights)
        if modules is None:
            left = self._size(self._largest(self._of(0.0, 0)))
            raise BudgetError(
                f"weights={weights:g} cannot be met: with one unit of every group in all modules, and each other one "
                f"in one, the largest module has {left / self.n_weights:.1%} of the weights{self._told_whole()}; give "
                "a larger budget"
            )
        return modules if latency is None else self._in_time(weights, latency)

    def _in_time(self, weights: float, latency: float) -> Modules:
        """Return the deepest modules that are within both."""
        smallest = self.time_left(self._largest(self._of(0.0, 0)))
        share, fewest = weights, smallest
        while smallest <= latency:
            least, most = 0, len(self.gated.blocks)
            found = None
            while least <= most:
                middle = (least + most + 1) // 2
                modules = self._widest(middle, share)
                took = float("inf") if modules is None else self.time_left(self._largest(modules))
                fewest = min(fewest, took)
                if took <= latency:
                    found, least = modules, middle + 1
                else:
                    most = middle - 1
            if found is not None:
                return found
            share *= NARROWER
            if self._widest(0, share) is None:
                break
        raise BudgetError(
            f"latency={latency:g} cannot be met: the module of one class takes {fewest:.2f} of the original's time at "
            f"the least{self._told_whole()}; give a larger budget"
        )

    def _told_whole(self) -> str:
        """Return which groups are whole in all modules, for a message."""
        whole = [group.name for group in self.gated.found if self.fixed[group.own].all()]
        return f", as {len(whole)} channel groups are in all modules whole, such as '{whole[0]}'" if whole else ""

    def _widest(self, n_core_blocks: int, weights: float) -> Modules | None:
        """Return the modules of the largest core within a budget of weights."""
        least, most = 0, STEPS
        found = None
        while least <= most:
            middle = (least + most) // 2
            modules = self._of(middle / STEPS, n_core_blocks)
            if self._size(self._largest(modules)) <= weights * self.n_weights:
                found, least = modules, middle + 1
            else:
                most = middle - 1
        return found

    def _of(self, core: float, n_core_blocks: int) -> Modules:
        return assigned(self.gated.found, self.relevance, self.fixed, core, n_core_blocks, self.multiple_of)

    def _largest(self, modules: Modules) -> Alive:
        """Return the open gates of the module of one class that has most weights."""
        return max((modules.opened([label]) for label in range(len(modules))), key=self._size)

    @cached_property
    def _size(self) -> Size:
        return Size(self.gated.found, self.gated.blocks)
