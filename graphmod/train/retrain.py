"""Retraining a network, or some of its blocks with the rest frozen."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.fx import GraphModule

from graphmod.data import as_splits, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import Block, logits
from graphmod.model import Model
from graphmod.pytorch import to_torch, write_back
from graphmod.rewrite import rebatch
from graphmod.rewrite.region import Place, find_regions
from graphmod.train.cache import Cache
from graphmod.train.imitation import Imitation, check_float
from graphmod.train.loop import Check, Clock, Settings, as_tuple, fit
from graphmod.train.material import Material, Samples
from graphmod.train.objective import Loss, Metric, Rank, Ranking, by_error, by_metric, objective_of
from graphmod.train.prefix import Prefix
from graphmod.train.views import Augment, Views, shown_to
from graphmod.train.weights import freeze_all_but, normalizations, trained_weights

__all__ = ["Loss", "Metric", "Retrained", "logits", "retrain", "retrained"]


@dataclass(frozen=True, eq=False)
class Retrained:
    """A trained model, and how it came to it.

    Parameters
    ----------
    model : Model
        As :func:`graphmod.retrain` returns it.
    history : tuple of Check
        Every look at calibration data, the first one before training.
    seconds : mapping of str to float
        CPU seconds of the process: "import" (into PyTorch), "caching" (of activations), "training" (checks included).
    """

    model: Model
    history: tuple[Check, ...] = field(repr=False)
    seconds: Mapping[str, float]


def retrain(
    model: Model,
    data: object,
    blocks: Place | Sequence[Place] | None = None,
    *,
    teacher: Model | None = None,
    distill: float = 0.5,
    temperature: float = 2.0,
    correct_teacher: bool = False,
    imitate: Imitation | None = None,
    loss: Loss | None = None,
    metric: Metric | None = None,
    epochs: int = 30,
    patience: int = 8,
    until: float | None = None,
    check_every: int | None = None,
    batch_statistics: bool | None = None,
    keep_zeros: bool = False,
    augment: Augment | None = None,
    views: int = 1,
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    final_rate: float = 0.0,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Model:
    """Train a model, or some of its blocks with everything else frozen.

    Activations at the entry of the first trained block are computed once with ONNX Runtime and kept, on disk where
    they are large, so that an epoch runs only from there on. The learning rate falls along a cosine; the epoch
    that does best on calibration data is kept, and the model as it was counts as epoch 0, so that training never makes
    it worse there. A model of half precision is trained in single precision; the weights are rounded when they are
    written back.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_splits` takes
        Its training part is learnt, its calibration part, as it is, decides when to stop and what is kept; its test
        part is not used.
    blocks : sequence of Block, str or (str, str), optional
        What may learn: a block, its path, an operator's name, a pair of tensors, or a selector, of which all matches
        learn (``"LayerNormalization"``, ``"Conv[scope=layer3]"``); or a sequence of these (a pair alone too is given in
        one: ``[("mean", "logits")]``). All weights that have a part in the first output if None. A weight that other
        blocks share learns in all of them.
    teacher : Model, optional
        The original; its predictions are learnt beside the targets.
    distill : float
        Share of the teacher in the loss, between 0 and 1; of no effect without a teacher.
    temperature : float
        Of the distillation, above 0; of no effect without a teacher, or with a ``loss`` of one's own.
    correct_teacher : bool
        Whether the teacher is set right by the labels: where it takes a training sample for another class, what it
        gives for the two is exchanged (Wen et al., 2021). Needs a ``teacher``, and no ``loss``.
    imitate : Imitation, optional
        Activations that an inner tensor is to have, beside the loss or in its place.
    loss : callable, optional
        ``loss(outputs, targets) -> scalar tensor``; cross-entropy with integer labels if None, on the logits before
        a softmax at the end of the model. With a loss of one's own the teacher's outputs are learnt by squared error.
    metric : callable, optional
        ``metric(outputs, targets) -> float``, larger is better; accuracy if None, or ``loss`` if that was given.
    epochs, patience : int
        At most so many; stop after so many checks without progress.
    until : float, optional
        Stop as soon as the metric on calibration data reaches this, before the first step if it is there already.
    check_every : int, optional
        Look at calibration data every so many steps instead of after every epoch, and at the end.
    batch_statistics : bool, optional
        Whether batch normalisation that may learn goes by the batch while training, and its running statistics follow,
        as when a network is trained from scratch: a last batch that is not full is left out then. Else they stay as
        they are. If None, so where the whole network learns.
    keep_zeros : bool
        Weights that are exactly 0 stay so: what masks have set to zero is not trained.
    augment : callable, optional
        ``augment(data, rng) -> Data``: the training data changed at random, sample by sample, targets as they then are.
        Calibration data are not augmented: give such as have what is to be learnt, or nothing of it is seen.
    views : int
        How many views of the training data there are: the data as it is, and so many less one that ``augment`` makes
        of it, each computed once and gone through in turn, one an epoch.
    optimizer : str
        A name in :data:`graphmod.train.OPTIMIZERS`: "adam", or "muon", which takes fewer steps at a larger learning
        rate (5e-3, about).
    learning_rate : float
    final_rate : float
        Share of the learning rate that is left in the end: 0, unless another training goes on from there.
    batch_size : int
    seed : int
        Same seed, same result.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Model
        The same graph; only weights, and running statistics, of what may learn differ.

    Raises
    ------
    RefusedError
        A block does not exist, there are no weights in the blocks that have a part in the first output (or in the
        tensor that imitates), a model takes a fixed number of samples that cannot be freed, an argument is out of
        range, or a teacher, loss, metric or augmentation has no effect beside another argument.
    UnsupportedOperatorError
        An operator behind the first block's entry cannot be imported into PyTorch.
    InvalidDataError
        The data does not fit.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> better = gm.retrain(m, gm.demo.splits(), ["layer3.6"], epochs=1)
    >>> gm.verify(m, better, gm.demo.splits().test).outputs["logits"].rms < 1
    True
    """
    return retrained(
        model, data, blocks,
        teacher=teacher, distill=distill, temperature=temperature,
        correct_teacher=correct_teacher, imitate=imitate, loss=loss, metric=metric,
        epochs=epochs, patience=patience, until=until, check_every=check_every,
        batch_statistics=batch_statistics, keep_zeros=keep_zeros, augment=augment, views=views,
        optimizer=optimizer, learning_rate=learning_rate, final_rate=final_rate, batch_size=batch_size, seed=seed,
        progress=progress,
    ).model  # fmt: skip


def retrained(
    model: Model,
    data: object,
    blocks: Place | Sequence[Place] | None = None,
    *,
    teacher: Model | None = None,
    distill: float = 0.5,
    temperature: float = 2.0,
    correct_teacher: bool = False,
    imitate: Imitation | None = None,
    loss: Loss | None = None,
    metric: Metric | None = None,
    epochs: int = 30,
    patience: int = 8,
    until: float | None = None,
    check_every: int | None = None,
    batch_statistics: bool | None = None,
    keep_zeros: bool = False,
    augment: Augment | None = None,
    views: int = 1,
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    final_rate: float = 0.0,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> Retrained:
    """Train a model as :func:`retrain` does, and tell how it went.

    Parameters and errors are those of :func:`retrain`.

    Returns
    -------
    Retrained
        The model, every look at calibration data, and where the CPU seconds went.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> run = retrained(m, gm.demo.splits(), "layer3.6", epochs=1)
    >>> [check.epoch for check in run.history]
    [0.0, 1.0]
    """
    clock = Clock()
    settings = Settings(
        epochs,
        patience,
        until,
        check_every,
        learning_rate,
        batch_size,
        optimizer,
        keep_zeros,
        seed,
        progress,
        final_rate,
    )
    seen = Views(augment, views, seed)
    if not 0 <= distill <= 1:
        raise RefusedError(f"distill={distill} is out of range; it is a share between 0 and 1")
    if not temperature > 0:
        raise RefusedError(f"temperature={temperature} is out of range; it is above 0, and 1 softens nothing")
    if correct_teacher and (teacher is None or loss is not None):
        raise RefusedError("correct_teacher=True needs a teacher, and targets that are labels: leave loss out")
    local = imitate is not None and imitate.is_local
    if local and not (teacher is None and loss is None and metric is None):
        raise RefusedError(
            "with an imitation of weight 1 the outputs are not computed, so that teacher, loss and metric have no "
            "effect; give a smaller weight or leave them out"
        )
    places = [blocks] if isinstance(blocks, str | Block) else blocks
    told = "the model" if places is None else ", ".join(map(_told, places)) or "no blocks"
    whole, model = model, _by_any_number(model)
    classify = loss is None and not local
    splits = as_splits(model, data, seed, labels=classify, targets=not local)
    if imitate is not None:
        check_float(model, imitate.tensor, "the model")
        imitate = replace(imitate, model=_by_any_number(imitate.model))
    regions = None if places is None else [region for place in places for region in find_regions(model, place)]
    weights = None if regions is None else trained_weights(model, regions)
    if weights is not None and not weights:
        raise RefusedError(f"there are no weights to train in {told}")
    prefix = Prefix(model, regions, *_wanted(model, imitate, classify), weights=weights or ())
    net, trained = _network(prefix, weights, told)
    norms = normalizations(net) if (places is None if batch_statistics is None else batch_statistics) else []
    if norms and min(batch_size, len(splits.train)) < 2:
        raise RefusedError(
            "a batch of one sample has no statistics; give batch_size=2 or more, or batch_statistics=False"
        )
    clock.book("import")
    with tempfile.TemporaryDirectory(prefix="graphmod-") as folder, torch.random.fork_rng():
        torch.manual_seed(seed)
        shown = splits if imitate is None else shown_to(imitate, data, splits, seed)
        material = Material(prefix, Cache(Path(folder)), _taught(teacher, distill, classify), imitate)
        calibration = material.for_checks(splits.calibration, shown.calibration)
        ranking = by_error if local else by_metric(loss, metric)
        calibrate = partial(_rank, net, calibration, ranking, max(batch_size, 256))
        clock.book("caching")
        first = calibrate()
        history: tuple[Check, ...] = (Check(0.0, clock.passed(), first[0]),)
        clock.book("training")
        if epochs and not settings.reached(first):
            ours = seen.of(model, splits.train, labels=classify)
            if imitate is None or imitate.data is None:
                samples = [material.for_training(view, view) for view in ours]
            else:
                pairs = zip(ours, seen.of(imitate.model, shown.train), strict=True)
                samples = [material.for_training(view, other) for view, other in pairs]
            clock.book("caching")
            history += fit(
                net, trained, norms, samples, first,
                objective=objective_of(loss, distill, temperature, correct_teacher, imitate, told),
                calibrate=calibrate, settings=settings, clock=clock,
            )  # fmt: skip
            clock.book("training")
    return Retrained(write_back(whole, net), history, clock.seconds)


def _told(place: Place) -> str:
    return place.path if isinstance(place, Block) else str(place)


def _by_any_number(model: Model) -> Model:
    """Return a model that takes any number of samples at a time, as training does, with the same weights."""
    return model if fixed_batch(model) is None else rebatch(model)


def _wanted(model: Model, imitate: Imitation | None, classify: bool) -> list[str]:
    """Return the tensors that losses look at: the first output or its logits, then the one that imitates."""
    inner = [] if imitate is None else [imitate.tensor]
    if imitate is not None and imitate.is_local:
        return inner
    return list(dict.fromkeys([logits(model) if classify else model.main_output, *inner]))


def _network(prefix: Prefix, weights: frozenset[str] | None, told: str) -> tuple[GraphModule, list[nn.Parameter]]:
    """Return what lies behind the cut in PyTorch, and those of its parameters that learn."""
    net = to_torch(prefix.suffix, dtype=torch.float32)  # in half precision Adam divides by zero
    trained = freeze_all_but(net, weights)
    if not trained:
        raise RefusedError(f"no weight of {told} has a part in tensor '{next(iter(prefix.suffix.outputs))}'")
    return net, trained


def _taught(teacher: Model | None, distill: float, classify: bool) -> tuple[Model, str] | None:
    """Return a teacher and the tensor that is learnt from it; none where it has no share."""
    if teacher is None or not distill:
        return None
    teacher = _by_any_number(teacher)
    return teacher, logits(teacher) if classify else teacher.main_output


def _rank(net: GraphModule, samples: Samples, ranking: Ranking, batch_size: int) -> Rank:
    """Rank a network as it is on some samples."""
    net.eval()
    with torch.no_grad():
        batches = samples.batches(batch_size)
        return ranking((as_tuple(net(*inputs))[0], goals) for inputs, goals in batches)
