r"""Merging the weights of models of one graph, such as fine-tunes of one network, into one model of that graph.

With :math:`\theta_i` the weights of model :math:`i`, :math:`\theta_0` those of the base, and
:math:`\tau_i = \theta_i - \theta_0`:

- average (model soups, Wortsman et al. 2022): :math:`\sum_i c_i \theta_i \,/ \sum_i c_i`
- task arithmetic (Ilharco et al. 2023): :math:`\theta_0 + \sum_i \lambda_i \tau_i`
- TIES (Yadav et al. 2023): of each :math:`\tau_i` only the largest magnitudes of all weights are kept, each weight
  takes the sign of :math:`\sum_i \tau_i`, and :math:`\lambda` times the mean of those that have it is added to
  :math:`\theta_0`.

Of the variances of BatchNormalization the square roots are merged: where layers before differ by a factor only,
activations of the merged network have the merged standard deviation, and generally at most the averaged one. Statistics
taken anew on data fit better (Jordan et al. 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from graphmod.errors import RefusedError
from graphmod.model import Model, TensorType
from graphmod.model.initializers import clear, is_packed, tensor_type, values
from graphmod.rewrite.same_graph import twins
from graphmod.rewrite.verb import OtherModel, OtherModels, verb

Numbers = NDArray[np.float64]
Rule = Callable[[Sequence[Numbers]], Numbers]
"""From the values of one weight in every model, the base's last where there is one, the merged ones."""

CHUNK = 2**18
"""Scalars of a weight that are merged at a time."""


@verb(exact=False, example="graphmod merge-weights first.onnx second.onnx --out soup.onnx")
def merge_weights(
    model: Model,
    others: OtherModels,
    method: Literal["average", "task-arithmetic", "ties"] = "average",
    coefficients: list[float] | None = None,
    base: OtherModel = None,
    density: float = 0.2,
) -> Model:
    """Merge the weights of models of one graph, such as fine-tunes of one network.

    Names may differ, structure may not. Weights are merged in float64 and stored in their own type; integer constants
    must be equal. Of the variances of BatchNormalization the standard deviations are merged. External weights are read
    a piece at a time; what comes out is in memory until it is saved.

    Parameters
    ----------
    model : Model
    others : Model or list of Model
        The other models.
    method : str
        ``average`` (a model soup); ``task-arithmetic``: the base plus what fine-tuning added, scaled; ``ties``: the
        same of the largest changes only, where their signs agree.
    coefficients : list of float, optional
        One a model, the first model's first. ``average``: shares, all equal by default; ``task-arithmetic``: factors of
        what each adds, or one for all, 0.4 by default; ``ties``: one factor, 1 by default.
    base : Model, optional
        The model before fine-tuning; ``average`` needs none.
    density : float
        The share of changes that ``ties`` keeps of each model.

    Raises
    ------
    RefusedError
        The graphs differ, or an integer constant; a coefficient or the base is missing; or a merged weight is outside
        the range of its type.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> gm.merge_weights(m, [m, m]) is m
    True
    """
    tuned = [model, *others]
    factors = _factors(method, coefficients, len(tuned))
    if (base is None) != (method == "average"):
        what = "needs the model before fine-tuning, 'base'" if base is None else "has no use for a base; leave it out"
        raise RefusedError(f"method '{method}' {what}")
    every = tuned if base is None else [*tuned, base]
    proto = model.editable()
    rows = zip(*(twins(proto, one._proto) for one in every), strict=True)
    folders = [one.folder for one in every]
    weights = [
        _Weight(row[0].name, row[0].first, [twin.other for twin in row], folders, row[0].is_variance) for row in rows
    ]
    differing = [weight for weight in weights if weight.differs()]
    if not differing:
        return model
    thresholds = _thresholds(weights, differing, len(tuned), density) if method == "ties" else []
    rule = _rule(method, factors, thresholds)
    for weight in differing:
        weight.merge(rule)
    return model.derive(proto)


def _factors(method: str, given: Sequence[float] | None, count: int) -> Numbers:
    factors = np.asarray(given if given is not None else {"average": [1.0] * count, "ties": [1.0]}.get(method, [0.4]))
    if factors.ndim != 1 or not np.isfinite(factors).all():
        raise RefusedError(f"coefficients are numbers, one a model; {given} are not")
    if method == "task-arithmetic" and factors.size == 1:
        factors = np.repeat(factors, count)
    wanted = 1 if method == "ties" else count
    if factors.size != wanted:
        raise RefusedError(f"method '{method}' takes {wanted} coefficients here, and {factors.size} are given")
    if method == "average":
        if factors.sum() <= 0:
            raise RefusedError(f"the coefficients of an average have a sum above 0, and that of {given} is not")
        factors = factors / factors.sum()
    return factors.astype(np.float64)


def _rule(method: str, factors: Numbers, thresholds: Sequence[np.float32]) -> Rule:
    def average(theta: Sequence[Numbers]) -> Numbers:
        return np.asarray(sum(c * one for c, one in zip(factors, theta, strict=True)))

    def task_arithmetic(theta: Sequence[Numbers]) -> Numbers:
        *tuned, base = theta
        return np.asarray(base + sum(c * (one - base) for c, one in zip(factors, tuned, strict=True)))

    def ties(theta: Sequence[Numbers]) -> Numbers:
        *tuned, base = theta
        change = np.stack([one - base for one in tuned])
        for own, threshold in zip(change, thresholds, strict=True):
            own[np.abs(own).astype(np.float32) < threshold] = 0
        agrees = (np.sign(change) == np.sign(change.sum(0))) & (change != 0)
        return np.asarray(base + factors[0] * np.where(agrees, change, 0).sum(0) / np.maximum(agrees.sum(0), 1))

    return {"average": average, "task-arithmetic": task_arithmetic, "ties": ties}[method]


@dataclass(frozen=True)
class _Weight:
    """A constant of the result, and what it is in every model."""

    name: str
    target: TensorProto
    tensors: Sequence[TensorProto]
    folders: Sequence[Path | None]
    is_variance: bool

    def differs(self) -> bool:
        """Whether it is not the same in all models; refuse if it has to be."""
        kinds = [tensor_type(tensor) for tensor in self.tensors]
        for kind in kinds:
            if kind != kinds[0]:
                told = " and ".join(str(TensorType(*one)) for one in (kinds[0], kind))
                raise RefusedError(f"constant '{self.name}' is {told} in different models")
        same = all(self._same(arrays) for arrays in self._pieces())
        if not same and not TensorType(*kinds[0]).is_float:
            raise RefusedError(
                f"constant '{self.name}' of type {kinds[0][0]} is not the same in all models, and only floats can be "
                "merged; merge models before they are quantized"
            )
        return not same

    @staticmethod
    def _same(arrays: Sequence[NDArray[Any]]) -> bool:
        first = arrays[0]
        if first.dtype == object:
            return all(np.array_equal(first, other) for other in arrays[1:])
        return all(first.tobytes() == other.tobytes() for other in arrays[1:])

    def _pieces(self) -> Iterator[list[NDArray[Any]]]:
        """Yield the values in all models, some at a time."""
        places = zip(self.tensors, self.folders, strict=True)
        whole = [values(tensor, folder).reshape(-1) for tensor, folder in places]
        for start in range(0, whole[0].size, CHUNK):
            yield [array[start : start + CHUNK] for array in whole]

    def numbers(self) -> Iterator[list[Numbers]]:
        """Yield what is merged, some at a time: the values, of variances the standard deviations."""
        for arrays in self._pieces():
            exact = [array.astype(np.float64) for array in arrays]
            yield [np.sqrt(array) for array in exact] if self.is_variance else exact

    def merge(self, rule: Rule) -> None:
        """Write the merged values into the result."""
        dtype, shape = tensor_type(self.target)
        merged = np.empty(prod(shape), dtype)
        start = 0
        for theta in self.numbers():
            with np.errstate(invalid="ignore", over="ignore"):  # of values that are not finite in the first place
                found = rule(theta)
                if self.is_variance and (found < 0).any():
                    raise RefusedError(
                        f"the merged standard deviation '{self.name}' is below 0; take smaller coefficients"
                    )
                equal = np.logical_and.reduce([one == theta[0] for one in theta])
                exact = np.where(equal, theta[0], found)
                piece = (exact**2 if self.is_variance else exact).astype(dtype)
            if not np.isfinite(piece.astype(np.float64))[np.isfinite(np.stack(theta)).all(0)].all():
                raise RefusedError(
                    f"merged weight '{self.name}' is outside the range of {dtype}; take smaller coefficients"
                )
            merged[start : start + piece.size] = piece
            start += piece.size
        raw = numpy_helper.from_array(merged).raw_data if is_packed(self.target) else merged.tobytes()
        clear(self.target)
        self.target.raw_data = raw


def _thresholds(
    weights: Sequence[_Weight], differing: Sequence[_Weight], count: int, density: float
) -> list[np.float32]:
    """Return the magnitude that the largest changes of each model reach, over all weights, in two passes over them.

    Bits of floats that are not negative sort as their values do, so that the first pass counts by the upper half, and
    the second by the lower half where the threshold lies.
    """
    if not 0 < density <= 1:
        raise RefusedError(f"density is the share of changes to keep, above 0 and up to 1, not {density}")
    n_floats = sum(prod(w.target.dims) for w in weights if TensorType(*tensor_type(w.target)).is_float)
    rank = max(1, round(density * n_floats))
    upper = [_reached(counts, rank) for counts in _count(differing, count, lambda bits, _: bits >> 16)]
    inside = _count(differing, count, lambda bits, model: bits[bits >> 16 == upper[model][0]] & 0xFFFF)
    found = [
        _reached(counts, rank - above)[0] | half << 16 for counts, (half, above) in zip(inside, upper, strict=True)
    ]
    return [np.uint32(bits).view(np.float32) for bits in found]


def _count(
    weights: Iterable[_Weight], count: int, half: Callable[[NDArray[np.uint32], int], NDArray[Any]]
) -> NDArray[np.int64]:
    counts = np.zeros((count, 2**16), np.int64)
    for weight in weights:
        for *tuned, base in weight.numbers():
            for model, theta in enumerate(tuned):
                bits = np.abs(theta - base).astype(np.float32).view(np.uint32)
                counts[model] += np.bincount(half(bits, model), minlength=2**16)
    return counts


def _reached(counts: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """Return the bin in which the value of a rank lies, counted from the largest, and how many values lie above it."""
    above = np.cumsum(counts[::-1])
    place = min(int(np.searchsorted(above, rank)), counts.size - 1)
    return counts.size - 1 - place, int(above[place - 1]) if place else 0
