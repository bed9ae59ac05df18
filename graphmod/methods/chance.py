"""A warning where a classifier is hardly ever right: labels or inputs are not what it was trained on, mostly."""

from __future__ import annotations

import warnings

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
