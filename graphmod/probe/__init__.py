"""Measurements through ONNX Runtime: activations, similarity, sufficient statistics, latency."""

from graphmod.probe.accuracy import accuracy, predict, share_correct
from graphmod.probe.latency import Latency, block_latency, latency
from graphmod.probe.moments import Moments, moments
from graphmod.probe.similarity import Similarity, similarity
from graphmod.probe.stream import stream

__all__ = [
    "Latency",
    "Moments",
    "Similarity",
    "accuracy",
    "block_latency",
    "latency",
    "moments",
    "predict",
    "share_correct",
    "similarity",
    "stream",
]
