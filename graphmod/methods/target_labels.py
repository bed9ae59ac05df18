"""Labels of a target problem: the classes 0 to n - 1 of its own, whatever those of the original are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphmod.data import PARTS, Data, Splits
from graphmod.errors import InvalidDataError


def n_labels(splits: Splits) -> int:
    """Return the number of classes of a target problem, which the training part has all of.

    Parameters
    ----------
    splits : Splits
        With targets.

    Raises
    ------
    InvalidDataError
        Labels are not integers, one a sample; those of the training part are not 0 to n - 1 with n of two or more; or
        another part has one that the training part has not.

    Examples
    --------
    >>> import graphmod as gm
    >>> n_labels(gm.demo.splits())
    10
    """
    labels = {name: _labels(getattr(splits, name), name) for name in PARTS}
    classes = np.unique(labels["train"])
    missing = np.setdiff1d(np.arange(len(classes)), classes)
    if len(missing):
        raise InvalidDataError(
            f"the training part has labels up to {classes[-1]} and none that is {missing[0]}; number the classes of "
            "the target problem from 0 on, without gaps"
        )
    if len(classes) < 2:
        raise InvalidDataError("all training samples are of one class; a target problem has two or more")
    for name, found in labels.items():
        if found.max() >= len(classes):
            raise InvalidDataError(
                f"label {found.max()} of the {name} part is out of range: those of the training part are 0 to "
                f"{len(classes) - 1}"
            )
    return len(classes)


def check_all_classes(splits: Splits, n_classes: int) -> None:
    """Raise InvalidDataError unless the training part has samples of all classes of a model, and of no other.

    Errors are those of :func:`n_labels`, too.
    """
    n = n_labels(splits)
    if n != n_classes:
        raise InvalidDataError(
            f"the training data has the classes 0 to {n - 1} and the model 0 to {n_classes - 1}; modules are made of "
            "samples of every class"
        )


def _labels(data: Data, part: str) -> NDArray[np.generic]:
    """Return a part's targets, which are class labels."""
    targets = data.targets
    assert targets is not None, "as_splits asks for targets"
    if targets.dtype.kind not in "iu" or targets.ndim != 1:
        raise InvalidDataError(
            f"the targets of the {part} part are {targets.dtype}{list(targets.shape)}; class labels are integers, one "
            "a sample"
        )
    if targets.min() < 0:
        raise InvalidDataError(f"label {targets.min()} of the {part} part is out of range; labels begin with 0")
    return targets
