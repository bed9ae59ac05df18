"""How much of a defect a derived network has: by adversarial samples, and by samples with a trigger."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, as_data, check_labels
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.model import Model
from graphmod.probe import predict


def inheritance(derived: Model, clean: object, attacked: object) -> float:
    """Return the direct inheritance rate: of the samples that a network gets right, the share that an attack turns.

    With samples attacked on the network that it was made of (:func:`feature_attack`) this is how ReMoS (Zhang et al.,
    ICSE 2022) and SeaM (Qi et al., ICSE 2023) measure what it inherits.

    Parameters
    ----------
    derived : Model
        A classifier.
    clean, attacked : anything that :func:`graphmod.data.as_data` takes
        Samples with labels, and the same samples attacked, row by row.

    Returns
    -------
    float
        From 0, no sample that was right is wrong, to 1, all of them are.

    Raises
    ------
    InvalidDataError
        The data does not fit, its rows are no pairs, or the network gets no clean sample right.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods import defects
    >>> m, test = gm.load(gm.demo.model_path()), gm.demo.splits().test
    >>> defects.inheritance(m, test, test)
    0.0
    """
    before, after = as_data(derived, clean, targets=True), as_data(derived, attacked, targets=True)
    if len(before) != len(after):
        raise InvalidDataError(
            f"there are {len(before)} clean samples and {len(after)} attacked ones; rows must be pairs"
        )
    labels = check_labels(derived, before)
    others = int((labels != check_labels(derived, after)).sum())
    if others:
        raise InvalidDataError(
            f"{others} attacked samples have another label than the clean one in their row; rows must be pairs, with "
            "true labels (of a trigger: label=None)"
        )
    right = _predicted(derived, before) == labels
    if not right.any():
        raise InvalidDataError("the network gets no clean sample right, so that there is nothing an attack could turn")
    return float((_predicted(derived, after) != labels)[right].mean())


def success(derived: Model, stamped: object, label: int) -> float:
    """Return how often a trigger works: of the samples of other classes, the share that goes to its label.

    Parameters
    ----------
    derived : Model
        A classifier.
    stamped : anything that :func:`graphmod.data.as_data` takes
        Samples with the trigger and their true labels, ``trigger(data, label=None)``.
    label : int
        The class that the trigger was planted for.

    Returns
    -------
    float
        From 0 to 1. A network without the backdoor has what it confuses with the label anyway.

    Raises
    ------
    RefusedError
        There is no such class.
    InvalidDataError
        The data does not fit, or has no samples of other classes.

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.methods import defects
    >>> m, test = gm.load(gm.demo.model_path()), gm.demo.splits().test
    >>> defects.success(m, defects.trigger(test, label=None, size=1), label=0) < 0.1
    True
    """
    samples = as_data(derived, stamped, targets=True)
    labels = check_labels(derived, samples)
    predicted = _predicted(derived, samples, label)
    others = labels != label
    if not others.any():
        raise InvalidDataError(
            f"all samples have label {label}; measure on true labels, which trigger(data, label=None) leaves"
        )
    return float((predicted[others] == label).mean())


def _predicted(model: Model, samples: Data, label: int = 0) -> NDArray[np.int64]:
    """Return the predicted classes.

    Raises
    ------
    RefusedError
        A label is none of them.
    """
    outputs = predict(model, samples).reshape(len(samples), -1)
    if label % 1 or not 0 <= label < outputs.shape[1]:
        raise RefusedError(f"label={label} is out of range; the model's classes are 0 to {outputs.shape[1] - 1}")
    classes: NDArray[np.int64] = outputs.argmax(axis=1)
    return classes
