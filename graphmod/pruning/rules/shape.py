"""Operators that change shapes and hand values on: reshaping, joining, cutting, moving and repeating axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from graphmod.pruning.change import Change, adapts
from graphmod.pruning.labels import Labels
from graphmod.pruning.registry import couples
from graphmod.pruning.site import Axes, Site, Uncoupled


@couples(
    "Shape", "Size", "Constant", "ConstantOfShape", "Range", "RandomNormal", "RandomUniform", "BlackmanWindow",
    "HammingWindow", "HannWindow",
)  # fmt: skip
def source(site: Site) -> list[Axes]:
    """Make values that follow nobody's indices."""
    if site.attribute("sparse_value") is not None:
        raise Uncoupled(f"{site} is stored sparsely")
    if site.operator.op_type == "ConstantOfShape":
        site.check_sizes(0)
    return [[site.fresh(size) for size in site.made()]]


@adapts("RandomNormal", "RandomUniform")
def drawn(_: Site, change: Change) -> None:
    """Draw as many as are left."""
    change.set("shape", change.made().tolist())


@couples("EyeLike")
def diagonal(site: Site) -> list[Axes]:
    """Keep both axes."""
    data = site.labels()
    site.keep(data, f"{site} compares places along two axes")
    return [data]


@adapts("ConstantOfShape")
def filled(_: Site, change: Change) -> None:
    """Fill the shape that is left."""
    change.need(0, change.made())


@couples("Transpose")
def transpose(site: Site) -> list[Axes]:
    """Move the axes."""
    data = site.labels()
    return [[data[axis] for axis in site.attribute("perm", range(len(data))[::-1])]]


@couples("Squeeze")
def squeeze(site: Site) -> list[Axes]:
    """Drop axes."""
    data = site.labels()
    axes = site.integers(1, "axes")
    gone = set(site.counted(axes, len(data))) if axes else {i for i, labels in enumerate(data) if len(labels) == 1}
    site.keep([data[axis] for axis in gone], f"{site} drops the axis")
    return [[labels for axis, labels in enumerate(data) if axis not in gone]]


@adapts("Squeeze")
def same_axes(site: Site, change: Change) -> None:
    """Name the axes where it drops whatever is 1 long, and more is now."""
    if not site.has(1) and site.attribute("axes") is None and 1 in change.made():
        axes = [axis for axis, labels in enumerate(site.labels()) if len(labels) == 1]
        if site.opset < 13:
            change.set("axes", axes)
        else:
            change.need(1, np.array(axes, np.int64))


@couples("Unsqueeze")
def unsqueeze(site: Site) -> list[Axes]:
    """Add axes."""
    data = iter(site.labels())
    rank = len(site.made())
    new = site.counted(site.integers(1, "axes") or (), rank)
    return [[site.fresh(1) if axis in new else next(data) for axis in range(rank)]]


@couples("Reshape", "Flatten")
def reshape(site: Site) -> list[Axes]:
    """Tie axes that stay; of those that are made into one, or of one, let one factor carry."""
    site.check_sizes(1)
    return [regrouped(site, site.labels(), site.made())]


@adapts("Reshape")
def new_target(site: Site, change: Change) -> None:
    """Name the sizes that are left, where the target does not leave them open."""
    made = change.made()
    target = site.value(1)
    if target is None and not site.has(1):
        stated = np.array(site.attribute("shape"), np.int64)
        change.set("shape", _open_where_it_was(stated, made, change.shape()).tolist())
    else:
        change.need(1, made if target is None else _open_where_it_was(target, made, change.shape()))


def _open_where_it_was(target: np.ndarray, made: np.ndarray, read: np.ndarray) -> np.ndarray:
    """Return the sizes to name, -1 and 0 kept where they still say the same."""
    copied = np.array([read[axis] if axis < len(read) else -1 for axis in range(len(made))])
    return np.where((target == -1) | ((target == 0) & (copied == made)), target, made)


def regrouped(site: Site, data: Axes, shape: Sequence[int]) -> Axes:
    """Couple the axes of a tensor with those of the same values in another shape, and return the latter's labels."""
    old, new = [len(labels) for labels in data], list(shape)
    if 0 in old or 0 in new:
        raise Uncoupled(f"{site} reads a tensor without elements")
    site.keep([labels for labels in data if len(labels) == 1], f"{site} may drop the axis")
    made: list[Labels] = [site.fresh(size) for size in new]
    ends = [np.cumprod(old, dtype=np.int64).tolist(), np.cumprod(new, dtype=np.int64).tolist()]
    for start, stop in pairwise(sorted({1, *ends[0]} & {1, *ends[1]})):
        spans = [
            [(axis, end // size, end) for axis, (end, size) in enumerate(zip(side, sizes, strict=True))
             if size > 1 and start < end <= stop]
            for side, sizes in zip(ends, (old, new), strict=True)
        ]  # fmt: skip
        read, written = spans
        points = sorted({start, *(end for side in spans for _, _, end in side)})
        if len(read) == len(written) == 1:
            made[written[0][0]] = data[read[0][0]]
        elif any(b % a for a, b in pairwise(points)):
            why = f"{site} mixes axes whose sizes have no common factors"
            site.keep([*(data[axis] for axis, _, _ in read), *(made[axis] for axis, _, _ in written)], why)
        else:
            factors = {b: site.fresh(b // a) for a, b in pairwise(points)}
            for axis, begin, end in read:
                if end // begin == len(factors[end]):
                    factors[end] = data[axis]
            for axis, begin, end in written:
                inside = [labels for point, labels in factors.items() if begin < point <= end]
                if len(inside) == 1:
                    made[axis] = inside[0]
                else:
                    site.merge(made[axis], inside)
            for axis, begin, end in read:
                inside = [labels for point, labels in factors.items() if begin < point <= end]
                if len(inside) > 1:
                    site.merge(data[axis], inside)
    return made


@couples("DepthToSpace")
def depth_to_space(site: Site) -> list[Axes]:
    """Split channels into blocks of positions and the channels that are left, which carry."""
    data, size = site.labels(), site.attribute("blocksize")
    channels = site.fresh(len(data[1]) // size**2)
    block = [site.kept(size, f"positions that {site} makes") for _ in range(2)]
    is_column_row = site.attribute("mode", b"DCR") == b"CRD"
    site.merge(data[1], [channels, *block] if is_column_row else [*block, channels])
    site.keep(data[2:], f"positions that {site} makes")
    return [[data[0], channels, *(site.kept(n, f"positions that {site} makes") for n in site.made()[2:])]]


@couples("SpaceToDepth")
def space_to_depth(site: Site) -> list[Axes]:
    """Repeat the channels for every position of a block."""
    data, size = site.labels(), site.attribute("blocksize")
    site.keep(data[2:], f"positions that {site} takes apart")
    why = f"positions that {site} takes apart"
    return [[data[0], np.tile(data[1], size**2), *(site.kept(n, why) for n in site.made()[2:])]]


@couples("Concat")
def concat(site: Site) -> list[Axes]:
    """Put labels one after another along the axis, tie the other axes."""
    return [joined(site, range(len(site.operator.input)))]


def joined(site: Site, places: Iterable[int]) -> Axes:
    """Put labels of inputs one after another along the axis, and tie their other axes."""
    parts = [site.labels(place) for place in places]
    axis = site.axis(1, len(parts[0]))
    made = list(parts[0])
    for part in parts[1:]:
        for other, (ours, theirs) in enumerate(zip(made, part, strict=True)):
            if other != axis:
                site.tie(ours, theirs)
    made[axis] = np.concatenate([part[axis] for part in parts])
    return made


@couples("Split")
def split(site: Site) -> list[Axes]:
    """Cut the labels along the axis."""
    data = site.labels()
    axis = site.axis(0, len(data))
    ends = np.cumsum([site.made(place)[axis] for place in range(len(site.operator.output))])
    return [[*data[:axis], part, *data[axis + 1 :]] for part in np.split(data[axis], ends[:-1])]


@adapts("Split")
def new_parts(site: Site, change: Change) -> None:
    """Name the sizes that are left, unless they are equal and not named."""
    axis = site.axis(0, len(change.shape()))
    parts = np.array([change.made(place)[axis] for place in range(len(site.operator.output))], np.int64)
    if site.has(1):
        change.need(1, parts)
    elif site.attribute("split") is not None:
        change.set("split", parts.tolist())
    elif parts.tolist() != _named_by_count(parts, site):
        if site.opset < 13:
            change.set("split", parts.tolist())
        else:
            change.set("num_outputs", None)
            change.need(1, parts)


def _named_by_count(parts: np.ndarray, site: Site) -> list[int] | None:
    """Return the sizes that a Split makes by itself: equal ones, the last one shorter since opset 18; or none."""
    total, n = int(parts.sum()), len(parts)
    size = -(-total // n)
    return None if total % n and site.opset < 18 else [*([size] * (n - 1)), total - size * (n - 1)]


@couples("Slice")
def slice_(site: Site) -> list[Axes]:
    """Take labels where the operator takes values; the whole axis may be turned round."""
    data = site.labels()
    for axis, (start, stop, step) in _cuts(site, len(data)).items():
        whole = data[axis]
        data[axis] = whole[start:stop:step]
        if step != 1 and (step != -1 or len(data[axis]) < len(whole)):
            site.keep([whole], f"{site} takes indices in steps of {step}")
    if [len(labels) for labels in data] != list(site.made()):
        raise Uncoupled(f"{site} takes a part that is not known")
    return [data]


def _cuts(site: Site, rank: int) -> dict[int, tuple[int, int, int]]:
    starts, ends = (site.integers(place, name) or [] for place, name in ((1, "starts"), (2, "ends")))
    axes = site.counted(site.integers(3, "axes") or range(len(starts)), rank)
    steps = site.integers(4, "steps") or [1] * len(starts)
    return dict(zip(axes, zip(starts, ends, steps, strict=True), strict=True))


@adapts("Slice")
def new_bounds(site: Site, change: Change) -> None:
    """Move starts and ends by what is gone before them."""
    data = site.labels()
    starts, ends = (list(site.integers(place, name) or []) for place, name in ((1, "starts"), (2, "ends")))
    for place, (axis, (start, stop, step)) in enumerate(_cuts(site, len(data)).items()):
        alive = change.alive(data[axis])
        if step == 1 and not alive.all():
            begin, end, _ = slice(start, stop, step).indices(len(alive))
            starts[place] = int(alive[:begin].sum())
            if end < len(alive):
                ends[place] = int(alive[: max(begin, end)].sum())
    for place, name, values in ((1, "starts", starts), (2, "ends", ends)):
        if site.has(place):
            change.need(place, np.array(values))
        else:
            change.set(name, values)


@couples("Pad")
def pad(site: Site) -> list[Axes]:
    """Put new labels at both ends."""
    data = site.labels()
    before, after = _pads(site, len(data))
    constant = site.attribute("mode", b"constant") == b"constant"
    for axis, (front, back) in enumerate(zip(before, after, strict=True)):
        if front < 0 or back < 0 or ((front or back) and not constant):
            site.keep([data[axis]], f"{site} cuts or mirrors the axis")
            data[axis] = site.kept(site.made()[axis], f"{site} cuts or mirrors the axis")
        elif front or back:
            data[axis] = np.concatenate([site.fresh(front), data[axis], site.fresh(back)])
    return [data]


def _pads(site: Site, rank: int) -> tuple[list[int], list[int]]:
    pads = site.integers(1, "pads") or []
    axes = site.integers(3, "axes") or list(range(rank))
    before, after = [0] * rank, [0] * rank
    for axis, front, back in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        before[axis % rank], after[axis % rank] = front, back
    return before, after


@adapts("Pad")
def new_pads(site: Site, change: Change) -> None:
    """Count what is left of the padding."""
    made = change.written[0]
    rank = len(made)
    before, after = _pads(site, rank)
    axes = [axis % rank for axis in site.integers(3, "axes") or range(rank)]
    fronts = [int(change.alive(made[a][: before[a]]).sum()) if before[a] > 0 else before[a] for a in axes]
    backs = [int(change.alive(made[a][-after[a] :]).sum()) if after[a] > 0 else after[a] for a in axes]
    if site.has(1):
        change.need(1, np.array([*fronts, *backs]))
    else:
        change.set("pads", [*fronts, *backs])


@couples("Expand")
def expand(site: Site) -> list[Axes]:
    """Hand axes on that are not expanded, to a target that can follow."""
    site.check_sizes(1)
    return [site.broadcast([site.labels()], site.made())]


@adapts("Expand")
def new_extent(site: Site, change: Change) -> None:
    """Name the sizes that are left; an axis that is not expanded may be named 1."""
    target, made = site.value(1), change.made()
    if target is not None:
        named = made[len(made) - len(target) :]
        change.need(1, np.where(target == 1, 1, named))


@couples("Tile")
def tile(site: Site) -> list[Axes]:
    """Repeat labels."""
    data = site.labels()
    repeats = site.integers(1, "repeats") or []
    return [[np.tile(labels, n) for labels, n in zip(data, repeats, strict=True)]]
