"""The network in the making, the trunk that blocks continue, and the registry of blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Form = Literal["image", "tokens"]
WIDTHS = (4, 6, 8, 12)


@dataclass(frozen=True)
class Trunk:
    """The tensor that the next block continues: an image (N, C, H, W), or tokens (N, H * W, C)."""

    tensor: str
    form: Form
    c: int
    h: int
    w: int

    @property
    def length(self) -> int:
        return self.h * self.w

    def to(self, tensor: str, **changes: int) -> Trunk:
        return replace(self, tensor=tensor, **changes)


@dataclass(frozen=True)
class Family:
    """A block: the form of trunk that it continues, and the first opset that has its operators."""

    name: str
    form: Form
    since: int
    build: Callable[[Builder, Trunk], Trunk]


FAMILIES: dict[str, Family] = {}


def family(form: Form, since: int = 17) -> Callable[[Callable[[Builder, Trunk], Trunk]], Callable]:
    """Register a block under its function's name."""

    def register(build: Callable[[Builder, Trunk], Trunk]) -> Callable[[Builder, Trunk], Trunk]:
        FAMILIES[build.__name__] = Family(build.__name__, form, since, build)
        return build

    return register


class Builder:
    """Operators, weights and outputs in the making.

    Parameters
    ----------
    opset : int
    batch : int or None
        None for a dynamic batch.
    form : "image" or "tokens"
        Of the network's input ``x``.
    """

    def __init__(self, opset: int, batch: int | None, form: Form):
        self.opset, self.batch, self.form = opset, batch, form
        self.enter("", [0])
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.outputs: list[ValueInfoProto] = []

    def enter(self, scope: str, seed: Sequence[int]) -> None:
        """Begin a block: options and numbers come from streams of their own, so that other widths change no option."""
        self.scope = scope
        self.rng, self.numbers = np.random.default_rng([*seed, 0]), np.random.default_rng([*seed, 1])

    # drawing

    def flip(self) -> bool:
        return bool(self.rng.integers(2))

    def one_of(self, *options):
        return options[self.rng.integers(len(options))]

    def width(self, multiple: int = 2) -> int:
        return self.one_of(*(width for width in WIDTHS if width % multiple == 0))

    # constants

    def constant(self, value: np.ndarray) -> str:
        """Add a constant, as an initializer or (some) as an operator."""
        tensor = numpy_helper.from_array(np.asarray(value), f"{self.scope}c{len(self.initializers) + len(self.nodes)}")
        if self.rng.random() < 0.1:
            self.nodes.append(helper.make_node("Constant", [], [tensor.name], f"{tensor.name}/Constant", value=tensor))
        else:
            self.initializers.append(tensor)
        return tensor.name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def values(self, shape: Sequence[int], fan: int) -> np.ndarray:
        """Draw a weight whose slices differ in size along every axis, and that keeps the scale of what it reads."""
        drawn = self.numbers.normal(size=shape) / np.sqrt(fan)
        for axis, size in enumerate(shape):
            drawn *= np.exp(self.numbers.normal(0, 0.2, size)).reshape(
                [-1 if i == axis else 1 for i in range(len(shape))]
            )
        return drawn.astype(np.float32)

    def weight(self, *shape: int, fan: int | None = None) -> str:
        return self.constant(self.values(shape, fan or int(np.prod(shape[1:]))))

    def vector(self, *shape: int, around: float = 0.0) -> str:
        """Add a bias (around 0) or a scale (around 1)."""
        return self.constant((around + self.numbers.normal(0, 0.3, shape)).astype(np.float32))

    # operators

    def ops(self, op_type: str, *reads: str, outputs: int = 1, domain: str = "", **attributes) -> list[str]:
        name = f"{self.scope}{op_type}_{len(self.nodes)}"
        made = [f"{name}:{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, reads, made, name, domain=domain, **attributes))
        return made

    def op(self, op_type: str, *reads: str, **attributes) -> str:
        return self.ops(op_type, *reads, **attributes)[0]

    def transpose(self, tensor: str, *perm: int) -> str:
        return self.op("Transpose", tensor, perm=perm)

    def reshape(self, tensor: str, *dims: int) -> str:
        """Reshape to (batch, \\*dims): by zero, by a number where the batch is fixed, or by the tensor's own shape."""
        if self.batch is None and self.rng.random() < 0.3:
            batch = self.op("Unsqueeze", self.op("Gather", self.op("Shape", tensor), self.scalar(0)), self.ints(0))
            target = self.op("Concat", batch, *(self.ints(dim) for dim in dims), axis=0)
        else:
            target = self.ints(self.batch if self.batch and self.flip() else 0, *dims)
        return self.op("Reshape", tensor, target)

    def scalar(self, value: int) -> str:
        return self.constant(np.array(value, np.int64))

    def reshape_batch(self, tensor: str, times: int, *dims: int) -> str:
        """Reshape to (batch * times, \\*dims); times 0: back to (batch, \\*dims)."""
        return self.op("Reshape", tensor, self.ints(self.batch * (times or 1) if self.batch else -1, *dims))

    def reduce(self, op_type: str, tensor: str, axes: Sequence[int], keepdims: int = 1) -> str:
        """Reduce, with axes as an attribute or an input as the opset has it."""
        if self.opset >= 18 or op_type == "ReduceSum":
            return self.op(op_type, tensor, self.ints(*axes), keepdims=keepdims)
        return self.op(op_type, tensor, axes=list(axes), keepdims=keepdims)

    def split(self, tensor: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Split, by sizes or (equal ones, some) by number."""
        if len(set(sizes)) == 1 and self.flip():
            number = {"num_outputs": len(sizes)} if self.opset >= 18 else {}
            return self.ops("Split", tensor, outputs=len(sizes), axis=axis, **number)
        return self.ops("Split", tensor, self.ints(*sizes), outputs=len(sizes), axis=axis)

    def slice(self, tensor: str, start: int, end: int, axis: int, step: int = 1) -> str:
        return self.op("Slice", tensor, *(self.ints(value) for value in (start, end, axis, step)))

    def activation(self, tensor: str) -> str:
        op_type = self.one_of("Relu", "Tanh", "Sigmoid", "HardSwish", "LeakyRelu", "Elu", "Softplus", "swish", "gelu")
        if op_type == "swish":
            return self.op("Mul", tensor, self.op("Sigmoid", tensor))
        if op_type == "gelu":
            half = self.op("Mul", tensor, self.number(0.5))
            erf = self.op("Erf", self.op("Div", tensor, self.number(2**0.5)))
            return self.op("Mul", half, self.op("Add", erf, self.number(1)))
        return self.op(op_type, tensor)

    # layers

    def conv(
        self, tensor: str, reads: int, makes: int, kernel: int = 1, group: int = 1, stride: int = 1, dilation: int = 1
    ) -> str:
        """Add a convolution that keeps height and width but for its stride, with a bias or without."""
        weights = [self.weight(makes, reads // group, kernel, kernel)]
        weights += [self.vector(makes)] if self.flip() else []
        pads = [dilation * (kernel // 2)] * 4
        attributes = dict(group=group, strides=[stride] * 2, dilations=[dilation] * 2)
        return self.op("Conv", tensor, *weights, pads=pads, kernel_shape=[kernel] * 2, **attributes)

    def linear(self, tensor: str, reads: int, makes: int, bias: bool | None = None) -> str:
        """Add a linear layer along the last axis: MatMul, and Add where there is a bias (on either side)."""
        made = self.op("MatMul", tensor, self.weight(reads, makes, fan=reads))
        if bias or (bias is None and self.flip()):
            both = [made, self.vector(makes)]
            made = self.op("Add", *(both if self.flip() else both[::-1]))
        return made

    def batch_norm(self, tensor: str, c: int) -> str:
        statistics = (self.numbers.normal(0, 0.3, c), np.exp(self.numbers.normal(0, 0.3, c)))
        mean, variance = (self.constant(value.astype(np.float32)) for value in statistics)
        return self.op("BatchNormalization", tensor, self.vector(c, around=1), self.vector(c), mean, variance)

    def layer_norm(self, tensor: str, c: int) -> str:
        """Normalise the last axis."""
        return self.op("LayerNormalization", tensor, self.vector(c, around=1), self.vector(c), axis=-1)

    # the trunk

    def project(self, x: Trunk, c: int) -> Trunk:
        """Bring a trunk to some width."""
        layer = self.conv if x.form == "image" else self.linear
        return x if x.c == c else x.to(layer(x.tensor, x.c, c), c=c)

    def multiple(self, x: Trunk, of: int) -> Trunk:
        """Bring a trunk to a width that is a multiple of something."""
        return x if x.c % of == 0 else self.project(x, self.width(of))

    def output(self, tensor: str, *dims: int, element: int = TensorProto.FLOAT) -> None:
        """Make a tensor of shape (batch, \\*dims) an output."""
        shape = [self.batch or "batch", *dims]
        self.outputs.append(helper.make_tensor_value_info(tensor, element, shape))


def as_tokens(b: Builder, x: Trunk) -> Trunk:
    if x.form == "tokens":
        return x
    if b.flip():
        flat = b.reshape(x.tensor, x.c, x.length)
        return replace(x, tensor=b.transpose(flat, 0, 2, 1), form="tokens")
    last = b.transpose(x.tensor, 0, 2, 3, 1)
    return replace(x, tensor=b.reshape(last, x.length, x.c), form="tokens")


def as_image(b: Builder, x: Trunk) -> Trunk:
    if x.form == "image":
        return x
    if b.flip():
        first = b.transpose(x.tensor, 0, 2, 1)
        return replace(x, tensor=b.reshape(first, x.c, x.h, x.w), form="image")
    last = b.reshape(x.tensor, x.h, x.w, x.c)
    return replace(x, tensor=b.transpose(last, 0, 3, 1, 2), form="image")
