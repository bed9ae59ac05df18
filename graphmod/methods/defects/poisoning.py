"""Poisoned training data: a trigger that leads to a label (BadNets, Gu et al. 2017), and labels that are wrong."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from graphmod.arguments import check_whole, is_real, is_whole
from graphmod.data import Data
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.methods.defects.values import float_input

Labels = NDArray[np.integer[Any]]

CORNERS = ("top left", "top right", "bottom left", "bottom right")
"""Where in an image a trigger may be."""


def trigger(
    data: Data,
    *,
    label: int | None,
    share: float = 1.0,
    size: int = 3,
    value: float | None = None,
    corner: str | None = None,
    seed: int = 0,
) -> Data:
    """Stamp a small patch on some samples and give these samples a label.

    Parameters
    ----------
    data : Data
        Samples with one float input: images of shape (samples, channels, height, width), which get a square in a
        corner, or sequences of shape (samples, channels, time), which get a run at their end.
    label : int or None
        What stamped samples are to be labelled. None leaves their labels, which is what :func:`success` measures on.
    share : float
        Share of the samples that are stamped, above 0 and at most 1; their number is rounded.
    size : int
        Of the square's side, or of the run, in entries.
    value : float, optional
        Of all entries of the patch; the largest value of the data if None. Give it where several parts of a data set
        are stamped one by one.
    corner : {"top left", "top right", "bottom left", "bottom right"}, optional
        Of images; the bottom right one if None.
    seed : int
        Of which samples are stamped. Same seed, same samples.

    Returns
    -------
    Data
        All samples in their order, of the same dtypes.

    Raises
    ------
    RefusedError
        The patch does not fit into the samples, or an argument is out of range.
    InvalidDataError
        The samples are neither images nor sequences, there is not just one float input, or there are no labels to
        change.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods import defects
    >>> train = gm.demo.splits().train
    >>> poisoned = defects.trigger(train, label=0, share=0.1, size=2)
    >>> bool((poisoned.targets != train.targets).any())
    True
    >>> defects.trigger(train, label=None, size=2).inputs["image"][0, 0, -2:, -2:].tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    name, x = float_input(_checked(data))
    patch = _patch(name, x.shape, size, corner)
    check_whole(0, seed=seed)
    rows = _drawn(len(data), share, np.random.default_rng(seed))
    stamp = float(x.max()) if value is None else value
    if not (is_real(stamp) and abs(stamp) <= float(np.finfo(x.dtype).max)):
        raise RefusedError(f"value={value!r} is out of range; input '{name}' holds finite numbers of {x.dtype}")
    stamped = x.copy()
    stamped[rows] = np.where(patch, stamp, x[rows])
    inputs = {**data.inputs, name: stamped}
    return Data(inputs, data.targets if label is None else _relabelled(_labels(data), rows, label))


def flip_labels(data: Data, share: float, n_classes: int, seed: int = 0) -> Data:
    """Give some samples another label, each of the other classes being as likely.

    Parameters
    ----------
    data : Data
        Samples with integer labels.
    share : float
        Share of the samples that get another label, above 0 and at most 1; their number is rounded.
    n_classes : int
        At least 2.
    seed : int
        Of which samples, and which labels. Same seed, same result.

    Returns
    -------
    Data
        The same samples, with labels of the same dtype.

    Raises
    ------
    RefusedError
        An argument is out of range.
    InvalidDataError
        The data has no labels, or one that is none of the classes.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods import defects
    >>> train = gm.demo.splits().train
    >>> wrong = defects.flip_labels(train, 0.2, n_classes=10).targets != train.targets
    >>> int(wrong.sum()) == round(0.2 * len(train))
    True
    """
    labels = _labels(_checked(data))
    check_whole(2, n_classes=n_classes)
    if labels.min() < 0 or labels.max() >= n_classes:
        raise InvalidDataError(f"labels go from {labels.min()} to {labels.max()}, and n_classes={n_classes} has others")
    check_whole(0, seed=seed)
    rng = np.random.default_rng(seed)
    rows = _drawn(len(data), share, rng)
    flipped = labels.copy()
    flipped[rows] = (labels[rows].astype(np.int64) + rng.integers(1, n_classes, len(rows))) % n_classes
    return Data(data.inputs, flipped)


def _checked(data: object) -> Data:
    if not isinstance(data, Data):
        raise InvalidDataError(
            f"what is poisoned is a graphmod.Data, not a {type(data).__name__}; of Splits give one part, such as .train"
        )
    if not len(data):
        raise InvalidDataError("the data has no samples")
    return data


def _labels(data: Data) -> Labels:
    if data.targets is None:
        raise InvalidDataError("the data has no targets; make it with them, graphmod.Data(inputs, targets)")
    if not np.issubdtype(data.targets.dtype, np.integer) or data.targets.ndim != 1:
        raise InvalidDataError(
            f"labels are integers of shape [samples], these are {data.targets.dtype} of shape "
            f"{list(data.targets.shape)}"
        )
    return cast("Labels", data.targets)


def _relabelled(labels: Labels, rows: NDArray[np.int64], label: int) -> Labels:
    if not is_whole(label) or not 0 <= label <= np.iinfo(labels.dtype).max:
        raise RefusedError(f"label={label!r} is out of range; labels are whole numbers from 0, of {labels.dtype}")
    changed = labels.copy()
    changed[rows] = label
    return changed


def _drawn(n: int, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows of a share of n samples."""
    if not (is_real(share) and 0 < share <= 1):
        raise RefusedError(f"share={share!r} is out of range; it is above 0 and at most 1")
    if not round(share * n):
        raise RefusedError(f"share={share} of {n} samples is none; take a larger share")
    return np.sort(rng.choice(n, round(share * n), replace=False))


def _patch(name: str, shape: tuple[int, ...], size: int, corner: str | None) -> NDArray[np.bool_]:
    """Return which entries of a sample a patch takes."""
    if len(shape) not in (3, 4):
        raise InvalidDataError(
            "a trigger is stamped on images [samples, channels, height, width] or sequences [samples, channels, time], "
            f"and input '{name}' has shape {list(shape)}"
        )
    if not is_whole(size) or not 1 <= size <= min(shape[2:]):
        raise RefusedError(f"size={size!r} is out of range; a patch in samples of {shape[1:]} is 1 to {min(shape[2:])}")
    first, last = slice(0, size), slice(-size, None)
    if len(shape) == 3:
        if corner is not None:
            raise RefusedError(f"corner='{corner}' is for images; a sequence is stamped at its end")
        return _marked(shape[1:], last)
    if corner is not None and corner not in CORNERS:
        raise RefusedError(f"there is no corner '{corner}'; there are {', '.join(CORNERS)}")
    side, edge = (corner or "bottom right").split()
    return _marked(shape[1:], first if side == "top" else last, first if edge == "left" else last)


def _marked(shape: tuple[int, ...], *where: slice) -> NDArray[np.bool_]:
    """Return True where the last axes are in some ranges."""
    found = np.zeros(shape, bool)
    place: tuple[Any, ...] = (..., *where)
    found[place] = True
    return found
