"""The loop of training: batches in shuffled order, steps, and checks that decide what is kept and when to stop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, isnan
from time import process_time

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from graphmod.arguments import is_real
from graphmod.errors import RefusedError
from graphmod.train.material import Goals, Samples
from graphmod.train.objective import Objective, Rank
from graphmod.train.optimizers import OPTIMIZERS
from graphmod.train.weights import zeros


@dataclass(frozen=True)
class Check:
    """One look at calibration data.

    Parameters
    ----------
    epoch : float
        How often training had seen its data by then.
    seconds : float
        CPU seconds since the training was asked for, checks and caching included.
    score : float
        The metric on calibration data, larger is better.
    """

    epoch: float
    seconds: float
    score: float


@dataclass(frozen=True)
class Settings:
    """How long and in which steps is trained; see :func:`graphmod.retrain`.

    Raises
    ------
    RefusedError
        Something is out of range. Who works before training makes one first, so as not to be refused at its end.
    """

    epochs: int
    patience: int
    until: float | None
    check_every: int | None
    learning_rate: float
    batch_size: int
    optimizer: str
    keep_zeros: bool
    seed: int
    progress: bool
    final_rate: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.seed < 0 or min(self.patience, self.batch_size) < 1:
            raise RefusedError("epochs and seed must be at least 0, patience and batch_size at least 1")
        if not 0 < self.learning_rate < inf:
            raise RefusedError(f"learning_rate={self.learning_rate} is out of range; it is a number above 0")
        if not (is_real(self.final_rate) and 0 <= self.final_rate <= 1):
            raise RefusedError(
                f"final_rate={self.final_rate!r} is out of range; it is a share of learning_rate, between 0 and 1"
            )
        if not isinstance(self.optimizer, str) or self.optimizer not in OPTIMIZERS:
            raise RefusedError(f"there is no optimizer '{self.optimizer}'; there are {', '.join(sorted(OPTIMIZERS))}")
        if self.check_every is not None and self.check_every < 1:
            raise RefusedError("check_every must be at least 1 step")

    def reached(self, rank: Rank) -> bool:
        """Whether a score is all that was asked for."""
        return self.until is not None and rank[0] >= self.until


class Clock:
    """CPU seconds of this process since the clock was made, and how many of them each part of the work took."""

    def __init__(self) -> None:
        self._start = self._last = process_time()
        self.seconds = dict.fromkeys(("import", "caching", "training"), 0.0)

    def passed(self) -> float:
        """Return the seconds since the start."""
        return process_time() - self._start

    def book(self, part: str) -> None:
        """Count the seconds since the last time as this part's."""
        now = process_time()
        self.seconds[part] += now - self._last
        self._last = now


def fit(
    net: torch.fx.GraphModule,
    trained: Sequence[nn.Parameter],
    norms: Sequence[_BatchNorm],
    views: Sequence[Samples],
    first: Rank,
    *,
    objective: Objective,
    calibrate: Callable[[], Rank],
    settings: Settings,
    clock: Clock,
) -> tuple[Check, ...]:
    """Train, and leave the network with the weights that did best; ``norms`` go by the statistics of batches.

    Parameters
    ----------
    net : torch.fx.GraphModule
    trained : sequence of nn.Parameter
    norms : sequence of modules
    views : sequence of Samples
        The training data, and augmented views of it: epoch e goes through ``views[e % len(views)]``.
    first : Rank
        What ``calibrate`` says before training.
    objective : callable
        ``objective(outputs, goals)``.
    calibrate : callable
        Ranks the network as it is.
    settings : Settings
    clock : Clock

    Returns
    -------
    tuple of Check
        Without the one before training.

    Raises
    ------
    RefusedError
        The objective does not depend on what is to learn.
    """
    size, n = settings.batch_size, len(views[0])
    starts = range(0, n - n % size if norms and n > size else n, size)
    steps, every = settings.epochs * len(starts), settings.check_every or len(starts)
    optimizers = OPTIMIZERS[settings.optimizer](trained, settings.learning_rate)
    least = settings.final_rate * settings.learning_rate
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, max(1, steps), least) for one in optimizers]
    pinned = zeros(trained) if settings.keep_zeros else []
    state = [*trained, *(buffer for norm in norms for buffer in norm.buffers())]
    best, best_rank, waited = _copied(state), first, 0
    history: list[Check] = []
    columns = (TextColumn("retraining"), BarColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn())
    with Progress(*columns, disable=not settings.progress, transient=True) as bar:
        task = bar.add_task("", total=settings.epochs, told=f"calibration {first[0]:.4f}")
        learning(net, norms)
        for step, (inputs, goals) in enumerate(_batches(views, starts, settings), 1):
            for parameter in trained:
                parameter.grad = None
            value = objective(as_tuple(net(*inputs)), goals)
            if not value.requires_grad:
                raise RefusedError(
                    "no gradient reaches what is to learn: an operator behind it, such as Hardmax or ArgMax, has none; "
                    "train what comes after it"
                )
            value.backward()  # type: ignore[no-untyped-call]  # torch ships this method without annotations
            for parameter, mask in pinned:
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(mask, 0)
            for optimizer in optimizers:
                optimizer.step()
            for schedule in schedules:
                schedule.step()
            for parameter, mask in pinned:  # a step need not be zero where its gradient is
                parameter.detach().masked_fill_(mask, 0)
            if step % every and step != steps:
                continue
            rank = calibrate()
            history.append(Check(step / len(starts), clock.passed(), rank[0]))
            waited += 1
            if _comparable(rank) > _comparable(best_rank):
                best, best_rank, waited = _copied(state), rank, 0
            bar.update(task, completed=step / len(starts), told=f"calibration {best_rank[0]:.4f}")
            if waited >= settings.patience or settings.reached(rank):
                break
            learning(net, norms)
    with torch.no_grad():
        for tensor, kept in zip(state, best, strict=True):
            tensor.copy_(kept)
    net.eval()
    return tuple(history)


def _batches(views: Sequence[Samples], starts: range, settings: Settings) -> Iterator[tuple[list[Tensor], Goals]]:
    order = np.random.default_rng(settings.seed)
    for epoch in range(settings.epochs):
        view = views[epoch % len(views)]
        permuted = torch.from_numpy(order.permutation(len(view)))
        for start in starts:
            yield view.take(permuted[start : start + settings.batch_size])


def learning(net: torch.fx.GraphModule, norms: Sequence[_BatchNorm]) -> None:
    """Let the network be as in training; of batch normalisations only those that are given."""
    net.train()
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.train(module in norms)


def _comparable(rank: Rank) -> Rank:
    """Return a rank in which a score that is no number, as a correlation with a constant, is below all others."""
    score, second = (-inf if isnan(value) else value for value in rank)
    return score, second


def _copied(state: Sequence[Tensor]) -> list[Tensor]:
    return copy.deepcopy([tensor.detach() for tensor in state])


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return a network's outputs as a tuple, also where there is only one."""
    return outputs if isinstance(outputs, tuple) else (outputs,)
