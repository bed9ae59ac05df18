"""The softmax at a classifier's end, and the logits before it."""

from __future__ import annotations

from onnx import NodeProto

from graphmod.graph.subgraph import subgraph
from graphmod.model import Model

SOFTMAX = ("Softmax", "LogSoftmax")
BEHIND = ("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operators after a softmax that hand its entries on in their order."""

_STANDARD = ("", "ai.onnx")


def logits(model: Model) -> str:
    """Return the tensor of a classifier's logits: its main output, or what a Softmax at its end reads.

    The logarithms of probabilities are logits as well, so that a LogSoftmax at the end changes nothing.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> logits(m), logits(gm.insert(m, "logits", "Softmax(axis=1)")) == "logits"
    ('logits', False)
    """
    last = closing_softmax(model)
    return str(last.input[0]) if last is not None and last.op_type == "Softmax" else model.main_output


def raw_logits(model: Model) -> str:
    """Return the main output, or what a Softmax or LogSoftmax at its end reads.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> raw_logits(m), raw_logits(gm.insert(m, "logits", "LogSoftmax(axis=1)")) == "logits"
    ('logits', False)
    """
    last = closing_softmax(model)
    return model.main_output if last is None else str(last.input[0])


def up_to_logits(model: Model) -> Model:
    """Return a classifier without the softmax that it may end in, and without other outputs.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> list(up_to_logits(gm.insert(m, "logits", "LogSoftmax(axis=1)")).outputs) == list(m.outputs)
    False
    >>> list(up_to_logits(m).outputs)
    ['logits']
    """
    return subgraph(model, list(model.inputs), [raw_logits(model)])


def closing_softmax(model: Model) -> NodeProto | None:
    """Return the Softmax or LogSoftmax that a classifier ends in.

    Other operators come after it only where it is one of rows, [samples, classes].
    """
    output = model.main_output
    last = model.operators[model.producer[output]] if output in model.producer else None
    if last is not None and last.op_type in SOFTMAX:
        return last
    last = None if model.n_classes is None else last_softmax(model, output, model.n_classes)
    is_of_rows = last is not None and len(model.tensors[last.input[0]].shape or ()) == 2
    return last if is_of_rows else None


def last_softmax(model: Model, output: str, n_classes: int) -> NodeProto | None:
    """Return the Softmax or LogSoftmax over the classes that makes an output, up to its shape and type.

    Parameters
    ----------
    model : Model
    output : str
    n_classes : int

    Returns
    -------
    NodeProto or None
        None where the output is no softmax's.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> last_softmax(m, "logits", 10) is None
    True
    >>> last_softmax(gm.insert(m, "logits", "Softmax(axis=1) > Unsqueeze(axes=[2])"), "logits", 10).op_type
    'Softmax'
    """
    tensor = output
    while tensor in model.producer:
        operator = model.operators[model.producer[tensor]]
        if operator.domain not in _STANDARD or operator.op_type not in (*SOFTMAX, *BEHIND):
            return None
        if operator.op_type in SOFTMAX:
            return operator if _is_over_classes(model, operator, n_classes) else None
        tensor = operator.input[0]
    return None


def _is_over_classes(model: Model, softmax: NodeProto, n_classes: int) -> bool:
    """Whether a softmax is over one axis of classes, and all axes but that and the first are 1 long."""
    kind = model.tensors.get(softmax.output[0])
    shape = None if kind is None else kind.shape
    if shape is None or sorted(map(str, shape[1:])) != sorted(["1"] * (len(shape) - 2) + [str(n_classes)]):
        return False
    flattens = model.opset < 13
    axis = next((a.i for a in softmax.attribute if a.name == "axis"), 1 if flattens else -1) % len(shape)
    place = shape.index(n_classes, 1)
    return 1 <= axis <= place if flattens else axis == place
