r"""The search of SeaM: masks on all weights and a head are trained, the weights themselves are not.

With :math:`f_M` the network whose weights are masked by :math:`M`, and :math:`h` the head behind its logits, a ReLU and
a linear layer, Adam lessens

.. math:: \mathrm{CE}(h(f_M(x)), y) + \alpha \, \overline{B(M)},

the cross-entropy and the share of the values that are kept (Qi et al., Reusing deep neural network models through model
re-engineering, ICSE 2023). Epochs 0, 5, 10, ... train the head alone, the others head and masks. Where the network's
own final layer is the head, :math:`h(f_M(x))` is what that makes of the features, and it has no masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.fx import GraphModule

from graphmod.arguments import check_rates, check_whole, is_real
from graphmod.data import Data, as_splits, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import up_to_logits
from graphmod.methods.seam.choice import ByAccuracy, ByShare, Choice, Epoch
from graphmod.methods.seam.masks import binarized
from graphmod.methods.seam.network import Network, State, WithAddedHead, WithOwnHead
from graphmod.methods.target_labels import n_labels
from graphmod.model import Model
from graphmod.probe import share_correct
from graphmod.pytorch import to_torch
from graphmod.pytorch.dtypes import to_tensor
from graphmod.rewrite import rebatch
from graphmod.train.loop import Clock
from graphmod.train.losses import cross_entropy
from graphmod.train.material import Samples

LOOKED_AT = 256
"""Calibration samples in a batch."""


@dataclass(frozen=True, eq=False)
class SeamRun:
    """What a search came to.

    Parameters
    ----------
    model : Model
        The original's graph, weights and biases that are not kept at zero, with the head.
    kept : float
        Share of the masked values that are kept.
    n_masked : int
        How many values have a mask.
    epoch : int
        The one whose masks and head these are.
    reached : bool
        Whether it is as accurate on calibration data as was asked for, or keeps no more than the share that was.
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
class Settings:
    """How is searched; see :func:`search`.

    Raises
    ------
    RefusedError
        Something is out of range. Who works before the search makes one first, so as not to be refused then.
    """

    accuracy: float | None
    share: float | None
    own_head: bool
    head_alone: int | None
    alpha: float
    epochs: int
    mask_rate: float
    head_rate: float
    batch_size: int
    patience: int | None
    seed: int
    progress: bool

    def __post_init__(self) -> None:
        if (self.accuracy is None) == (self.share is None):
            raise RefusedError("a search ends by what it is to reach: give either accuracy or share")
        if self.accuracy is not None and not (is_real(self.accuracy) and 0 <= self.accuracy <= 1):
            raise RefusedError(f"accuracy={self.accuracy!r} is out of range; it is the original's, a share from 0 to 1")
        if self.share is not None and not (is_real(self.share) and 0 <= self.share <= 1):
            raise RefusedError(f"share={self.share!r} is out of range; it is what may be kept, from 0 to 1")
        if not (is_real(self.alpha) and 0 <= self.alpha < inf):
            raise RefusedError(f"alpha={self.alpha!r} is out of range; it is a number of at least 0")
        check_rates(mask_rate=self.mask_rate, head_rate=self.head_rate)
        check_whole(1, epochs=self.epochs, batch_size=self.batch_size)
        check_whole(1, patience=1 if self.patience is None else self.patience)
        check_whole(0, seed=self.seed)
        if self.head_alone is not None and self.head_alone < 2:
            raise RefusedError(f"head_alone={self.head_alone} is out of range; it is None or at least 2")

    def choice(self) -> Choice[State]:
        """Return what chooses the epoch that is kept."""
        if self.share is not None:
            return ByShare(self.share)
        assert self.accuracy is not None, "either is given"
        return ByAccuracy(self.accuracy)


def search(
    model: Model,
    data: object,
    *,
    accuracy: float | None = None,
    share: float | None = None,
    own_head: bool = False,
    head_alone: int | None = 5,
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
    Weights do not change, nor do normalizations and their statistics. With ``accuracy``, of the epochs that are as
    accurate on calibration data as the original, the one that keeps the smallest share is kept; with ``share`` the
    first that keeps no more, which ends the search. If there is none, it is the one of the best accuracy less share.

    Parameters
    ----------
    model : Model
        A classifier, of whatever classes; a softmax at its end goes, unless ``own_head``.
    data : anything that :func:`graphmod.data.as_splits` takes
        Samples of the target problem, labelled 0 to n - 1. The training part is learnt, the calibration part decides
        what is kept (the published code decides by test data), the test part is not used.
    accuracy, share : float, optional
        The original's accuracy on calibration data of the target problem, or the share that may be kept: one of both.
    own_head : bool
        Whether the head is the final layer that there is, all behind :func:`graphmod.graph.final_features`, instead of
        a ReLU and a linear layer behind the logits. It has no masks, and learns from what it is.
    head_alone : int, optional
        Of so many epochs the first trains the head alone; none does if None.
    alpha : float
        Weight of the share that is kept in the loss, at least 0.
    epochs : int
    mask_rate, head_rate : float
        Learning rates of masks and head.
    batch_size : int
    patience : int, optional
        With ``accuracy``, once an epoch was as accurate as the original, end after so many that are not, counted anew
        whenever the share falls by thousandths; with ``share``, end after so many in a row of which the accuracy less
        share is no better than before. All epochs run if None.
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
        There is nothing to mask, the output is no classifier's, the head that there is has another number of classes,
        or an argument is out of range.
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
    settings = Settings(
        accuracy, share, own_head, head_alone, alpha, epochs, mask_rate, head_rate, batch_size, patience, seed, progress
    )
    return search_by(settings, model, data)


def search_by(settings: Settings, model: Model, data: object) -> SeamRun:
    """Search as :func:`search` does."""
    clock = Clock()
    free = model if fixed_batch(model) is None else rebatch(model)
    splits = as_splits(free, data, settings.seed)
    n_classes = n_labels(splits)
    part = up_to_logits(free)
    net = to_torch(part, dtype=torch.float32)
    train, calibration = (_samples(one, part) for one in (splits.train, splits.calibration))
    kind = WithOwnHead if settings.own_head else WithAddedHead
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = kind(part, net, _n_original(net, train, part), n_classes)
        choice, history = _searched(network, train, calibration, settings, clock)
    assert choice.chosen is not None, "there is at least one epoch"
    epoch, state = choice.chosen
    found = network.written(model, state)
    return SeamRun(found, epoch.kept, len(network.masks), epoch.epoch, choice.reached, history, clock.passed())


def _searched(
    network: Network, train: Samples, calibration: Samples, settings: Settings, clock: Clock
) -> tuple[Choice[State], tuple[Epoch, ...]]:
    """Train masks and head; return the choice among the epochs, and all of these."""
    alone = torch.optim.Adam(network.head, settings.head_rate)
    masks = {"params": [network.masks], "lr": settings.mask_rate}
    together = torch.optim.Adam([masks, {"params": network.head, "lr": settings.head_rate}])
    choice = settings.choice()
    order = np.random.default_rng(settings.seed)
    history: list[Epoch] = []
    columns = (TextColumn("searching"), BarColumn(), TextColumn("{task.fields[told]}"), TimeRemainingColumn())
    with Progress(*columns, disable=not settings.progress, transient=True) as bar:
        task = bar.add_task("", total=settings.epochs, told="")
        for epoch in range(settings.epochs):
            head_alone = settings.head_alone is not None and epoch % settings.head_alone == 0
            network.learning(masks=not head_alone)
            batches = _batches(train, order, settings.batch_size)
            loss = _trained(network, batches, alone if head_alone else together, settings.alpha)
            kept = int((network.masks > 0).sum()) / len(network.masks)
            found = Epoch(epoch, _accuracy(network, calibration), kept, loss, clock.passed())
            history.append(found)
            choice.see(found, network.state())
            bar.update(task, completed=epoch + 1, told=f"calibration {found.accuracy:.4f}, kept {kept:.1%}")
            if choice.ended(settings.patience):
                break
    return choice, tuple(history)


def _trained(
    network: Network, batches: Iterator[tuple[list[Tensor], Tensor]], optimizer: torch.optim.Adam, alpha: float
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


def _accuracy(network: Network, samples: Samples) -> float:
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
