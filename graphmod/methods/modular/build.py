"""``train`` and ``extract``: module libraries, of a network that is still to be trained and of a trained one."""

from __future__ import annotations

from importlib.metadata import version
from math import ceil
from time import process_time
from typing import Any

import numpy as np
import torch

from graphmod.arguments import check_rates, check_whole, is_real
from graphmod.data import Splits, as_splits, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import raw_logits, up_to_logits
from graphmod.methods.digests import digest
from graphmod.methods.gates import Gated, always_open, check_equal, feeds, skippable_blocks, whole_groups, without
from graphmod.methods.modular.by_sample import BySample
from graphmod.methods.modular.conditions import with_own_scales
from graphmod.methods.modular.library import Library
from graphmod.methods.modular.measuring import scores_of
from graphmod.methods.modular.patching import score
from graphmod.methods.modular.planning import Planning
from graphmod.methods.modular.relevance import relevance
from graphmod.methods.modular.training import Schedule, train_modules
from graphmod.methods.one_output import check_one_output
from graphmod.methods.target_labels import check_all_classes
from graphmod.model import Model, check_model
from graphmod.probe import least_latency, predict
from graphmod.pruning.groups import groups
from graphmod.pruning.head import check_exclusive, head_of
from graphmod.pruning.recovery import trainable
from graphmod.pruning.restrict import detector
from graphmod.pruning.widths import Alive
from graphmod.rewrite import rebatch
from graphmod.rewrite.fuse import fuse
from graphmod.train import retrain

COMPARED = 32
"""Samples on which gates by sample are compared with gates for all, and with what is composed."""

STANDARD = 0.5
"""Share of the epochs in which a network is trained as a whole, before it has modules."""

FINAL_RATE = 0.5
"""Share of the learning rate that is left then."""

TAUGHT, TAUGHT_HALFWAY = 0.9, 0.3
"""Share of the teacher's predictions in the loss, where it is a trained network and where it was trained so far."""

MULTIPLE = 8
"""Of channels that modules have: what ONNX Runtime's convolutions are laid out in."""

VERSIONS = ("graphmod", "onnxruntime", "torch")
"""The packages whose versions the manifest has."""


def train(
    model: Model,
    data: object,
    *,
    weights: float = 0.1,
    latency: float | None = None,
    epochs: int = 30,
    learning_rate: float = 2e-3,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Library:
    """Train a network modular, from the weights that it has: those that it was exported with before any training, say.

    For half of the epochs it is trained as a whole; then its classes get modules, and it is trained as a whole and
    composed of a few of them, at every step.

    Parameters
    ----------
    model : Model
        A classifier that can be imported into PyTorch.
    data : anything that :func:`graphmod.data.as_splits` takes
        With labels, of every class some.
    weights : float
        Share of the model's weights that the module of one class may have at most.
    latency : float, optional
        The same of its time in ONNX Runtime, for one sample on one thread. It then has only some of the residual
        blocks; what is composed of more modules has more of them.
    epochs : int
    learning_rate : float
        At first, falling to half of it while the network is trained as a whole, and then to zero.
    batch_size : int
    seed : int
        Same seed, same result, but for what is chosen by measured time.
    progress : bool
        Show progress bars.

    Returns
    -------
    Library

    Raises
    ------
    RefusedError
        The model is no classifier or has several outputs, nothing of it can be removed, an argument is out of range, or
        a budget cannot be met.
    InvalidModelError
        What is given is no Model.
    InvalidDataError
        The data does not fit the model, or a class has no samples.

    References
    ----------
    Qi et al., Modularizing while training: a new paradigm for modularizing DNN models, ICSE 2024; as published in
    :mod:`graphmod.methods.modular.mwt`.

    Examples
    --------
    >>> import graphmod as gm
    >>> library = gm.modular.train(gm.load(gm.demo.model_path()), gm.demo.splits(), epochs=2)
    >>> library.compose([3, 5, 8]).outputs["logits"].shape
    ('batch', 3)
    """
    job = _Job(model, data, weights, latency, epochs, learning_rate, batch_size, seed, progress)
    if epochs < 2:
        raise RefusedError(f"epochs={epochs} is out of range; a half of them is for the whole network: give 2 or more")
    first = ceil(STANDARD * epochs)
    whole = retrain(
        trainable(job.free, job.parts.train), job.parts, epochs=first, patience=first, learning_rate=learning_rate,
        final_rate=FINAL_RATE, batch_size=batch_size, seed=seed, progress=progress,
    )  # fmt: skip
    teacher = fuse(whole, kinds=["unfused"])
    rate = FINAL_RATE * learning_rate
    schedule = Schedule(epochs - first, rate, batch_size, TAUGHT_HALFWAY, seed, progress)
    return job.library(whole, teacher, schedule, trained=True)


def extract(
    model: Model,
    data: object,
    *,
    weights: float = 0.1,
    latency: float | None = None,
    epochs: int = 10,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Library:
    """Make a trained network modular: its classes get modules by what is relevant for them, and these are trained.

    Parameters, errors and result are those of :func:`train`; all epochs are for the modules, and the model is the
    teacher. The learning rate falls to zero from the first epoch on.

    Examples
    --------
    >>> import graphmod as gm
    >>> library = gm.modular.extract(gm.load(gm.demo.model_path()), gm.demo.splits(), epochs=1)
    >>> library.n_classes
    10
    """
    job = _Job(model, data, weights, latency, epochs, learning_rate, batch_size, seed, progress)
    schedule = Schedule(epochs, learning_rate, batch_size, TAUGHT, seed, progress)
    return job.library(trainable(job.free, job.parts.train), job.free, schedule, trained=False)


class _Job:
    """What a library is made of, once it is known that it can be."""

    def __init__(
        self,
        model: Model,
        data: object,
        weights: float,
        latency: float | None,
        epochs: int,
        learning_rate: float,
        batch_size: int,
        seed: int,
        progress: bool,
    ) -> None:
        check_model(model, "modular")
        check_one_output(model)
        head = head_of(model, model.main_output)
        check_exclusive(model, head, "told from each other; give a model that ends in logits or a softmax")
        self.n_classes = head.n_classes
        for name, share in {"weights": weights, "latency": latency}.items():
            if not (is_real(share) and 0 < share < 1) and not (name == "latency" and share is None):
                raise RefusedError(
                    f"{name}={share!r} is out of range; it is a share of the original's, between 0 and 1"
                )
        check_whole(1, epochs=epochs)
        check_whole(2, batch_size=batch_size)
        check_whole(0, seed=seed)
        check_rates(learning_rate=learning_rate)
        self.start = process_time()
        self.original, self.weights, self.latency = model, weights, latency
        self.parts: Splits = as_splits(model, data, seed, labels=True)
        check_all_classes(self.parts, self.n_classes)
        self.batch = fixed_batch(model)
        self.free = with_own_scales(model if self.batch is None else rebatch(model))
        self.settings = {
            "weights": weights, "latency": latency, "epochs": epochs, "learning_rate": learning_rate,
            "batch_size": batch_size,
        }  # fmt: skip
        self.progress = progress

    def library(self, model: Model, teacher: Model, schedule: Schedule, *, trained: bool) -> Library:
        """Return the modules of a network, trained, its batch normalisations operators of their own.

        The manifest tells whether the network, too, was ``trained`` here.
        """
        train, seed = self.parts.train, schedule.seed
        taught = torch.from_numpy(predict(teacher, train, output=raw_logits(teacher)).astype(np.float32))
        found = groups(model)
        gated = Gated(found, skippable_blocks(found, with_weights=True))
        if not gated.n_gates:
            raise RefusedError("no channel, head or block of the network can be removed; graphmod groups says why")
        some = train[np.resize(np.arange(len(train)), COMPARED)]
        inputs = feeds(gated, some)
        net = BySample(gated, self.n_classes, inputs)
        fixed = always_open(gated, whole_groups(gated, train)) | ~net.agreed(gated, inputs)
        planning = Planning(
            gated, relevance(gated, train, self.n_classes, seed), fixed, self.original.n_weights,
            lambda gates: self._time_left(gated, gates), MULTIPLE,
        )  # fmt: skip
        modules = planning.within(self.weights, self.latency)
        train_modules(net, modules, train, taught.reshape(len(taught), -1), schedule)
        gated.net.load_state_dict(net.state())
        backbone = gated.written()
        manifest: dict[str, Any] = {
            "original": self.original.digest, "data": digest(self.parts), "seed": seed, "settings": self.settings,
            "trained": trained,
            "batch": self.batch, "seconds": process_time() - self.start,
            "versions": {name: version(name) for name in VERSIONS},
        }  # fmt: skip
        made = Library(
            backbone, tuple((block.entry, block.exit) for block in gated.blocks), modules, net.tables(), manifest
        )
        for classes in ([0], [0, 1], [*range(self.n_classes)]):
            opened = modules.opened(classes)
            own = made.cut(classes, opened)
            part = score(own) if len(classes) == 1 else up_to_logits(own)
            expected = net.composed(inputs, opened, classes)[:, classes]
            check_equal(predict(part, some).reshape(len(some), -1), expected, gated, backbone, some)
        manifest["accuracy"] = _by_class(made.model, self.parts, self.n_classes)
        return made

    def _time_left(self, gated: Gated, gates: Alive) -> float:
        """Return the share of the original's time that the network takes as a module of one class."""
        small = without(gated.model, gated.blocks, gates)
        small = fuse(detector(small, 0), kinds=["unfused"])
        times = least_latency({"before": self.free, "after": small}, self.parts.train[:1].inputs)
        return times["after"] / times["before"]


def _by_class(model: Model, parts: Splits, n_classes: int) -> list[float | None]:
    """Return for every class the share of its test samples that the whole classifier is right on; None without any."""
    labels = np.asarray(parts.test.targets)
    right = scores_of(model, parts.test).argmax(1) == labels
    return [float(right[labels == label].mean()) if (labels == label).any() else None for label in range(n_classes)]
