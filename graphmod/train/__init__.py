"""Localized retraining: only some blocks learn, and only what lies behind their entry runs."""

from graphmod.train.prefix import Prefix
from graphmod.train.retrain import retrain, trained_weights

__all__ = ["Prefix", "retrain", "trained_weights"]
