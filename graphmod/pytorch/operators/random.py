"""Randomness: dropout, and tensors drawn anew at every call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.operators.casting import to_type_of
from graphmod.pytorch.registry import Outputs, operator


@operator("Dropout")
def dropout_by_attribute(op: Operator) -> Outputs:
    """Convert Dropout as it was before opset 12, with its ratio as an attribute."""
    return _dropout(op, op.attribute("ratio", 0.5))


@operator("Dropout", since=12)
def dropout(op: Operator) -> Outputs:
    """Convert Dropout; the network, by train() and eval(), says whether it is being trained, not the graph."""
    if op.has(2) and op.constant(2) is None:
        raise op.unsupported("whether it is being trained is computed")
    return _dropout(op, op.scalar(1, 0.5))


def _dropout(op: Operator, ratio: float | fx.Node) -> Outputs:
    op.ignore("seed", "is_test")
    if isinstance(ratio, fx.Node) or op.uses_output(1):
        made, kept = op.items(op.module(DropoutAndMask(), op.input(), ratio), 2)
        return made, op.call(to_type_of, kept, made) if op.opset < 10 else kept
    return op.module(nn.Dropout(ratio), op.input())


class DropoutAndMask(nn.Module):
    """Drops elements while it is being trained; called with the ratio, it returns also which elements it kept."""

    def forward(self, x: Tensor, ratio: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x``, what is left of it scaled up, and a mask."""
        if not self.training:
            return x, torch.ones_like(x, dtype=torch.bool)
        share = float(ratio)
        kept = torch.rand_like(x) >= share
        return torch.where(kept, x, 0) / (1 - share or 1), kept


def _dtype(op: Operator, default: torch.dtype | None = None) -> torch.dtype | None:
    code: int | None = op.attribute("dtype", None)
    return default if code is None else op.torch_dtype(code)


@operator("RandomNormal", "RandomUniform")
def random(op: Operator) -> fx.Node:
    """Convert RandomNormal or RandomUniform; a seed in the graph has no meaning for torch's generator."""
    op.ignore("seed")
    like = op.module(Blank(op.attribute("shape", [0]), _dtype(op, torch.float32)))
    if op.type == "RandomNormal":
        return op.call(normal_like, like, op.attribute("mean", 0.0), op.attribute("scale", 1.0), None)
    return op.call(uniform_like, like, op.attribute("low", 0.0), op.attribute("high", 1.0), None)


class Blank(nn.Module):
    """Returns a tensor of any values on the device of the network, which tells by a buffer where that is.

    Parameters
    ----------
    shape : sequence of int
    dtype : torch.dtype, optional
    """

    beside: Tensor

    def __init__(self, shape: Sequence[int], dtype: torch.dtype | None) -> None:
        super().__init__()
        self.shape = list(shape)
        self.register_buffer("beside", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self) -> Tensor:
        """Return the tensor."""
        return self.beside.new_empty(self.shape)

    def extra_repr(self) -> str:
        """Return the shape."""
        return str(self.shape)


@operator("RandomNormalLike", "RandomUniformLike")
def random_like(op: Operator) -> fx.Node:
    """Convert RandomNormalLike or RandomUniformLike."""
    op.ignore("seed")
    if op.type == "RandomNormalLike":
        return op.call(normal_like, op.input(), op.attribute("mean", 0.0), op.attribute("scale", 1.0), _dtype(op))
    return op.call(uniform_like, op.input(), op.attribute("low", 0.0), op.attribute("high", 1.0), _dtype(op))


def normal_like(x: Tensor, mean: float, scale: float, dtype: torch.dtype | None) -> Tensor:
    """Draw a tensor as large as ``x`` from a normal distribution."""
    return torch.randn_like(x, dtype=dtype or x.dtype) * scale + mean


def uniform_like(x: Tensor, low: float, high: float, dtype: torch.dtype | None) -> Tensor:
    """Draw a tensor as large as ``x`` from a uniform distribution."""
    return torch.rand_like(x, dtype=dtype or x.dtype) * (high - low) + low


@operator("Bernoulli", since=15)
def bernoulli(op: Operator) -> fx.Node:
    """Convert Bernoulli."""
    op.ignore("seed")
    node, dtype = op.call(torch.bernoulli, op.input()), _dtype(op)
    return node if dtype is None else op.method("to", node, dtype)


@operator("Multinomial")
def multinomial(op: Operator) -> fx.Node:
    """Convert Multinomial."""
    op.ignore("seed")
    return op.call(multinomial_of, op.input(), op.attribute("sample_size", 1), _dtype(op, torch.int32))


def multinomial_of(x: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """Draw classes whose logarithmic probabilities are in the rows of ``x``, up to a constant."""
    return torch.multinomial(x.softmax(-1), n, replacement=True).to(dtype)
