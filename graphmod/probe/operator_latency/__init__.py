"""Latency of operators alone, in ONNX Runtime, at any shapes: measured once on a machine and kept on disk.

What is measured is a *signature*: operators that ONNX Runtime computes as one (mostly a single one), with their
attributes and the dtypes and shapes of what they read, whatever the values. A pruning budget asks for hypothetical
shapes thousands of times; each is measured once a machine.
"""

from graphmod.probe.operator_latency.clusters import Cluster, Clusters, clusters
from graphmod.probe.operator_latency.signature import Signature, signature
from graphmod.probe.operator_latency.table import LatencyTable

__all__ = ["Cluster", "Clusters", "LatencyTable", "Signature", "clusters", "signature"]
