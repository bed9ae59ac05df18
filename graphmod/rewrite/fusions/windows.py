"""Windows: at which positions of its input a convolution looks, whatever way its padding is written."""

from __future__ import annotations

from dataclasses import dataclass

from graphmod.rewrite.fusions.maps import Map


@dataclass(frozen=True)
class Window:
    """The window of a Conv, one number a spatial axis; pads are all the begins, then all the ends.

    Output position ``o`` reads the input at ``o * stride - begin + i * dilation`` for ``i`` below the kernel's size.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @property
    def begins(self) -> tuple[int, ...]:
        """Zeros before the input."""
        return self.pads[: len(self.kernel)]

    @property
    def ends(self) -> tuple[int, ...]:
        """Zeros after it."""
        return self.pads[len(self.kernel) :]

    @property
    def shrinkage(self) -> tuple[int, ...]:
        """By how much the output is smaller than the input, strides apart."""
        axes = zip(self.kernel, self.dilations, self.begins, self.ends, strict=True)
        return tuple(dilation * (size - 1) - begin - end for size, dilation, begin, end in axes)

    @property
    def is_point(self) -> bool:
        """Whether the kernel has one position and nothing is padded."""
        return set(self.kernel) <= {1} and not any(self.pads)


def window(conv: Map) -> Window | str:
    """Return the window of a Conv, or why it is not known."""
    attributes = conv.bench.attributes(conv.operator)
    n = len(conv.kernel)
    strides = tuple(attributes.get("strides", (1,) * n))
    dilations = tuple(attributes.get("dilations", (1,) * n))
    pads = tuple(attributes.get("pads", (0,) * 2 * n))
    mode = attributes.get("auto_pad", "NOTSET")
    if mode == "VALID":
        pads = (0,) * 2 * n
    elif mode != "NOTSET":
        totals = []
        shape = getattr(conv.bench.kind(conv.entry), "shape", None) or (None,) * (n + 2)
        for size, stride, kernel, dilation in zip(shape[2:], strides, conv.kernel, dilations, strict=True):
            reach = (kernel - 1) * dilation
            if stride == 1:
                totals.append(reach)
            elif isinstance(size, int):
                totals.append(max(0, (-(-size // stride) - 1) * stride + reach + 1 - size))
            else:
                return f"the padding of {conv.bench.told(conv.operator)} depends on a dynamic size"
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = (*less, *more) if mode == "SAME_UPPER" else (*more, *less)
    return Window(conv.kernel, strides, dilations, pads)


def set_window(conv: Map, found: Window) -> None:
    """Give a Conv another window."""
    conv.bench.set_attributes(
        conv.operator,
        kernel_shape=found.kernel,
        strides=found.strides,
        dilations=found.dilations,
        pads=found.pads,
        auto_pad=None,
    )
