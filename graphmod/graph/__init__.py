"""The networkx view and what it tells: boundaries, blocks, costs."""

from graphmod.graph.blocks import Block, blocks
from graphmod.graph.boundaries import boundaries
from graphmod.graph.channels import channel_axis
from graphmod.graph.costs import Cost, cost
from graphmod.graph.explain import NearMiss, explain
from graphmod.graph.final_features import final_features, final_layer
from graphmod.graph.fingerprint import operator_hashes
from graphmod.graph.flow import activations, carries_activations, data_flow, primary_input, primary_output
from graphmod.graph.scope import scope
from graphmod.graph.select import Match, find
from graphmod.graph.softmax import logits, raw_logits, up_to_logits
from graphmod.graph.subgraph import subgraph

__all__ = [
    "Block",
    "Cost",
    "Match",
    "NearMiss",
    "activations",
    "blocks",
    "boundaries",
    "carries_activations",
    "channel_axis",
    "cost",
    "data_flow",
    "explain",
    "final_features",
    "final_layer",
    "find",
    "logits",
    "operator_hashes",
    "primary_input",
    "primary_output",
    "raw_logits",
    "scope",
    "subgraph",
    "up_to_logits",
]
