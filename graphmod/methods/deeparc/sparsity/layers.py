"""What a schedule shares sparsity out to: the weights of convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper

from graphmod.errors import RefusedError
from graphmod.model import Model
from graphmod.model.initializers import clear, sparse_types

Mask = NDArray[np.bool_]

WEIGHT_AT = {"Conv": (1,), "Gemm": (1, 0), "MatMul": (1, 0)}
"""Where operators read weights; of a linear layer either side may be the constant one."""


@dataclass(frozen=True, eq=False)
class Layer:
    """The weight of a convolution or a linear layer.

    Parameters
    ----------
    tensor : str
        The initializer; operators that share it are one layer.
    op_type : str
        "Conv", "Gemm" or "MatMul": of the first operator that reads it.
    magnitude : array
        The absolute weights, in their shape.
    """

    tensor: str
    op_type: str
    magnitude: NDArray[np.floating]

    @property
    def size(self) -> int:
        """How many weights there are."""
        return int(self.magnitude.size)

    @cached_property
    def n_left(self) -> int:
        """How many weights are not zero."""
        return int(np.count_nonzero(self.magnitude))

    def largest(self, n: int) -> Mask:
        """Return a mask of the ``n`` largest weights; of equal ones the first."""
        order = np.argsort(-self.magnitude.reshape(-1), kind="stable")
        mask = np.zeros(self.size, bool)
        mask[order[:n]] = True
        return mask.reshape(self.magnitude.shape)


def layers(model: Model) -> tuple[Layer, ...]:
    """Return the layers of a model's main graph, in its order.

    Weights are float initializers of at least two axes that a Conv, a Gemm or a MatMul reads itself.

    Raises
    ------
    RefusedError
        Some are stored sparsely.

    Examples
    --------
    >>> import graphmod as gm
    >>> [layer.op_type for layer in layers(gm.load(gm.demo.model_path()))][-2:]
    ['Conv', 'Gemm']
    """
    sparse = next(iter(sparse_types(model._proto)), None)
    if sparse is not None:
        raise RefusedError(f"initializer '{sparse}' is stored sparsely; graphmod.unpack makes it dense")
    found: dict[str, Layer] = {}
    for operator in model.operators:
        for name in _weights(model, operator):
            if name not in found:
                value = np.abs(model.initializer(name))
                wide = value.astype(np.promote_types(value.dtype, np.float32), copy=False)
                found[name] = Layer(name, operator.op_type, wide)
    return tuple(found.values())


def _weights(model: Model, operator: NodeProto) -> Iterator[str]:
    for place in WEIGHT_AT.get(operator.op_type, ()) if operator.domain in ("", "ai.onnx") else ():
        name = operator.input[place] if place < len(operator.input) else ""
        if name in model.initializers and model.tensors[name].is_float and len(model.initializers[name].dims) > 1:
            yield name


def n_parameters(model: Model) -> int:
    """Return how many scalars are left: those of the layers that are not zero, and all other float constants.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> n_parameters(m) == m.n_weights
    True
    """
    return model.n_weights - sum(layer.size - layer.n_left for layer in layers(model))


def masked(model: Model, masks: Mapping[str, Mask]) -> Model:
    """Return a model with zeros wherever the mask of a layer's tensor is false; the very same one without masks."""
    if not masks:
        return model
    proto = model.editable()
    for tensor in proto.graph.initializer:
        if tensor.name in masks:
            value = np.where(
                masks[tensor.name], model.initializer(tensor.name), np.zeros((), model.tensors[tensor.name].dtype)
            )
            clear(tensor)
            tensor.raw_data = numpy_helper.from_array(value).raw_data
    return Model(proto, model.folder)  # values alone have changed: what held of the graph still holds
