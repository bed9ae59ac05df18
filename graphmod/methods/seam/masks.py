r"""Masks: a real number for every weight and bias, of which only the sign counts.

With :math:`M` the real mask and :math:`W` the frozen weights, the network computes with

.. math:: W \odot B(M), \qquad B(m) = 1 \text{ if } m > 0 \text{ else } 0,

and the gradient passes :math:`B` unchanged (the straight-through estimator).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from onnx import NodeProto
from torch import Tensor, nn
from torch.fx import GraphModule

from graphmod.methods.deeparc.sparsity.layers import WEIGHT_AT
from graphmod.model import Model
from graphmod.pytorch import META
from graphmod.train.weights import constant_roots

BIAS_AT = {"Conv": 2, "Gemm": 2}
"""Where operators read biases; that of a MatMul is what an Add behind it adds."""


def masked_parameters(model: Model, net: GraphModule) -> dict[str, nn.Parameter]:
    """Return the parameters that have masks, by path: weights and biases of convolutions and linear layers.

    Parameters
    ----------
    model : Model
    net : torch.fx.GraphModule
        What :func:`graphmod.to_torch` made of it. A weight that several operators read is one parameter.
    """
    tensors = masked_tensors(model)
    parameters = dict(net.named_parameters())
    places = [one.path for one in net.meta[META] if one.tensor in tensors and one.path in parameters]
    return {path: parameters[path] for path in dict.fromkeys(places)}


def masked_tensors(model: Model) -> frozenset[str]:
    """Return the names of the float constants that hold weights and biases of Conv, Gemm and MatMul.

    A constant behind Transpose, Cast and the like counts under its own name too.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> sorted(masked_tensors(m))[:4]
    ['conv.weight', 'conv.weight_bias', 'fc.bias', 'fc.weight']
    """
    roots = constant_roots(model)
    read = {tensor for operator in model.operators for tensor in _read(model, operator)}
    names = {root for tensor in read for root in roots.get(tensor, ())}
    return frozenset(name for name in names if name in model.tensors and model.tensors[name].is_float)


def _read(model: Model, operator: NodeProto) -> Iterator[str]:
    """Yield what an operator reads as weight, and as bias."""
    if operator.domain not in ("", "ai.onnx") or operator.op_type not in WEIGHT_AT:
        return
    for place in WEIGHT_AT[operator.op_type]:
        kind = model.tensors.get(operator.input[place])
        if kind is not None and len(kind.shape or ()) > 1:
            yield operator.input[place]
    if operator.op_type == "MatMul":
        yield from _added(model, operator)
    elif BIAS_AT[operator.op_type] < len(operator.input):
        yield operator.input[BIAS_AT[operator.op_type]]


def _added(model: Model, product: NodeProto) -> Iterator[str]:
    """Yield what the one reader of a product adds to it, if that has no more than one axis of values."""
    places = model.readers.get(product.output[0], ())
    operator = model.operators[places[0]] if len(places) == 1 else None
    if operator is None or operator.op_type != "Add" or operator.domain not in ("", "ai.onnx"):
        return
    for tensor in operator.input:
        kind = model.tensors.get(tensor)
        if tensor != product.output[0] and kind is not None and kind.size == max((*_sizes(kind.shape), 1)):
            yield tensor


def _sizes(shape: tuple[int | str | None, ...] | None) -> tuple[int, ...]:
    return tuple(size for size in shape or () if isinstance(size, int))


def binarized(masks: Tensor) -> Tensor:
    """Return 1 where masks are above 0, else 0; the gradient passes as it is.

    Examples
    --------
    >>> masks = torch.tensor([0.3, -0.1, 0.0], requires_grad=True)
    >>> kept = binarized(masks)
    >>> kept.tolist()
    [1.0, 0.0, 0.0]
    >>> (kept * torch.tensor([2.0, 3.0, 4.0])).sum().backward()
    >>> masks.grad.tolist()
    [2.0, 3.0, 4.0]
    """
    return (masks > 0).to(masks.dtype) + (masks - masks.detach())  # what is added is 0


def masked(parameters: Mapping[str, nn.Parameter], kept: Tensor) -> dict[str, Tensor]:
    """Return the parameters times what is kept of them, by path; ``kept`` has all their values in a row."""
    pieces = torch.split(kept, [parameter.numel() for parameter in parameters.values()])
    return {
        path: parameter * piece.view_as(parameter)
        for (path, parameter), piece in zip(parameters.items(), pieces, strict=True)
    }
