"""The head: behind the original's logits, in the graph, ``Relu`` and a linear layer for the target's classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from graphmod.graph import raw_logits
from graphmod.model import Model
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.new_head import end_in_linear


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
    output, read = model.main_output, raw_logits(model)
    draft = Draft(model)
    before = draft.unused(f"{output}/original")
    draft.make_as(output, before)
    draft.redirect(output, before)
    rectified = draft.unused(f"{output}/rectified")
    reads = [before if read == output else read]
    draft.add([helper.make_node("Relu", reads, [rectified], draft.unused_operator("head.relu"))])
    end_in_linear(draft, rectified, weight, bias, model.tensors[read].dtype)
    return draft.finish()
