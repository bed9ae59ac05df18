"""Attention, and the rotary embedding that goes with it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor, fx

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.registry import Outputs, operator


@operator("Attention", since=23)
def attention(op: Operator) -> Outputs:
    """Convert Attention; where only its result is asked for, to torch's own function."""
    causal, scale = bool(op.attribute("is_causal", 0)), op.attribute("scale", None)
    window = op.attribute("left_window_size", -1), op.attribute("right_window_size", -1)
    softcap, heads = op.attribute("softcap", 0.0), (op.attribute("q_num_heads", 0), op.attribute("kv_num_heads", 0))
    products = op.attribute("qk_matmul_output_mode", 0)
    precision = _precision(op, op.attribute("softmax_precision", 0))
    cached = any(op.has(index) for index in (4, 5, 6)) or any(op.uses_output(index) for index in (1, 2, 3))
    bare = not softcap and precision is None and window == (-1, -1) and op.rank() == 4 and not cached
    if bare and (not op.has(3) or (not causal and _reaches(op))):
        return op.call(
            F.scaled_dot_product_attention, op.input(0), op.input(1), op.input(2), op.optional(3), is_causal=causal,
            scale=scale, enable_gqa=_is_grouped(op),
        )  # fmt: skip
    made = op.call(
        attend, op.input(0), op.input(1), op.input(2), op.optional(3), op.optional(4), op.optional(5), op.optional(6),
        heads=heads, causal=causal, window=window, scale=scale, softcap=softcap, precision=precision,
        products=products if op.uses_output(3) else None,
    )  # fmt: skip
    return op.items(made, 4)


def _precision(op: Operator, code: int) -> torch.dtype | None:
    """Return the type in which to compute the softmax where torch would not take that one anyway."""
    single = op.dtype().itemsize <= 4  # torch computes the softmax of half precision in single
    return None if not code or (code == TensorProto.FLOAT and single) else op.torch_dtype(code)


def _reaches(op: Operator) -> bool:
    """Whether a mask is known to cover all keys: one that is shorter hides the rest."""
    mask, key = op.shape(3), op.shape(1)
    return mask is not None and key is not None and len(mask) > 1 and mask[-1] is not None and mask[-1] == key[2]


def _is_grouped(op: Operator) -> bool:
    query, key = op.shape(0), op.shape(1)
    return query is None or key is None or query[1] != key[1]


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, past_key: Tensor | None, past_value: Tensor | None,
    lengths: Tensor | None, *, heads: tuple[int, int], causal: bool, window: tuple[int, int], scale: float | None,
    softcap: float, precision: torch.dtype | None, products: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Scaled dot-product attention with grouped heads.

    Parameters
    ----------
    query, key, value : Tensor
        Of shape (batch, heads, length, size), or (batch, length, heads * size).
    mask : Tensor, optional
        What takes part, or what is added to the logits; keys that it does not reach do not take part.
    past_key, past_value : Tensor, optional
        Keys and values before these.
    lengths : Tensor, optional
        How many of the keys of every sample are no padding.
    heads : tuple of int
        Those of the query, and of keys and values, for inputs of three axes.
    causal, window : bool, tuple of int
        Whether keys after the query's place take part, and how many before and after it; -1 is no limit.
    scale, softcap, precision
        The factor of the logits, the bound that a tanh gives them, the type in which the softmax is computed.
    products : int, optional
        Which products to return: as they are, after the soft cap, after the mask, after the softmax (0 to 3).

    Returns
    -------
    tuple of Tensor
        The result, all keys, all values, the products.
    """
    flat = query.ndim == 3
    if flat:
        query, key, value = _split(query, heads[0]), _split(key, heads[1]), _split(value, heads[1])
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    first: int | Tensor = 0 if past_key is None else past_key.shape[2]  # the first query's place among the keys
    if lengths is not None:
        first = (lengths - query.shape[2]).reshape(-1, 1, 1, 1)
    present = key, value
    direct = not softcap and precision is None and products is None
    triangular = direct and causal and window == (-1, -1) and mask is None and past_key is None and lengths is None
    seen = None if triangular else _seen(query, key, first, lengths, causal, window)
    if mask is not None:
        missing = key.shape[2] - mask.shape[-1]
        if missing > 0:
            mask = F.pad(mask, (0, missing), value=False if mask.dtype == torch.bool else -math.inf)
        if seen is not None:
            mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -math.inf)
    else:
        mask = seen
    if direct:
        result = F.scaled_dot_product_attention(
            query, key, value, mask if mask is None or mask.ndim > 1 else mask[None], is_causal=triangular,
            scale=scale, enable_gqa=query.shape[1] != key.shape[1],
        )  # fmt: skip
        return (_merge(result) if flat else result), *present, None
    if query.shape[1] != key.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    root = math.sqrt(abs(factor))
    raw = (query * root) @ (key * math.copysign(root, factor)).transpose(-1, -2)
    capped = softcap * torch.tanh(raw / softcap) if softcap else raw
    biased = capped
    if mask is not None:
        biased = capped.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else capped + mask
    weights = _softmax(biased if precision is None else biased.to(precision)).to(query.dtype)
    result = weights @ value
    made = None if products is None else (raw, capped, biased, weights)[products]
    return (_merge(result) if flat else result), *present, made


def _seen(
    query: Tensor, key: Tensor, first: int | Tensor, lengths: Tensor | None, causal: bool, window: tuple[int, int]
) -> Tensor | None:
    """Return which keys take part by their place, or None for all."""
    if not causal and window == (-1, -1) and lengths is None:
        return None
    places = torch.arange(key.shape[2], device=key.device)
    ahead = places - torch.arange(query.shape[2], device=key.device)[:, None] - first
    limits = []
    if causal:
        limits.append(ahead <= 0)
    if window[0] >= 0:
        limits.append(ahead >= -window[0])
    if window[1] >= 0:
        limits.append(ahead <= window[1])
    if lengths is not None:
        limits.append(places < lengths.reshape(-1, 1, 1, 1))
    seen: Tensor | None = None
    for limit in limits:
        seen = limit if seen is None else seen & limit
    return seen


def _softmax(logits: Tensor) -> Tensor:
    """Return the softmax of rows; one that sees nothing is zero, and so is its gradient."""
    blind = logits.isneginf().all(-1, keepdim=True)
    return torch.softmax(logits.masked_fill(blind, 0), -1).masked_fill(blind, 0)


def _split(x: Tensor, n_heads: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], n_heads, -1).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


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
