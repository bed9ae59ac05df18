"""Reductions, and operators that look along an axis."""

from __future__ import annotations

from graphmod.pruning.registry import couples
from graphmod.pruning.site import Axes, Site, Uncoupled


@couples(
    *(f"Reduce{kind}" for kind in ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"])
)
def reduction(site: Site) -> list[Axes]:
    """Drop the reduced axes, or make them 1 long; the result is over what is left."""
    data = site.labels()
    axes = site.integers(1, "axes")
    if not axes and site.attribute("noop_with_empty_axes", 0):
        return [data]
    reduced = site.counted(axes, len(data)) if axes else range(len(data))
    if site.attribute("keepdims", 1):
        return [[site.fresh(1) if axis in reduced else labels for axis, labels in enumerate(data)]]
    return [[labels for axis, labels in enumerate(data) if axis not in reduced]]


@couples("Softmax", "LogSoftmax", "Hardmax")
def softmax(site: Site) -> list[Axes]:
    """Keep the axis, along which values compete."""
    data = site.labels()
    flattens = site.opset < 13
    axis = site.axis(1 if flattens else -1, max(1, len(data)))
    site.keep(data[axis:] if flattens else data[axis : axis + 1], f"{site} compares the values along the axis")
    return [data]


@couples("CumSum", "CumProd")
def cumulation(site: Site) -> list[Axes]:
    """Keep the axis."""
    data = site.labels()
    axes = site.integers(1, "axis")
    if not axes:
        raise Uncoupled(f"{site} has no axis that is known")
    site.keep([data[site.counted(axes, len(data))[0]]], f"{site} adds up along the axis")
    return [data]


@couples("ArgMax", "ArgMin")
def best_place(site: Site) -> list[Axes]:
    """Keep the axis, places along which are the result."""
    data = site.labels()
    axis = site.axis(0, len(data))
    site.keep([data[axis]], f"{site} returns places along the axis")
    kept = [site.fresh(1)] if site.attribute("keepdims", 1) else []
    return [[*data[:axis], *kept, *data[axis + 1 :]]]


@couples("TopK")
def largest(site: Site) -> list[Axes]:
    """Keep the axis, places along which are the result."""
    data = site.labels()
    axis = site.axis(-1, len(data))
    why = f"{site} returns places along the axis"
    site.keep([data[axis]], why)
    made = [*data[:axis], site.kept(site.made()[axis], why), *data[axis + 1 :]]
    return [made, made]


@couples("Trilu")
def triangle(site: Site) -> list[Axes]:
    """Keep the two axes of the triangle."""
    data = site.labels()
    site.keep(data[-2:], f"{site} compares places along two axes")
    return [data]


@couples("DFT")
def fourier_transform(site: Site) -> list[Axes]:
    """Keep the axis, and the one of real and imaginary parts."""
    data, why = site.labels(), f"{site} mixes the axis"
    axes = site.integers(2, "axis") or [1 if site.opset < 20 else -2]
    mixed = {*site.counted(axes, len(data)), len(data) - 1}
    site.keep([data[axis] for axis in mixed], why)
    shape = site.made()
    return [[site.kept(shape[axis], why) if axis in mixed else labels for axis, labels in enumerate(data)]]
