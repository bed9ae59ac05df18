"""Element types: Cast, CastLike."""

from __future__ import annotations

from torch import Tensor, fx

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.registry import operator


@operator("Cast", since=6)
def cast(op: Operator) -> fx.Node:
    """Convert Cast to a type that PyTorch has."""
    op.ignore("saturate", "round_mode")  # of types that are refused
    to = op.torch_dtype(op.attribute("to", 0))
    return op.input() if op.has_type(to) else op.method("to", op.input(), to)


@operator("CastLike", since=15)
def cast_like(op: Operator) -> fx.Node:
    """Convert CastLike."""
    op.ignore("saturate", "round_mode")  # of types that are refused
    return op.call(to_type_of, op.input(0), op.input(1))


def to_type_of(x: Tensor, like: Tensor) -> Tensor:
    """Return ``x`` in the element type of ``like``."""
    return x.to(like.dtype)
