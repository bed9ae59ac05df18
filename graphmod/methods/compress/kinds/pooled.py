"""``pooled``: where a run makes images or sequences smaller, averages over windows, then a linear map of channels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from onnx import helper

from graphmod.methods.compress.kinds.registry import CLOSED_FORM, kind
from graphmod.methods.compress.part import Part, as_model
from graphmod.methods.compress.site import Array, Site, sums
from graphmod.model import Model
from graphmod.rewrite import Region
from graphmod.rewrite.replacements import Fit, as_operators, fit


@kind("pooled", CLOSED_FORM)
def pooled(site: Site) -> Iterator[Part]:
    """Average over windows as large as the stride, and map channels linearly."""
    seen = site.moments
    if seen is None or all(step == 1 for step in seen.strides) or not _tiles(site, seen.strides):
        return
    averaged = sums(averages(site.x, seen.strides), site.y, 1, site.rows)
    found = None if averaged is None else fit("linear", averaged)
    if found is not None and averaged is not None:
        make = partial(_model, site.original, site.entry, site.exit, found, seen.strides)
        yield Part("pooled", site.entry, site.exit, found.error(averaged), make)


def _tiles(site: Site, strides: tuple[int, ...]) -> bool:
    sizes = zip(site.x.shape[2:], site.y.shape[2:], strides, strict=True)
    return all(before == after * step for before, after, step in sizes)


def averages(x: Array, strides: tuple[int, ...]) -> Array:
    """Return averages over windows that tile the axes from the third on.

    >>> averages(np.arange(4.0).reshape(1, 1, 4), (2,))
    array([[[0.5, 2.5]]])
    """
    shape = [*x.shape[:2]]
    for size, step in zip(x.shape[2:], strides, strict=True):
        shape += [size // step, step]
    windows = tuple(range(3, len(shape), 2))
    return np.asarray(x.reshape(shape).mean(axis=windows, dtype=np.float64).astype(x.dtype))


def _model(host: Model, entry: str, exit_: str, found: Fit, strides: tuple[int, ...]) -> Model:
    inner = f"{exit_}/averages"
    window = list(strides)
    name = f"{exit_}/AveragePool"
    pool = helper.make_node("AveragePool", [entry], [inner], name=name, kernel_shape=window, strides=window)
    steps, weights = as_operators(found, Region(inner, exit_), host.tensors[exit_])
    return as_model(host, entry, exit_, [pool, *steps], weights)
