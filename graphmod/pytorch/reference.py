"""The way out for operators that PyTorch does not have: onnx's reference implementation runs the one operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from graphmod.errors import UnsupportedOperatorError
from graphmod.pytorch.values import Value, device_of, to_numpy, to_value

Array = NDArray[np.generic]


class Reference(nn.Module):
    """One operator, computed in NumPy; no gradient passes through it.

    Parameters
    ----------
    proto : onnx.NodeProto
    opset_imports : sequence of onnx.OperatorSetIdProto
    constants : mapping of str to array
        Inputs that are constant; the module is called with the others.

    Raises
    ------
    NotImplementedError
        The reference implementation does not have the operator either.
    """

    def __init__(
        self, proto: NodeProto, opset_imports: Sequence[OperatorSetIdProto], constants: Mapping[str, Array]
    ) -> None:
        super().__init__()
        self.op_type = proto.op_type
        self._names = list(dict.fromkeys(name for name in proto.input if name and name not in constants))
        self._constants = dict(constants)
        graph = helper.make_graph(
            [proto], "operator",
            [ValueInfoProto(name=name) for name in (*self._names, *constants)],
            [ValueInfoProto(name=name) for name in proto.output if name],
        )  # fmt: skip
        self._model = helper.make_model(graph, opset_imports=list(opset_imports)).SerializeToString()
        _ = self._evaluator

    @cached_property
    def _evaluator(self) -> ReferenceEvaluator:
        return ReferenceEvaluator(ModelProto.FromString(self._model))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_evaluator"}

    def extra_repr(self) -> str:
        """Return the operator's type."""
        return self.op_type

    def forward(self, *values: Value) -> Value:
        """Run the operator on tensors, arrays, lists or None; return one value, or a tuple."""
        feeds = dict(zip(self._names, map(to_numpy, values), strict=True)) | self._constants
        made = [to_value(result, device_of(*values)) for result in self._evaluator.run(None, feeds)]
        needed = [value for value in values if isinstance(value, Tensor) and value.requires_grad]
        if needed and torch.is_grad_enabled():
            made = [
                _NoGradient.apply(self.op_type, value, *needed)  # type: ignore[no-untyped-call]  # torch's
                if isinstance(value, Tensor) and value.is_floating_point()
                else value
                for value in made
            ]
        return made[0] if len(made) == 1 else tuple(made)


class _NoGradient(torch.autograd.Function):
    """Hands a tensor on; asks in vain for a gradient rather than leaving one out."""

    @staticmethod
    def forward(ctx: Any, op_type: str, value: Tensor, *_: Tensor) -> Tensor:
        ctx.op_type = op_type
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise UnsupportedOperatorError(
            f"operator {ctx.op_type} runs in onnx's reference implementation and has no gradient; train only what "
            "comes after it"
        )


def has_reference(operator: NodeProto, opset: int) -> bool:
    """Whether onnx's reference implementation has an operator.

    Examples
    --------
    >>> has_reference(NodeProto(op_type="StringNormalizer"), 17), has_reference(NodeProto(op_type="Nonsense"), 17)
    (True, False)
    """
    try:
        Reference(operator, [onnx.helper.make_opsetid(operator.domain, opset)], {})
    except (NotImplementedError, RuntimeError, TypeError, ImportError):
        return False
    return True
