"""Small graphs built by hand, for tests of measurements and edits."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from graphmod.model import load


def model(operators, inputs, outputs, weights=None, opset=17):
    """Return a model of float tensors; ``inputs`` and ``outputs`` are shapes by name."""
    declared = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]
        for values in (inputs, outputs)
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(operators, "graph", *declared, initializers)
    return load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)]))


def fan(widths, rng, samples_shape=(7,), batch="n"):
    """Return a chain of MatMul and Tanh through layers of some widths; boundaries are t0, t1, ..."""
    operators, weights, before = [], {}, "x"
    size = samples_shape[-1]
    for i, width in enumerate(widths):
        weights[f"w{i}"] = rng.normal(size=(size, width)).astype(np.float32) / np.float32(size**0.5)
        operators += [
            helper.make_node("MatMul", [before, f"w{i}"], [f"m{i}"]),
            helper.make_node("Tanh", [f"m{i}"], [f"t{i}"]),
        ]
        before, size = f"t{i}", width
    return model(operators, {"x": [batch, *samples_shape]}, {before: [batch, *samples_shape[:-1], size]}, weights)
