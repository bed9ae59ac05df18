"""An ONNX model in memory: load, run, save; names, metadata and weights kept."""

from graphmod.model.bodies import bodies, has_bodies, inner_operators, own_bodies, with_inner
from graphmod.model.files import check_writable, replace_file
from graphmod.model.folders import check_folder, open_folder
from graphmod.model.initializers import copy_without
from graphmod.model.loading import external_files, load
from graphmod.model.model import RECORD, Model, TensorType, check_model
from graphmod.model.record import edits_of, record
from graphmod.model.session import run_bound
from graphmod.model.view import as_networkx, consumed

__all__ = [
    "RECORD",
    "Model",
    "TensorType",
    "as_networkx",
    "bodies",
    "check_folder",
    "check_model",
    "check_writable",
    "consumed",
    "copy_without",
    "edits_of",
    "external_files",
    "has_bodies",
    "inner_operators",
    "load",
    "open_folder",
    "own_bodies",
    "record",
    "replace_file",
    "run_bound",
    "with_inner",
]
