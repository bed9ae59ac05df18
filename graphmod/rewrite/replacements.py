r"""Cheap layers that can stand in for a region, fitted in closed form.

Each kind is a linear map of channels, :math:`\hat y = A^T x + b`. With centred sums
:math:`S_{xx} = X^TX - \bar x\bar x^T n` and :math:`S_{xy}`, the ridge solution that shrinks towards a prior
:math:`A_0` (Hoerl & Kennard 1970, with a prior mean) is

.. math:: A = A_0 + (S_{xx} + \lambda I)^{-1} (S_{xy} - S_{xx} A_0), \qquad b = \bar y - A^T \bar x

:math:`A_0` is the identity where the region keeps the number of channels (blocks on a trunk hardly change what they
pass on), else zero. A new kind is one function with the ``@replacement`` decorator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper

from graphmod.errors import RefusedError
from graphmod.model import TensorType
from graphmod.probe import Moments
from graphmod.rewrite.region import Region

Float = NDArray[np.float64]

RIDGE = 1e-3
"""Default ridge, as a share of the mean variance of a channel."""


@dataclass(frozen=True, eq=False)
class Fit:
    """A linear map of channels: ``y = x @ weight + bias``.

    Parameters
    ----------
    kind : str
    weight : float64 array, shape (channels in, channels out)
    bias : float64 array, shape (channels out,)
    strides : tuple of int
        One an axis behind that of the channels, if this is axis 1; none where channels are the last axis.
    """

    kind: str
    weight: Float = field(repr=False)
    bias: Float = field(repr=False)
    strides: tuple[int, ...] = ()

    @property
    def is_identity(self) -> bool:
        """Whether nothing has to be computed."""
        return self.kind == "identity"

    def error(self, seen: Moments) -> float:
        """Return the root of the squared error over the variance of y, on the data that the moments are of."""
        a, b, n = self.weight, self.bias, seen.n
        residual = (
            seen.yy.sum()
            - 2 * (a * seen.xy).sum()
            - 2 * b @ seen.y_sum
            + ((seen.xx @ a) * a).sum()
            + 2 * b @ (a.T @ seen.x_sum)
            + n * b @ b
        )
        variance = seen.y_variance
        if not (np.isfinite(residual) and np.isfinite(variance)):
            return float("inf")
        return float(np.sqrt(max(0.0, residual) / variance)) if variance > 0 else float(residual > 0)


Fitter = Callable[[Moments, float], Fit | None]
_KINDS: dict[str, Fitter] = {}


def replacement(kind: str) -> Callable[[Fitter], Fitter]:
    """Register a kind of replacement; kinds are tried from the cheapest, in the order of registration."""

    def register(fitter: Fitter) -> Fitter:
        _KINDS[kind] = fitter
        return fitter

    return register


def kinds() -> tuple[str, ...]:
    """Return the kinds of replacement, the cheapest first."""
    return tuple(_KINDS)


def fit(kind: str, seen: Moments, ridge: float = RIDGE) -> Fit | None:
    """Return the fitted replacement of a kind, None where that kind cannot bridge the shapes."""
    return _KINDS[kind](seen, ridge)


@replacement("identity")
def _identity(seen: Moments, ridge: float) -> Fit | None:  # noqa: ARG001  # every kind has the same signature
    if not seen.same_shape:
        return None
    return Fit("identity", np.eye(len(seen.x_sum)), np.zeros(len(seen.x_sum)), seen.strides)


@replacement("affine")
def _affine(seen: Moments, ridge: float) -> Fit | None:
    if not seen.same_shape:
        return None
    s_xx = np.diag(seen.xx) - seen.x_sum**2 / seen.n
    s_xy = np.diag(seen.xy) - seen.x_sum * seen.y_sum / seen.n
    penalty = ridge * s_xx.mean() + np.finfo(float).tiny
    scale = 1 + (s_xy - s_xx) / (s_xx + penalty)
    return Fit("affine", np.diag(scale), (seen.y_sum - scale * seen.x_sum) / seen.n, seen.strides)


@replacement("linear")
def _linear(seen: Moments, ridge: float) -> Fit | None:
    channels_in, channels_out = seen.xy.shape
    s_xx = seen.xx - np.outer(seen.x_sum, seen.x_sum) / seen.n
    s_xy = seen.xy - np.outer(seen.x_sum, seen.y_sum) / seen.n
    prior = np.eye(channels_in) if channels_in == channels_out else np.zeros((channels_in, channels_out))
    penalty = ridge * np.trace(s_xx) / channels_in + np.finfo(float).tiny
    weight = prior + np.linalg.solve(s_xx + penalty * np.eye(channels_in), s_xy - s_xx @ prior)
    return Fit("linear", weight, (seen.y_sum - seen.x_sum @ weight) / seen.n, seen.strides)


def as_operators(found: Fit, region: Region, kind: TensorType) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return the operators and initializers that compute a fit from a region's entry to its exit.

    A linear map of channels on axis 1 is a convolution of size 1, one of channels on the last axis a matrix product.

    Parameters
    ----------
    found : Fit
    region : Region
    kind : TensorType
        Of the exit.

    Raises
    ------
    RefusedError
        Channels are the last axis, which is dynamic: it cannot be that of the channels.
    """
    name = f"{region.exit}/{found.kind}"

    def constant(role: str, value: Float) -> TensorProto:
        return numpy_helper.from_array(value.astype(kind.dtype or np.float32), f"{name}.{role}")

    def operator(op_type: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
        return onnx.helper.make_node(op_type, inputs, [output], name=f"{name}/{op_type}", domain="", **attributes)

    if found.is_identity:
        return [], []
    spatial = len(found.strides)
    if not spatial and not isinstance((kind.shape or (None,))[-1], int):
        raise RefusedError(f"'{region.exit}' is {kind}: its last axis is dynamic, so no layer can be fitted along it")
    if found.kind == "affine":
        shape = (-1, *(1,) * spatial)
        weight = constant("weight", np.diag(found.weight).reshape(shape))
        bias = constant("bias", found.bias.reshape(shape))
        steps = [
            operator("Mul", [region.entry, weight.name], f"{name}.scaled"),
            operator("Add", [f"{name}.scaled", bias.name], region.exit),
        ]
    elif spatial:
        weight = constant("weight", found.weight.T.reshape(*found.weight.T.shape, *(1,) * spatial))
        bias = constant("bias", found.bias)
        inputs = [region.entry, weight.name, bias.name]
        shape_of = {"kernel_shape": [1] * spatial, "strides": list(found.strides)}
        steps = [operator("Conv", inputs, region.exit, **shape_of)]
    else:
        weight = constant("weight", found.weight)
        bias = constant("bias", found.bias)
        steps = [
            operator("MatMul", [region.entry, weight.name], f"{name}.product"),
            operator("Add", [f"{name}.product", bias.name], region.exit),
        ]
    return steps, [weight, bias]
