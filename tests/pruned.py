"""What a network without some units must compute, asked of the original: slices zeroed, statistics over the rest."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
from masking import masked
from onnx import ModelProto

from graphmod.pruning import Groups, cut
from graphmod.pruning.selection import Selection
from graphmod.pruning.widths import Widths

EXACT = 1e-4
"""Largest difference over the output's scale, as single-precision sums in another order give it."""


def some_units(found: Groups, seed: int, share: float | None = None, only: str | None = None) -> np.ndarray:
    """Draw units to remove: a share of every group, or a random share of each; of one group only if it is named."""
    rng = np.random.default_rng(seed)
    selection = Selection(found, Widths(found), rng.random(found.n_units))
    for group in found:
        if only in (None, group.name):
            selection.take(group, group.n_units, rng.uniform(0.2, 0.9) if share is None else share)
    return ~selection.alive


def indices(found: Groups, gone: np.ndarray) -> dict[tuple[str, int], np.ndarray]:
    """Return the indices of every axis of every tensor that go with some units."""
    goes = np.append(gone, False)
    places = {
        (tensor, axis): np.flatnonzero(goes[found.unit_of[labels]])
        for tensor, axes in found.analysis.axes.items()
        for axis, labels in enumerate(axes)
    }
    return {place: own for place, own in places.items() if len(own)}


def outputs(proto: ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run a model in ONNX Runtime as it is written, without optimisations that sum in another order."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def error(found: Groups, gone: np.ndarray, feeds: dict[str, np.ndarray], proto: ModelProto | None = None) -> float:
    """Return how far the network without some units is from the original without their slices, over its scale.

    Parameters
    ----------
    found : Groups
    gone : array of bool
    feeds : dict of str to array
    proto : ModelProto, optional
        The original for the reference, where it cannot be the model itself: of a newer operator set.
    """
    original = found.model.proto() if proto is None else proto
    expected = outputs(masked(original, indices(found, gone)), feeds)
    made = outputs(cut(found, gone, leftovers=False).proto(), feeds)
    worst = 0.0
    for a, b in zip(expected, made, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if a.dtype.kind == "f":
            finite = np.isfinite(a)
            assert np.array_equal(finite, np.isfinite(b))
            scale = np.abs(a[finite]).max(initial=0.0) or 1.0
            worst = max(worst, float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / scale)
    return worst
