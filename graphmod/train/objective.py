"""What training lessens, and what ranks its states: the loss and the metric, a teacher, activations to imitate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import mse_loss

from graphmod.errors import RefusedError
from graphmod.probe import share_correct
from graphmod.train.imitation import Imitation, half_squared_error
from graphmod.train.losses import corrected, cross_entropy, distillation
from graphmod.train.material import Goals

Loss = Callable[[Tensor, Tensor], Tensor]
Metric = Callable[[NDArray[Any], NDArray[Any]], float]

Objective = Callable[[tuple[Tensor, ...], Goals], Tensor]
"""From a network's outputs, and what they are compared with, to what is lessened."""

Rank = tuple[float, float]
"""By what states are compared: the score, then what tells equal ones apart."""

Ranking = Callable[[Iterator[tuple[Tensor, Goals]]], Rank]
"""From outputs, batch by batch, and what they are compared with, to a rank."""


def objective_of(
    loss: Loss | None, distill: float, temperature: float, correct_teacher: bool, imitate: Imitation | None, told: str
) -> Objective:
    """Mix the loss with what the teacher says, then with the distance from activations to imitate.

    What the teacher says are softened predictions, set right by labels if asked to, or its outputs under another loss.
    """

    def task(outputs: Tensor, goals: Goals) -> Tensor:
        hard = (loss or cross_entropy)(outputs, goals["targets"])
        if "taught" not in goals:
            return hard
        soft = goals["taught"]
        if soft.shape[1:].numel() != outputs.shape[1:].numel():
            raise RefusedError(
                f"the teacher's outputs have shape {list(soft.shape[1:])} a sample and the model's "
                f"{list(outputs.shape[1:])}; a teacher is a network for the same targets"
            )
        soft = soft.reshape(outputs.shape)
        if correct_teacher:
            soft = corrected(soft, goals["targets"])
        taught = distillation(outputs, soft, temperature) if loss is None else mse_loss(outputs, soft)
        return (1 - distill) * hard + distill * taught

    def objective(outputs: tuple[Tensor, ...], goals: Goals) -> Tensor:
        if imitate is None:
            return task(outputs[0], goals)
        if not outputs[-1].requires_grad:
            raise RefusedError(f"no weight of {told} has a part in tensor '{imitate.tensor}'")
        near = half_squared_error(outputs[-1], goals["wanted"])
        return near if imitate.is_local else imitate.weight * near + (1 - imitate.weight) * task(outputs[0], goals)

    return objective


def by_metric(loss: Loss | None, metric: Metric | None) -> Ranking:
    """Rank by the metric, and by the loss where there is none or it cannot tell two checks apart."""
    if metric is None and loss is None:
        metric = share_correct

    def rank(pairs: Iterator[tuple[Tensor, Goals]]) -> Rank:
        found, wanted = zip(*((outputs, goals["targets"]) for outputs, goals in pairs), strict=True)
        outputs, targets = torch.cat(found), torch.cat(wanted)
        value = -float((loss or cross_entropy)(outputs, targets))
        return (value if metric is None else metric(outputs.numpy(), targets.numpy()), value)

    return rank


def by_error(pairs: Iterator[tuple[Tensor, Goals]]) -> Rank:
    """Rank by the mean squared error of activations, a batch at a time: together they may be large."""
    total, n = 0.0, 0
    for found, goals in pairs:
        total += float(2 * half_squared_error(found, goals["wanted"])) * found.numel()
        n += found.numel()
    return (-total / n, 0.0)
