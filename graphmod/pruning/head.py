"""The head: the output of a classifier, and the softmax that it may end in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from onnx import NodeProto

from graphmod.errors import RefusedError
from graphmod.graph.softmax import BEHIND, last_softmax
from graphmod.model import Model

INDEPENDENT = ("HardSigmoid", "Sigmoid")
"""Operators that make a probability for every class by itself."""


@dataclass(frozen=True, eq=False)
class Head:
    """The output of a classifier.

    Parameters
    ----------
    output : str
    n_classes : int
    softmax : NodeProto or None
        The Softmax or LogSoftmax over the classes that the model ends in.
    """

    output: str
    n_classes: int
    softmax: NodeProto | None


def head_of(model: Model, output: str) -> Head:
    """Return the output of that name.

    Parameters
    ----------
    model : Model
    output : str

    Raises
    ------
    RefusedError
        There is none, or it is no classifier's.

    Examples
    --------
    >>> import graphmod as gm
    >>> head_of(gm.load(gm.demo.model_path()), "logits").n_classes
    10
    """
    if output not in model.outputs:
        raise RefusedError(f"the model has no output '{output}'; the outputs are {', '.join(model.outputs)}")
    kind = model.outputs[output]
    shape = kind.shape
    if shape is not None and len(shape) == 2 and not isinstance(shape[1], int):
        shape = model.tensors[output].shape  # what the weights tell, where a symbol is declared
    if not kind.is_float or shape is None or len(shape) != 2 or not isinstance(shape[1], int):
        raise RefusedError(
            f"output '{output}' is {kind}, not the logits of a classifier, floats of shape [n, N] with N known; "
            "name another output, or take out what makes the logits by itself with gm.extract"
        )
    if output not in model.producer:
        raise RefusedError(f"no operator makes the output '{output}', so there are no classes to choose from")
    return Head(output, shape[1], last_softmax(model, output, shape[1]))


def check_exclusive(model: Model, head: Head, what: str = "merged; list them singly") -> None:
    """Raise RefusedError if classes do not exclude one another; ``what`` cannot be done then, and what would help."""
    tensor = head.output
    while tensor in model.producer:
        place = model.producer[tensor]
        operator = model.operators[place]
        if operator.op_type in INDEPENDENT:
            raise RefusedError(
                f"'{head.output}' comes from {operator.op_type} '{model.operator_names[place]}', so its classes do not "
                f"exclude one another and cannot be {what}"
            )
        if operator.op_type not in BEHIND:
            return
        tensor = operator.input[0]


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether a value lists classes, or several that are one: a sequence or an array, and no text."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
