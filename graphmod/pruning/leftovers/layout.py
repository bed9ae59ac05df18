"""Operators that move values hand constants on, to where they move them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from graphmod.pruning.leftovers.known import Known, unknown, widened, zeros_of
from graphmod.pruning.leftovers.reading import Reading
from graphmod.pruning.leftovers.registry import settles


@settles("Transpose")
def transpose(reading: Reading) -> list[Known | None]:
    """Move the axes."""
    known = reading.known(0)
    return [known.transpose(reading.site.attribute("perm", range(known.ndim)[::-1]))]


@settles("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(reading: Reading) -> list[Known | None]:
    """List the same values in another shape."""
    return [reshaped(reading.known(0), reading.site.shape(), reading.site.made())]


def reshaped(known: Known, old: Sequence[int], new: Sequence[int]) -> Known:
    """Return values in another shape; axes that are made of even ones stay 1 long.

    >>> reshaped(np.arange(6.0).reshape(1, 6, 1), (9, 6, 4), (9, 2, 3, 2, 2)).shape
    (1, 2, 3, 1, 1)
    """
    if 0 in old or 0 in new:
        return unknown(len(new))
    ends = [np.cumprod(shape, dtype=np.int64).tolist() for shape in (old, new)]
    shape, target = [1] * len(old), [1] * len(new)
    for start, stop in pairwise(sorted({1, *ends[0]} & {1, *ends[1]})):
        read, made = ([axis for axis, end in enumerate(side) if start < end <= stop] for side in ends)
        if any(known.shape[axis] > 1 for axis in read):
            for axis in read:
                shape[axis] = old[axis]
            for axis in made:
                target[axis] = new[axis]
    return np.broadcast_to(known, shape).reshape(target)


@settles("Expand")
def expand(reading: Reading) -> list[Known | None]:
    """Add axes in front."""
    known = reading.known(0)
    return [known.reshape((1,) * (len(reading.site.made()) - known.ndim) + known.shape)]


@settles("Concat")
def concat(reading: Reading) -> list[Known | None]:
    """Put values one after another."""
    places = range(len(reading.operator.input))
    parts = [reading.known(place) for place in places]
    axis = int(reading.site.attribute("axis", 1)) % parts[0].ndim
    shape = np.broadcast_shapes(*(np.delete(part.shape, axis) for part in parts))
    sizes = [reading.site.shape(place)[axis] for place in places]
    wide = [
        np.broadcast_to(part, (*shape[:axis], size, *shape[axis:])) for part, size in zip(parts, sizes, strict=True)
    ]
    return [np.concatenate(wide, axis)]


@settles("Split")
def split(reading: Reading) -> list[Known | None]:
    """Cut values along the axis."""
    known = reading.known(0)
    axis = int(reading.site.attribute("axis", 0)) % known.ndim
    if known.shape[axis] == 1:
        return [known] * len(reading.operator.output)
    ends = np.cumsum([reading.site.made(output)[axis] for output in range(len(reading.operator.output))])
    return list(np.split(known, ends[:-1], axis))


@settles("Slice")
def slice_(reading: Reading) -> list[Known | None]:
    """Take values where the operator takes them."""
    site, known = reading.site, reading.known(0)
    starts, ends = (site.integers(place, name) or [] for place, name in ((1, "starts"), (2, "ends")))
    axes, steps = site.integers(3, "axes") or range(len(starts)), site.integers(4, "steps") or [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if known.shape[axis] > 1:
            stop = None if step < 0 and end < -known.shape[axis] else end
            known = known[(slice(None),) * (axis % known.ndim) + (slice(start, stop, step),)]
    return [known]


@settles("Gather")
def gather(reading: Reading) -> list[Known | None]:
    """Take entries whose places are known; of a table that data looks up, what is removed is zero."""
    site = reading.site
    if site.is_constant(0):
        return [_zero_columns(reading)]
    chosen = site.value(1)
    axis = int(site.attribute("axis", 0)) % len(site.labels(0))
    if chosen is None:
        return [None]
    return [np.take(widened(reading.known(0), axis, site.shape()[axis]), chosen.astype(np.int64), axis)]


def _zero_columns(reading: Reading) -> Known:
    made = unknown(len(reading.site.made()))
    for axis, labels in enumerate(reading.state.axes(reading.operator.output[0])):
        if id(labels) in reading.state.made:
            made = np.where(np.isnan(made), reading.made_zero(axis), made)
    return made


@settles("Pad")
def pad(reading: Reading) -> list[Known | None]:
    """Hand on what is the same as the padding, or mirrored by it."""
    site, known = reading.site, reading.known(0)
    if site.attribute("mode", b"constant") != b"constant":
        return [known if all(size == 1 for size in known.shape[2:]) else None]
    pads = site.integers(1, "pads") or []
    axes = site.integers(3, "axes") or range(known.ndim)
    filled = site.value(2) if site.has(2) else np.array(site.attribute("value", 0.0))
    if any(known.shape[axis] > 1 and size for axis, size in zip([*axes, *axes], pads, strict=True)):
        return [None]
    return [zeros_of(known) if filled is not None and not filled.any() else None]


@settles("Tile")
def tile(reading: Reading) -> list[Known | None]:
    """Repeat values."""
    known = reading.known(0)
    repeats = reading.site.integers(1, "repeats") or []
    return [np.tile(known, [n if size > 1 else 1 for n, size in zip(repeats, known.shape, strict=True)])]


@settles("DepthToSpace", "SpaceToDepth")
def not_followed(reading: Reading) -> list[Known | None]:
    """Know nothing of channels that become positions, or positions that become channels."""
    return [unknown(len(reading.site.made()))]
