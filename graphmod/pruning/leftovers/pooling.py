"""Pooling, resizing and reductions hand on what is the same everywhere."""

from __future__ import annotations

import numpy as np

from graphmod.pruning.leftovers.known import Known, unknown, zeros_of
from graphmod.pruning.leftovers.reading import Reading
from graphmod.pruning.leftovers.registry import settles


def _even(known: Known, axes: range | list[int]) -> Known:
    """Return values that are the same along axes; nothing if some are not."""
    return known if all(known.shape[axis] == 1 for axis in axes) else unknown(known.ndim)


@settles("GlobalAveragePool", "GlobalMaxPool", "MaxPool")
def pooled(reading: Reading) -> list[Known | None]:
    """Hand constants on: padding is less than all of them."""
    known = reading.known(0)
    return [_even(known, range(2, known.ndim))]


@settles("AveragePool")
def averaged(reading: Reading) -> list[Known | None]:
    """Hand constants on, and only zero where padding counts; channels as positions have other neighbours."""
    known = reading.known(0)
    for axis in range(2, known.ndim):
        reading.drop(0, axis, reading.gone(0, axis), f"{reading.site} averages the neighbours that are left")
    even = _even(known, range(2, known.ndim))
    pads = any(reading.site.attribute("pads", [])) or reading.site.attribute("auto_pad", b"NOTSET") in (
        b"SAME_UPPER", b"SAME_LOWER",
    )  # fmt: skip
    return [zeros_of(even) if pads and reading.site.attribute("count_include_pad", 0) else even]


@settles("LpPool", "GlobalLpPool")
def normed(reading: Reading) -> list[Known | None]:
    """Hand zero on."""
    known = reading.known(0)
    return [zeros_of(_even(known, range(2, known.ndim)))]


@settles("Resize", "Upsample")
def resized(reading: Reading) -> list[Known | None]:
    """Hand constants on, unless the operator reads beyond the borders."""
    if reading.site.attribute("coordinate_transformation_mode", b"half_pixel") == b"tf_crop_and_resize":
        return [None]
    shape, made = reading.site.shape(), reading.site.made()
    return [_even(reading.known(0), [axis for axis, size in enumerate(shape) if size != made[axis]])]


MEANS = ["ReduceMean", "ReduceMax", "ReduceMin"]
SUMS = ["ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"]


@settles(*MEANS, *SUMS)
def reduced(reading: Reading) -> list[Known | None]:
    """Hand constants on, of sums only zero; reductions over channels are over those that are left."""
    site, known = reading.site, reading.known(0)
    axes = site.integers(1, "axes")
    if not axes and site.attribute("noop_with_empty_axes", 0):
        return [known]
    over = sorted({axis % known.ndim for axis in axes or range(known.ndim)})
    for axis in over:
        reading.drop(0, axis, reading.gone(0, axis), f"{site} reduces the axis to what is left")
    even = _even(known, over)
    made = zeros_of(even) if reading.operator.op_type in SUMS else even
    return [made if site.attribute("keepdims", 1) else made.reshape(np.delete(made.shape, over))]
