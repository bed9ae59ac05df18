"""Measurements through ONNX Runtime: activations, similarity, sufficient statistics, latency."""

from graphmod.probe.accuracy import accuracy, predict, share_correct
from graphmod.probe.latency import Latency, block_latency, latency, least_latency
from graphmod.probe.moments import Moments, moments
from graphmod.probe.operator_latency import Clusters, LatencyTable, Signature, clusters, signature
from graphmod.probe.similarity import Similarity, cka, similarity
from graphmod.probe.stream import gathered, stream

__all__ = [
    "Clusters",
    "Latency",
    "LatencyTable",
    "Moments",
    "Signature",
    "Similarity",
    "accuracy",
    "block_latency",
    "cka",
    "clusters",
    "gathered",
    "latency",
    "least_latency",
    "moments",
    "predict",
    "share_correct",
    "signature",
    "similarity",
    "stream",
]
