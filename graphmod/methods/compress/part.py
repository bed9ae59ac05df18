"""A part: a small model that can stand in for a run of the trunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto

from graphmod.errors import RefusedError
from graphmod.model import Model


@dataclass(frozen=True, eq=False)
class Part:
    """What comes between two boundaries.

    Parameters
    ----------
    kind : str
        What it is called, ``linear`` or ``pruned 0.5``.
    entry, exit : str
        The tensors of the trunk around it; the part's own input and output have the same names.
    error : float
        Root of the squared error at the exit over the variance there, on the samples that it was made with.
    make : callable, optional
        Makes the model; None where the exit is the entry.
    is_exact : bool
        Whether it is the best of its kind, so that training it on its own activations brings nothing.
    """

    kind: str
    entry: str
    exit: str
    error: float
    make: Callable[[], Model] | None = field(default=None, repr=False)
    is_exact: bool = True

    @classmethod
    def ready(cls, kind: str, entry: str, exit_: str, error: float, model: Model) -> Part:
        """Return a part whose model is there, and which training on its own activations can better."""
        return cls(kind, entry, exit_, error, lambda: model, is_exact=False)

    @cached_property
    def model(self) -> Model | None:
        """The part as a model; None where there is nothing to compute."""
        return None if self.make is None else self.make()


def as_model(
    host: Model, entry: str, exit_: str, operators: Sequence[NodeProto], initializers: Sequence[TensorProto]
) -> Model:
    """Return operators as a model in a host's operator sets, from one tensor of the host to another.

    Raises
    ------
    RefusedError
        The type of a tensor is unknown.
    """
    given, made = (declared(host, name) for name in (entry, exit_))
    graph = onnx.helper.make_graph(list(operators), "part", [given], [made], list(initializers))
    sets = [onnx.helper.make_opsetid(domain, version) for domain, version in host.opsets.items()]
    return Model(onnx.helper.make_model(graph, ir_version=host.ir_version, opset_imports=sets), host.folder)


def declared(model: Model, tensor: str) -> ValueInfoProto:
    """Return the declaration of a tensor of a model.

    Raises
    ------
    RefusedError
        Its type is unknown.
    """
    kind = model.tensors.get(tensor) or model.inputs.get(tensor)
    if kind is None or kind.dtype is None:
        raise RefusedError(f"the type of tensor '{tensor}' is unknown, so no part can end there")
    return onnx.helper.make_tensor_value_info(tensor, onnx.helper.np_dtype_to_tensor_dtype(kind.dtype), kind.shape)
