"""ONNX Runtime's Attention with the projection after it is nn.MultiheadAttention, where the two compute the same."""

from __future__ import annotations

from operator import getitem

import torch
from torch import Tensor, fx, nn

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.operators.microsoft_fused import MICROSOFT
from graphmod.pytorch.patterns import Found, Op, X, pattern
from graphmod.pytorch.steps import Permute

ATTENTION = tuple(
    Op("Attention", X("x"), X("in"), X("in bias"), *mask, name="attention") for mask in ((), (X("mask"),))
)
PROJECTED = tuple(Op("MatMul", attention, X("out"), name="projection") for attention in ATTENTION)


def _is_exact(op: Operator, found: Found) -> bool:
    """Whether all sizes are those of the module, and nothing is asked for that it does not do."""
    attention, constants = found.operators["attention"], op.importer.constants
    if attention.proto.domain != MICROSOFT or attention.uses_output(1):
        return False
    plain = {"unidirectional": 0, "do_rotary": 0, "scale": 0.0, "qkv_hidden_sizes": None}
    if any(attention.attribute(name, usual) != usual for name, usual in plain.items()):
        return False
    n_inputs = 4 if "mask" in found.tensors else 3
    if any(attention.has(index) for index in range(n_inputs, len(attention.proto.input))):
        return False
    if "mask" in found.tensors:
        kind = op.importer.scope.types.get(found["mask"])
        if kind is None or kind.shape is None or len(kind.shape) != 2:
            return False
    names = ("in", "in bias", "out", "out bias")
    if not all(found[name] in constants for name in names):
        return False
    width = constants.value(found["out"]).shape[0]
    shapes = {"in": (width, 3 * width), "in bias": (3 * width,), "out": (width, width), "out bias": (width,)}
    weights = [op.importer.weights.weight(found[name], ()) for name in names]
    return all(constants.value(found[name]).shape == shapes[name] for name in names) and None not in weights


@pattern(*(Op("Add", tree, X("out bias")) for tree in PROJECTED), check=_is_exact)
def multihead_attention(op: Operator, found: Found) -> fx.Node:
    """Convert attention and its last projection, bias included: torch's module has both biases or none."""
    weights, attention = op.importer.weights, found.operators["attention"]
    width, turned = op.importer.constants.value(found["out"]).shape[0], (Permute((1, 0)),)
    module = nn.MultiheadAttention(width, attention.attribute("num_heads", 1), batch_first=True, device="meta")
    given = {
        "in_proj_weight": weights.weight(found["in"], turned),
        "in_proj_bias": weights.weight(found["in bias"], ()),
        "out_proj.weight": weights.weight(found["out"], turned),
        "out_proj.bias": weights.weight(found["out bias"], ()),
    }
    x = op.importer.node(found["x"])
    hidden = op.call(is_hidden, op.importer.node(found["mask"])) if "mask" in found.tensors else None
    path = weights.place(attention.proto, attention.position, module, given)
    made = op.importer.graph.call_module(path, (x, x, x), {"key_padding_mask": hidden, "need_weights": False})
    return op.call(getitem, made, 0)


def is_hidden(mask: Tensor) -> Tensor:
    """Return where a mask of ones and zeros hides keys; nowhere in a sample of which it would hide all."""
    hidden = mask == 0
    return hidden & ~torch.all(hidden, -1, keepdim=True)
