"""Localized retraining: only some blocks learn, and only what lies behind their entry runs."""

from graphmod.train.cache import Cache
from graphmod.train.imitation import Imitation
from graphmod.train.loop import Check
from graphmod.train.objective import Loss, Metric
from graphmod.train.prefix import Prefix
from graphmod.train.retrain import Retrained, retrain, retrained
from graphmod.train.weights import trained_weights

__all__ = [
    "Cache",
    "Check",
    "Imitation",
    "Loss",
    "Metric",
    "Prefix",
    "Retrained",
    "retrain",
    "retrained",
    "trained_weights",
]
