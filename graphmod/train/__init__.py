"""Localized retraining: only some blocks learn, and only what lies behind their entry runs."""

from graphmod.train.prefix import Prefix
from graphmod.train.retrain import Metric, retrain, trained_weights

__all__ = ["Metric", "Prefix", "retrain", "trained_weights"]
