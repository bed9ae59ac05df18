"""``new_head``: a new last layer on the features of a classifier, for classes of another problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from graphmod.arguments import check_whole
from graphmod.errors import RefusedError
from graphmod.graph import channel_axis, final_features, final_layer
from graphmod.model import Model, TensorType
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.expression import declared
from graphmod.rewrite.verb import verb

_AXES_ARE_AN_INPUT = 18
"""The opset since which ReduceMean reads its axes."""


@verb(exact=False, example="graphmod new-head resnet.onnx --n-classes 5 --out five.onnx")
def new_head(model: Model, n_classes: int, *, seed: int = 0) -> Model:
    """Put a new linear layer for other classes on the features, in place of the final layer and all behind it.

    The features are :func:`graphmod.graph.final_features`; those of every position are averaged where there are
    several, of images or of tokens. The main output keeps its name and gives logits: a softmax at the end goes, and so
    does what else came after the features, unless another output needs it. The layer's weights and biases are drawn
    evenly within 1 / sqrt(width) of zero, as PyTorch draws those of a linear layer, and have to be trained.

    Parameters
    ----------
    model : Model
    n_classes : int
        At least 2.
    seed : int
        Of the weights.

    Raises
    ------
    RefusedError
        There is no final layer with weights or no boundary before it, how many features there are is not known, or an
        argument is out of range.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> odd_or_even = gm.new_head(m, 2)
    >>> odd_or_even.outputs["logits"].shape, m.n_weights - odd_or_even.n_weights
    (('batch', 2), 328)
    """
    check_whole(2, n_classes=n_classes)
    check_whole(0, seed=seed)
    features, last = final_features(model), final_layer(model)
    kind = model.tensors[features]
    shape = kind.shape or ()
    axis = _axis(model, features, len(shape), last)
    width = None if axis is None else shape[axis]
    if not isinstance(width, int):
        raise RefusedError(
            f"the features '{features}' are {kind}, and how many there are a sample has to be known; give the model "
            "fixed sizes other than that of the batch"
        )
    weight, bias = drawn(n_classes, width, seed)
    draft = Draft(model)
    draft.make_as(model.main_output, before := draft.unused(f"{model.main_output}/before"))
    draft.redirect(model.main_output, before)
    others = [place for place in range(1, len(shape)) if place != axis]
    end_in_linear(draft, _averaged(draft, features, others) if others else features, weight, bias, kind.dtype)
    return draft.finish()


def _axis(model: Model, features: str, rank: int, last: NodeProto) -> int | None:
    """Return the axis along which features lie, None where nothing tells."""
    if rank < 3:
        return 1 if rank == 2 else None
    if features in last.input:
        return 1 if last.op_type in ("Conv", "ConvTranspose") else rank - 1
    axis = channel_axis(model, features)
    return None if axis is None else axis % rank


def drawn(n_classes: int, width: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight and bias of a linear layer as PyTorch draws them (He et al. 2015, a = sqrt 5)."""
    rng = np.random.default_rng(seed)
    limit = width**-0.5
    return rng.uniform(-limit, limit, (n_classes, width)), rng.uniform(-limit, limit, n_classes)


def end_in_linear(
    draft: Draft, reads: str, weight: NDArray[np.floating], bias: NDArray[np.floating], dtype: np.dtype[Any] | None
) -> None:
    """Let the main output, which nothing makes any more, be what a linear layer makes of a tensor.

    Parameters
    ----------
    draft : Draft
    reads : str
        Of shape [batch, width].
    weight : float array, shape (classes, width)
    bias : float array, shape (classes,)
    dtype : numpy.dtype
        Of the tensor, and so of the weights.
    """
    output = draft.model.main_output
    kind = draft.model.outputs[output]
    made = output if dtype == kind.dtype else draft.unused(f"{output}/linear")
    weights = [
        draft.weight(f"head.{name}", value.astype(dtype)) for name, value in (("weight", weight), ("bias", bias))
    ]
    nodes = [helper.make_node("Gemm", [reads, *weights], [made], draft.unused_operator("head.linear"), transB=1)]
    if made != output and kind.dtype is not None:
        to = helper.np_dtype_to_tensor_dtype(kind.dtype)
        nodes.append(helper.make_node("Cast", [made], [output], draft.unused_operator("head.cast"), to=to))
    draft.add(nodes)
    draft.forget([output])
    value = next(value for value in draft.graph.output if value.name == output)
    value.type.CopyFrom(declared(output, TensorType(kind.dtype, ((kind.shape or (None,))[0], len(bias)))).type)


def _averaged(draft: Draft, tensor: str, axes: Sequence[int]) -> str:
    """Let an operator take the mean of a tensor along some axes, and return what it makes."""
    made = draft.unused(f"{tensor}/mean")
    name = draft.unused_operator("head.mean")
    if draft.model.opset < _AXES_ARE_AN_INPUT:
        node = helper.make_node("ReduceMean", [tensor], [made], name, axes=axes, keepdims=0)
    else:
        along = draft.weight(f"{tensor}/axes", np.array(axes, np.int64))
        node = helper.make_node("ReduceMean", [tensor, along], [made], name, keepdims=0)
    draft.add([node])
    return made
