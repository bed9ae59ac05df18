"""The importer (ONNX to a trainable torch module) and the way back (weights to the same graph)."""

from graphmod.pytorch.importer import META, to_torch
from graphmod.pytorch.registry import supported_operators
from graphmod.pytorch.write_back import write_back

__all__ = ["META", "supported_operators", "to_torch", "write_back"]
