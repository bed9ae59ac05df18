"""Modular training: the whole network and what is composed of some modules learn together.

Every sample of a batch is given a set of classes, its own among them, and the gates of what is composed of their
modules; a share of the samples is given all classes and so the whole network. A set of k classes is drawn with a
probability in proportion to 1 / k. The network learns to tell the classes of each sample's set from each other, by
the teacher's predictions among them and by labels. Of a module of one class the logit is trained to be above 0 on
samples of that class and below on others, so that it is a detector. Statistics of normalisation are fixed: what learns
is what will be composed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil, cos, pi

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from graphmod.data import Data
from graphmod.errors import RefusedError
from graphmod.methods.modular.assignment import Modules
from graphmod.methods.modular.by_sample import BySample
from graphmod.methods.modular.conditions import conditions
from graphmod.pruning.importance.gradients import widened
from graphmod.train.losses import corrected
from graphmod.train.optimizers import adam

TEMPERATURE = 2.0
"""How much predictions are softened."""

WHOLE = 0.4
"""Share of the samples that the whole network learns from."""

TABLES = 0.2
"""Times the learning rate, that of scales and shifts by conditions: each of them changes whole channels."""

WARMING = 0.1
"""Share of the steps in which the learning rate rises, as modules begin far from what they will be."""

KEPT = 4096
"""Sets whose gates are kept."""


@dataclass(frozen=True)
class Schedule:
    """How long and in which steps is trained.

    Parameters
    ----------
    epochs : int
    learning_rate : float
        The largest, after which it falls to zero along a cosine.
    batch_size : int
    taught : float
        Share of the teacher's predictions in the loss; labels have the rest.
    seed : int
    progress : bool
    """

    epochs: int
    learning_rate: float
    batch_size: int
    taught: float
    seed: int
    progress: bool = False


def train_modules(net: BySample, modules: Modules, data: Data, taught: Tensor, schedule: Schedule) -> None:
    """Train a network with gates by sample, so that it is right as a whole and composed of some modules.

    Parameters
    ----------
    net : BySample
    modules : Modules
    data : Data
        Training samples, with labels.
    taught : Tensor, shape (samples, classes)
        The teacher's logits.
    schedule : Schedule

    Raises
    ------
    RefusedError
        The loss is no number any more.
    """
    rng = np.random.default_rng(schedule.seed)
    labels = np.asarray(data.targets, np.int64)
    inputs = [torch.from_numpy(widened(data.inputs[name])) for name in net.found.model.inputs]
    taught = corrected(taught, torch.from_numpy(labels))
    sets = Sets(modules, rng)
    shared, tables = net.parameters()
    steps = schedule.epochs * ceil(len(data) / schedule.batch_size)
    optimizers = [*adam(shared, schedule.learning_rate), *adam(tables, TABLES * schedule.learning_rate)]
    rates = [LambdaLR(one, partial(rate, steps=steps)) for one in optimizers]
    done = 0
    net.net.eval()  # normalisation by the batch is an affine map, as it is in what will be composed
    with Progress(disable=not schedule.progress, transient=True) as bar:
        task = bar.add_task("training modules", total=schedule.epochs)
        for _ in range(schedule.epochs):
            for rows in np.array_split(rng.permutation(len(data)), steps // schedule.epochs):
                classes, gates = sets.draw(labels[rows])
                for optimizer in optimizers:
                    optimizer.zero_grad()
                own = torch.from_numpy(rows)
                scores = net([one[own] for one in inputs], gates, torch.from_numpy(conditions(classes.numpy())))
                loss = among(scores, taught[own], torch.from_numpy(labels[rows]), classes, schedule.taught)
                if not torch.isfinite(loss):
                    raise RefusedError(
                        f"training cannot go on: after {done} steps the loss is {loss.item()}; give a smaller "
                        "learning_rate"
                    )
                loss.backward()  # type: ignore[no-untyped-call]  # torch ships this method without annotations
                for optimizer, own_rate in zip(optimizers, rates, strict=True):
                    optimizer.step()
                    own_rate.step()
                done += 1
            bar.advance(task)


def rate(step: int, steps: int) -> float:
    """Return which share of the learning rate a step has: it rises, and falls to zero along a cosine.

    Examples
    --------
    >>> [round(rate(step, 100), 2) for step in (0, 5, 10, 50, 100)]
    [0.1, 0.6, 0.98, 0.5, 0.0]
    """
    return min(1.0, (step + 1) / (WARMING * steps)) * (0.5 + 0.5 * cos(pi * step / steps))


def among(scores: Tensor, taught: Tensor, labels: Tensor, classes: Tensor, share: float) -> Tensor:
    """Return the mean loss of samples, each among classes of its own; of a single class against all others.

    Parameters
    ----------
    scores, taught : Tensor, shape (samples, classes)
        Logits, those of the teacher right.
    labels : Tensor, shape (samples,)
    classes : bool Tensor, shape (samples, classes)
        Among which each sample is told; its own is one of them, unless it is a single one.
    share : float
        Of the teacher's predictions in the loss.

    Examples
    --------
    >>> scores = torch.tensor([[2.0, 1.0, 5.0]])
    >>> some = among(scores, scores, torch.tensor([0]), torch.tensor([[True, True, False]]), 0.9)
    >>> pair = among(scores[:, :2], scores[:, :2], torch.tensor([0]), torch.tensor([[True, True]]), 0.9)
    >>> bool(torch.isclose(some, pair))
    True
    """
    alone = classes.sum(1) == 1
    own = functional.one_hot(labels, classes.shape[1]).to(scores.dtype)
    known = share * taught.softmax(1) + (1 - share) * own
    single = functional.binary_cross_entropy_with_logits(scores, known, reduction="none").where(classes, 0.0).sum(1)
    closed = torch.zeros_like(scores).masked_fill(~classes, -torch.inf)
    student = functional.log_softmax(scores / TEMPERATURE + closed, 1)
    teacher = functional.log_softmax(taught / TEMPERATURE + closed, 1)
    soft = (teacher.exp() * (teacher - student).where(classes, 0.0)).sum(1) * TEMPERATURE**2
    hard = -(own * functional.log_softmax(scores + closed, 1).where(classes, 0.0)).sum(1)
    return torch.where(alone, single, share * soft + (1 - share) * hard).mean()


class Sets:
    """Sets of classes drawn for samples, smaller ones more often, and which gates are open for them.

    Parameters
    ----------
    modules : Modules
    rng : numpy Generator
    """

    def __init__(self, modules: Modules, rng: np.random.Generator) -> None:
        self._modules, self._rng = modules, rng
        self._n_classes = len(modules)
        sizes = np.arange(1, self._n_classes)
        odds = 1 / sizes
        self._odds = np.append((1 - WHOLE) * odds / odds.sum(), WHOLE)
        self._opened: dict[bytes, NDArray[np.float32]] = {}

    def draw(self, labels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return a set for each sample, shape (samples, classes), and its gates, shape (samples, gates).

        A sample's own class is in it, unless it is of a single class: then it is in every second one.
        """
        rng, n = self._rng, self._n_classes
        sizes = rng.choice(np.arange(1, n + 1), len(labels), p=self._odds)
        order = rng.random((len(labels), n))
        own = np.arange(len(labels)), labels
        order[own] = np.where((sizes == 1) & (rng.random(len(labels)) < 0.5), 2.0, -1.0)
        classes = order.argsort(1).argsort(1) < sizes[:, None]
        gates = np.stack([self._gates(one) for one in classes])
        return torch.from_numpy(classes), torch.from_numpy(gates)

    def _gates(self, classes: NDArray[np.bool_]) -> NDArray[np.float32]:
        key = classes.tobytes()
        if key not in self._opened:
            if len(self._opened) >= KEPT:
                self._opened.clear()
            self._opened[key] = self._modules.opened(np.flatnonzero(classes)).astype(np.float32)
        return self._opened[key]
