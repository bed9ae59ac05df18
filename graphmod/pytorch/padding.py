"""Padding of windows: ONNX pads each side on its own, and as much as the input's size asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, fx

from graphmod.pytorch.operator import Operator

T = TypeVar("T")


@dataclass(frozen=True)
class Window:
    """The sliding window of a convolution or a pooling, one number a spatial axis.

    ``padding`` is what a torch module can do by itself; ``explicit`` tells that the input is to be padded before.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    auto: str

    @property
    def explicit(self) -> bool:
        """Whether torch's own padding, the same on both sides, does not do."""
        return self.begin != self.end or self.auto.startswith("SAME")

    @property
    def padding(self) -> tuple[int, ...]:
        """Padding that is left to the torch module."""
        return tuple(0 for _ in self.kernel) if self.explicit else self.begin

    def pad(self, op: Operator, value: float = 0.0, of: fx.Node | None = None) -> fx.Node:
        """Return a node, by default the operator's first input, padded where the module cannot do it."""
        x = op.input(0) if of is None else of
        if not self.explicit:
            return x
        if self.auto.startswith("SAME"):
            lower = self.auto == "SAME_LOWER"
            return op.call(pad_same, x, self.kernel, self.stride, self.dilation, lower=lower, value=value)
        return op.call(F.pad, x, interleaved(self.begin, self.end), value=value)


def layer_window(op: Operator, weight: int | None = None) -> Window:
    """Read the window of an operator for which torch has a module, by default that of the weight at an input."""
    shape = None if weight is None else op.shape(weight)
    kernel = op.attribute("kernel_shape", list(shape[2:]) if shape is not None else [])
    if not 1 <= len(kernel) <= 3:
        raise op.unsupported(f"it has {len(kernel)} spatial axes; there are modules for 1 to 3")
    return window_of(op, kernel)


def window_of(op: Operator, kernel: Sequence[int | str | None]) -> Window:
    """Read the window that an operator's attributes describe."""
    n, known = len(kernel), tuple(size for size in kernel if isinstance(size, int))
    if len(known) < n:
        raise op.unsupported("its kernel's size is unknown")
    pads = op.attribute("pads", [0] * 2 * n)
    auto = op.attribute("auto_pad", "NOTSET")
    if auto == "VALID":
        pads = [0] * 2 * n
    return Window(
        kernel=known,
        stride=tuple(op.attribute("strides", [1] * n)),
        dilation=tuple(op.attribute("dilations", [1] * n)),
        begin=tuple(pads[:n]),
        end=tuple(pads[n:]),
        auto=auto,
    )


def interleaved(begin: Sequence[T], end: Sequence[T]) -> list[T]:
    """Return ONNX pads in torch's order: the last axis first, both its sides together.

    Examples
    --------
    >>> interleaved([1, 2], [3, 4])
    [2, 4, 1, 3]
    """
    return [side for pair in zip(reversed(begin), reversed(end), strict=True) for side in pair]


def pad_same(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    lower: bool,
    value: float = 0.0,
) -> Tensor:
    """Pad so that the output has the input's size divided by the stride, rounded up; odd padding at the end."""
    pads: list[int] = []
    for size, k, s, d in zip(
        reversed(x.shape[2:]), reversed(kernel), reversed(stride), reversed(dilation), strict=True
    ):
        begin, end = same_margins(size, k, s, d, lower=lower)
        pads += [begin, end]
    return F.pad(x, pads, value=value)


def same_margins(size: int, kernel: int, stride: int, dilation: int, *, lower: bool) -> tuple[int, int]:
    """Return padding before and after an axis for as many windows as there are strides.

    Examples
    --------
    >>> same_margins(5, 4, 1, 1, lower=False), same_margins(8, 1, 4, 1, lower=False)
    ((1, 2), (0, 0))
    """
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    begin = (total + lower) // 2
    return begin, total - begin
