"""Localized retraining: only some blocks learn, and only what lies behind their entry runs."""

from graphmod.train.cache import Cache
from graphmod.train.imitation import Imitation
from graphmod.train.loop import Check
from graphmod.train.objective import Loss, Metric
from graphmod.train.optimizers import OPTIMIZERS
from graphmod.train.prefix import Prefix
from graphmod.train.retrain import Retrained, retrain, retrained
from graphmod.train.weights import n_trained, trained_weights

__all__ = [
    "OPTIMIZERS",
    "Cache",
    "Check",
    "Imitation",
    "Loss",
    "Metric",
    "Prefix",
    "Retrained",
    "n_trained",
    "retrain",
    "retrained",
    "trained_weights",
]
