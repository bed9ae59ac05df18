"""Comparing two models on data, output by output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import numpy as np

from graphmod.data import Data, as_data, fixed_batch
from graphmod.errors import RefusedError
from graphmod.model import Model, TensorType
from graphmod.probe import stream

EXACT = 1e-5
"""Error over the output's scale, up to which an edit that is exact in theory counts as exact."""


@dataclass(frozen=True)
class OutputError:
    """How far one output of two models is apart.

    Parameters
    ----------
    largest : float
        Largest absolute difference.
    scale : float
        Largest absolute value of the first model's output.
    rms : float
        Root mean squared difference over the root mean square of the first model's output: 0 where they agree, 1 where
        the difference is as large as the output.
    """

    largest: float
    scale: float
    rms: float

    @property
    def relative(self) -> float:
        """The largest difference over the output's scale."""
        return self.largest / self.scale if self.scale else self.largest


@dataclass(frozen=True)
class Verification:
    """The errors of all outputs, by name."""

    outputs: dict[str, OutputError]

    @property
    def exact(self) -> bool:
        """Whether every output agrees to 1e-5 of its scale."""
        return all(error.relative <= EXACT for error in self.outputs.values())


def verify(
    a: Model, b: Model, data: object, *, batch_size: int = 64, outputs: Sequence[str] | None = None
) -> Verification:
    """Run two models on the same data in ONNX Runtime and compare their outputs.

    Parameters
    ----------
    a, b : Model
        The same inputs and outputs, unless ``outputs`` says what to compare.
    data : anything that :func:`graphmod.data.as_data` takes
    batch_size : int
    outputs : sequence of str, optional
        Tensors of both models to compare, inner ones included; then ``b`` may lack inputs and outputs of ``a``.

    Raises
    ------
    RefusedError
        The models differ in the names of inputs or outputs, or an output differs in shape or holds no numbers that
        numpy has.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> gm.verify(m, m, gm.demo.splits().test).exact
    True
    """
    same = list(a.inputs) == list(b.inputs) and list(a.outputs) == list(b.outputs)
    if not (same if outputs is None else a.inputs.keys() >= b.inputs.keys()):
        raise RefusedError(
            f"the models have different signatures: {list(a.inputs)} -> {list(a.outputs)} and "
            f"{list(b.inputs)} -> {list(b.outputs)}"
        )
    names = list(a.outputs) if outputs is None else list(outputs)
    unknown = TensorType(None, None)
    for name, kind in ((name, model.tensors.get(name, unknown)) for model in (a, b) for name in names):
        if kind.dtype is None or kind.dtype.kind not in "fiub":
            raise RefusedError(
                f"output '{name}' is {kind}, and only tensors of numbers that numpy has are compared; graphmod.hide "
                "takes it from the outputs"
            )
    samples = as_data(a, data)
    taken = Data({name: samples.inputs[name] for name in b.inputs})
    totals = {name: np.zeros(4) for name in names}
    unit = lcm(*(fixed_batch(model) or 1 for model in (a, b)))
    sides = (stream(model, fed, names, batch_size, unit=unit) for model, fed in ((a, samples), (b, taken)))
    for (_, left), (_, right) in zip(*sides, strict=True):
        for name in names:
            first, second = (np.asarray(side[name], np.float64) for side in (left, right))
            if first.shape != second.shape:
                raise RefusedError(f"output '{name}' differs in shape: {list(first.shape)} and {list(second.shape)}")
            same = (first == second) | (np.isnan(first) & np.isnan(second))  # infinities and NaN of both are no error
            difference = np.subtract(first, second, where=~same, out=np.zeros_like(first))
            finite = first[np.isfinite(first)]
            largest, scale, squares, total = totals[name]
            totals[name] = np.array(
                [
                    np.maximum(largest, np.abs(difference).max(initial=0)),
                    np.maximum(scale, np.abs(finite).max(initial=0)),
                    squares + (difference**2).sum(),
                    total + (finite**2).sum(),
                ]
            )
    return Verification(
        {
            name: OutputError(float(largest), float(scale), float(np.sqrt(squares / (total or 1))))
            for name, (largest, scale, squares, total) in totals.items()
        }
    )
