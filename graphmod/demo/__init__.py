"""The demo: a small network and its data, shipped so that everything can be tried at once and offline."""

from __future__ import annotations

from pathlib import Path

from graphmod.data import Splits, as_splits
from graphmod.model import load


def model_path() -> Path:
    """Return the path of the demo network, a ResNet-44 that tells handwritten digits apart.

    >>> model_path().name
    'digits_resnet44.onnx'
    """
    return Path(__file__).with_name("digits_resnet44.onnx")


def data_path() -> Path:
    """Return the path of the demo's data: arrays ``x_*`` and ``y_*`` for train, calibration and test.

    >>> import numpy as np
    >>> np.load(data_path())["x_test"].shape
    (498, 1, 8, 8)
    """
    return Path(__file__).with_name("digits.npz")


def splits() -> Splits:
    """Return the demo's data, fixed: train, calibration and test.

    >>> len(splits().test)
    498
    """
    return as_splits(load(model_path()), data_path())
