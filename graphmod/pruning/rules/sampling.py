"""Operators that move over positions, or read values between them: channels pass, positions stay."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from graphmod.pruning.change import Change, adapts
from graphmod.pruning.registry import couples
from graphmod.pruning.site import Axes, Site, Uncoupled


def moved_over(site: Site, data: Axes) -> Axes:
    """Keep the positions, and return the labels of an output that has others."""
    why = f"positions that {site} moves over"
    site.keep(data[2:], why)
    return [*data[:2], *(site.kept(size, why) for size in site.made()[2:])]


@couples("AveragePool")
def average_pooling(site: Site) -> list[Axes]:
    """Keep the positions; an average that moves along one axis alone by steps of 1 is of neighbours that are left.

    That is how exporters write local response normalisation, with channels as one more axis of positions.
    """
    data, made = site.labels(), list(site.made())
    kernel = [int(size) for size in site.attribute("kernel_shape")]
    wide = [axis for axis, size in enumerate(kernel, 2) if size > 1]
    steps = [*site.attribute("strides", ()), *site.attribute("dilations", ())]
    if len(wide) != 1 or any(step != 1 for step in steps) or site.attribute("auto_pad", b"NOTSET") != b"NOTSET":
        return [moved_over(site, data)]
    (axis,) = wide
    first = kernel[axis - 2] // 2 - site.attribute("pads", [0] * axis)[axis - 2]  # whose neighbours come first
    last = first + made[axis]
    others = [(len(labels), size) for place, (labels, size) in enumerate(zip(data, made, strict=True)) if place != axis]
    if first < 0 or last > len(data[axis]) or any(read != size for read, size in others):
        return [moved_over(site, data)]
    site.keep([data[axis][:first], data[axis][last:]], f"neighbours that {site} needs at the ends of the axis")
    return [[*data[:axis], data[axis][first:last], *data[axis + 1 :]]]


@couples("LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def pooling(site: Site) -> list[Axes]:
    """Keep the positions."""
    return [moved_over(site, site.labels())]


@couples("MaxPool")
def max_pooling(site: Site) -> list[Axes]:
    """Keep the positions; and the channels where places, which count them too, are read by more than unpooling."""
    made = moved_over(site, site.labels())
    places = site.operator.output[1:]
    readers = [site.model.operators[reader] for place in places for reader in site.model.readers.get(place, ())]
    if any(reader.op_type != "MaxUnpool" for reader in readers):
        site.keep(made[:2], f"{site} returns places that count channels")
    return [made, made]


@couples("MaxUnpool")
def max_unpooling(site: Site) -> list[Axes]:
    """Let channels pass where the places are those of a MaxPool of the same shape."""
    made = moved_over(site, site.labels())
    maker = site.model.producer.get(site.operator.input[1])
    pool = None if maker is None else site.model.operators[maker]
    if pool is None or pool.op_type != "MaxPool" or site.shapes(pool.input[0]) != site.made():
        raise Uncoupled(f"{site} reads places that count channels, and are not those of a MaxPool of its shape")
    for labels, ours in zip(site.labels(1)[:2], made[:2], strict=True):
        site.tie(labels, ours)
    return [made]


@adapts("MaxUnpool")
def unpooled_shape(site: Site, change: Change) -> None:
    """Name the sizes that are left, where they are named."""
    if site.has(2):
        change.need(2, change.made())


@couples("Resize", "Upsample")
def resize(site: Site) -> list[Axes]:
    """Hand axes on whose values stay, keep the others."""
    site.check_sizes(3)
    data, shape = site.labels(), site.made()
    return [_passed(site, data, shape, _moved(site, len(data)), f"positions that {site} resizes")]


def _passed(site: Site, data: Axes, shape: Sequence[int], moved: Collection[int], why: str) -> Axes:
    """Return the labels of axes whose size stays and whose values do not move; keep the others on both sides."""
    made = []
    for axis, (labels, size) in enumerate(zip(data, shape, strict=True)):
        passes = len(labels) == size and axis not in moved
        if not passes:
            site.keep([labels], why)
        made.append(labels if passes else site.kept(size, why))
    return made


def _moved(site: Site, rank: int) -> set[int]:
    """Return the axes whose values can move although their size stays: cropped, or scaled by nearly 1."""
    axes = _resized(site, rank)
    if site.attribute("coordinate_transformation_mode") == b"tf_crop_and_resize":
        roi = site.value(1)
        whole = np.repeat([0.0, 1.0], len(axes))
        cut = np.ones(len(axes), bool) if roi is None else (roi != whole).reshape(2, -1).any(0)
        return {axis for axis, is_cut in zip(axes, cut, strict=True) if is_cut}
    if site.attribute("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        return set(axes)
    if site.has(3):
        return set()
    place = 2 if site.operator.op_type == "Resize" and site.opset > 10 else 1
    scales = site.value(place) if site.has(place) else np.array(site.attribute("scales", ()))
    return set(axes) if scales is None else {axis for axis, scale in zip(axes, scales, strict=True) if scale != 1}


def _resized(site: Site, rank: int) -> list[int]:
    return site.counted(site.attribute("axes", ()), rank) or list(range(rank))


@adapts("Resize")
def new_sizes(site: Site, change: Change) -> None:
    """Name the sizes that are left, where sizes are named, not scales, and each is what is made."""
    if site.has(3) and site.attribute("keep_aspect_ratio_policy", b"stretch") == b"stretch":
        change.need(3, change.made()[_resized(site, len(change.made()))])


@couples("CenterCropPad")
def center_crop_pad(site: Site) -> list[Axes]:
    """Hand axes on whose size stays, keep the others."""
    return [_passed(site, site.labels(), site.made(), (), f"{site} cuts or pads the axis")]


@adapts("CenterCropPad")
def cropped_sizes(site: Site, change: Change) -> None:
    """Name the sizes that are left."""
    change.need(1, change.made()[_resized(site, len(change.made()))])


@couples("GridSample")
def grid_sample(site: Site) -> list[Axes]:
    """Let channels pass; the grid names positions of every sample."""
    grid = site.labels(1)
    made = moved_over(site, site.labels())
    site.tie(made[0], grid[0])
    site.keep(grid[1:], f"positions of {site}")
    return [made]


@couples("AffineGrid")
def affine_grid(site: Site) -> list[Axes]:
    """Let samples pass."""
    theta, why = site.labels(), f"positions of {site}"
    site.keep(theta[1:], why)
    return [[theta[0], *(site.kept(size, why) for size in site.made()[1:])]]


@couples("RoiAlign", "MaxRoiPool")
def regions_of_interest(site: Site) -> list[Axes]:
    """Let channels and regions pass."""
    data, regions = site.labels(0), site.labels(1)
    site.keep([data[0], regions[1]], f"regions of {site}")
    if site.has(2):
        site.tie(site.labels(2)[0], regions[0])
    return [[regions[0], *moved_over(site, data)[1:]]]


@couples("Col2Im")
def columns_to_image(site: Site) -> list[Axes]:
    """Let channels pass, each of which has a whole block in the columns."""
    data, why = site.labels(), f"positions that {site} puts together"
    channels = site.fresh(site.made()[1])
    site.merge(data[1], [channels, site.kept(len(data[1]) // max(1, len(channels)), why)])
    site.keep([data[2]], why)
    return [[data[0], channels, *(site.kept(size, why) for size in site.made()[2:])]]
