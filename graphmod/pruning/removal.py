"""Removal: units are taken out of every weight, and what counts or names them follows, in one pass over the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, ValueInfoProto

from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.pruning.change import adapted
from graphmod.pruning.copies import rejoin
from graphmod.pruning.cutting import Cutting
from graphmod.pruning.groups import Groups
from graphmod.pruning.leftovers import Leftovers, settle
from graphmod.pruning.site import Axes, Site
from graphmod.pruning.small_inputs import meet_needs, state_values
from graphmod.pruning.stored import slice_constant, slice_initializers


def cut(found: Groups, removed: NDArray[np.bool_], leftovers: bool | Leftovers = True) -> Model:
    """Remove units from a network.

    Parameters
    ----------
    found : Groups
    removed : array of bool, shape (n_units,)
        Which units go, in the order of the groups.
    leftovers : bool or Leftovers
        Whether biases take in what removed channels would hold without the weights that make them, wherever that is
        exact; or what they take in instead.

    Returns
    -------
    Model
        Names, metadata, inputs and outputs as before; the same operators, with smaller weights.

    Raises
    ------
    RefusedError
        All units of an axis would go, or a size is computed in a way that cannot follow.
    """
    if not isinstance(leftovers, Leftovers):
        leftovers = settle(found, removed) if leftovers else Leftovers()
    cutting, model = Cutting(found, removed), found.model
    slice_initializers(cutting, leftovers)
    for operator, name, site in zip(model.operators, model.operator_names, found.analysis.sites, strict=True):
        own = cutting.draft.operator(name)
        if operator.op_type == "Constant":
            slice_constant(cutting, own)
        _follow(cutting, own, site)
    rejoin(cutting.draft, found.analysis.originals)
    graph = cutting.draft.graph
    for declared in (*graph.value_info, *graph.input):  # old files list initializers as inputs
        _declare(cutting, declared)
    return cutting.draft.finish()


def _follow(cutting: Cutting, operator: NodeProto, site: Site | None) -> None:
    """Let an operator have what it needs, and sizes follow what it makes."""
    told = cutting.told(operator)
    read, written = list(operator.input), list(operator.output)
    change = adapted(operator, site, cutting.axes, cutting.alive)
    for tensor, axes in zip((*read, *written), (*change.read, *change.written), strict=True):
        if any(len(labels) and not change.count(labels) for labels in axes):
            raise RefusedError(f"all units along an axis of '{tensor}', which {told} reads or makes, would go")
    meet_needs(cutting, operator, change.needs)
    state_values(cutting, operator, change.needs)
    for sizes, before in zip(cutting.after, cutting.before, strict=True):
        why = sizes.follow(operator)
        if why:
            raise RefusedError(f"{told} does not fit what is left: {why}")
        for tensor, axes in zip(written, change.written, strict=True):
            known, shape = before.shapes.get(tensor), sizes.shapes.get(tensor)
            if known is not None and (site is None or (shape is not None and None in shape)):  # the file alone tells
                sizes.shapes[tensor] = _left(cutting, known, axes)
    for tensor, axes in zip(written, change.written, strict=True):
        shape = cutting.after[0].shapes.get(tensor)
        if tensor and shape is not None and axes and shape != tuple(map(cutting.count, axes)):
            raise RefusedError(f"{told} makes {list(shape)} of what is left")


def _left(cutting: Cutting, shape: Sequence[int | None], axes: Axes) -> tuple[int | None, ...]:
    """Return the shape that a tensor is left with."""
    lost = [len(labels) - cutting.count(labels) for labels in axes] or [0] * len(shape)
    return tuple(None if size is None else size - n for size, n in zip(shape, lost, strict=True))


def _declare(cutting: Cutting, value: ValueInfoProto) -> None:
    """Let the file's annotation of a tensor tell what is left."""
    for dim, labels in zip(value.type.tensor_type.shape.dim, cutting.axes.get(value.name, ()), strict=False):
        n_left = cutting.count(labels)
        if n_left < len(labels) and dim.HasField("dim_value"):
            dim.dim_value = n_left
        elif n_left < len(labels):
            dim.Clear()  # a symbol that stood for a product
