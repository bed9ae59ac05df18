"""graphmod: decompose, rewrite, compress and retrain trained networks through ONNX."""
from graphmod.model import Model, load
