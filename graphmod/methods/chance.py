"""Warnings where figures say little: a classifier that is hardly ever right, too few samples to see a drop."""

from __future__ import annotations

import warnings

from graphmod.data import Data
from graphmod.model import Model


def warn_of_chance(score: float, model: Model, data: str = "the calibration data") -> None:
    """Warn if a share of right answers is about what guessing gives."""
    classes = model.n_classes
    if classes is not None and score < 1.5 / classes:
        warnings.warn(
            f"the model is right on {score:.1%} of {data}, about as often as chance among {classes} classes; check the "
            "labels' order and how the inputs are scaled",
            stacklevel=3,
        )


def warn_of_little_data(data: Data, max_drop: float) -> None:
    """Warn if a drop in accuracy that is allowed is less than one of the samples that it is measured on."""
    if 0 < len(data) * max_drop < 1:
        warnings.warn(
            f"{len(data)} calibration samples cannot show a drop of {max_drop:.2%}: one sample is {1 / len(data):.2%}",
            stacklevel=3,
        )
