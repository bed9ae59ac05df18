r"""Weights in closed form: what a layer makes of its own inputs is to be what a healthy network makes there.

A layer that is linear in its weights, :math:`y = W x + b` at every position, is fitted by least squares to the wanted
:math:`Y`, with a ridge that pulls towards :math:`W_0`,

.. math:: \min_W \lVert X W - Y \rVert^2 + \lambda \lVert W - W_0 \rVert^2, \qquad
    W = W_0 + (X^T X + \lambda I)^{-1} X^T (Y - X W_0),

in float64. :math:`W_0` are the weights that are there, or 0, where they are worth nothing; this, and
:math:`\lambda`, are chosen by samples that the fit has not seen. Where inputs span their space, the weights that made
:math:`Y` are found exactly. Channels that are right already keep their weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from graphmod.model import Model
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.fusions.bench import Bench
from graphmod.rewrite.fusions.maps import Map, read_map

Float = NDArray[np.float64]
Array = NDArray[np.generic]

SAME = 1e-3
"""Root of the squared error over the variance up to which values count as the same."""

_RIDGES = (1e-10, 1e-8, 1e-6, 1e-4, 1e-2)
"""Of the mean of the squared inputs."""

ROWS = 3
"""Rows that a fit looks at, for each of its unknowns: enough where the layer can make all that is wanted."""

_FEWEST_ROWS = 256
"""Rows that a fit looks at, at least, if there are so many: some may see nothing but padding."""

_EXACT = 1e-10
"""Squared error over the variance that no other ridge needs to lessen."""

_HELD_OUT = 4
"""One in so many rows is held out."""


@dataclass(frozen=True)
class Layer:
    """An operator whose output is linear in its weights.

    Parameters
    ----------
    name : str
        Of the operator.
    entry, exit : str
        The tensor that it reads, and the one that it makes, with the bias behind it.
    channels : int
        That it makes.
    unknowns : int
        Weights of each of them.
    """

    name: str
    entry: str
    exit: str
    channels: int
    unknowns: int


def layers(model: Model, operators: Sequence[str]) -> list[Layer]:
    """Return those of some operators that can be fitted, in order.

    Convolutions, matrix products and BatchNormalizations by constants that nothing else reads, of any groups.
    """
    bench = Bench(Draft(model))
    found = []
    for name in operators:
        layer = _read(bench, name)
        if layer is not None:
            found.append(Layer(name, layer.entry, layer.exit, layer.n_out, _unknowns(layer)))
    return found


def refit(model: Model, wanted: Mapping[Layer, tuple[Array, Array]], rows: int = ROWS) -> tuple[Model, int]:
    """Fit the weights of layers, and return the model with them and how many scalars were touched.

    Parameters
    ----------
    model : Model
    wanted : mapping of Layer to (array, array)
        What each reads and what it is to make, sample by sample.
    rows : int
        That are looked at, for each unknown.
    """
    bench = Bench(Draft(model))
    touched = sum(_refit(bench, layer, x, y, rows) for layer, (x, y) in wanted.items())
    return (_with_values(bench.draft), touched) if touched else (model, 0)


def _with_values(draft: Draft) -> Model:
    """Return the model of a draft in which values alone have changed: what held of the graph still holds."""
    return Model(draft.unchecked(), draft.model.folder)


def _refit(bench: Bench, layer: Layer, x: Array, y: Array, most: int) -> int:
    own = _read(bench, layer.name)
    assert own is not None, "it is one of layers()"
    weight, bias = own.weight(), own.bias()
    n_groups, n_out = weight.shape[:2]
    rows = _rows(own, x, y, most)
    if rows is None:
        return 0
    fitted = [
        _fit(xs, ys, own_weight.reshape(n_out, -1), own_bias, bias is not None)
        for xs, ys, own_weight, own_bias in zip(
            rows[0], rows[1], weight, np.zeros((n_groups, n_out)) if bias is None else bias.reshape(n_groups, n_out),
            strict=True,
        )
    ]  # fmt: skip
    changed = sum(int(one.changed.sum()) for one in fitted)
    if not changed:
        return 0
    fresh = np.stack([one.weight for one in fitted]).reshape(weight.shape)
    offsets = np.concatenate([one.bias for one in fitted])
    own.store(fresh, None if bias is None else offsets)
    return changed * _unknowns(own)


def without_weights(model: Model, names: Iterable[str]) -> Model:
    """Return the model with the weights and biases of some layers at zero."""
    draft = Draft(model)
    bench = Bench(draft)
    for name in names:
        own = _read(bench, name)
        if own is not None:
            bias = own.bias()
            own.store(0 * own.weight(), None if bias is None else 0 * bias)
    return _with_values(draft)


def _read(bench: Bench, name: str) -> Map | None:
    """Return an operator as a linear map whose weights are its own."""
    operator = bench.draft.operator(name)
    if operator.op_type == "ConvTranspose":
        return None
    found = read_map(bench, operator)
    if isinstance(found, str) or not bench.draft.is_read_once(operator.input[1]):
        return None
    return found


def _unknowns(layer: Map) -> int:
    shape = layer.weight().shape
    return prod(shape[2:]) + 1


@dataclass(frozen=True, eq=False)
class _Fitted:
    """Weights (out, unknowns - 1) and biases (out,), and which output channels have other ones than before."""

    weight: Float
    bias: Float
    changed: NDArray[np.bool_]


def _fit(x: Float, y: Float, weight: Float, bias: Float, has_bias: bool) -> _Fitted:
    """Fit ``y ~ x @ weight.T + bias`` on some rows, and keep for each channel what does best on the others."""
    held_out = np.arange(len(x)) % _HELD_OUT == 0
    unseen, checked = x[held_out], y[held_out]
    variance = np.maximum(checked.var(0), y.var() * 1e-6 + 1e-300)

    def error(some: Float, offset: Float) -> Float:
        found = ((unseen @ some.T + offset - checked) ** 2).mean(0) / variance
        return np.asarray(np.nan_to_num(found, nan=np.inf))  # what is no number is wrong, and any number is better

    best = error(weight, bias)
    wrong = best > SAME**2
    fitted, offsets = weight.copy(), bias.copy()
    if wrong.any():
        for fresh, offset in _candidates(x[~held_out], y[~held_out], weight, has_bias):
            now = error(fresh, offset)
            better = (now < best) & wrong
            best, fitted[better], offsets[better] = np.where(better, now, best), fresh[better], offset[better]
            if (best[wrong] < _EXACT).all():
                break
    return _Fitted(fitted, offsets, (fitted != weight).any(1) | (offsets != bias))


def _candidates(x: Float, y: Float, weight: Float, has_bias: bool) -> Iterator[tuple[Float, Float]]:
    """Yield weights and biases of every ridge, around the weights that are there, then around 0."""
    centre, level = (one.mean(0) if has_bias else np.zeros(one.shape[1]) for one in (x, y))
    x, y = x - centre, y - level
    gram, across = x.T @ x, x.T @ y
    identity = (gram.trace() / len(gram) or 1.0) * np.eye(len(gram))
    for start in (weight, np.zeros_like(weight)):
        for ridge in _RIDGES:
            fresh = start + np.linalg.solve(gram + ridge * identity, across - gram @ start.T).T
            yield fresh, level - fresh @ centre


# -- rows: what every output of a layer is computed from


def _rows(layer: Map, x: Array, y: Array, most: int) -> tuple[list[Float], list[Float]] | None:
    """Return for every group the rows of inputs, (rows, unknowns - 1), and of outputs, (rows, out)."""
    if layer.is_dense:
        inputs, outputs = x.reshape(1, -1, x.shape[-1]), y.reshape(1, -1, y.shape[-1])
        if inputs.shape[1] != outputs.shape[1]:
            return None
        return _drawn(inputs, outputs, most)
    windows = x.reshape(*x.shape, *(1,) * len(layer.kernel)) if not layer.kernel else _windows(layer, x)
    n_axes = y.ndim - 2
    if windows is None or windows.shape[2 : 2 + n_axes] != y.shape[2:]:
        return None
    g = layer.groups
    inputs = np.moveaxis(windows.reshape(len(x), g, -1, *windows.shape[2:]), 2, 2 + n_axes)
    inputs = np.moveaxis(inputs, 1, 0)  # (groups, samples, *positions, channels in, *kernel)
    outputs = np.moveaxis(np.moveaxis(y.reshape(len(y), g, -1, *y.shape[2:]), 2, -1), 1, 0)
    return _drawn(inputs, outputs, most, layer.weight().shape[2:])


def _drawn(inputs: Array, outputs: Array, most: int, shape: Sequence[int] = ()) -> tuple[list[Float], list[Float]]:
    """Return at most so many rows of each group for each unknown, drawn where there are more."""
    n_groups, n_out = len(inputs), outputs.shape[-1]
    unknowns = prod(shape) if shape else inputs.shape[-1]
    places = outputs.shape[1:-1]
    n = prod(places)
    some = max(most * (unknowns + 1), _FEWEST_ROWS)
    chosen = np.arange(n) if n <= some else np.sort(np.random.default_rng(0).choice(n, some, replace=False))
    at = np.unravel_index(chosen, places)
    xs = [np.asarray(inputs[g][at], np.float64).reshape(len(chosen), unknowns) for g in range(n_groups)]
    ys = [np.asarray(outputs[g][at], np.float64).reshape(len(chosen), n_out) for g in range(n_groups)]
    return xs, ys


def _windows(layer: Map, x: Array) -> Array | None:
    """Return what a convolution's kernel sees at every position: (samples, channels, *positions, *kernel), a view."""
    attributes = layer.bench.attributes(layer.operator)
    n_axes = len(layer.kernel)
    strides, dilations = (attributes.get(name) or [1] * n_axes for name in ("strides", "dilations"))
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, layer.kernel, strict=True)]
    pads = _pads(attributes, x.shape[2:], reach, strides)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(pads[:n_axes], pads[n_axes:], strict=True)])
    if any(size < span for size, span in zip(padded.shape[2:], reach, strict=True)):
        return None
    seen = sliding_window_view(padded, reach, axis=tuple(range(2, 2 + n_axes)))
    every = (*(slice(None, None, step) for step in strides), *(slice(None, None, step) for step in dilations))
    return np.asarray(seen[(slice(None), slice(None), *every)])


def _pads(attributes: dict[str, Any], sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Return the padding before, then behind every axis."""
    kind = attributes.get("auto_pad", "NOTSET")
    if kind == "NOTSET":
        return list(attributes.get("pads") or [0] * 2 * len(sizes))
    if kind == "VALID":
        return [0] * 2 * len(sizes)
    total = [max((ceil(n / s) - 1) * s + r - n, 0) for n, r, s in zip(sizes, reach, strides, strict=True)]
    less, more = [one // 2 for one in total], [one - one // 2 for one in total]
    return [*less, *more] if kind == "SAME_UPPER" else [*more, *less]
