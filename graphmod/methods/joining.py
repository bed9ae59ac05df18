"""Samples of several data, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphmod.data import Data


def joined(parts: Sequence[Data]) -> Data:
    """Return all samples of labelled data of the same inputs, those of the first part first.

    >>> one = Data({"x": np.zeros((2, 3))}, np.array([0, 1]))
    >>> joined([one, one]).targets
    array([0, 1, 0, 1])
    """
    inputs = {name: np.concatenate([part.inputs[name] for part in parts]) for name in parts[0].inputs}
    return Data(inputs, np.concatenate([np.asarray(part.targets, np.int64) for part in parts]))
