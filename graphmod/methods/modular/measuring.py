"""Measuring a library: size, time and accuracy of what is composed of one, two, ... all of its modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphmod.arguments import check_whole, is_whole
from graphmod.data import Data, Splits, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import cost, logits
from graphmod.methods.measuring import latencies
from graphmod.methods.modular.library import Library
from graphmod.model import Model
from graphmod.probe import accuracy, predict
from graphmod.pruning.head import is_list
from graphmod.pruning.restrict import DETECTS
from graphmod.train import retrain


@dataclass(frozen=True)
class Composed:
    """What a composed model comes to.

    Parameters
    ----------
    classes : tuple of int
    weights, macs : float
        Shares of the original's.
    latency : dict of int to float
        Share of the original's, by batch size.
    accuracy : float
        On test samples of these classes; of one class the mean of how often it is right on that and on all others.
    whole : float
        The same of the reference, restricted to the classes.
    tuned : float, optional
        The accuracy after the composed model was trained for some epochs.
    """

    classes: tuple[int, ...]
    weights: float
    macs: float
    latency: dict[int, float]
    accuracy: float
    whole: float
    tuned: float | None


@dataclass(frozen=True)
class LibraryReport:
    """Figures of a library.

    Parameters
    ----------
    composed : tuple of Composed
    coupling : float
        Mean Jaccard index of two classes' modules: units and blocks that both have over those that any of them has.
    retention : float
        Mean share of units and blocks that the module of one class has.
    accuracy, original : float
        Of the whole classifier and of the original, on test data.
    """

    composed: tuple[Composed, ...]
    coupling: float
    retention: float
    accuracy: float
    original: float

    def mean(self, n_classes: int, name: str) -> float:
        """Return the mean of a figure over all that was composed of so many modules; no number where it is not told."""
        found = [getattr(one, name) for one in self.composed if len(one.classes) == n_classes]
        return float("nan") if None in found else float(np.mean(found))

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)


def jaccard(sets: NDArray[np.bool_]) -> float:
    """Return the mean Jaccard index of two different sets, of several, as rows of what is in them.

    Examples
    --------
    >>> jaccard(np.array([[True, True, False], [False, True, True]]))
    0.3333333333333333
    """
    members = sets.astype(np.int64)
    common = members @ members.T
    sizes = members.sum(1)
    index = common / np.maximum(1, sizes[:, None] + sizes[None] - common)
    return float(index[np.triu_indices(len(sets), 1)].mean())


def threshold(model: Model) -> float:
    """Return above what a detector takes a sample for one of its class."""
    return 0.5 if model.operators[model.producer[model.main_output]].op_type == DETECTS["Softmax"] else 0.0


def accuracy_among(model: Model, data: Data, classes: Sequence[int], columns: Sequence[int] | None = None) -> float:
    """Return the share of samples of some classes that a model is right on; of one class the balanced share.

    Parameters
    ----------
    model : Model
    data : Data
        Labelled by the original's classes.
    classes : sequence of int
        Those of the columns that are looked at.
    columns : sequence of int, optional
        Where they are in the output; in order if None.
    """
    return right_among(scores_of(model, data), np.asarray(data.targets), classes, columns, threshold(model))


def scores_of(model: Model, data: Data) -> NDArray[np.float64]:
    """Return a classifier's logits, shape (samples, classes)."""
    return np.asarray(predict(model, data, output=logits(model)), np.float64).reshape(len(data), -1)


def right_among(
    scores: NDArray[np.float64],
    labels: NDArray[np.int64],
    classes: Sequence[int],
    columns: Sequence[int] | None = None,
    least: float = 0.0,
) -> float:
    """Return the share of samples of some classes whose scores are right; see :func:`accuracy_among`.

    Parameters
    ----------
    scores : array, shape (samples, columns)
    labels : array of int, shape (samples,)
    classes : sequence of int
    columns : sequence of int, optional
    least : float
        Above what the scores of a detector, which has no ``columns``, tell that a sample is of its class.
    """
    if len(classes) == 1:
        taken = scores[:, 0] > least if columns is None else scores.argmax(1) == columns[0]
        own = labels == classes[0]
        return float((taken[own].mean() + (~taken[~own]).mean()) / 2)
    own = np.isin(labels, classes)
    found = scores[own][:, columns].argmax(1) if columns is not None else scores[own].argmax(1)
    return float((np.asarray(classes)[found] == labels[own]).mean())


def report(
    library: Library,
    original: Model,
    parts: Splits,
    sizes: Sequence[int],
    draws: int = 3,
    epochs: int = 0,
    batch_sizes: Sequence[int] = (1, 16),
    seed: int = 0,
    reference: Model | None = None,
) -> LibraryReport:
    """Measure what is composed of so many modules, for several drawn sets of classes each.

    Parameters
    ----------
    library : Library
    original : Model
        Of whose size and latency figures are shares.
    parts : Splits
        Labelled by the original's classes.
    sizes : sequence of int
    draws : int
        Sets of each size, all of them where there are no more.
    epochs : int
        Of training what is composed, for the accuracy after it; none if 0.
    batch_sizes : sequence of int
        That latency is measured at; a model of a fixed number of samples has that one alone.
    seed : int
    reference : Model, optional
        The classifier of all classes whose accuracy among some is the reference; if None the original, or the library's
        own where that was trained from the start.

    Raises
    ------
    RefusedError
        An argument is out of range, or the library is of another model than the original, where there is no reference.
    """
    if reference is None and original.digest != library.manifest["original"]:
        raise RefusedError(
            f"the library is of another model: that has the hash {library.manifest['original'][:12]}, this one "
            f"{original.digest[:12]}; give the one that it was made of"
        )
    reference = reference or (library.model if library.manifest["trained"] else original)
    batch = fixed_batch(original)
    batch_sizes = batch_sizes if batch is None else (batch,)
    if not is_list(sizes) or not all(is_whole(one) and 1 <= one <= library.n_classes for one in sizes):
        raise RefusedError(f"sizes={sizes!r} is no list of numbers of modules, 1 to {library.n_classes}")
    check_whole(1, draws=draws)
    check_whole(0, epochs=epochs, seed=seed)
    rng = np.random.default_rng(seed)
    whole, told, labels = cost(original), scores_of(reference, parts.test), np.asarray(parts.test.targets)
    found = []
    for size in sizes:
        for classes in _drawn(library.n_classes, size, draws, rng):
            model = library.compose(classes)
            timing = latencies({"before": original, "after": model}, parts.test, batch_sizes)
            tuned = None
            if epochs and size > 1:
                own = Splits(*(samples_of(getattr(parts, name), classes) for name in ("train", "calibration", "test")))
                better = retrain(model, own, epochs=epochs, patience=epochs, seed=seed)
                tuned = accuracy_among(better, parts.test, classes)
            found.append(
                Composed(
                    tuple(classes), model.n_weights / original.n_weights, cost(model).macs / max(1, whole.macs),
                    {one: timing["after"][one] / timing["before"][one] for one in batch_sizes},
                    accuracy_among(model, parts.test, classes),
                    right_among(told, labels, classes, classes), tuned,
                )
            )  # fmt: skip
    uses = np.array([library.modules.opened([label]) for label in range(library.n_classes)])
    every = range(library.n_classes)
    return LibraryReport(
        tuple(found), jaccard(uses), float(uses.mean()), accuracy_among(library.model, parts.test, every),
        accuracy_among(original, parts.test, every),
    )  # fmt: skip


def forgotten(library: Library, data: Data, label: int) -> dict[str, float]:
    """Return how often samples of a class are told right among all classes, with its module and without.

    Parameters
    ----------
    library : Library
    data : Data
        Labelled by the original's classes.
    label : int

    Returns
    -------
    dict of str to float
        "known before" and "known after": by the whole classifier, and by it without what only that module has.
    """
    own = data[np.flatnonzero(np.asarray(data.targets) == label)]
    found = {"known before": library.model, "known after": library.without([label], keep_columns=True)}
    return {name: accuracy(model, own) for name, model in found.items()}


def _drawn(n_classes: int, size: int, draws: int, rng: np.random.Generator) -> list[list[int]]:
    if comb(n_classes, size) <= draws:
        return [list(some) for some in combinations(range(n_classes), size)]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < draws:
        found[tuple(sorted(rng.choice(n_classes, size, replace=False).tolist()))] = None
    return [list(some) for some in found]


def samples_of(part: Data, classes: Sequence[int]) -> Data:
    """Return the samples of some classes, labelled by their place among these."""
    labels = np.asarray(part.targets)
    rows = np.flatnonzero(np.isin(labels, classes))
    place = {label: column for column, label in enumerate(classes)}
    return Data(part[rows].inputs, np.array([place[label] for label in labels[rows].tolist()], np.int64))
