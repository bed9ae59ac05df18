r"""Unfusing: a BatchNormalization behind a linear map that has none, so that the two compute what the one did.

With the mean :math:`\mu` and the variance :math:`\sigma^2` of a channel over some data, and its bias :math:`b`,

.. math:: w * x + b = \gamma \frac{w * x - (\mu - b)}{\sqrt{\sigma^2 + \epsilon}} + \beta, \qquad
    \gamma = \sqrt{\sigma^2 + \epsilon}, \quad \beta = \mu,

whatever :math:`\mu` and :math:`\sigma^2` are. The map keeps no bias where its operator can do without: normalizing by
the batch makes it useless (Ioffe & Szegedy 2015, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import helper

from graphmod.data import Data, fixed_batch
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import find
from graphmod.model import Model
from graphmod.probe.stream import stream
from graphmod.rewrite.draft import Draft, shared_scope
from graphmod.rewrite.fuse import OPSET
from graphmod.rewrite.fusions import Bench
from graphmod.rewrite.fusions.affine import UNFUSED
from graphmod.rewrite.fusions.bench import Array, is_a
from graphmod.rewrite.fusions.maps import Map, read_map
from graphmod.rewrite.recalibrate import Statistics
from graphmod.rewrite.verb import Samples, verb

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The types of operator that a layer begins with."""

EPSILON = 1e-5
"""What is added to variances, as PyTorch does."""

_BIAS_IS_OPTIONAL = 11
"""The opset since which Gemm may go without a bias."""

_BUDGET = 1 << 28
"""Bytes that the tensors to be normalized may have in a batch."""


@verb(exact=True, example="graphmod unfuse resnet.onnx digits.npz --out trainable.onnx")
def unfuse(model: Model, data: Samples, where: str = "*") -> Model:
    """Put a BatchNormalization behind every layer that has none, so that it trains as before it was fused.

    Worth it before a whole network is retrained, with batch statistics, after pruning above all: a network of which
    exporters have fused every BatchNormalization recovers far worse. ``graphmod.fuse(model, kinds=["unfused"])`` takes
    away these again, and no others, also after their channels were pruned and their weights trained.

    Layers are convolutions, and linear layers with a bias whose rows are samples and no outputs of the model. One stays
    as it is where fusing would not take the BatchNormalization away again (weights that are computed or quantized,
    large weights that something else reads too), and where numbers are too coarse for both to be the same (float16).

    Parameters
    ----------
    model : Model
    data : anything that :func:`graphmod.data.as_data` takes
        Samples like those that the network is for; targets are not used. The running statistics are theirs, while the
        function stays the same whatever they are. Of a model that takes a fixed number of samples, a rest is left out.
    where : str
        A selector of operators; only layers that begin with one of them get one.

    Returns
    -------
    Model
        The model itself if no layer lacks a BatchNormalization.

    Raises
    ------
    InvalidDataError
        The data does not fit, is a single sample, or makes statistics that are not finite.
    RefusedError
        The selector is malformed, or the opset is below 7.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> trainable = gm.unfuse(m, gm.demo.splits().train)
    >>> len(gm.find(trainable, "Conv > BatchNormalization")), len(gm.find(m, "Conv"))
    (45, 45)
    >>> [op.op_type for op in gm.fuse(trainable).operators] == [op.op_type for op in m.operators]
    True
    """
    if model.opset < OPSET:
        raise RefusedError(
            f"the model uses opset {model.opset}, and operators are unfused from {OPSET} on; convert it with "
            "onnx.version_converter"
        )
    bench = Bench(Draft(model))
    bare = {found.exit: (name, found) for name, found in _bare(model, bench, where)}
    statistics = _statistics(model, data, list(bare)) if bare else {}
    if not statistics:
        return model
    for made, seen in statistics.items():
        name, found = bare[made]
        if not np.isfinite([seen.mean, seen.squares]).all():
            raise InvalidDataError(
                f"{bench.told(found.operator)} makes values of the data that are not finite; is it scaled as the "
                "network needs it?"
            )
        _normalize(bench.draft, name, found, seen)
    return bench.draft.finish()


def _bare(model: Model, bench: Bench, where: str) -> Iterable[tuple[str, Map]]:
    """Yield the layers that a selector picks behind which a BatchNormalization may come, with their names."""
    picked = None if where == "*" else {name for match in find(model, where) for name in match.operators}
    for name in model.operator_names:
        operator = bench.draft.operator(name)
        if not is_a(operator, *LAYERS) or (picked is not None and name not in picked):
            continue
        found = read_map(bench, operator)
        if isinstance(found, str) or found.held.dtype != np.float32 or found.why_not_change():
            continue
        if found.is_dense and (found.rank != 2 or found.offset is None or bench.is_output(found.exit)):
            continue
        reader = bench.sole_reader(found.exit)
        if isinstance(reader, str) or not is_a(reader, "BatchNormalization"):
            yield name, found


def _statistics(model: Model, data: Data, tensors: list[str]) -> dict[str, Statistics]:
    """Return what each channel of some tensors is like over the data, in float64; not of matrices of other rows."""
    unit = fixed_batch(model) or 1
    if len(data) < max(2, unit):
        raise InvalidDataError(
            f"the data has {len(data)} sample{'s' * (len(data) != 1)}, too few for statistics; give some hundreds"
        )
    ((_, first),) = stream(model, data[:unit], tensors)
    tensors = [name for name, value in first.items() if value.ndim > 2 or len(value) == unit]
    n_bytes = sum(first[name].nbytes for name in tensors)
    size = unit * max(1, min(256 // unit, _BUDGET // max(1, n_bytes)))
    sums: dict[str, Statistics] = {}
    for _, values in stream(model, data[: len(data) - len(data) % unit], tensors, size):
        for name, value in values.items():
            seen = _channels(value)
            sums[name] = sums[name] + seen if name in sums else seen
    return sums


def _channels(value: Array) -> Statistics:
    rows = value.swapaxes(0, 1).reshape(value.shape[1], -1).astype(np.float64)
    with np.errstate(invalid="ignore"):  # values that are not finite are refused by name
        mean = rows.mean(axis=1)
        rows -= mean[:, None]
        return Statistics(rows.shape[1], mean, np.einsum("ij,ij->i", rows, rows))


def _normalize(draft: Draft, name: str, found: Map, seen: Statistics) -> None:
    """Let a BatchNormalization make what a layer made, of the same without its bias."""
    operator, made = found.operator, found.exit
    needs_bias = found.add is not None or (found.op_type == "Gemm" and draft.model.opset < _BIAS_IS_OPTIONAL)
    bias = None if needs_bias else found.bias()
    variance = (seen.squares / max(1, seen.n - 1)).astype(np.float32)
    scale = np.sqrt(variance + np.float32(EPSILON))  # rounded as inference does, so that they cancel out
    values = {"scale": scale, "bias": seen.mean, "mean": seen.mean - (0 if bias is None else bias), "var": variance}
    weights = [draft.weight(f"{name}/{what}", value.astype(np.float32)) for what, value in values.items()]
    raw = draft.unused(f"{made}/raw")
    held = "" if bias is None else operator.input[2]
    if held:
        draft.set_inputs(operator, operator.input[:2])
    found.move(raw)
    fresh = draft.unused_operator(f"{name}/BatchNormalization")
    normalization = helper.make_node("BatchNormalization", [raw, *weights], [made], fresh, epsilon=EPSILON)
    normalization.metadata_props.add(key=UNFUSED, value=held)
    draft.add([normalization], at=found.operators[-1], scope=shared_scope(found.operators))
