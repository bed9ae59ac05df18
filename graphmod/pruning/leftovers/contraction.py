"""Contractions: weights that make a channel are gone, so it is zero; weights that read it take its constant in."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from graphmod.pruning.leftovers.elementwise import HANDED_ON
from graphmod.pruning.leftovers.known import Known, spread, unknown
from graphmod.pruning.leftovers.reading import Mask, Reading
from graphmod.pruning.leftovers.registry import settles
from graphmod.pruning.site import Array


@settles("Conv")
def convolution(reading: Reading) -> list[Known | None]:
    """Take constants into the bias, or the mean of the BatchNormalization behind; at padded borders they would end."""
    site, gone = reading.site, reading.gone(0, 1)
    group = site.attribute("group", 1)
    is_left = ~reading.made_gone(1)
    leads_on = np.repeat(is_left.reshape(group, -1).any(1), len(gone) // group)
    if (gone & leads_on).any():
        weight, why = reading.weight(1), ""
        if weight is None or not reading.is_fixed(2):
            why = f"{site} has a weight or bias that is computed"
        elif _pads(reading) and not reading.is_estimated(0, 1):
            why = f"{site} pads, and constants end at its borders"
        taken = reading.taken(0, 1, gone & leads_on, why, (1, 1) if group == 1 else None)
        if weight is not None and taken.any():
            _into_bias(reading, _through(weight, taken, group))
    return [reading.made_zero(1) if reading.is_fixed(2) else None]


def _pads(reading: Reading) -> bool:
    kernel = reading.site.shape(1)[2:]
    same = reading.site.attribute("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER")
    return any(reading.site.attribute("pads", [])) or (same and any(size > 1 for size in kernel))


def _through(weight: Array, values: Known, group: int) -> Known:
    """Return what constants of the input channels add to every output channel."""
    n_made, n_read = weight.shape[:2]
    summed = weight.reshape(group, n_made // group, n_read, -1).sum(3, dtype=np.float64)
    made: Known = np.einsum("goi,gi->go", summed, values.reshape(group, n_read)).ravel()
    return made


def _into_bias(reading: Reading, value: Known) -> None:
    labels = reading.state.axes(reading.operator.output[0])[1]
    reader = None if reading.site.has(2) else reading.only_reader()
    if reader is not None and _normalises(reading, reader):
        reading.fold(reader, 3, -value, labels)
    else:
        reading.fold(reading.operator, 2, value, labels)


def _normalises(reading: Reading, reader: NodeProto) -> bool:
    in_training = any(a.name == "training_mode" and a.i for a in reader.attribute)
    has_mean = reader.op_type == "BatchNormalization" and reading.state.is_fixed(reader.input[3])
    return has_mean and not in_training


@settles("ConvTranspose")
def transposed_convolution(reading: Reading) -> list[Known | None]:
    """Take nothing but zero in: positions differ in how many kernels reach them."""
    site, gone = reading.site, reading.gone(0, 1)
    weight = (1, 0) if site.attribute("group", 1) == 1 else None
    reading.taken(0, 1, gone, f"{site} spreads constants unevenly", weight)
    return [reading.made_zero(1)]


@settles("MatMul")
def matrix_product(reading: Reading) -> list[Known | None]:
    """Take constants into the constant that is added behind; a mean of rows that are alike is one of them."""
    site = reading.site
    if min(len(site.labels(0)), len(site.labels(1))) < 2:
        reading.drop_all(f"{site} multiplies vectors")
        return [None]
    gone, room = reading.gone(0, -1), _room(reading)
    weight = reading.weight(1) if site.is_constant(1) else None
    if gone.any() and not site.is_constant(0) and weight is not None:
        flat = weight.ndim == 2
        why = "" if flat and room else f"no constant is added to what {site} makes"
        taken = reading.taken(0, -1, gone, why, (1, 0) if flat else None)
        if room and taken.any():
            labels = reading.state.axes(reading.operator.output[0])[-1]
            reading.fold(*room, taken @ weight.astype(np.float64), labels)
    elif gone.any():
        _drop_products(reading)
    left, right = _zeros(reading, 0, -1), _zeros(reading, 1, -2)
    made = np.where(left[..., :, None] | right[..., None, :], 0.0, np.nan)
    if _sums_to_one(reading):
        return [np.where(np.isnan(made), _rows_alike(reading.known(1)), made)]
    return [made]


def _sums_to_one(reading: Reading) -> bool:
    """Whether the rows of the left factor do, as a Softmax makes them."""
    model, tensor = reading.state.found.model, reading.operator.input[0]
    rank = len(reading.site.labels(0))
    while tensor in model.producer:
        maker = model.operators[model.producer[tensor]]
        if maker.op_type == "Softmax":
            axis = next((a.i for a in maker.attribute if a.name == "axis"), 1 if reading.site.opset < 13 else -1)
            return bool(axis % rank == rank - 1)
        if maker.op_type not in HANDED_ON:
            break
        tensor = maker.input[0]
    return False


def _rows_alike(known: Known) -> Known:
    """Return values that are the same in all rows; nothing if some are not."""
    return known if known.shape[-2] == 1 else unknown(known.ndim)


def _room(reading: Reading) -> tuple[NodeProto, int] | None:
    """Return the Add of a constant behind, and the input that the constant is."""
    reader, made = reading.only_reader(), reading.operator.output[0]
    if reader is None or reader.op_type != "Add":
        return None
    place = 1 - list(reader.input).index(made)
    name = reader.input[place]
    fits = reading.state.is_fixed(name) and len(reading.state.axes(name)) <= len(reading.site.made())
    return (reader, place) if fits else None


def _zeros(reading: Reading, place: int, axis: int) -> Mask:
    """Return which rows of the left factor, or columns of the right one, are zero throughout."""
    if reading.site.is_constant(place):
        other = -1 if axis == -2 else -2
        known = spread(np.where(reading.gone(place, other), 0.0, np.nan), len(reading.site.labels(place)), other)
    else:
        known = reading.known(place)
    return np.asarray((known == 0).all(axis))


def _drop_products(reading: Reading) -> None:
    """Drop what is added up of two factors, unless one of them is zero."""
    gone = reading.gone(0, -1)
    is_zero = np.zeros(len(gone), bool)
    for place, axis in ((0, -1), (1, -2)):
        if not reading.site.is_constant(place):
            known = np.moveaxis(reading.known(place), axis, -1)
            is_zero |= (known == 0).reshape(-1, known.shape[-1]).all(0)
    for place, axis in ((0, -1), (1, -2)):
        reading.drop(place, axis, gone & ~is_zero, f"{reading.site} multiplies it by what is computed")


@settles("Gemm")
def gemm(reading: Reading) -> list[Known | None]:
    """Take constants into what is added, as much as remains of it after its factor."""
    site = reading.site
    flips = bool(site.attribute("transA", 0)), bool(site.attribute("transB", 0))
    alpha, beta = (float(site.attribute(name, 1.0)) for name in ("alpha", "beta"))
    place = 1 if site.is_constant(0) else 0
    axis = int(flips[place]) ^ (1 - place)
    gone, weight = reading.gone(place, axis), reading.weight(1) if place == 0 else None
    if gone.any():
        why = ""
        if weight is None or not reading.is_fixed(2) or beta == 0:
            why = f"{site} has no stored weight on the right, or no bias that could take it in"
        taken = reading.taken(place, axis, gone, why, (1, int(flips[1])) if place == 0 else None)
        if weight is not None and taken.any():
            columns = (weight.T if flips[1] else weight).astype(np.float64)
            labels = reading.state.axes(reading.operator.output[0])[-1]
            reading.fold(reading.operator, 2, alpha / beta * (taken @ columns), labels)
    return [reading.made_zero(1) if site.is_constant(1) and reading.is_fixed(2) else None]
