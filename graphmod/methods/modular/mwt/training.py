"""Training as published: with gates, and a loss that makes those of a class alike and those of others different."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from graphmod.arguments import check_rates, check_whole
from graphmod.data import Data, as_splits, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import up_to_logits
from graphmod.methods.modular.chosen import chosen
from graphmod.methods.modular.mwt.gates import Gate, Layer, layers_of, with_gates
from graphmod.methods.modular.mwt.losses import cohesion, coupling
from graphmod.methods.one_output import check_one_output
from graphmod.methods.target_labels import check_all_classes
from graphmod.model import Model, check_model
from graphmod.pruning.head import head_of
from graphmod.pruning.importance.gradients import widened
from graphmod.pruning.recovery import trainable
from graphmod.pruning.restrict import detector, restrict
from graphmod.pytorch import to_torch, write_back
from graphmod.rewrite import rebatch
from graphmod.rewrite.draft import Draft
from graphmod.train.losses import cross_entropy

ALPHA, BETA = 0.5, 1.5
"""Weights of cohesion and coupling in the loss."""

ACTIVE = 0.9
"""Share of a class's training samples for which a kernel of its module is active."""

LOWER = 0.05
"""How much lower that is, again and again, where a layer would be empty."""

CHECKED = 256
"""Samples a batch where nothing is learnt."""


@dataclass(frozen=True, eq=False)
class MwtRun:
    """A network that was trained modular, without the gates that made it so.

    Parameters
    ----------
    model : Model
        All kernels, with batch normalisations as operators of their own.
    layers : tuple of Layer
        The convolutions that had gates.
    kernels : tuple of bool array, shape (classes, kernels)
        For each of them, which kernels the module of each class has.
    accuracy : float
        On test data, of the network with its gates.
    history : tuple of (float, float, float)
        Mean cross-entropy, cohesion and coupling of each epoch.
    batch : int, optional
        The number of samples that what is composed takes; any if None.
    """

    model: Model = field(repr=False)
    layers: tuple[Layer, ...] = field(repr=False)
    kernels: tuple[NDArray[np.bool_], ...] = field(repr=False)
    accuracy: float
    history: tuple[tuple[float, float, float], ...] = field(repr=False)
    batch: int | None = None

    def rate(self, classes: Sequence[int]) -> float:
        """Return the share of the kernels of layers with gates that modules of some classes have together."""
        some = chosen(classes, len(self.kernels[0]))
        kept = [own[some].any(0) for own in self.kernels]
        return float(np.concatenate(kept).mean())

    def compose(self, classes: Sequence[int]) -> Model:
        """Return a classifier of some classes: the kernels of their modules, and zeros for all others.

        Gates are gone: a kernel that is kept counts in full. Of a single class it is a detector, its column of logits.

        Raises
        ------
        RefusedError
            A class does not exist or is named twice, or none is named.
        """
        some = chosen(classes, len(self.kernels[0]))
        draft = Draft(self.model)
        for layer, own in zip(self.layers, self.kernels, strict=True):
            kept = own[some].any(0)
            for name in layer.zeroed:
                value = draft.constant(name)
                assert value is not None, "layers_of looks for constants"
                left = value * kept.reshape(-1, *(1,) * (value.ndim - 1)).astype(value.dtype)
                if name in self.model.initializers:
                    draft.set_initializer(name, left)
                else:
                    draft.redirect(name, draft.weight(f"{name}/kept", left))
        draft.prune()
        zeroed = draft.finish()
        small = detector(zeroed, some[0]) if len(some) == 1 else restrict(zeroed, [*some])
        return small if self.batch is None else rebatch(small, self.batch)


def train(
    model: Model,
    data: object,
    *,
    alpha: float = ALPHA,
    beta: float = BETA,
    epochs: int = 200,
    learning_rate: float = 0.05,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> MwtRun:
    """Train a convolutional network modular, as published.

    By the published code: stochastic gradient descent with Nesterov's momentum of 0.9 and a rate that falls to zero
    along a cosine.

    Parameters
    ----------
    model : Model
        Trained from the weights that it has.
    data : anything that :func:`graphmod.data.as_splits` takes
    alpha, beta : float
        Weights of one minus cohesion, and of coupling.
    epochs : int
    learning_rate : float
    batch_size : int
    seed : int
        Same seed, same result.
    progress : bool
        Show a progress bar.

    Raises
    ------
    RefusedError
        The model is no classifier, has several outputs or no two convolutions, or an argument is out of range.
    InvalidDataError
        The data does not fit the model, or its labels are not those of the model's classes.

    References
    ----------
    Qi et al., Modularizing while training: a new paradigm for modularizing DNN models, ICSE 2024, arXiv 2306.09376.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods.modular import mwt
    >>> run = mwt.train(gm.load(gm.demo.model_path()), gm.demo.splits(), epochs=1)
    >>> run.compose([3, 5, 8]).outputs["logits"].shape
    ('batch', 3)
    """
    check_model(model, "train")
    check_whole(1, epochs=epochs)
    check_whole(2, batch_size=batch_size)
    check_whole(0, seed=seed)
    check_rates(alpha=alpha, beta=beta, learning_rate=learning_rate)
    check_one_output(model)
    n_classes = head_of(model, model.main_output).n_classes
    parts = as_splits(model, data, seed, labels=True)
    check_all_classes(parts, n_classes)
    batch = fixed_batch(model)
    model = trainable(model if batch is None else rebatch(model), parts.train)
    layers = layers_of(model)
    labels = torch.from_numpy(np.asarray(parts.train.targets, np.int64))
    history = []
    with torch.random.fork_rng(devices=[]), Progress(disable=not progress, transient=True) as bar:
        torch.manual_seed(seed)
        net, gates = with_gates(up_to_logits(model), layers)
        run = _Run(net, gates)
        inputs = run.inputs(model, parts.train)
        optimizer = torch.optim.SGD(net.parameters(), learning_rate, momentum=0.9, nesterov=True)
        steps = epochs * ceil(len(labels) / batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        task = bar.add_task("training with gates", total=epochs)
        rng = np.random.default_rng(seed)
        for _ in range(epochs):
            net.train()
            seen = []
            for rows in torch.split(torch.from_numpy(rng.permutation(len(labels))), batch_size):
                if len(rows) < 2:  # the batch has no statistics
                    continue
                scores, opened = run(inputs, rows)
                told = labels[rows]
                terms = cross_entropy(scores, told), cohesion(opened, told), coupling(opened, told)
                loss = terms[0] + alpha * (1 - terms[1]) + beta * terms[2]
                if not torch.isfinite(loss):
                    raise RefusedError(
                        f"training cannot go on: the loss is {loss.item()}; give a smaller learning_rate"
                    )
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch ships this method without annotations
                optimizer.step()
                schedule.step()
                seen.append([term.item() for term in terms])
            history.append(tuple(np.mean(seen, 0).tolist()))
            bar.advance(task)
        net.eval()
        with torch.no_grad():
            kernels = run.kernels(inputs, labels, n_classes)
            right = run.right(run.inputs(model, parts.test), torch.from_numpy(np.asarray(parts.test.targets)))
    return MwtRun(_written(model, net), layers, kernels, right, tuple(history), batch)


def _written(model: Model, net: torch.fx.GraphModule) -> Model:
    """Return the model with the weights that a network with gates has."""
    plain = to_torch(model, dtype=torch.float32)
    own = plain.state_dict().keys()
    plain.load_state_dict({name: value for name, value in net.state_dict().items() if name in own})
    return write_back(model, plain)


@dataclass(frozen=True, eq=False)
class _Run:
    """A network with gates, and what is asked of it."""

    net: torch.fx.GraphModule
    gates: list[Gate]

    def __call__(self, inputs: list[Tensor], rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the logits of some samples, and their gates, layer by layer."""
        scores = self.net(*(one[rows] for one in inputs)).flatten(1)
        return scores, [gate.opened for gate in self.gates]

    def inputs(self, model: Model, data: Data) -> list[Tensor]:
        """Return samples as the network takes them."""
        return [torch.from_numpy(widened(data.inputs[name])) for name in model.inputs]

    def kernels(self, inputs: list[Tensor], labels: Tensor, n_classes: int) -> tuple[NDArray[np.bool_], ...]:
        """Return which kernels are active for nearly all samples of each class; for fewer where a layer has none.

        A class for whose samples no kernel of a layer is ever active has none there.
        """
        active = [torch.zeros(n_classes, gate.second.out_features) for gate in self.gates]
        for rows in torch.split(torch.arange(len(labels)), CHECKED):
            for total, opened in zip(active, self(inputs, rows)[1], strict=True):
                total.index_add_(0, labels[rows], (opened > 0).float())
        n_samples = torch.bincount(labels, minlength=n_classes).unsqueeze(1)
        shares = [total / n_samples for total in active]
        missed = [(ACTIVE - one.max(1, keepdim=True).values).clamp(min=0) for one in shares]
        least = [ACTIVE - LOWER * torch.ceil(one / LOWER - 1e-6) for one in missed]
        return tuple(((one >= few - 1e-6) & (one > 0)).numpy() for one, few in zip(shares, least, strict=True))

    def right(self, inputs: list[Tensor], labels: Tensor) -> float:
        """Return the share of samples that the network with gates is right on."""
        found = [
            self(inputs, rows)[0].argmax(1) == labels[rows] for rows in torch.split(torch.arange(len(labels)), CHECKED)
        ]
        return float(torch.cat(found).float().mean())
