r"""``low_rank``: a linear map of channels of reduced rank, two thin layers.

With the ridge solution :math:`A` and the covariance :math:`S` of the inputs, the map of rank r that comes nearest to it
on the data is :math:`A V V^T` with the r leading eigenvectors :math:`V` of :math:`A^T S A` (reduced-rank regression;
Izenman 1975). Where the number of channels stays, so is the map's difference from the identity treated: what the run
adds to the trunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from onnx import NodeProto, helper, numpy_helper
from scipy.linalg import eigh

from graphmod.methods.compress.kinds.registry import CLOSED_FORM, kind
from graphmod.methods.compress.part import Part, as_model
from graphmod.methods.compress.site import Float, Site
from graphmod.model import Model
from graphmod.probe import Moments
from graphmod.rewrite.replacements import Fit, fit

CHANNELS = 64
"""Channels from which on it is tried: below that one layer is as fast as two."""

SHARE = 8
"""The rank is this part of the channels: it has a quarter of the weights."""


@kind("low_rank", CLOSED_FORM)
def low_rank(site: Site) -> Iterator[Part]:
    """Map channels through few."""
    seen = site.moments
    if seen is None or min(seen.xy.shape) < CHANNELS or any(step > 1 for step in seen.strides):
        return
    found = fit("linear", seen)
    if found is None:
        return
    first, second = factors(found.weight, seen, min(seen.xy.shape) // SHARE)
    start = np.eye(len(first)) if seen.same_shape else 0.0
    whole = Fit("low_rank", start + first @ second, np.zeros(second.shape[1]))
    bias = (seen.y_sum - seen.x_sum @ whole.weight) / seen.n
    error = Fit("low_rank", whole.weight, bias).error(seen)
    yield Part("low_rank", site.entry, site.exit, error, partial(_model, site, first, second, bias))


def factors(weight: Float, seen: Moments, rank: int) -> tuple[Float, Float]:
    """Return the two factors, shapes (in, rank) and (rank, out), of a map, or of what it adds to its input."""
    added = weight - np.eye(len(weight)) if seen.same_shape else weight
    covariance = seen.xx - np.outer(seen.x_sum, seen.x_sum) / seen.n
    n = weight.shape[1]
    _, leading = eigh(added.T @ covariance @ added, subset_by_index=(n - rank, n - 1))
    return added @ leading, leading.T


def _model(site: Site, first: Float, second: Float, bias: Float) -> Model:
    entry, exit_, spatial = site.entry, site.exit, len(site.moments.strides) if site.moments else 0
    dtype = site.original.tensors[exit_].dtype or np.float32
    ends = (1,) * spatial
    values = {
        "first": first.T.reshape(*first.T.shape, *ends) if spatial else first,
        "second": second.T.reshape(*second.T.shape, *ends) if spatial else second,
        "bias": bias.reshape(-1, *ends),
    }
    weights = {role: f"{exit_}/low_rank.{role}" for role in values}
    tensors = [numpy_helper.from_array(value.astype(dtype), weights[role]) for role, value in values.items()]
    is_added = bool(site.moments and site.moments.same_shape)
    names = [entry, *(f"{exit_}/low_rank.{step}" for step in ("few", "many", "shifted"))]
    ends_at = [*names[1:3], names[3] if is_added else exit_]
    layer = "Conv" if spatial else "MatMul"
    steps: list[NodeProto] = [
        helper.make_node(layer, [names[0], weights["first"]], [ends_at[0]], name=f"{exit_}/low_rank/first"),
        helper.make_node(layer, [names[1], weights["second"]], [ends_at[1]], name=f"{exit_}/low_rank/second"),
        helper.make_node("Add", [names[2], weights["bias"]], [ends_at[2]], name=f"{exit_}/low_rank/bias"),
    ]
    if is_added:
        steps.append(helper.make_node("Add", [entry, names[3]], [exit_], name=f"{exit_}/low_rank/added"))
    return as_model(site.original, entry, exit_, steps, tensors)
