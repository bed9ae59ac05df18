r"""The search of SeaM: masks on all weights and a new head are trained, the weights themselves are not.

With :math:`f_M` the network whose weights are masked by :math:`M`, and :math:`h` the head behind its logits, a ReLU and
a linear layer, Adam lessens

.. math:: \mathrm{CE}(h(f_M(x)), y) + \alpha \, \overline{B(M)},

the cross-entropy and the share of the values that are kept (Qi et al., Reusing deep neural network models through model
re-engineering, ICSE 2023). Epochs 0, 5, 10, ... train the head alone, the others head and masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule

from graphmod.data import Data, as_splits, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import subgraph
from graphmod.methods.seam.choice import Choice, Epoch
from graphmod.methods.seam.head import logits_of, with_head
from graphmod.methods.seam.masks import binarized, masked, masked_parameters
from graphmod.methods.target_labels import n_labels
from graphmod.model import Model
from graphmod.probe import share_correct
from graphmod.pytorch import to_torch, write_back
from graphmod.pytorch.dtypes import to_tensor
from graphmod.rewrite import rebatch
from graphmod.train.loop import Clock, learning
from graphmod.train.losses import cross_entropy
from graphmod.train.material import Samples

HEAD_ALONE = 5
"""Of so many epochs the first trains the head alone."""

LOOKED_AT = 256
"""Calibration samples in a batch."""


@dataclass(frozen=True, eq=False)
class SeamRun:
    """What a search came to.

    Parameters
    ----------
    model : Model
        The original's graph, weights and biases that are not kept at zero, with the head behind its logits.
    kept : float
        Share of the masked values that are kept.
    n_masked : int
        How many values have a mask.
    epoch : int
        The one whose masks and head these are.
    reached : bool
        Whether it is as accurate on calibration data as was asked for.
    history : tuple of Epoch
    seconds : float
        CPU time of all.
    """

    model: Model = field(repr=False)
    kept: float
    n_masked: int
    epoch: int
    reached: bool
    history: tuple[Epoch, ...] = field(repr=False)
    seconds: float


@dataclass(frozen=True)
class _Settings:
    """How is searched; see :func:`search`."""

    accuracy: float
    alpha: float
    epochs: int
    mask_rate: float
    head_rate: float
    batch_size: int
    patience: int | None
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise RefusedError(f"accuracy={self.accuracy} is out of range; it is the original's, a share from 0 to 1")
        if not 0 <= self.alpha < inf:
            raise RefusedError(f"alpha={self.alpha} is out of range; it is a number of at least 0")
        if not (0 < self.mask_rate < inf and 0 < self.head_rate < inf):
            raise RefusedError(f"mask_rate={self.mask_rate} and head_rate={self.head_rate} must be numbers above 0")
        if min(self.epochs, self.batch_size, 1 if self.patience is None else self.patience) < 1 or self.seed < 0:
            raise RefusedError("epochs, batch_size and patience must be at least 1, and seed at least 0")


def search(
    model: Model,
    data: object,
    *,
    accuracy: float,
    alpha: float = 1.0,
    epochs: int = 300,
    mask_rate: float = 0.1,
    head_rate: float = 0.1,
    batch_size: int = 64,
    patience: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> SeamRun:
    """Find the weights that a target problem needs, and set all others to zero.

    Every weight and bias of Conv, Gemm and MatMul has a mask that starts at 1; it is kept while that is above 0.
    Weights do not change, nor do normalizations and their statistics. Of the epochs that are as accurate on calibration
    data as the original, the one that keeps the smallest share is kept; if there is none, the one of the best accuracy
    less share.

    Parameters
    ----------
    model : Model
        A classifier, of whatever classes; a softmax at its end goes.
    data : anything that :func:`graphmod.data.as_splits` takes
        Samples of the target problem, labelled 0 to n - 1. The training part is learnt, the calibration part decides
        what is kept (the published code decides by test data), the test part is not used.
    accuracy : float
        The original's on calibration data of the target problem.
    alpha : float
        Weight of the share that is kept in the loss, at least 0.
    epochs : int
    mask_rate, head_rate : float
        Learning rates of masks and head.
    batch_size : int
    patience : int, optional
        Once an epoch was as accurate as the original, end after so many that are not, counted anew whenever the share
        falls by thousandths. All epochs run if None.
    seed : int
        Same seed, same result.
    progress : bool
        Show a progress bar.

    Returns
    -------
    SeamRun

    Raises
    ------
    InvalidDataError
        The data do not fit, or their labels are not those of two or more classes, 0 to n - 1.
    RefusedError
        There is nothing to mask, the output is no classifier's, or an argument is out of range.
    UnsupportedOperatorError
        An operator cannot be imported into PyTorch.

    Examples
    --------
    >>> import graphmod as gm
    >>> m, digits = gm.load(gm.demo.model_path()), gm.demo.splits()
    >>> parts = (digits.train, digits.calibration, digits.test)
    >>> odd = gm.Splits(*(gm.Data(part.inputs, part.targets % 2) for part in parts))
    >>> run = search(m, odd, accuracy=0.9, epochs=2)
    >>> run.model.outputs["logits"].shape, run.n_masked, len(run.history)
    (('batch', 2), 302042, 2)
    """
    clock = Clock()
    settings = _Settings(accuracy, alpha, epochs, mask_rate, head_rate, batch_size, patience, seed)
    free = model if fixed_batch(model) is None else rebatch(model)
    splits = as_splits(free, data, seed)
    n_classes = n_labels(splits)
    part = subgraph(free, list(free.inputs), [logits_of(free)])
    net = to_torch(part, dtype=torch.float32).requires_grad_(False)
    parameters = masked_parameters(part, net)
    if not parameters:
        raise RefusedError("there is nothing to mask: no Conv, Gemm or MatMul before the logits has a constant weight")
    train, calibration = (_samples(one, part) for one in (splits.train, splits.calibration))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _Network(net, parameters, _n_original(net, train, part), n_classes)
        choice, history = _searched(network, train, calibration, settings, clock, progress)
    assert choice.chosen is not None, "there is at least one epoch"
    epoch, (kept, head) = choice.chosen
    for path, value in masked(parameters, kept.float()).items():
        parameters[path].copy_(torch.where(value == 0, 0, value))  # no zero is negative
    weight, bias = head
    found = with_head(write_back(model, net), weight.numpy(), bias.numpy())
    return SeamRun(found, epoch.kept, len(kept), epoch.epoch, choice.reached, history, clock.passed())


class _Network:
    """A network with masks, all in one row, and a head."""

    def __init__(self, net: GraphModule, parameters: dict[str, nn.Parameter], n_original: int, n_classes: int) -> None:
        self.net = net
        self.parameters = parameters
        self.masks = torch.ones(sum(one.numel() for one in parameters.values()))
        self.head = nn.Linear(n_original, n_classes)

    def __call__(self, inputs: list[Tensor], kept: Tensor) -> Tensor:
        """Return the target problem's logits of some samples."""
        logits: Tensor = functional_call(self.net, masked(self.parameters, kept), tuple(inputs))
        found: Tensor = self.head(logits.float().relu())
        return found

    def learning(self, masks: bool) -> None:
        """Let the network be as in training, but for its normalizations; masks learn or do not."""
        self.masks.requires_grad_(masks)
        learning(self.net, norms=())

    def state(self) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return copies of what is kept, and of the head's weight and bias."""
        return self.masks.detach() > 0, (self.head.weight.detach().clone(), self.head.bias.detach().clone())


def _searched(
    network: _Network, train: Samples, calibration: Samples, settings: _Settings, clock: Clock, progress: bool
) -> tuple[Choice[tuple[Tensor, tuple[Tensor, Tensor]]], tuple[Epoch, ...]]:
    """Train masks and head; return the choice among the epochs, and all of these."""
    heads = list(network.head.parameters())
    alone = torch.optim.Adam(heads, settings.head_rate)
    masks = {"params": [network.masks], "lr": settings.mask_rate}
    together = torch.optim.Adam([masks, {"params": heads, "lr": settings.head_rate}])
    choice: Choice[tuple[Tensor, tuple[Tensor, Tensor]]] = Choice(settings.accuracy)
    order = np.random.default_rng(settings.seed)
    history: list[Epoch] = []
    columns = (TextColumn("searching"), BarColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn())
    with Progress(*columns, disable=not progress, transient=True) as bar:
        task = bar.add_task("", total=settings.epochs, told="")
        for epoch in range(settings.epochs):
            head_alone = epoch % HEAD_ALONE == 0
            network.learning(masks=not head_alone)
            batches = _batches(train, order, settings.batch_size)
            loss = _trained(network, batches, alone if head_alone else together, settings.alpha)
            kept = int((network.masks > 0).sum()) / len(network.masks)
            found = Epoch(epoch, _accuracy(network, calibration), kept, loss, clock.passed())
            history.append(found)
            choice.see(found, network.state())
            bar.update(task, completed=epoch + 1, told=f"calibration {found.accuracy:.4f}, kept {kept:.1%}")
            if choice.below == settings.patience:
                break
    return choice, tuple(history)


def _trained(
    network: _Network, batches: Iterator[tuple[list[Tensor], Tensor]], optimizer: torch.optim.Adam, alpha: float
) -> float:
    """Train through an epoch; return the mean loss of its batches."""
    losses = []
    for inputs, labels in batches:
        optimizer.zero_grad()
        kept = binarized(network.masks)
        loss = cross_entropy(network(inputs, kept), labels) + alpha * kept.mean()
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships this method without annotations
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def _accuracy(network: _Network, samples: Samples) -> float:
    network.net.eval()
    with torch.no_grad():
        kept = binarized(network.masks)
        pairs = [(network(inputs, kept), goals["targets"]) for inputs, goals in samples.batches(LOOKED_AT)]
    outputs, targets = (torch.cat(side).numpy() for side in zip(*pairs, strict=True))
    return share_correct(outputs, targets)


def _batches(samples: Samples, order: np.random.Generator, size: int) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield inputs and labels in an order drawn anew."""
    for rows in torch.split(torch.from_numpy(order.permutation(len(samples))), size):
        inputs, goals = samples.take(rows)
        yield inputs, goals["targets"]


def _samples(data: Data, part: Model) -> Samples:
    """Return samples as the network of a part takes them."""
    labels = np.asarray(data.targets, np.int64)
    return Samples(tuple(to_tensor(data.inputs[name]) for name in part.inputs), {"targets": to_tensor(labels)})


def _n_original(net: GraphModule, samples: Samples, part: Model) -> int:
    """Return the number of logits, which one sample tells."""
    inputs, _ = samples.take(torch.arange(1))
    net.eval()
    with torch.no_grad():
        found = net(*inputs)
    if found.ndim != 2 or not found.is_floating_point():
        raise RefusedError(
            f"'{part.main_output}' has shape {list(found.shape)} for one sample, and a head takes the logits of a "
            "classifier, [samples, classes]; put a Flatten or a GlobalAveragePool behind it with graphmod.insert"
        )
    return int(found.shape[1])
