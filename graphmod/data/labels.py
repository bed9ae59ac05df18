"""Integer class labels: whether they fit a classifier's output."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from graphmod.data.data import Data
from graphmod.errors import InvalidDataError
from graphmod.model import Model


def check_labels(model: Model, data: Data) -> NDArray[np.int64]:
    """Return the targets as class labels of the model's first float output.

    Raises
    ------
    InvalidDataError
        There are none, they are no integers, or one is below 0 or not below the output's number of classes.
    """
    if data.targets is None:
        raise InvalidDataError("the data has no targets; pass a pair (samples, targets) or a mapping with 'y'")
    if data.targets.dtype.kind not in "iu" or data.targets.ndim != 1:
        raise InvalidDataError(
            f"classification needs integer targets of shape [samples], these are {data.targets.dtype} of shape "
            f"{list(data.targets.shape)}; whole numbers stored as floats need .astype(int), one-hot rows .argmax(1), "
            "other targets metric= and loss= in Python where these are taken"
        )
    name = model.main_output
    kind = model.outputs[name]
    shape = kind.shape or (None, None)
    if len(shape) < 2 or any(size != 1 for size in shape[2:]):
        raise InvalidDataError(
            f"output '{name}' is {kind}, which is no classifier's [samples, classes]; pass metric= and loss= in Python"
        )
    classes = model.n_classes
    low, high = int(data.targets.min()), int(data.targets.max())
    if low < 0 or (classes is not None and high >= classes):
        wrong = low if low < 0 else high
        span = "at least 0" if classes is None else f"0 to {classes - 1}"
        raise InvalidDataError(f"label {wrong} is out of range: output '{name}' is {kind}, so labels are {span}")
    return data.targets.astype(np.int64)
