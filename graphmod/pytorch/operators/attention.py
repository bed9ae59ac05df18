"""Attention, and the rotary embedding that goes with it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.registry import operator


@operator("Attention", since=23)
def attention(op: Operator) -> tuple[fx.Node, ...]:
    """Convert Attention; the products before the softmax are no output here."""
    if op.uses_output(3):
        raise op.unsupported("the matrix of its products is used, which has no counterpart")
    op.requires(softmax_precision=1)
    op.ignore("qk_matmul_output_mode")
    if op.has(6):
        raise op.unsupported("lengths of the keys without padding have no counterpart")
    made = op.call(
        attend, op.input(0), op.input(1), op.input(2), op.optional(3), op.optional(4), op.optional(5),
        q_heads=op.attribute("q_num_heads", 0), kv_heads=op.attribute("kv_num_heads", 0),
        causal=bool(op.attribute("is_causal", 0)), scale=op.attribute("scale", None),
        softcap=op.attribute("softcap", 0.0),
    )  # fmt: skip
    return op.items(made, 3)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    *,
    q_heads: int,
    kv_heads: int,
    causal: bool,
    scale: float | None,
    softcap: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled dot-product attention with grouped heads; returns also the keys and values seen so far."""
    flat = query.ndim == 3
    if flat:
        query, key, value = _heads(query, q_heads), _heads(key, kv_heads), _heads(value, kv_heads)
    offset = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    present = key, value
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    logits = (query * math.sqrt(factor)) @ (key * math.sqrt(factor)).transpose(-1, -2)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    if causal:
        rows = torch.arange(logits.shape[-2], device=logits.device)[:, None] + offset
        logits = logits.masked_fill(torch.arange(logits.shape[-1], device=logits.device) > rows, -math.inf)
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    weights = torch.softmax(logits, -1).masked_fill(logits.isneginf().all(-1, keepdim=True), 0)  # nothing to see
    result = weights @ value
    return (result.transpose(1, 2).flatten(2) if flat else result), *present


def _heads(x: Tensor, n: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], n, -1).transpose(1, 2)


@operator("RotaryEmbedding", since=23)
def rotary_embedding(op: Operator) -> fx.Node:
    """Convert RotaryEmbedding."""
    return op.call(
        rotate, op.input(0), op.input(1), op.input(2), op.optional(3), n_heads=op.attribute("num_heads", 0),
        interleaved=bool(op.attribute("interleaved", 0)), n_rotated=op.attribute("rotary_embedding_dim", 0),
    )  # fmt: skip


def rotate(
    x: Tensor, cos: Tensor, sin: Tensor, places: Tensor | None, *, n_heads: int, interleaved: bool, n_rotated: int
) -> Tensor:
    """Turn pairs of elements by an angle that depends on the place in the sequence."""
    shape, flat = x.shape, x.ndim == 3
    x = x.reshape(x.shape[0], x.shape[1], n_heads, -1) if flat else x.transpose(1, 2)
    n = n_rotated or x.shape[-1]
    turned, rest = x[..., :n], x[..., n:]
    cos, sin = (cos, sin) if places is None else (cos[places], sin[places])
    cos, sin = cos[..., : n // 2].unsqueeze(2), sin[..., : n // 2].unsqueeze(2)
    left, right = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    real, imaginary = cos * left - sin * right, sin * left + cos * right
    turned = torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)
    result = torch.cat([turned, rest], -1)
    return result.reshape(shape) if flat else result.transpose(1, 2)
