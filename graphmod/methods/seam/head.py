"""The head: behind the original's logits, in the graph, ``Relu`` and a linear layer for the target's classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from graphmod.model import Model, TensorType
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.expression import declared
from graphmod.train.retrain import logits


def logits_of(model: Model) -> str:
    """Return the tensor that the head reads: the main output, or what a Softmax or LogSoftmax at its end reads."""
    tensor = logits(model)
    last = model.operators[model.producer[tensor]] if tensor in model.producer else None
    return str(last.input[0]) if last is not None and last.op_type == "LogSoftmax" else tensor


def with_head(model: Model, weight: NDArray[np.floating], bias: NDArray[np.floating]) -> Model:
    """Return a model whose main output is what a head makes of its logits; the output keeps its name.

    Parameters
    ----------
    model : Model
    weight : array, shape (target classes, original classes)
    bias : array, shape (target classes,)

    Returns
    -------
    Model
        A softmax at the end is gone, unless something else reads it.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> with_head(m, np.ones((3, 10)), np.zeros(3)).outputs
    {'logits': TensorType(dtype=dtype('float32'), shape=('batch', 3))}
    """
    output, read = model.main_output, logits_of(model)
    kind = model.outputs[output]
    draft = Draft(model)
    before = draft.unused(f"{output}/original")
    draft.make_as(output, before)
    draft.redirect(output, before)
    draft.forget([output])
    weights = [
        draft.weight(f"head.{name}", value.astype(kind.dtype)) for name, value in (("weight", weight), ("bias", bias))
    ]
    rectified = draft.unused(f"{output}/rectified")
    draft.add([
        helper.make_node("Relu", [before if read == output else read], [rectified], draft.unused_operator("head.relu")),
        helper.make_node("Gemm", [rectified, *weights], [output], draft.unused_operator("head.linear"), transB=1),
    ])  # fmt: skip
    value = next(value for value in draft.graph.output if value.name == output)
    batch = (kind.shape or (None,))[0]
    value.type.CopyFrom(declared(output, TensorType(kind.dtype, (batch, len(bias)))).type)
    return draft.finish()
