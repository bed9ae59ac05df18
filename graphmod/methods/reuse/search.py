r"""The search: gates close one after the other, as the budget tightens, while the weights are trained to make up.

What closing a gate would cost is estimated by the Fisher information, the running mean of the squared gradient of the
loss with respect to it (Theis et al., 2018; Molchanov et al., CVPR 2019): for a loss that has converged,

.. math:: L(g = 0) - L(g = 1) \approx \tfrac{1}{2} \mathrm{E} \left( \partial L / \partial g \right)^2 .

At every step those gates are closed of which that is less than :math:`\lambda` times their price, with the multiplier
:math:`\lambda` at which the network just meets what the budget allows by then. That is the solution of the Lagrangian
relaxation of choosing what to keep. A closed gate has a gradient as well, and opens again where that has grown. After
every so many steps what is closed is removed, so that the network shrinks while the search runs, and prices are
measured anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from math import cos, pi
from time import process_time

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from graphmod.data import Data
from graphmod.errors import BudgetError, RefusedError
from graphmod.graph import logits
from graphmod.methods.gates import (
    Gated,
    always_open,
    check_alike,
    feeds,
    rounded,
    skippable_blocks,
    whole_groups,
    without,
)
from graphmod.methods.reuse.budget import Budget
from graphmod.methods.reuse.price import Prices, total
from graphmod.model import Model
from graphmod.probe import predict
from graphmod.probe.operator_latency import LatencyTable
from graphmod.pruning.groups import Groups, groups
from graphmod.pruning.widths import Alive
from graphmod.train.losses import corrected, cross_entropy, distillation

MEMORY = 0.9
"""Of the running mean of squared gradients, a step."""

WARM = 10
"""Steps after which that mean is trusted."""

MORE = 5
"""Removals beyond the steps, if the budget is not met by then."""

RAMP = 0.7
"""Share of the steps after which budgets are what was asked for; the rest trains what is left."""

SLOWEST = 0.1
"""Of the learning rate, what it falls to: removals beyond the steps have to be made up for as well."""

MIXES = 4
"""Parts that a price of several costs is put together of."""

TAUGHT, TEMPERATURE = 0.9, 2.0
"""Share of the teacher's predictions in the loss, and how much they are softened."""


@dataclass(frozen=True)
class Stage:
    """The network after a removal.

    Parameters
    ----------
    step : int
        Steps of training before it, in the search that it is of: without a budget there is one for each rung.
    left : dict of str to float
        What it costs, as a share of the original, by budget.
    weights : int
        Scalars in float constants, among them those of batch normalisations that are put in for training alone.
    units, blocks : int
        How many of them were removed.
    difference : float
        Between the network with closed gates and the one without what they close, of the output's scale.
    seconds : float
        CPU seconds since the search began.
    """

    step: int
    left: dict[str, float]
    weights: int
    units: int
    blocks: int
    difference: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Closing:
    """What gates are worth, of units and then blocks, and which are closed."""

    worth: NDArray[np.float64]
    closed: Alive


@dataclass(frozen=True)
class Plan:
    """How a search goes.

    Parameters
    ----------
    targets : dict of str to float
        For "latency", "weights" or "macs" the share of the original's cost that may be left.
    steps : int
        Steps of training in all.
    shrink_every : int
        Steps after which what is closed is removed.
    multiple_of : int
        What widths are rounded up to.
    learning_rate : float
    batch_size : int
    seed : int
    progress : bool
    table : LatencyTable
        What operators take, by their shapes, as far as it has been measured.
    """

    targets: dict[str, float]
    steps: int
    shrink_every: int
    multiple_of: int
    learning_rate: float
    batch_size: int
    seed: int
    progress: bool = False
    table: LatencyTable = field(default_factory=LatencyTable, repr=False, compare=False)

    def way(self, step: int) -> float:
        """Return how much of the way to the targets is gone at a step."""
        return min(1.0, step / (RAMP * self.steps))

    def rate(self, step: int) -> float:
        """Return the learning rate at a step, along a cosine."""
        return self.learning_rate * max(SLOWEST, 0.5 + 0.5 * cos(pi * min(1.0, step / self.steps)))


def searched(
    model: Model,
    teacher: Model,
    data: Data,
    plan: Plan,
    of: Model | None = None,
    measure: Callable[[Model], float] | None = None,
) -> tuple[Model, tuple[Stage, ...]]:
    """Return what is left of a network, trained, and how it came there.

    Parameters
    ----------
    model : Model
        With batch normalisation as operators of its own, if it has any.
    teacher : Model
        A network of the same output, whose predictions are to be kept, but for those that labels say are wrong.
    data : Data
        Training samples, with labels.
    plan : Plan
    of : Model, optional
        What budgets are shares of; the model if None.
    measure : callable, optional
        Returns the share of the latency that a model as a whole has left; if None it is that of its operators.

    Raises
    ------
    RefusedError
        A budget cannot be met, nothing can be removed, the network has no gradient, the loss is no number any more,
        or a closed gate is not as if what it closes were gone.
    """
    start = process_time()
    rng = np.random.default_rng(plan.seed)
    taught = torch.from_numpy(predict(teacher, data, output=logits(teacher)).astype(np.float32))
    goals = corrected(taught, torch.from_numpy(np.asarray(data.targets, np.int64)))
    stages: list[Stage] = []
    budgets = {name: _budget(name, plan, of or model, measure) for name in plan.targets}
    step, whole = 0, frozenset[str]()
    with Progress(disable=not plan.progress, transient=True) as bar, torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        task = bar.add_task("searching", total=plan.steps)
        while True:
            found = groups(model)
            gated = Gated(found, skippable_blocks(found))
            prices = {name: Prices.of(found, gated.blocks, name, plan.table) for name in budgets}
            for name, budget in budgets.items():
                if stages:
                    budget.see(model, prices[name], late=plan.way(step) == 1)
                else:
                    budget.begin(model, prices[name])
            left = {name: budget.share for name, budget in budgets.items()}
            if stages:
                stages[-1] = replace(stages[-1], left=left)
            if not gated.n_gates and not stages:
                raise RefusedError("no channel, head or block of the network can be removed; graphmod groups says why")
            over = [name for name, budget in budgets.items() if not budget.is_met]
            if not over and (plan.way(step) == 1 or not gated.n_gates):
                return model, tuple(stages)
            if not gated.n_gates or step >= plan.steps + MORE * plan.shrink_every:
                more = "or more steps" if gated.n_gates else "as nothing more can be removed"
                raise BudgetError(
                    f"{over[0]}={plan.targets[over[0]]:g} cannot be met: {left[over[0]]:.1%} are left after {step} "
                    f"steps; give a larger budget, {more}"
                )
            if not stages:
                whole = whole_groups(gated, data)
            limits = [(prices[name], partial(budget.allowed, prices[name])) for name, budget in budgets.items()]
            closed = _trained(gated, limits, data, goals, step, plan, rng, always_open(gated, whole))
            step += plan.shrink_every
            bar.update(task, completed=step)
            model, gates, difference = _removed(gated, closed, data, plan.multiple_of)
            n_units, n_blocks = (int((~some).sum()) for some in np.split(gates, [found.n_units]))
            stages.append(Stage(step, left, model.n_weights, n_units, n_blocks, difference, process_time() - start))


def _budget(name: str, plan: Plan, of: Model, measure: Callable[[Model], float] | None) -> Budget:
    if name == "latency" and measure is not None:
        return Budget(plan.targets[name], 1.0, measure)
    return Budget(plan.targets[name], total(groups(of), name, plan.table))


def _trained(
    gated: Gated,
    limits: Sequence[tuple[Prices, Callable[[float], float]]],
    data: Data,
    goals: Tensor,
    step: int,
    plan: Plan,
    rng: np.random.Generator,
    fixed: Alive,
) -> Closing:
    """Train for some steps; return what is worth how much, and what is closed in the end.

    ``limits`` are the prices of every budget, and the cost that may be left after a part of the way; gates that are
    ``fixed`` stay open.
    """
    prices = [one for one, _ in limits]
    inputs = feeds(gated, data)
    labels = torch.from_numpy(np.asarray(data.targets, np.int64))
    optimizer = torch.optim.Adam(gated.net.parameters(), plan.learning_rate)
    worth = np.zeros(gated.n_gates)
    closed = np.zeros(gated.n_gates, bool)
    gated.net.train()
    for number in range(step, step + plan.shrink_every):
        rows = torch.from_numpy(rng.choice(len(data), min(plan.batch_size, len(data)), replace=False))
        gates = torch.from_numpy((~closed).astype(np.float32)).requires_grad_()
        outputs = gated([one[rows] for one in inputs], gates)
        loss = TAUGHT * distillation(outputs, goals[rows], TEMPERATURE)
        loss = loss + (1 - TAUGHT) * cross_entropy(outputs, labels[rows])
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(number)
        if not (torch.isfinite(loss) and loss.requires_grad):
            told = f"a loss of {loss.item()}; give a smaller learning_rate" if loss.requires_grad else "no gradient"
            raise RefusedError(f"training cannot go on: after {number} steps the network has {told}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships this method without annotations
        optimizer.step()
        if gates.grad is not None:  # None where no gate has a part in the output
            worth = MEMORY * worth + (1 - MEMORY) * gates.grad.double().numpy() ** 2
        if number - step >= WARM or number + 1 == step + plan.shrink_every:
            allowed = [limit(plan.way(number + 1)) for _, limit in limits]
            closed = cheapest(worth, prices, allowed, fixed | _best(gated.found, worth))
    return Closing(worth, closed)


def cheapest(worth: NDArray[np.float64], prices: Sequence[Prices], allowed: Sequence[float], open_: Alive) -> Alive:
    """Return the gates that are worth less than a multiple of their price: the least at which all costs are allowed.

    The price of several costs is a mean of what each is of its total, with the weights, of a few, by which what is
    closed is worth least.

    Parameters
    ----------
    worth : float64 array, shape (gates,)
    prices : sequence of Prices
    allowed : sequence of float
        For each of them the cost that may be left.
    open_ : bool array, shape (gates,)
        What may not be closed.

    Examples
    --------
    >>> prices = Prices(10.0, np.array([1.0, 1.0, 4.0]), np.array([4.0]), np.array([-1, -1, -1]))
    >>> worth = np.array([3.0, 1.0, 8.0, 1.0])
    >>> cheapest(worth, [prices], [5.0], np.array([False, False, False, False])).tolist()
    [False, True, False, True]
    """
    several = [np.append(one.units, one.blocks) for one in prices]
    if len(prices) > 1:
        shares = [price / max(one.total, np.finfo(float).tiny) for price, one in zip(several, prices, strict=True)]
        mixes = (mix for mix in product(range(MIXES + 1), repeat=len(prices)) if sum(mix) == MIXES)
        several = [np.tensordot(mix, shares, 1) for mix in mixes]
    tried = []
    for price in several:
        closed = _closed(
            np.divide(worth, price, out=np.full(len(worth), np.inf), where=(price > 0) & ~open_), prices, allowed
        )
        tried.append((_excess(closed, prices, allowed), float(worth[closed].sum()), closed))
    return min(tried, key=lambda one: one[:2])[2]


def _closed(rate: NDArray[np.float64], prices: Sequence[Prices], allowed: Sequence[float]) -> Alive:
    """Return the gates of the lowest rates, no more than needed for all costs to be allowed."""
    order = np.sort(rate[np.isfinite(rate)])
    least, most = 0, len(order)  # how many of the lowest rates are closed
    while least < most:
        middle = (least + most) // 2
        if _excess(rate < (order[middle] if middle < len(order) else np.inf), prices, allowed) == 0:
            most = middle
        else:
            least = middle + 1
    return np.asarray(rate < order[least] if least < len(order) else np.isfinite(rate))


def _excess(closed: Alive, prices: Sequence[Prices], allowed: Sequence[float]) -> float:
    """Return what is left beyond what may be, as a share of the total, of the cost of which that is most."""
    return max(
        max(0.0, one.left(closed) - most) / max(one.total, np.finfo(float).tiny)
        for one, most in zip(prices, allowed, strict=True)
    )


def _best(found: Groups, worth: NDArray[np.float64]) -> Alive:
    """Return which gates are of units that are worth most in their group: one of each, so that something is left."""
    best = np.zeros(len(worth), bool)
    best[[group.first + int(worth[group.own].argmax()) for group in found]] = True
    return best


def _removed(gated: Gated, closing: Closing, data: Data, multiple_of: int) -> tuple[Model, Alive, float]:
    """Return the trained network without what is closed, the gates of what is left, and a difference.

    It is that between the network with closed gates and the one without what they close. Widths are rounded up: units
    worth most open again.

    Raises
    ------
    RefusedError
        It differs by more than rounding errors.
    """
    n = gated.found.n_units
    alive = rounded(gated.found, closing.closed[:n], closing.worth[:n], multiple_of)
    model = gated.written()
    gates = np.append(alive, ~closing.closed[n:])
    small = without(model, gated.blocks, gates)
    return small, gates, check_alike(gated, model, small, gates, data)
