"""Attention as ONNX Runtime fuses it, domain com.microsoft: with packed projections, masks in many forms, caches.

Masks of Attention and MultiHeadAttention are added, as large negative numbers: a query from which a mask hides all
keys alike attends as if it hid none. What is later than a query is hidden for good, as is what lies beyond a sequence
or a window in GroupQueryAttention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from onnx import NodeProto, helper
from torch import Tensor, fx, nn

from graphmod.pytorch.operator import Operator
from graphmod.pytorch.operators.attention import rotate
from graphmod.pytorch.operators.microsoft_fused import MICROSOFT
from graphmod.pytorch.registry import Outputs, operator
from graphmod.pytorch.stand_ins import like_input, stand_in


@operator("Attention", domain=MICROSOFT)
def attention(op: Operator) -> Outputs:
    """Convert Attention, whose projection to queries, keys and values is one linear layer."""
    op.requires(do_rotary=0, past_present_share_buffer=0)
    op.ignore("rotary_embedding_dim")
    weight, bias = op.weight(1, (1, 0)), op.weight(2)
    if weight is None or (op.has(2) and bias is None):
        projected = op.call(torch.matmul, op.input(0), op.input(1))
        projected = op.call(torch.add, projected, op.input(2)) if op.has(2) else projected
    else:
        n_out, n_in = weight.shape
        module = nn.Linear(n_in, n_out, bias=bias is not None, device="meta")
        projected = op.module(module, op.input(0), weight=weight, bias=bias)
    return self_attention(op, projected, mask=3, past=4, bias=5)


def self_attention(op: Operator, projected: fx.Node, *, mask: int, past: int, bias: int) -> Outputs:
    """Put in what follows the projection; ``mask``, ``past`` and ``bias`` are positions of inputs."""
    made = op.call(
        attend_packed, projected, op.optional(mask), op.optional(past), op.optional(bias),
        n_heads=op.attribute("num_heads", 0), sizes=op.attribute("qkv_hidden_sizes", None), **_options(op),
    )  # fmt: skip
    return op.items(made, 2)


def _options(op: Operator) -> dict[str, object]:
    """Return what the functions of this file have in common, from attributes."""
    return {
        "causal": bool(op.attribute("unidirectional", 0)),
        "scale": op.attribute("scale", 0.0) or None,
        "masked": op.attribute("mask_filter_value", -10000.0),
    }


def attend_packed(
    projected: Tensor,
    mask: Tensor | None,
    past: Tensor | None,
    bias: Tensor | None,
    *,
    n_heads: int,
    sizes: Sequence[int] | None,
    causal: bool,
    scale: float | None,
    masked: float,
) -> tuple[Tensor, Tensor]:
    """Self-attention from queries, keys and values side by side; returns also the keys and values seen so far."""
    parts = projected.chunk(3, -1) if sizes is None else torch.split(projected, list(sizes), -1)
    query, key, value = (_heads(part, n_heads) for part in parts)
    if past is not None:
        key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
    made = attend(query, key, value, mask, bias, causal=causal, scale=scale, masked=masked)
    same = key.shape == value.shape
    return made, torch.stack([key, value]) if same else key.new_empty(0)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    *,
    causal: bool,
    scale: float | None,
    masked: float,
) -> Tensor:
    """Scaled dot-product attention of heads (batch, head, place, element), which are put side by side at the end.

    The last queries belong to the last keys. ``masked`` is what a mask adds.
    """
    batch, _, n_rows, _ = query.shape
    n_columns = key.shape[2]
    offset = n_columns - n_rows
    added = bias
    if mask is not None:
        hidden = masked * _hidden(mask, batch, slice(offset, n_columns), n_columns).to(query.dtype)
        added = hidden if added is None else added + hidden
    if causal:
        rows = torch.arange(offset, n_columns, device=query.device)[:, None]
        later = torch.arange(n_columns, device=query.device) > rows
        base = query.new_zeros(()) if added is None else added
        added = base.masked_fill(later, torch.finfo(query.dtype).min)
    made = F.scaled_dot_product_attention(query, key, value, added, scale=scale)
    return made.transpose(1, 2).flatten(2)


def _heads(x: Tensor, n: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], n, -1).transpose(1, 2)


def _hidden(mask: Tensor, batch: int, rows: slice, n_columns: int) -> Tensor:
    """Return which keys a mask hides, as (batch or 1, head or 1, row or 1, column)."""
    if mask.ndim == 1:
        if mask.shape[0] not in (batch, 2 * batch):
            raise ValueError(f"a mask of {mask.shape[0]} numbers for a batch of {batch} has no counterpart")
        places = torch.arange(n_columns, device=mask.device)
        hidden = places >= mask[:batch, None]
        if mask.shape[0] > batch:
            hidden = hidden | (places < mask[batch:, None])
        return hidden[:, None, None]
    if mask.ndim == 4:
        return mask[:, :, rows, :n_columns] <= 0
    return mask[:, None, None] <= 0 if mask.ndim == 2 else mask[:, None] <= 0


@stand_in("Attention", "QAttention", domain=MICROSOFT)
def _values(operator: NodeProto) -> list[NodeProto]:
    """Return the product of the input and the weight's part for values."""
    name = operator.output[0]
    sizes = next((list(a.ints) for a in operator.attribute if a.name == "qkv_hidden_sizes"), None)
    if sizes is None:
        part = [
            helper.make_node("Constant", [], [f"{name}/shape"], value_ints=[0, 3, -1]),
            helper.make_node("Reshape", [operator.input[1], f"{name}/shape"], [f"{name}/thirds"]),
            helper.make_node("Constant", [], [f"{name}/third"], value_int=2),
            helper.make_node("Gather", [f"{name}/thirds", f"{name}/third"], [f"{name}/weight"], axis=1),
        ]
    else:
        limits = {"start": -sizes[2], "end": 2**31 - 1, "axis": 1}
        part = [helper.make_node("Constant", [], [f"{name}/{key}"], value_ints=[n]) for key, n in limits.items()]
        ends = [f"{name}/{key}" for key in limits]
        part.append(helper.make_node("Slice", [operator.input[1], *ends], [f"{name}/weight"]))
    if operator.op_type == "Attention":
        return [*part, helper.make_node("MatMul", [operator.input[0], f"{name}/weight"], [name])]
    return [
        *part,
        helper.make_node("MatMul", [operator.input[0], f"{name}/weight"], [f"{name}/levels"]),
        helper.make_node("DequantizeLinear", [f"{name}/levels", operator.input[3]], [name]),
    ]


@operator("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(op: Operator) -> Outputs:
    """Convert MultiHeadAttention."""
    if op.has(8) or op.has(9):
        raise op.unsupported("a cache in a buffer of fixed size has no counterpart")
    if op.uses_output(3):
        raise op.unsupported("the matrix of its products is used, which has no counterpart")
    made = op.call(
        attend_heads, *(op.optional(index) for index in range(8)),
        n_heads=op.attribute("num_heads", 0), **_options(op),
    )  # fmt: skip
    return op.items(made, 3)


def attend_heads(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    projection_bias: Tensor | None,
    mask: Tensor | None,
    bias: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    *,
    n_heads: int,
    causal: bool,
    scale: float | None,
    masked: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of queries to keys and values; returns also the keys and values seen so far.

    All three may be packed in ``query`` (batch, place, head, 3, element), or the latter two in ``key``; keys and
    values that have four axes (batch, head, place, element) are heads already, to which no bias is added.
    """
    if query.ndim == 5:
        query, key, value = (part.flatten(2) for part in query.unbind(3))
    elif key is not None and key.ndim == 5:
        key, value = (part.flatten(2) for part in key.unbind(3))
    if key is None or value is None:
        raise ValueError("keys and values are missing")
    if projection_bias is not None:
        width = query.shape[-1]
        query = query + projection_bias[:width]
        if key.ndim == 3:
            key, value = key + projection_bias[width : 2 * width], value + projection_bias[2 * width :]
    key, value = (part if part.ndim == 4 else _heads(part, n_heads) for part in (key, value))
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    made = attend(
        _heads(query, n_heads), key, value, mask, bias, causal=causal, scale=scale, masked=masked
    )  # fmt: skip
    return made, key, value


@stand_in("MultiHeadAttention", domain=MICROSOFT)
def _attended(operator: NodeProto) -> list[NodeProto]:
    """Return operators that give the output the queries' places and the values' width; none of the kept states."""
    query, key, value = [*operator.input, "", ""][:3]
    name = operator.output[0]
    if value:
        return [helper.make_node("Einsum", [query, value], [name], equation="bsh,blv->bsv")]
    shape = helper.make_node("Constant", [], [f"{name}/shape"], value_ints=[0, 0, -1])
    if key:
        heads = helper.make_node("Einsum", [query, key], [f"{name}/heads"], equation="bsh,blnpd->bsnd")
    else:
        heads = helper.make_node("Einsum", [query], [f"{name}/heads"], equation="bsnpd->bsnd")
    return [shape, heads, helper.make_node("Reshape", [f"{name}/heads", f"{name}/shape"], [name])]


# -- rotary embeddings, and attention that has them built in


@operator("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(op: Operator) -> fx.Node:
    """Convert RotaryEmbedding."""
    op.requires(is_packed_batching=0, scale=1.0)
    return op.call(
        rotate_at, *op.inputs(), n_heads=op.attribute("num_heads", 0),
        interleaved=bool(op.attribute("interleaved", 0)), n_rotated=op.attribute("rotary_embedding_dim", 0),
    )  # fmt: skip


def rotate_at(
    x: Tensor, places: Tensor, cos: Tensor, sin: Tensor, *, n_heads: int, interleaved: bool, n_rotated: int
) -> Tensor:
    """Turn pairs of elements by an angle that depends on the place; one place is that of the first in the sequence."""
    length = x.shape[1] if x.ndim == 3 else x.shape[2]
    if places.ndim < 2:
        places = (places.reshape(1, 1) + torch.arange(length, device=x.device)).expand(x.shape[0], length)
    if x.ndim == 3 and not n_heads:
        n_heads = x.shape[-1] // (2 * cos.shape[-1])
    return rotate(x, cos, sin, places, n_heads=n_heads, interleaved=interleaved, n_rotated=n_rotated)


stand_in("RotaryEmbedding", domain=MICROSOFT)(like_input(0))


@operator("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(op: Operator) -> Outputs:
    """Convert GroupQueryAttention."""
    op.requires(sliding_window_cache=0, qk_output=0, k_quant_type="NONE", v_quant_type="NONE")
    op.ignore("kv_cache_bit_width", "qk_norm_epsilon")
    for index, what in {12: "a quantized cache", 13: "a quantized cache", 14: "normalized queries"}.items():
        if op.has(index):
            raise op.unsupported(f"{what} has no counterpart")
    rotary = bool(op.attribute("do_rotary", 0))
    made = op.call(
        attend_in_groups, *(op.optional(index) for index in range(6)), op.scalar(6, 0),
        *(op.optional(index) if rotary else None for index in (7, 8, 9)), op.optional(10), op.optional(11),
        n_heads=op.attribute("num_heads", 0), n_groups=op.attribute("kv_num_heads", 0),
        causal=bool(op.attribute("causal", 1)), scale=op.attribute("scale", 0.0) or None,
        window=op.attribute("local_window_size", -1), softcap=op.attribute("softcap", 0.0),
        smooth=op.attribute("smooth_softmax", -1) > 0, interleaved=bool(op.attribute("rotary_interleaved", 0)),
    )  # fmt: skip
    return op.items(made, 3)


def attend_in_groups(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    last: Tensor,
    total: int | Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    places: Tensor | None,
    bias: Tensor | None,
    sink: Tensor | None,
    *,
    n_heads: int,
    n_groups: int,
    causal: bool,
    scale: float | None,
    window: int,
    softcap: float,
    smooth: bool,
    interleaved: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention in which groups of heads share keys and values; returns also the keys and values seen so far.

    Parameters
    ----------
    last : Tensor
        The place of each sequence's last token.
    total : int
        Number of places so far, of the longest sequence; with as many queries there is no past.
    causal : bool
        Whether a query sees no place after its own; else it sees all of its sequence.
    window : int
        How many places back a query sees, its own included; -1 for all.
    sink : Tensor, optional
        A logit per head that takes part in the softmax, but has no value; with ``smooth`` and without it, 0.
    """
    batch, n_rows, _ = query.shape
    if key is None or value is None:
        head = query.shape[-1] // (n_heads + 2 * n_groups)
        query, key, value = torch.split(query, [n_heads * head, n_groups * head, n_groups * head], -1)
    n_total = int(total)
    begin = torch.zeros_like(last) if n_total == n_rows else last + 1 - n_rows
    rows = begin.long().reshape(batch, 1) + torch.arange(n_rows, device=query.device)
    if cos is not None and sin is not None:
        turned = rows if places is None else places
        query = rotate(query, cos, sin, turned, n_heads=n_heads, interleaved=interleaved, n_rotated=2 * cos.shape[-1])
        key = rotate(key, cos, sin, turned, n_heads=n_groups, interleaved=interleaved, n_rotated=2 * cos.shape[-1])
    key, value = (
        _cached(past_key, _heads(key, n_groups), rows, n_total),
        _cached(past_value, _heads(value, n_groups), rows, n_total),
    )
    spread_key, spread_value = (part[:, :, :n_total].repeat_interleave(n_heads // n_groups, 1) for part in (key, value))
    query = _heads(query, n_heads)
    logits = query @ spread_key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias
    columns, here = torch.arange(n_total, device=query.device), rows[:, None, :, None]
    end = here if causal else last.long().reshape(batch, 1, 1, 1)
    logits = logits.masked_fill(columns > end, -torch.inf)
    if window > 0:
        logits = logits.masked_fill(columns <= here - window, -torch.inf)
    if sink is not None or smooth:
        level = logits.new_zeros(1) if sink is None else sink
        logits = torch.cat([logits, level.reshape(1, -1, 1, 1).expand(batch, n_heads, n_rows, 1)], -1)
    made = torch.softmax(logits, -1)[..., :n_total] @ spread_value
    return made.transpose(1, 2).flatten(2), key, value


def _cached(past: Tensor | None, new: Tensor, rows: Tensor, total: int) -> Tensor:
    """Return what was kept, with what is new at its places; as long as it was, or as it has to be."""
    batch, n, _, width = new.shape
    size = max(total, 0 if past is None else past.shape[2])
    kept = new.new_zeros(batch, n, size, width)
    if past is not None:
        kept = torch.cat([past, kept[:, :, past.shape[2] :]], 2)
    return kept.scatter(2, rows[:, None, :, None].expand_as(new), new)


@stand_in("GroupQueryAttention", domain=MICROSOFT)
def _grouped(operator: NodeProto) -> list[NodeProto]:
    """Return operators that take the queries out of what is packed; none of the kept states."""
    name, numbers = operator.output[0], {a.name: int(a.i) for a in operator.attribute}
    if operator.input[1]:
        return like_input(0)(operator)
    n, groups = numbers["num_heads"], numbers["kv_num_heads"]
    lists = {"heads": [0, 0, n + 2 * groups, -1], "start": [0], "end": [n], "axis": [2], "flat": [0, 0, -1]}
    return [
        *(helper.make_node("Constant", [], [f"{name}/{key}"], value_ints=ints) for key, ints in lists.items()),
        helper.make_node("Reshape", [operator.input[0], f"{name}/heads"], [f"{name}/all"]),
        helper.make_node("Slice", [f"{name}/all", *(f"{name}/{key}" for key in ("start", "end", "axis"))],
                         [f"{name}/queries"]),
        helper.make_node("Reshape", [f"{name}/queries", f"{name}/flat"], [name]),
    ]  # fmt: skip
