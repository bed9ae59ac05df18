"""An ONNX model in memory: load, run, save; names, metadata and weights kept."""

from graphmod.model.files import replace_file
from graphmod.model.loading import load
from graphmod.model.model import Model, TensorType
from graphmod.model.session import run_bound
from graphmod.model.view import as_networkx, consumed

__all__ = ["Model", "TensorType", "as_networkx", "consumed", "load", "replace_file", "run_bound"]
