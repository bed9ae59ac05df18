"""graphmod: decompose, rewrite, compress and retrain trained networks through ONNX."""
from graphmod.model import Model, load
from graphmod.graph import boundaries, blocks
from graphmod import data, graph, probe
from graphmod.probe import similarity, latency, accuracy
from graphmod.modules import *
from graphmod.rewrite import *
from graphmod import demo
