r"""Linear maps: Conv, ConvTranspose, Gemm, MatMul (and the Add behind it) and BatchNormalization, read as one thing.

Each computes :math:`y = W x + b` with constant :math:`W` and :math:`b`, at every position and within groups of
channels. Their weights are read as a float64 array of shape (groups, channels out of a group, channels into a group,
*kernel). BatchNormalization is the map with a group a channel (Ioffe & Szegedy 2015, in inference):

.. math:: y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta = w x + (\beta - w \mu)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from graphmod.errors import RefusedError
from graphmod.model import TensorType
from graphmod.rewrite.draft import shared_scope
from graphmod.rewrite.fusions.bench import Array, Bench, Held, is_a

Float = NDArray[np.float64]

FIRST = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization")
"""The types that a map begins with."""

_COPIES = 1 << 20
"""Bytes of a shared weight up to which a copy of it is worth an operator less."""


@dataclass(frozen=True, eq=False)
class Map:
    """A linear map in a draft.

    Parameters
    ----------
    bench : Bench
    operator : NodeProto
    add : NodeProto, optional
        The Add behind a MatMul, whose constant is the bias.
    held : Held
        The weight as the file has it.
    offset : array, optional
        The bias as the file has it.
    groups : int
    """

    bench: Bench
    operator: NodeProto
    add: NodeProto | None
    held: Held
    offset: Array | None
    groups: int = 1

    @property
    def operators(self) -> tuple[NodeProto, ...]:
        """The one or two operators."""
        return (self.operator,) if self.add is None else (self.operator, self.add)

    @property
    def entry(self) -> str:
        """The tensor that it reads."""
        return str(self.operator.input[0])

    @property
    def exit(self) -> str:
        """The tensor that it makes."""
        return str(self.operators[-1].output[0])

    @property
    def op_type(self) -> str:
        """The type of its first operator."""
        return str(self.operator.op_type)

    @property
    def is_dense(self) -> bool:
        """Whether it is a matrix product: channels are the last axis."""
        return self.op_type in ("Gemm", "MatMul")

    @cached_property
    def rank(self) -> int | None:
        """The number of axes of what it reads and makes, None if it is not known."""
        if self.op_type in ("Conv", "ConvTranspose"):
            return len(self.held.shape)
        return 2 if self.op_type == "Gemm" else self.bench.rank(self.exit)

    @property
    def axis(self) -> int:
        """The axis of the channels; -1 is the last one of an unknown number."""
        if not self.is_dense:
            return 1
        return -1 if self.rank is None else self.rank - 1

    @property
    def n_in(self) -> int:
        """Channels that it reads."""
        if self.is_dense:
            return int(self.held.shape[1 if self._transposed else 0])
        if self.op_type == "Conv":
            return int(self.held.shape[1]) * self.groups
        return int(self.held.shape[0])

    @property
    def n_out(self) -> int:
        """Channels that it makes."""
        if self.is_dense:
            return int(self.held.shape[0 if self._transposed else 1])
        if self.op_type == "ConvTranspose":
            return int(self.held.shape[1]) * self.groups
        return int(self.held.shape[0])

    @property
    def kernel(self) -> tuple[int, ...]:
        """The size of the kernel, () for maps without one."""
        return tuple(self.held.shape[2:]) if self.op_type in ("Conv", "ConvTranspose") else ()

    @property
    def kind(self) -> TensorType | None:
        """The type of what it makes."""
        return self.bench.kind(self.exit)

    @property
    def _transposed(self) -> bool:
        return bool(self.bench.attributes(self.operator).get("transB", 0)) and self.op_type == "Gemm"

    # -- values

    def weight(self) -> Float:
        """Return the weight, shape (groups, out, in, *kernel)."""
        value = self.held.values()
        g = self.groups
        if self.op_type == "Conv":
            return value.reshape(g, -1, *value.shape[1:])
        if self.op_type == "ConvTranspose":
            return value.reshape(g, -1, *value.shape[1:]).swapaxes(1, 2)
        if self.op_type == "BatchNormalization":
            return np.asarray((value / self._deviation).reshape(-1, 1, 1))
        alpha = self.bench.attributes(self.operator).get("alpha", 1.0) if self.op_type == "Gemm" else 1.0
        return np.asarray(alpha * (value if self._transposed else value.T)[None])

    def bias(self) -> Float | None:
        """Return the bias, shape (channels out,); None where there is none."""
        if self.offset is None:
            return None
        value = self.offset.astype(np.float64)
        if self.op_type == "BatchNormalization":
            return np.asarray(value - self.weight().ravel() * self._mean)
        beta = self.bench.attributes(self.operator).get("beta", 1.0) if self.op_type == "Gemm" else 1.0
        return np.broadcast_to(beta * value.ravel(), (self.n_out,))

    @cached_property
    def _mean(self) -> Float:
        mean = self.bench.constant(self.operator.input[3])
        assert mean is not None
        return mean.astype(np.float64)

    @cached_property
    def _deviation(self) -> Float:
        variance = self.bench.constant(self.operator.input[4])
        assert variance is not None
        return np.asarray(
            np.sqrt(variance.astype(np.float64) + self.bench.attributes(self.operator).get("epsilon", 1e-5))
        )

    # -- changing it

    @property
    def has_room(self) -> bool:
        """Whether it can take a bias without another operator."""
        return self.offset is not None or self.op_type != "MatMul" or self.rank == 2

    def why_not_change(self) -> str | None:
        """Return why its weight had better stay: a copy of a large one for another reader costs more than it saves."""
        name = self.operator.input[1]
        others = [op for op in self.bench.draft.readers(name) if op is not self.operator]
        if others and self.held.n_bytes > _COPIES:
            size = f"{self.held.n_bytes / 1e6:.1f} MB"
            return f"its weight '{name}' of {size} is shared with {self.bench.told(others[0])}"
        return None

    def move(self, exit_: str) -> None:
        """Let it make another tensor."""
        last = self.operators[-1]
        self.bench.draft.set_outputs(last, [exit_, *last.output[1:]])

    def _check(self, *values: Float | None) -> None:
        """Raise RefusedError unless values fit the type of the weight."""
        for value in (value for value in values if value is not None):
            with np.errstate(over="ignore"):
                fits = np.isfinite(value.astype(self.held.dtype).astype(np.float64)).all()
            if not fits:
                raise RefusedError(f"fused into {self.bench.told(self.operator)}, values exceed {self.held.dtype}")

    def store(self, weight: Float, bias: Float | None) -> list[NodeProto]:
        """Give it another weight and bias, of shapes as :meth:`weight` and :meth:`bias` have them.

        A MatMul becomes a Gemm where it needs a bias and reads a matrix; elsewhere it gets an Add, which is returned.
        """
        if self.op_type == "BatchNormalization":
            return self._store_normalization(weight, bias)
        self._check(weight, bias)
        n_out = weight.shape[0] * weight.shape[1]
        dtype = self.held.dtype
        if self.op_type == "Conv":
            value = weight.reshape(n_out, *weight.shape[2:])
        elif self.op_type == "ConvTranspose":
            swapped = weight.swapaxes(1, 2)
            value = swapped.reshape(-1, *swapped.shape[2:])
        else:
            value = weight[0] if self._transposed else weight[0].T
        before = self.operator.input[1]
        self.bench.set_input(self.operator, 1, self.bench.store(before, value.astype(dtype), self.operator))
        if self.op_type == "Gemm":
            self.bench.set_attributes(self.operator, alpha=None, beta=None)
        if bias is None or not (bias.any() or self.offset is not None):
            return []
        return self._store_bias(bias.astype(dtype), before)

    def _store_bias(self, bias: Array, weight: str) -> list[NodeProto]:
        bench = self.bench
        if self.add is not None:
            place = 1 if self.add.input[0] == self.operator.output[0] else 0
            bench.set_input(self.add, place, bench.store(self.add.input[place], bias, self.add))
            return []
        held = self.operator.input[2] if len(self.operator.input) > 2 else ""
        if self.op_type != "MatMul" or self.rank == 2:
            name = bench.store(held, bias, self.operator) if held else bench.weight(f"{weight}_bias", bias)
            bench.set_input(self.operator, 2, name)
            self.operator.op_type = "Gemm" if self.is_dense else self.op_type
            return []
        made = self.exit
        self.move(bench.tensor(f"{made}/product", self.kind))
        inputs = [self.exit, bench.weight(f"{weight}_bias", bias)]
        name = bench.draft.unused_operator(f"{self.operator.name}/Add")
        add = NodeProto(op_type="Add", input=inputs, output=[made], name=name)
        return bench.draft.add([add], at=self.operator, scope=shared_scope([self.operator]))

    def _store_normalization(self, weight: Float, bias: Float | None) -> list[NodeProto]:
        """Keep mean and variance, and let scale and bias make up for the rest."""
        w = weight.ravel()
        values = (w * self._deviation, (0 if bias is None else bias) + w * self._mean)
        self._check(*values)
        for place, value in zip((1, 2), values, strict=True):
            name = self.bench.store(self.operator.input[place], value.astype(self.held.dtype), self.operator)
            self.bench.set_input(self.operator, place, name)
        return []


def read_map(bench: Bench, operator: NodeProto) -> Map | str:
    """Return the linear map that begins with an operator, or why it is none."""
    if not is_a(operator, *FIRST):
        return f"{bench.told(operator)} is no linear map"
    if operator.op_type == "BatchNormalization":
        return _read_normalization(bench, operator)
    held = bench.held(operator.input[1])
    if held is None:
        return f"the weight '{operator.input[1]}' of {bench.told(operator)} is no constant"
    if held.dtype.kind != "f" and held.dtype.name != "bfloat16":
        return f"the weight of {bench.told(operator)} is of type {held.dtype}"
    if operator.op_type in ("Conv", "ConvTranspose"):
        return _read_convolution(bench, operator, held)
    if len(held.shape) != 2:
        return f"the weight of {bench.told(operator)} has {len(held.shape)} axes"
    if operator.op_type == "MatMul":
        return _read_product(bench, operator, held)
    attributes = bench.attributes(operator)
    offset = _offset(bench, operator, held.shape[0 if attributes.get("transB", 0) else 1])
    if attributes.get("transA", 0):
        return f"{bench.told(operator)} transposes what it reads"
    return offset if isinstance(offset, str) else Map(bench, operator, None, held, offset)


def read_map_of(bench: Bench, tensor: str) -> Map | str:
    """Return the linear map that makes a tensor, or why none does."""
    operator = bench.draft.producer(tensor)
    if operator is None:
        return f"no operator makes '{tensor}'"
    if is_a(operator, "Add"):
        for name in operator.input:
            product = bench.draft.producer(name)
            if product is not None and product.op_type == "MatMul":
                found = read_map(bench, product)
                if not isinstance(found, str) and found.add is operator:
                    return found
    found = read_map(bench, operator)
    if isinstance(found, Map) and found.exit != tensor:
        found = Map(bench, operator, None, found.held, None, found.groups)
    return found


def _read_convolution(bench: Bench, operator: NodeProto, held: Held) -> Map | str:
    groups = int(bench.attributes(operator).get("group", 1))
    n_out = held.shape[0] if operator.op_type == "Conv" else held.shape[1] * groups
    offset = _offset(bench, operator, n_out)
    return offset if isinstance(offset, str) else Map(bench, operator, None, held, offset, groups)


def _offset(bench: Bench, operator: NodeProto, n_out: int) -> Array | str | None:
    name = operator.input[2] if len(operator.input) > 2 else ""
    if not name:
        return None
    value = bench.constant(name)
    if value is None:
        return f"the bias '{name}' of {bench.told(operator)} is no constant"
    if value.size not in (1, n_out) or (value.ndim and value.shape[-1] != value.size):
        return f"the bias '{name}' of {bench.told(operator)} is not one number a channel"
    return value


def _read_product(bench: Bench, operator: NodeProto, held: Held) -> Map:
    """Return a MatMul, with the Add behind it where that adds one constant a channel and nothing else reads it."""
    alone = Map(bench, operator, None, held, None)
    reader = bench.sole_reader(operator.output[0])
    if isinstance(reader, str) or not is_a(reader, "Add"):
        return alone
    other = reader.input[1 if reader.input[0] == operator.output[0] else 0]
    offset = bench.constant(other)
    rank = bench.rank(operator.output[0])
    if offset is None or offset.dtype != held.dtype or offset.size not in (1, held.shape[1]):
        return alone
    if prod(offset.shape[:-1]) != 1 or (offset.ndim > 1 and (rank is None or offset.ndim > rank)):
        return alone
    return Map(bench, operator, reader, held, offset)


def _read_normalization(bench: Bench, operator: NodeProto) -> Map | str:
    attributes = bench.attributes(operator)
    if attributes.get("training_mode", 0) or any(operator.output[1:]):
        return f"{bench.told(operator)} is in training mode"
    if not attributes.get("spatial", 1):
        return f"{bench.told(operator)} normalises every position on its own"
    held = bench.held(operator.input[1])
    values = [bench.constant(name) for name in operator.input[1:5]]
    if held is None or any(value is None for value in values):
        name = next(n for n, value in zip(operator.input[1:5], values, strict=True) if value is None)
        return f"'{name}', which {bench.told(operator)} reads, is no constant"
    _, offset, _, variance = values
    assert variance is not None
    if not (variance.astype(np.float64) + attributes.get("epsilon", 1e-5) > 0).all():
        return f"{bench.told(operator)} has a variance that is not positive"
    return Map(bench, operator, None, held, offset, held.shape[0])
