r"""Patching: a weak class of a classifier is replaced by the module that another library has of it.

The logits :math:`z` of the other classes come from the weak classifier's modules, that of a replaced class :math:`c`
from the stronger library's detector :math:`d_c` beside it. As the two were not trained together, it is brought to
their scale by the two numbers that lessen the cross-entropy most on samples of all classes,

.. math:: z_c = \exp(s_c) \, d_c + t_c .
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import helper
from scipy.optimize import minimize
from scipy.special import log_softmax

from graphmod.data import Data
from graphmod.graph import subgraph, up_to_logits
from graphmod.graph.softmax import closing_softmax
from graphmod.model import Model
from graphmod.probe import predict
from graphmod.pruning.restrict import DETECTS
from graphmod.rewrite import compose, hide
from graphmod.rewrite.draft import Draft


def score(detector: Model) -> Model:
    """Return a detector without what stands for a softmax, that it may end in."""
    last = detector.operators[detector.producer[detector.main_output]]
    end = last.input[0] if last.op_type in DETECTS.values() else detector.main_output
    return subgraph(detector, list(detector.inputs), [end])


def scaled(rest: NDArray[np.float64], detected: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return scale and shift of each detector, shape (2, detectors), at which all logits together say most.

    Parameters
    ----------
    rest : array, shape (samples, classes)
        Logits of the classes that are not replaced.
    detected : array, shape (samples, detectors)
    labels : int array, shape (samples,)
        Columns of both, those of ``rest`` first.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 3, 500)
    >>> rest = 5.0 * (labels[:, None] == [0, 1]) + rng.standard_normal((500, 2))
    >>> detector = 0.1 * (labels[:, None] == 2) - 0.05 + 0.01 * rng.standard_normal((500, 1))
    >>> (scale,), (shift,) = scaled(rest, detector, labels)
    >>> found = np.hstack([rest, scale * detector + shift]).argmax(1)
    >>> bool((found == labels).mean() > 0.95)
    True
    """
    n = detected.shape[1]
    own = np.eye(rest.shape[1] + n)[labels]

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scale, shift = np.exp(parameters[:n]), parameters[n:]
        scores = log_softmax(np.hstack([rest, scale * detected + shift]), 1)
        wrong = (np.exp(scores) - own)[:, -n:] / len(labels)
        slopes = np.concatenate([(wrong * scale * detected).sum(0), wrong.sum(0)])
        return -float(scores[own > 0].mean()), slopes

    found = minimize(loss, np.zeros(2 * n), jac=True, method="L-BFGS-B", bounds=[(-5, 5)] * n + [(None, None)] * n)
    return np.array([np.exp(found.x[:n]), found.x[n:]])


def patched(rest: Model, detectors: Sequence[Model], order: Sequence[int], data: Data) -> Model:
    """Return a classifier whose logits are those of one model and of detectors beside it.

    Parameters
    ----------
    rest : Model
        A classifier of the classes that stay.
    detectors : sequence of Model
        One for each class that is replaced.
    order : sequence of int
        For every column of the result where it comes from: the columns of ``rest``, then the detectors.
    data : Data
        Samples of all classes, labelled by the result's columns.
    """
    softmax = closing_softmax(rest)
    parts = [up_to_logits(rest), *map(score, detectors)]
    made = [predict(one, data).reshape(len(data), -1).astype(np.float64) for one in parts]
    labels = np.asarray(order)[np.asarray(data.targets)]
    scale, shift = scaled(made[0], np.hstack(made[1:]), labels)
    n_rest = made[0].shape[1]
    whole = compose(parts[0], parts[1:])
    outputs = list(whole.outputs)
    output = rest.main_output
    draft = Draft(whole)
    dtype = whole.tensors[outputs[0]].dtype
    first = outputs[0]
    if first == output:
        first = draft.unused(f"{output}/rest")
        draft.make_as(output, first)
    draft.graph.output[0].name = output
    reads = [first, *outputs[1:]]
    weights = {
        "scale": np.concatenate([np.ones(n_rest), scale])[None],
        "shift": np.concatenate([np.zeros(n_rest), shift])[None],
    }
    names = {name: draft.weight(f"{output}/{name}", value.astype(dtype)) for name, value in weights.items()}
    columns = draft.weight(f"{output}/columns", np.asarray(order, np.int64))
    every, times, plus, last = (draft.unused(f"{output}/{name}") for name in ("all", "scaled", "shifted", "logits"))
    final = output if softmax is None else last
    nodes = [
        helper.make_node("Concat", reads, [every], draft.unused_operator("patch.concat"), axis=1),
        helper.make_node("Mul", [every, names["scale"]], [times], draft.unused_operator("patch.scale")),
        helper.make_node("Add", [times, names["shift"]], [plus], draft.unused_operator("patch.shift")),
        helper.make_node("Gather", [plus, columns], [final], draft.unused_operator("patch.order"), axis=1),
    ]
    if softmax is not None:
        nodes.append(
            helper.make_node(softmax.op_type, [last], [output], draft.unused_operator("patch.softmax"), axis=1)
        )
    draft.add(nodes)
    for value in draft.graph.output:
        if value.name == output:
            value.type.tensor_type.shape.dim[1].dim_value = len(order)
    draft.forget([output])
    return hide(draft.finish(), outputs[1:])
