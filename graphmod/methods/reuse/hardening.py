"""Hardening: samples that are attacked on the original alone are learnt too, so that they do not turn what it becomes.

Whoever attacks a derived network may know nothing but the public network that it was made of; whoever derives it knows
that as well. Training on samples that were attacked on another network, with the labels that they had, is ensemble
adversarial training (Tramer et al., ICLR 2018).
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from graphmod.data import Splits
from graphmod.methods.defects import feature_attack
from graphmod.methods.defects.values import float_input
from graphmod.methods.joining import joined
from graphmod.methods.reuse.search import Plan
from graphmod.methods.reuse.start import Start
from graphmod.model import Model
from graphmod.rewrite.fuse import fuse
from graphmod.train import retrain


def attacked_too(original: Model, parts: Splits, eps: float, seed: int) -> Splits:
    """Return training and calibration samples, and behind them the same ones attacked on the original's features.

    Parameters
    ----------
    original : Model
    parts : Splits
    eps : float
        What each value may change by.
    seed : int

    Raises
    ------
    RefusedError
        The original has no features, or no gradient leads from them to the input.
    InvalidDataError
        The data have not one float input.

    Examples
    --------
    >>> import graphmod as gm
    >>> parts = gm.demo.splits()
    >>> len(parts.calibration), len(attacked_too(gm.load(gm.demo.model_path()), parts, 0.1, 0).calibration)
    (400, 800)
    """
    both = [float_input(part)[1] for part in (parts.train, parts.calibration)]
    bounds = float(min(x.min() for x in both)), float(max(x.max() for x in both))
    train, calibration = (
        joined([part, feature_attack(original, part, eps=eps, seed=seed, bounds=bounds)])
        for part in (parts.train, parts.calibration)
    )
    return Splits(train, calibration, parts.test)


def hardened(begun: Start, shown: Splits, plan: Plan) -> Start:
    """Return the same start with a teacher that has learnt attacked samples.

    It is the network that is to shrink, all of it trained for about as many steps as the search takes.
    """
    epochs = ceil(plan.steps * plan.batch_size / len(shown.train))
    teacher = retrain(
        begun.student, shown, epochs=epochs, patience=epochs, learning_rate=plan.learning_rate / 2,
        batch_size=plan.batch_size, seed=plan.seed, progress=plan.progress,
    )  # fmt: skip
    return replace(begun, teacher=fuse(teacher, kinds=["unfused"]))
