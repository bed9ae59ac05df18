"""Signatures: what the latency of operators depends on, whatever their names and the values of their weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto

from graphmod.errors import RefusedError
from graphmod.graph.wiring import domain_of
from graphmod.model import TensorType, has_bodies

Array = NDArray[np.generic]

VALUED = 64
"""Scalars up to which the values of integer constants belong to a signature: shapes, axes, pads."""


@dataclass(frozen=True)
class Operand:
    """A tensor that a signature reads from outside: its type; whether it is constant; its values where they matter."""

    dtype: str
    shape: tuple[int, ...]
    constant: bool = False
    values: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Step:
    """One operator of a signature; tensors are numbered, operands first, -1 is an absent one."""

    op_type: str
    domain: str
    attributes: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """What the latency of operators depends on; equal for operators that take the same time.

    Parameters
    ----------
    operands : tuple of Operand
        The tensors read from outside.
    steps : tuple of Step
        The operators, in topological order.
    results : tuple of int
        Numbers of the tensors that they give to others.
    opsets : tuple of (str, int)
        The version of each operator set that they are of.
    """

    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    results: tuple[int, ...]
    opsets: tuple[tuple[str, int], ...]

    @cached_property
    def key(self) -> str:
        """One line of JSON that two signatures share where they are equal."""
        operands = [[one.dtype, one.shape, one.constant, one.values] for one in self.operands]
        steps = [[one.op_type, one.domain, one.attributes, one.inputs, one.outputs] for one in self.steps]
        return json.dumps([operands, steps, self.results, self.opsets], separators=(",", ":"))

    def __str__(self) -> str:
        """Render as ``Conv+Relu(float32[1, 8, 4, 4], const float32[16, 8, 3, 3])``."""
        read = (f"{'const ' * one.constant}{one.dtype}{list(one.shape)}" for one in self.operands)
        return f"{'+'.join(step.op_type for step in self.steps)}({', '.join(read)})"


def signature(
    operators: NodeProto | Sequence[NodeProto],
    types: Mapping[str, TensorType],
    constants: Mapping[str, Array | None],
    opsets: Mapping[str, int],
    results: Iterable[str] | None = None,
) -> Signature:
    """Return what the latency of an operator, or of several that ONNX Runtime computes as one, depends on.

    Parameters
    ----------
    operators : NodeProto or sequence of NodeProto
        In topological order.
    types : mapping of str to TensorType
        The types of what they read; every dimension a number.
    constants : mapping of str to array or None
        Which of the inputs are constant. Values count of integers and single numbers, which are often shapes, axes or
        bounds; None where the value is unknown or does not matter. Those of weights never do: pass None.
    opsets : mapping of str to int
        The version of each operator set by domain, as :attr:`graphmod.Model.opsets` gives them.
    results : iterable of str, optional
        Outputs that others read; all that none of the operators reads if None.

    Raises
    ------
    RefusedError
        A dimension is no number, a tensor holds no numbers, or an operator has bodies.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> relu = next(operator for operator in m.operators if operator.op_type == "Relu")
    >>> kind = gm.model.TensorType(np.dtype("float32"), (1, 16, 8, 8))
    >>> str(gm.probe.signature(relu, {relu.input[0]: kind}, {}, m.opsets))
    'Relu(float32[1, 16, 8, 8])'
    """
    some = [operators] if isinstance(operators, NodeProto) else list(operators)
    for operator in some:
        if has_bodies(operator):
            told = f"operator '{operator.name or operator.output[0]}' ({operator.op_type})"
            raise RefusedError(f"the latency of {told} depends on what its bodies compute")
    made = {name for operator in some for name in operator.output if name}
    read = dict.fromkeys(name for operator in some for name in operator.input if name)
    outside = [name for name in read if name not in made]
    number = {name: i for i, name in enumerate([*outside, *dict.fromkeys(n for op in some for n in op.output if n)])}
    number[""] = -1
    wanted = [name for name in made if name not in read] if results is None else results
    return Signature(
        tuple(_operand(name, types.get(name), name in constants, constants.get(name)) for name in outside),
        tuple(
            Step(
                operator.op_type,
                domain_of(operator),
                tuple(sorted(map(_attribute, operator.attribute))),
                tuple(number[name] for name in operator.input),
                tuple(number[name] for name in operator.output),
            )
            for operator in some
        ),
        tuple(sorted(number[name] for name in wanted)),
        tuple(sorted({domain: opsets.get(domain, 1) for domain in map(domain_of, some)}.items())),
    )


def _attribute(attribute: AttributeProto) -> str:
    bare = AttributeProto.FromString(attribute.SerializeToString())
    bare.ClearField("doc_string")
    return bytes(bare.SerializeToString(deterministic=True)).hex()


def _operand(name: str, kind: TensorType | None, constant: bool, value: Array | None) -> Operand:
    if kind is None and value is not None:
        kind = TensorType(value.dtype, value.shape)
    if kind is None or kind.dtype is None or kind.shape is None or not is_fixed(kind):
        raise RefusedError(f"tensor '{name}' is {kind or 'of unknown type'}; give its type, every dimension a number")
    if kind.dtype.kind in "OSU":
        raise RefusedError(f"tensor '{name}' holds text, of which no latency can be measured")
    shape = tuple(d for d in kind.shape if isinstance(d, int))
    counts = value is not None and value.shape == shape and matters(kind)
    return Operand(
        kind.dtype.name, shape, constant, tuple(value.ravel().tolist()) if counts and value is not None else None
    )


def is_fixed(kind: TensorType | None) -> bool:
    """Whether a tensor's type is known, every dimension a number."""
    return (
        kind is not None
        and kind.dtype is not None
        and kind.shape is not None
        and all(isinstance(d, int) for d in kind.shape)
    )


def matters(kind: TensorType) -> bool:
    """Whether a constant's values tell how long an operator takes: those of shapes, axes, pads, bounds."""
    return kind.dtype is not None and kind.size <= (VALUED if kind.dtype.kind in "iub" else 1)
