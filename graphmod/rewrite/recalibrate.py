"""BatchNormalization's running statistics anew, for a network whose weights, or whose data, are others than they were.

Every BatchNormalization is made to normalize by the statistics of the batch, as in training, and to tell them. One pass
over the data then serves all of them, each on inputs that those before it have normalized anew. Over batches, the mean
is that of the means, the variance the mean of the variances plus the variance of the means (Wu & Johnson, Rethinking
"Batch" in BatchNorm, 2021, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from graphmod.data import Data, fixed_batch
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.model import Model, consumed, inner_operators, with_inner
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.rebatch import rebatch
from graphmod.rewrite.simplify import RANDOM
from graphmod.rewrite.verb import Samples, verb

Float = NDArray[np.float64]

MEAN, VARIANCE = 3, 4
"""The places of the running statistics among the inputs of a BatchNormalization."""

_BUDGET = 1 << 26
"""Bytes that the largest tensor to be normalized may have in a batch."""

_AXES_ARE_AN_INPUT = 18
"""The opset since which ReduceMean reads its axes."""


@verb(exact=False, example="graphmod recalibrate pruned.onnx digits.npz --out recalibrated.onnx")
def recalibrate(model: Model, data: Samples, batch_size: int | None = None, batches: int | None = None) -> Model:
    """Estimate the running mean and variance of every BatchNormalization anew, on data without labels.

    Worth it after weights have changed (pruning, merging, retraining), or for data of another kind. A batch takes every
    k-th sample, so that data sorted by class makes no difference; the larger it is, the more the statistics are those
    of inference. A BatchNormalization that shares its statistics with another gets some of its own. What was folded
    into a convolution is no BatchNormalization any more: a model without any comes back as it is.

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_data` takes
        Samples like those that the network is for; targets are not used.
    batch_size : int, optional
        Samples a batch, at least 2; as many as keep every tensor that is normalized within 64 MB, between 8 and
        256, if None.
    batches : int, optional
        How many batches to use, spread over the data; all if None.

    Returns
    -------
    Model
        The same graph; only running statistics differ.

    Raises
    ------
    InvalidDataError
        The data does not fit, is a single sample, or makes statistics that are not finite.
    RefusedError
        A BatchNormalization is in a subgraph or a function, or the model takes a fixed number of samples that cannot
        be freed.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())  # its BatchNormalizations are folded into convolutions
    >>> gm.recalibrate(m, gm.demo.splits().train) is m
    True
    """
    if (batch_size is not None and batch_size < 2) or (batches is not None and batches < 1):
        raise RefusedError("batch_size must be at least 2, for there to be a variance, and batches at least 1")
    normalized = _normalizations(model)
    if not normalized:
        return model
    if len(data) < 2:
        raise InvalidDataError("the data is a single sample, of which there are no statistics; give some hundreds")
    told = _Told(model if fixed_batch(model) is None else rebatch(model), normalized)
    found: dict[str, Statistics] = {}
    for batch in _spread(data, batch_size or _fitting(model, normalized), batches):
        for name, fresh in told.statistics(batch):
            found[name] = found[name] + fresh if name in found else fresh
    return _with_statistics(model, found)


@dataclass(frozen=True, eq=False)
class Statistics:
    """What some values of each channel are like.

    Parameters
    ----------
    n : int
        Values a channel.
    mean : float64 array, shape (channels,)
    squares : float64 array, shape (channels,)
        Sum of squared deviations from the mean.
    """

    n: int
    mean: Float
    squares: Float

    def __add__(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of values (Chan, Golub & LeVeque 1983, equation 2.1)."""
        n, apart = self.n + other.n, other.mean - self.mean
        squares = self.squares + other.squares + apart**2 * (self.n * other.n / n)
        return Statistics(n, self.mean + apart * (other.n / n), squares)

    @property
    def variance(self) -> Float:
        """The unbiased variance, which PyTorch keeps too."""
        return self.squares / (self.n - 1)


def _normalizations(model: Model) -> list[str]:
    """Return what every BatchNormalization makes that normalizes by constants."""
    constant = set(model.constants)
    made = []
    for operator, name in zip(model.operators, model.operator_names, strict=True):
        if any(inner.op_type == "BatchNormalization" for inner in inner_operators(operator)):
            raise RefusedError(
                f"a BatchNormalization in a subgraph of {operator.op_type} '{name}' may not run for every sample, so "
                "its statistics cannot be told"
            )
        if operator.op_type == "BatchNormalization" and constant.issuperset(operator.input[MEAN:]):
            attributes = {a.name: a.i for a in operator.attribute}
            if not attributes.get("spatial", 1):
                raise RefusedError(
                    f"BatchNormalization '{name}' has statistics by position (spatial=0), not by channel"
                )
            if not attributes.get("training_mode") and not any(operator.output[1:]):
                made.append(operator.output[0])
        reads = list(consumed(operator))
        if reads and operator.op_type not in RANDOM and constant.issuperset(reads):
            constant.update(operator.output)
    for function in model.functions:
        if any(inner.op_type == "BatchNormalization" for inner in with_inner(function.node)):
            raise RefusedError(
                f"function '{function.name}' has a BatchNormalization, whose statistics all its calls share; put it in "
                "their place first, with graphmod.inline"
            )
    return made


def _fitting(model: Model, normalized: list[str]) -> int:
    """Return how many samples a batch may have."""
    largest = max((model.tensors[name].size for name in normalized if name in model.tensors), default=1)
    return max(8, min(256, _BUDGET // (4 * max(1, largest))))


def _spread(data: Data, batch_size: int, batches: int | None) -> Iterator[Data]:
    """Yield batches of almost equal length, each of every k-th sample: none of the classes of sorted data."""
    steps = max(1, min(-(-len(data) // batch_size), len(data) // 2))
    for start in range(steps if batches is None else min(batches, steps)):
        yield data[start::steps]


class _Told:
    """A copy of a network that normalizes by the statistics of the batch, and tells them."""

    def __init__(self, model: Model, normalized: list[str]):
        draft = Draft(model)
        self._names: dict[str, tuple[str, str, str]] = {}
        for made in normalized:
            operator = draft.producer(made)
            assert operator is not None, "an operator makes it"
            self._names[made] = _tell(draft, operator)
        del draft.graph.output[:]
        for mean, variance, shape in self._names.values():
            for name, kind, dims in (
                (mean, TensorProto.DOUBLE, [1, None, 1]),
                (variance, TensorProto.DOUBLE, [1, None, 1]),
                (shape, TensorProto.INT64, [3]),
            ):
                draft.graph.output.append(helper.make_tensor_value_info(name, kind, dims))
        self._model = draft.finish()

    def statistics(self, batch: Data) -> Iterator[tuple[str, Statistics]]:
        """Yield the statistics of a batch by what the BatchNormalizations make."""
        values = self._model.run({name: batch.inputs[name] for name in self._model.inputs})
        for made, (mean, variance, shape) in self._names.items():
            samples, _, positions = (int(size) for size in values[shape])
            n = samples * positions
            squares = n * np.asarray(values[variance], np.float64).ravel()
            yield made, Statistics(n, np.asarray(values[mean], np.float64).ravel(), squares)


def _tell(draft: Draft, operator: NodeProto) -> tuple[str, str, str]:
    """Let an operator normalize by the batch; return its mean, its variance and its shape (samples, channels, rest)."""
    made = operator.output[0]
    kept = _element_type(draft.model, operator.input[MEAN])
    raised = TensorProto.DOUBLE if kept == TensorProto.DOUBLE else TensorProto.FLOAT
    nodes: list[NodeProto] = []

    def new(op_type: str, *reads: str, **attributes: Any) -> str:
        name = draft.unused(f"{made}/{op_type}")
        nodes.append(helper.make_node(op_type, list(reads), [name], name, **attributes))
        return name

    def mean_of(name: str) -> str:
        if draft.model.opset < _AXES_ARE_AN_INPUT:
            return new("ReduceMean", name, axes=[0, 2])
        return new("ReduceMean", name, axes)

    axes = draft.weight(f"{made}/axes", np.array([0, 2]))
    flat = draft.weight(f"{made}/flat", np.array([-1]))
    rows = new("Reshape", operator.input[0], draft.weight(f"{made}/rows", np.array([0, 0, -1])))
    x = new("Cast", rows, to=raised)
    mean = mean_of(x)
    deviation = new("Sub", x, mean)
    variance = mean_of(new("Mul", deviation, deviation))
    used = [new("Cast", new("Reshape", one, flat), to=kept) for one in (mean, variance)]
    told = [new("Cast", one, to=TensorProto.DOUBLE) for one in (mean, variance)]
    draft.set_inputs(operator, [*operator.input[:MEAN], *used])
    shape = new("Shape", rows)
    draft.add(nodes, at=operator)
    return told[0], told[1], shape


def _element_type(model: Model, constant: str) -> int:
    kind = model.tensors.get(constant)
    return TensorProto.FLOAT if kind is None or kind.dtype is None else helper.np_dtype_to_tensor_dtype(kind.dtype)


def _with_statistics(model: Model, found: dict[str, Statistics]) -> Model:
    draft, changed = Draft(model), False
    for made, statistics in found.items():
        operator = draft.producer(made)
        assert operator is not None, "an operator makes it"
        if not np.isfinite([statistics.mean, statistics.variance]).all():
            raise InvalidDataError(
                f"BatchNormalization '{operator.name or made}' gets values from the data that are not finite; is it "
                "scaled as the network needs it?"
            )
        for place, value in ((MEAN, statistics.mean), (VARIANCE, statistics.variance)):
            name = operator.input[place]
            fresh = value.astype(helper.tensor_dtype_to_np_dtype(_element_type(model, name)))
            before = draft.constant(name)
            if before is not None and np.array_equal(before, fresh):
                continue
            changed = True
            if name in model.initializers and draft.is_read_once(name):
                draft.set_initializer(name, fresh)
            else:
                inputs = list(operator.input)
                inputs[place] = draft.weight(name, fresh)
                draft.set_inputs(operator, inputs)
    return draft.finish() if changed else model
