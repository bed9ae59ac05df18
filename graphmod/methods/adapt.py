"""Adapting a network to samples that look different, by training a small part of it at the price of that part.

What a network gets wrong after a shift of its inputs (adversarial noise, blur, another sensor) is mostly lost early and
can be won back there: the region is chosen by the gain that a second of training it promises. Only samples from which
there is something to learn are trained on, with some others so that nothing is forgotten, and every one of them shall
have, beside its label, the logits that the network gives to the clean sample it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import process_time

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from graphmod.data import Data, Splits, as_splits, fixed_batch
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import Block, boundaries, logits, primary_input
from graphmod.graph import blocks as block_tree
from graphmod.methods.chance import warn_of_chance
from graphmod.methods.drawing import drawn
from graphmod.methods.gain import rank_regions
from graphmod.methods.joining import joined
from graphmod.methods.tuning import Candidate, Tuned, TuningReport
from graphmod.model import Model, edits_of, record
from graphmod.probe import accuracy, predict, share_correct
from graphmod.pytorch import to_torch, write_back
from graphmod.rewrite import Region, merge_weights, rebatch
from graphmod.rewrite.region import Place, find_regions
from graphmod.train import Imitation, n_trained, retrained
from graphmod.train.loop import Settings

LEARNT = 0.1
"""Cross-entropy below which there is nothing to learn from a sample."""

REPLAYED = 0.15
"""Share of the other shifted samples that are trained on, so that they stay right."""

CLEAN = 0.4
"""Share of clean samples among those that are trained on, so that nothing is forgotten."""

LOGITS = 0.9
"""Share of the squared error of logits in the loss."""

OPTIMIZER = "muon"
"""Of which fewer steps come as far as Adam's."""

_CHECK_EVERY = 20
"""Steps between two looks at calibration data."""

_PATIENCE = 12
"""Looks without progress after which training stops, at least."""

_MOST_SEEN, _MOST_CHECKED = 4096, 500
"""Shifted samples that training chooses from, and samples of either kind that decide what is kept, at most."""

_ALIKE = 0.7
"""Share of the best region's gain from which on another one that shares nothing with it is tried, too."""

_BURST = 40
"""Steps for which regions are tried."""

_PRICE = 5
"""Accuracy on shifted samples that a state must gain to make up for clean accuracy that it must not lose."""

_MIXTURES = 10
"""Mixtures of old and new weights that are tried where the new ones lose too much."""


def adapt(
    model: Model,
    data: object,
    shifted: object,
    *,
    share: float = 0.2,
    max_drop: float = 0.005,
    target: float | None = None,
    blocks: Place | Sequence[Place] | None = None,
    epochs: int = 4,
    learning_rate: float = 5e-3,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> Tuned:
    """Fit a classifier to shifted samples of its classes, and keep what it can do with clean ones.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_splits` takes
        Clean samples, as the model was trained on.
    shifted : anything that :func:`graphmod.data.as_splits` takes
        Shifted samples with labels: adversarial, corrupted, from another sensor. Best if each is made of the clean
        sample in the same row of the same part; where labels of rows differ, another sample of the class stands in.
        Parts must not mix: a shifted test sample is one that nothing was trained on.
    share : float
        Of the model's weights that may change, above 0 and at most 1.
    max_drop : float
        What accuracy on clean calibration data may lose. Where training takes more, its weights are mixed with the
        original's until it does not.
    target : float, optional
        Accuracy on shifted calibration data at which training stops.
    blocks : sequence of Block, str or (str, str), optional
        What is trained, as in :func:`graphmod.retrain`; if None, the region that promises most a second
        (:func:`graphmod.methods.gain.rank_regions`).
    epochs : int
        At most; each goes through the chosen samples once.
    learning_rate : float
    batch_size : int
    seed : int
        Same seed, same result, but for regions that promise almost the same.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Tuned
        ``.model`` and ``.report``, with accuracy on "clean" and "shifted" test data before and after, and no blocks
        where no state was better than the model as it is.

    Raises
    ------
    InvalidDataError
        The data does not fit the model, or the shifted samples are of other classes.
    RefusedError
        An argument is out of range, or no region has so few weights.

    Examples
    --------
    >>> import graphmod as gm
    >>> m, data = gm.load(gm.demo.model_path()), gm.demo.splits()
    >>> dark = gm.Splits(*(gm.Data({"image": 0.2 * part.inputs["image"]}, part.targets)
    ...                    for part in (data.train, data.calibration, data.test)))
    >>> tuned = gm.adapt(m, data, dark, epochs=2)
    >>> tuned.report.after["shifted"] > tuned.report.before["shifted"], tuned.report.trained_share < 0.2
    (True, True)
    """
    _check_arguments(share, max_drop, target, batch_size, seed)
    # refuses what is out of range before any work
    Settings(epochs, _PATIENCE, target, _CHECK_EVERY, learning_rate, batch_size, OPTIMIZER, False, seed, progress)
    start = process_time()
    clean = as_splits(model, data, seed, labels=True)
    moved = as_splits(model, shifted, seed, labels=True)
    _check_classes(clean, moved)
    free = model if fixed_batch(model) is None else rebatch(model)
    lesson = _lesson(free, clean.train, moved.train, seed)
    judge = _Judge.of(free, clean.calibration, moved.calibration, max_drop, seed)
    ranking: tuple[Candidate, ...] = ()
    if blocks is None:
        ranking = _tried(free, rank_regions(free, lesson.data, share), lesson, judge, learning_rate, batch_size, seed)
        blocks = [(ranking[0].entry, ranking[0].exit)]
    regions = _regions(free, blocks, share)
    analysis = process_time() - start
    run = retrained(
        free,
        Splits(lesson.data, judge.data, judge.data),
        [(region.entry, region.exit) for region in regions],
        imitate=Imitation(logits(free), free, Splits(lesson.shown, judge.data, judge.data), LOGITS),
        metric=judge,
        epochs=epochs,
        patience=max(_PATIENCE, len(lesson.data) // (batch_size * _CHECK_EVERY)),
        until=target,
        check_every=_CHECK_EVERY,
        optimizer=OPTIMIZER,
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    start = process_time()
    tuned = _mixed(free, run.model, judge)
    found = tuned if free is model else write_back(model, to_torch(tuned))
    mixing = process_time() - start
    if tuned.digest == free.digest:
        regions, ranking = [], ()
    n_weights = n_trained(model, regions)
    settings = {
        "share": share, "max_drop": max_drop, "target": target, "epochs": epochs, "optimizer": OPTIMIZER,
        "learning_rate": learning_rate, "batch_size": batch_size, "seed": seed, "samples": len(lesson.data),
    }  # fmt: skip
    report = TuningReport(
        blocks=ranking[0].blocks if ranking else _named(model, regions),
        entry=regions[0].entry if regions else "",
        exit=regions[-1].exit if regions else "",
        weights_trained=n_weights,
        trained_share=n_weights / model.n_weights,
        seconds={
            "analysis": analysis + run.seconds["import"],
            "caching": run.seconds["caching"],
            "training": run.seconds["training"] + mixing,
        },
        before=_accuracies(free, clean, moved),
        after=_accuracies(tuned, clean, moved),
        ranking=ranking,
        settings=settings,
        history=tuple(replace(check, seconds=check.seconds + analysis) for check in run.history),
    )
    warn_of_chance(report.before["clean"], model, "the clean test data")
    return Tuned(found, report, model)


def _check_arguments(share: float, max_drop: float, target: float | None, batch_size: int, seed: int) -> None:
    if not 0 < share <= 1:
        raise RefusedError(f"share={share} is out of range; it is a share of the weights above 0 and at most 1")
    if not 0 <= max_drop < 1:
        raise RefusedError(f"max_drop={max_drop} is out of range; it is a share of the accuracy between 0 and 1")
    if target is not None and not 0 < target <= 1:
        raise RefusedError(f"target={target} is out of range; it is an accuracy above 0 and at most 1")
    if batch_size < 1 or seed < 0:
        raise RefusedError(f"batch_size={batch_size} or seed={seed} is out of range; the least are 1 and 0")


def _check_classes(clean: Splits, moved: Splits) -> None:
    unknown = np.setdiff1d(_labels(moved.train), _labels(clean.train))
    if len(unknown):
        raise InvalidDataError(
            f"the shifted samples have label {unknown[0]}, which no clean training sample has; adapt fits a model to "
            "the classes that it knows"
        )


def _labels(data: Data) -> NDArray[np.int64]:
    return np.asarray(data.targets, np.int64)


def _regions(model: Model, blocks: Place | Sequence[Place], share: float) -> list[Region]:
    """Return what is trained, in the network's order.

    Raises
    ------
    RefusedError
        It has more weights than the share allows.
    """
    places = [blocks] if isinstance(blocks, str | Block) else blocks
    found = [region for place in places for region in find_regions(model, place)]
    size = n_trained(model, found)
    if size > share * model.n_weights:
        raise RefusedError(
            f"the blocks have {size:,} of the {model.n_weights:,} weights, more than share={share}; name fewer or give "
            "a larger share"
        )
    return sorted(found, key=lambda region: model.producer[region.exit])


def _named(model: Model, regions: Sequence[Region]) -> tuple[str, ...]:
    """Return the paths of regions that are blocks, and the tensors around the others."""
    known = {(block.entry, block.exit): block.path for block in block_tree(model).walk() if block.path}
    return tuple(known.get((one.entry, one.exit), f"{one.entry}..{one.exit}") for one in regions)


def _tried(
    model: Model,
    ranking: tuple[Candidate, ...],
    lesson: _Lesson,
    judge: _Judge,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> tuple[Candidate, ...]:
    """Let a short training decide among regions that share nothing; the winner comes first."""
    contenders = _contenders(ranking, [primary_input(model), *boundaries(model)])
    if len(contenders) == 1:
        return ranking
    some = slice(0, _BURST * batch_size)
    epochs = max(1, _BURST * batch_size // len(lesson.data))
    parts = Splits(lesson.data[some], judge.data, judge.data)
    imitate = Imitation(logits(model), model, Splits(lesson.shown[some], judge.data, judge.data), LOGITS)

    def burst(one: Candidate) -> float:
        run = retrained(
            model, parts, [(one.entry, one.exit)], imitate=imitate, epochs=epochs, optimizer=OPTIMIZER,
            learning_rate=learning_rate, batch_size=batch_size, seed=seed,
        )  # fmt: skip
        return max(check.score for check in run.history)

    best = max(contenders, key=burst)
    return (best, *(one for one in ranking if one is not best))


def _contenders(ranking: Sequence[Candidate], trunk: Sequence[str]) -> list[Candidate]:
    """Return the first candidate, and those that overlap none before them and promise almost as much, or are earliest.

    A gradient sees a step; over many of them an early region often brings more than it promised.
    """
    place = {tensor: i for i, tensor in enumerate(trunk)}
    earliest = min(ranking, key=lambda one: place[one.entry])
    enough = _ALIKE * ranking[0].figures["gain"]
    found = [ranking[0]]
    for one in [earliest, *sorted(ranking[1:], key=lambda one: -one.figures["gain"])]:
        apart = all(place[one.exit] <= place[other.entry] or place[other.exit] <= place[one.entry] for other in found)
        if apart and (one is earliest or one.figures["gain"] >= enough):
            found.append(one)
    return found


# -- what is learnt


@dataclass(frozen=True, eq=False)
class _Lesson:
    """Training samples, shuffled, and what the original gets to see for each."""

    data: Data
    shown: Data


def _lesson(model: Model, clean: Data, moved: Data, seed: int) -> _Lesson:
    """Choose the shifted samples from which there is something to learn, some of the others, and clean ones."""
    rng = np.random.default_rng(seed)
    partner = _partners(_labels(clean), _labels(moved), rng)
    seen = np.sort(rng.permutation(len(moved))[:_MOST_SEEN])
    losses = _cross_entropies(predict(model, moved[seen], output=logits(model)), _labels(moved[seen]))
    shifted = seen[(losses > LEARNT) | (rng.random(len(seen)) < REPLAYED)]
    own = rng.permutation(len(clean))[: max(2, round(len(shifted) * CLEAN / (1 - CLEAN)))]
    both, partners = joined([moved[shifted], clean[own]]), np.concatenate([partner[shifted], own])
    order = rng.permutation(len(both))
    return _Lesson(both[order], clean[partners[order]])


def _partners(clean: NDArray[np.int64], moved: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return for every shifted sample the row of a clean one of its class: its own where that has the label."""
    found = np.full(len(moved), -1)
    common = np.arange(min(len(clean), len(moved)))
    same = common[clean[common] == moved[common]]
    found[same] = same
    for label in np.unique(moved[found < 0]):
        rows = np.flatnonzero((found < 0) & (moved == label))
        found[rows] = rng.choice(np.flatnonzero(clean == label), len(rows))
    return found


def _cross_entropies(outputs: NDArray[np.generic], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    rows = outputs.reshape(len(labels), -1).astype(np.float64)
    return np.asarray(logsumexp(rows, axis=1) - rows[np.arange(len(labels)), labels])


# -- what is kept


@dataclass(frozen=True, eq=False)
class _Judge:
    """The metric: accuracy on shifted samples, less 5 times what clean ones miss of the least.

    Parameters
    ----------
    data : Data
        Shifted calibration samples, then clean ones.
    n_shifted : int
    floor : float
        The least accuracy on clean ones.
    """

    data: Data
    n_shifted: int
    floor: float

    @classmethod
    def of(cls, model: Model, clean: Data, moved: Data, max_drop: float, seed: int) -> _Judge:
        """Return the metric for a model as it is before training."""
        clean, moved = (drawn(model, part, _MOST_CHECKED, seed) for part in (clean, moved))
        return cls(joined([moved, clean]), len(moved), accuracy(model, clean) - max_drop)

    def __call__(self, outputs: NDArray[np.generic], targets: NDArray[np.generic]) -> float:
        """Return the score of outputs for all samples."""
        n = self.n_shifted
        return share_correct(outputs[:n], targets[:n]) - _PRICE * self._missing(outputs, targets)

    def allows(self, model: Model) -> bool:
        """Whether a model is good enough on clean samples."""
        return self._missing(predict(model, self.data), _labels(self.data)) <= 1e-9

    def _missing(self, outputs: NDArray[np.generic], targets: NDArray[np.generic]) -> float:
        return max(0.0, self.floor - share_correct(outputs[self.n_shifted :], targets[self.n_shifted :]))


def _mixed(model: Model, tuned: Model, judge: _Judge) -> Model:
    """Return the tuned model, or as much of it, mixed with the original, as clean samples bear.

    Weights of a network and of its fine-tuned self can be mixed (Wortsman et al., CVPR 2022).
    """
    if judge.allows(tuned):
        return tuned
    for part in range(_MIXTURES - 1, 0, -1):
        found = merge_weights(model, [tuned], coefficients=[_MIXTURES - part, part])
        if judge.allows(found):
            record(found, edits_of(model))  # what it is mixed with is in no file, so that no recipe could repeat it
            return found
    return model


def _accuracies(model: Model, clean: Splits, moved: Splits) -> dict[str, float]:
    return {"clean": accuracy(model, clean.test), "shifted": accuracy(model, moved.test)}
