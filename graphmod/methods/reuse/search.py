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

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import cos, pi
from time import process_time

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from graphmod.data import Data
from graphmod.errors import RefusedError
from graphmod.graph import Block
from graphmod.methods.deeparc.residual_sums import is_skippable, residual_blocks
from graphmod.methods.reuse.gated import Gated
from graphmod.methods.reuse.price import Prices
from graphmod.methods.skipping import skip
from graphmod.model import Model
from graphmod.probe import predict
from graphmod.probe.operator_latency import LatencyTable
from graphmod.pruning.groups import groups
from graphmod.pruning.removal import cut
from graphmod.pruning.selection import Selection
from graphmod.pruning.widths import Alive, Widths
from graphmod.train.losses import cross_entropy, distillation
from graphmod.train.retrain import logits

MEMORY = 0.9
"""Of the running mean of squared gradients, a step."""

WARM = 10
"""Steps after which that mean is trusted."""

MORE = 5
"""Removals beyond the steps, if the budget is not met by then."""

RAMP = 0.7
"""Share of the steps after which the budget is what was asked for; the rest trains what is left."""

TAUGHT, TEMPERATURE = 0.9, 2.0
"""Share of the teacher's predictions in the loss, and how much they are softened."""

OPEN = 1e30
"""Added to the worth of what is open, so that it is the last to go where widths are rounded."""

AGREE = 1e-4
"""Of the output's scale, by which the network with closed gates may differ from the one without what they close."""


@dataclass(frozen=True)
class Stage:
    """The network after a removal.

    Parameters
    ----------
    step : int
        Steps of training before it.
    left : float
        What it costs, as a share of the original.
    weights : int
        Scalars in float constants.
    units, blocks : int
        How many of them were closed.
    difference : float
        Between the network with closed gates and the one without what they close, of the output's scale.
    seconds : float
        CPU seconds since the search began.
    """

    step: int
    left: float
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

    @property
    def is_open(self) -> Alive:
        """Which are not closed."""
        return ~self.closed


@dataclass(frozen=True)
class Plan:
    """How a search goes.

    Parameters
    ----------
    budget : {"latency", "weights", "macs"}
    target : float
        Share of the original's cost that may be left.
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
    """

    budget: str
    target: float
    steps: int
    shrink_every: int
    multiple_of: int
    learning_rate: float
    batch_size: int
    seed: int
    progress: bool = False
    table: LatencyTable = field(default_factory=LatencyTable, repr=False, compare=False)

    def allowed(self, step: int, begun: float) -> float:
        """Return the share of the cost that may be left at a step: what there is at first, less ever more slowly."""
        way = min(1.0, step / (RAMP * self.steps))
        return self.target + max(0.0, begun - self.target) * (1 - way) ** 2

    def rate(self, step: int) -> float:
        """Return the learning rate at a step, along a cosine."""
        return self.learning_rate * (0.5 + 0.5 * cos(pi * min(1.0, step / self.steps))) + self.learning_rate / 100


def searched(
    model: Model, teacher: Model, data: Data, plan: Plan, of: Model | None = None
) -> tuple[Model, tuple[Stage, ...]]:
    """Return what is left of a network, trained, and how it came there.

    Parameters
    ----------
    model : Model
        With batch normalisation as operators of its own, if it has any.
    teacher : Model
        A network of the same output, whose predictions are to be kept.
    data : Data
        Training samples, with labels.
    plan : Plan
    of : Model, optional
        What the budget is a share of; the model if None.

    Raises
    ------
    RefusedError
        The budget cannot be met, nothing can be removed, or a closed gate is not as if what it closes were gone.
    """
    start = process_time()
    rng = np.random.default_rng(plan.seed)
    taught = predict(teacher, data, output=logits(teacher))
    stages: list[Stage] = []
    first = Prices.of(groups(of or model), [], plan.budget, plan.table).total
    step, begun, aim = 0, 1.0, 1.0
    with Progress(disable=not plan.progress, transient=True) as bar, torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        task = bar.add_task("searching", total=plan.steps)
        while True:
            found, blocks = groups(model), _blocks(model)
            prices = Prices.of(found, blocks, plan.budget, plan.table)
            share = prices.total / first
            if stages:  # rounded widths leave more than is allowed
                aim *= min(1.0, plan.allowed(step, begun) / share)
                stages[-1] = replace(stages[-1], left=share)
            begun = share if not step else begun
            if not found.n_units and not blocks:
                raise RefusedError("no channel, head or block of the network can be removed; graphmod groups says why")
            if share <= plan.target and step >= RAMP * plan.steps:
                return model, tuple(stages)
            if step >= plan.steps + MORE * plan.shrink_every:
                raise RefusedError(
                    f"{plan.budget}={plan.target:g} cannot be met: {share:.1%} are left after {step} steps; give a "
                    "larger budget, or more steps"
                )
            gated = Gated(model, found, blocks)
            closed = _trained(gated, prices, (first * aim, begun), data, taught, step, plan, rng)
            step += plan.shrink_every
            bar.update(task, completed=step)
            model, difference = _removed(gated, closed, data, plan.multiple_of)
            seconds = process_time() - start
            stages.append(Stage(step, share, model.n_weights, *_counted(closed, found.n_units), difference, seconds))


def _blocks(model: Model) -> list[Block]:
    """Return the blocks that an identity can take the place of, the smallest ones that residual blocks are made of."""
    try:
        found = residual_blocks(model)
    except RefusedError:  # the trunk has no layers left
        return []
    skippable: list[Block] = []
    for block in found:
        parts = [child for child in block.children if is_skippable(model, child)]
        whole = len(parts) > 1 and len(parts) == len(block.children)
        skippable += parts if whole else [block] * is_skippable(model, block)
    return skippable


def _trained(
    gated: Gated,
    prices: Prices,
    shares: tuple[float, float],
    data: Data,
    taught: NDArray[np.generic],
    step: int,
    plan: Plan,
    rng: np.random.Generator,
) -> Closing:
    """Train for some steps; return what is worth how much, and what is closed in the end.

    ``shares`` are the whole that the budget is of, and the share of the original that the search began with.
    """
    first, begun = shares
    inputs = [torch.from_numpy(np.ascontiguousarray(data.inputs[name])) for name in gated.model.inputs]
    labels, goals = torch.from_numpy(np.asarray(data.targets, np.int64)), torch.from_numpy(np.array(taught))
    optimizer = torch.optim.Adam(gated.net.parameters(), plan.learning_rate)
    keep, worth = _kept(gated), np.zeros(gated.n_gates)
    closed = np.zeros(gated.n_gates, bool)
    gated.net.train()
    for number in range(step, step + plan.shrink_every):
        rows = torch.from_numpy(rng.choice(len(data), min(plan.batch_size, len(data)), replace=False))
        gates = torch.from_numpy((~closed).astype(np.float32)).requires_grad_()
        outputs = gated([one[rows] for one in inputs], gates)
        if gated.is_softmax:
            outputs = outputs.clamp_min(1e-12).log()
        loss = TAUGHT * distillation(outputs, goals[rows], TEMPERATURE)
        loss = loss + (1 - TAUGHT) * cross_entropy(outputs, labels[rows])
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(number)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships this method without annotations
        optimizer.step()
        assert gates.grad is not None
        worth = MEMORY * worth + (1 - MEMORY) * gates.grad.double().numpy() ** 2
        if number - step >= WARM:
            closed = cheapest(worth, prices, plan.allowed(number + 1, begun) * first, keep(worth))
    return Closing(worth, closed)


def cheapest(worth: NDArray[np.float64], prices: Prices, allowed: float, open_: Alive) -> Alive:
    """Return the gates that are worth less than a multiple of their price: the least at which the cost is allowed.

    Parameters
    ----------
    worth : float64 array, shape (gates,)
    prices : Prices
    allowed : float
        The cost that may be left.
    open_ : bool array, shape (gates,)
        What may not be closed.

    Examples
    --------
    >>> prices = Prices(10.0, np.array([1.0, 1.0, 4.0]), np.array([4.0]), np.array([-1, -1, -1]))
    >>> worth = np.array([3.0, 1.0, 8.0, 1.0])
    >>> cheapest(worth, prices, 5.0, np.array([False, False, False, False])).tolist()
    [False, True, False, True]
    """
    price = np.append(prices.units, prices.blocks)
    rate = np.divide(worth, price, out=np.full(len(worth), np.inf), where=(price > 0) & ~open_)
    order = np.sort(rate[np.isfinite(rate)])
    least, most = 0, len(order)  # how many of the lowest rates are closed
    while least < most:
        middle = (least + most) // 2
        if prices.left(rate < (order[middle] if middle < len(order) else np.inf)) <= allowed:
            most = middle
        else:
            least = middle + 1
    return np.asarray(rate < order[least] if least < len(order) else np.isfinite(rate))


def _counted(closing: Closing, n_units: int) -> tuple[int, int]:
    """Return how many units and blocks are closed."""
    return int(closing.closed[:n_units].sum()), int(closing.closed[n_units:].sum())


def _kept(gated: Gated) -> Callable[[NDArray[np.float64]], Alive]:
    """Return a function that says which gates stay open: what is fixed, and the unit of each group worth most."""
    fixed = np.append(gated.fixed, np.zeros(len(gated.blocks), bool))

    def keep(worth: NDArray[np.float64]) -> Alive:
        kept = fixed.copy()
        kept[[group.first + int(worth[group.own].argmax()) for group in gated.found]] = True
        return kept

    return keep


def _removed(gated: Gated, closing: Closing, data: Data, multiple_of: int) -> tuple[Model, float]:
    """Return the trained network without what is closed, and by how much it differs from the one with closed gates.

    Widths are rounded up: units worth most open again. A group inside a closed block goes with it.

    Raises
    ------
    RefusedError
        It differs by more than rounding errors.
    """
    n = gated.found.n_units
    selection = Selection(gated.found, Widths(gated.found), closing.worth[:n] + closing.is_open[:n] * OPEN, multiple_of)
    for group in gated.found:
        selection.reduce(group, selection.rounded(group, int(closing.is_open[group.own].sum())), 1.0)
    gates = np.append(selection.alive, closing.is_open[n:])
    some = data[: min(len(data), 64)]
    gated.net.eval()
    with torch.no_grad():
        inputs = [torch.from_numpy(np.ascontiguousarray(some.inputs[name])) for name in gated.model.inputs]
        masked = gated(inputs, torch.from_numpy(gates.astype(np.float32))).numpy()
    model = gated.written()
    if not selection.alive.all():
        model = cut(groups(model), ~selection.alive, leftovers=False)
    model = skip(model, [block for block, stays in zip(gated.blocks, closing.is_open[n:], strict=True) if not stays])
    made = predict(model, some)
    difference = float(np.abs(made - masked).max() / max(np.abs(made).max(), np.finfo(np.float32).tiny))
    if difference > AGREE:
        raise RefusedError(
            f"the network without what is closed differs from the one with closed gates by {difference:.1e} of the "
            "output's scale: an operator between the channels compares them in a way that gates do not follow"
        )
    return model, difference
