"""Blocks on tokens (N, L, C): linear layers, norms, attention, mixers."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from network_families.build import Builder, Trunk, family


def heads_first(b: Builder, tensor: str, length: int, heads: int, size: int) -> str:
    """Return (N, heads, L, size) of (N, L, heads * size), by numbers or by arithmetic on the tensor's own shape."""
    if b.rng.random() < 0.3:
        shape = b.op("Shape", tensor)
        batch, places, width = (b.op("Gather", shape, b.scalar(axis)) for axis in range(3))
        per_head = b.op("Div", width, b.scalar(heads))
        dims = [b.op("Unsqueeze", d, b.ints(0)) for d in (batch, places, b.scalar(heads), per_head)]
        parts = b.op("Reshape", tensor, b.op("Concat", *dims, axis=0))
    else:
        parts = b.reshape(tensor, *b.one_of((length, heads, size), (length, -1, size), (length, heads, -1)))
    return b.transpose(parts, 0, 2, 1, 3)


def attend(b: Builder, q: str, k: str, v: str, size: int, length: int, width: int) -> str:
    """Return softmax(q k' / sqrt(size)) v of (N, heads, L, size), as (N, L, width)."""
    root = size**-0.5
    if b.flip():
        scores = b.op("Mul", b.op("MatMul", q, b.transpose(k, 0, 1, 3, 2)), b.number(root))
    else:
        q, k = (b.op("Mul", tensor, b.number(root**0.5)) for tensor in (q, k))
        scores = b.op("MatMul", q, b.transpose(k, 0, 1, 3, 2))
    if b.flip():
        scores = b.op("Add", scores, b.constant(np.triu(np.full((length, length), -1e4, np.float32), 1)))
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    return b.reshape(b.transpose(mixed, 0, 2, 1, 3), length, width)


def added(b: Builder, x: Trunk, tensor: str) -> Trunk:
    return x.to(b.op("Add", x.tensor, tensor))


@family("tokens")
def linear(b: Builder, x: Trunk) -> Trunk:
    """MatMul and Add, twice, with an activation between."""
    wide, c = b.width(), b.width()
    return x.to(b.linear(b.activation(b.linear(x.tensor, x.c, wide)), wide, c), c=c)


@family("tokens")
def linear_of_transposed_weight(b: Builder, x: Trunk) -> Trunk:
    """The weight is stored as torch has it and transposed in the graph."""
    c = b.width()
    weight = b.op("Transpose", b.weight(c, x.c), perm=[1, 0])
    return x.to(b.op("Add", b.vector(c), b.op("MatMul", x.tensor, weight)), c=c)


@family("tokens")
def gemm(b: Builder, x: Trunk) -> Trunk:
    """Tokens in the batch axis; the weight either way round, what it reads too."""
    c, trans_a, trans_b = b.width(), int(b.flip()), int(b.flip())
    flat = b.reshape_batch(x.tensor, x.length, x.c)
    flat = b.transpose(flat, 1, 0) if trans_a else flat
    weight = b.weight(*((c, x.c) if trans_b else (x.c, c)), fan=x.c)
    bias = [b.vector(*b.one_of((c,), (1, c), (1,)))] if b.flip() else []
    made = b.op("Gemm", flat, weight, *bias, transA=trans_a, transB=trans_b, alpha=b.one_of(1.0, 0.5), beta=0.5)
    return x.to(b.reshape_batch(b.activation(made), 0, x.length, c), c=c)


@family("tokens")
def gemm_of_weight_on_the_left(b: Builder, x: Trunk) -> Trunk:
    """(N * L, C) transposed, multiplied from the left, by MatMul or by Gemm."""
    c = b.width()
    turned = b.transpose(b.reshape_batch(x.tensor, x.length, x.c), 1, 0)
    if b.flip():
        made = b.op("Gemm", b.weight(c, x.c), turned, b.vector(c, 1))
    else:
        made = b.op("Add", b.op("MatMul", b.weight(c, x.c), turned), b.vector(c, 1))
    return x.to(b.reshape_batch(b.transpose(made, 1, 0), 0, x.length, c), c=c)


@family("tokens")
def mixer(b: Builder, x: Trunk) -> Trunk:
    """MLP-Mixer: along tokens by a weight on the left or between transposes, then along channels."""
    if b.flip():
        mixed = b.op("MatMul", b.weight(x.length, x.length), x.tensor)
    else:
        hidden = b.activation(b.linear(b.transpose(x.tensor, 0, 2, 1), x.length, 6))
        mixed = b.transpose(b.linear(hidden, 6, x.length), 0, 2, 1)
    y = added(b, x, mixed)
    wide = b.width()
    return added(b, y, b.linear(b.activation(b.linear(y.tensor, y.c, wide)), wide, y.c))


@family("tokens")
def batched_weights(b: Builder, x: Trunk) -> Trunk:
    """A weight for each head: (heads, size, size) times (N, heads, L, size)."""
    x = b.multiple(x, 4)
    size = x.c // 2
    made = b.op("MatMul", heads_first(b, x.tensor, x.length, 2, size), b.weight(2, size, size, fan=size))
    return x.to(b.reshape(b.transpose(made, 0, 2, 1, 3), x.length, x.c))


@family("tokens")
def einsum(b: Builder, x: Trunk) -> Trunk:
    """Projections that make and read heads."""
    heads, size = 2, b.one_of(2, 4)
    parts = b.op("Einsum", x.tensor, b.weight(x.c, heads, size, fan=x.c), equation="nlc,chd->nhld")
    weight = b.weight(heads, size, x.c, fan=heads * size)
    return x.to(b.op("Einsum", b.activation(parts), weight, equation="nhld,hdc->nlc"))


@family("tokens")
def layer_norm(b: Builder, x: Trunk) -> Trunk:
    """Before a residual MLP."""
    wide = b.width()
    hidden = b.activation(b.linear(b.layer_norm(x.tensor, x.c), x.c, wide))
    return added(b, x, b.linear(hidden, wide, x.c))


@family("tokens")
def layer_norm_by_primitives(b: Builder, x: Trunk) -> Trunk:
    c = b.width()
    made = b.linear(x.tensor, x.c, c)
    centred = b.op("Sub", made, b.reduce("ReduceMean", made, [-1]))
    squared = b.op("Pow", centred, b.number(2)) if b.flip() else b.op("Mul", centred, centred)
    deviation = b.op("Sqrt", b.op("Add", b.reduce("ReduceMean", squared, [-1]), b.number(1e-5)))
    scaled = b.op("Mul", b.op("Div", centred, deviation), b.vector(c, around=1))
    return x.to(b.op("Add", scaled, b.vector(c)), c=c)


@family("tokens")
def rms_norm_by_primitives(b: Builder, x: Trunk) -> Trunk:
    mean = b.reduce("ReduceMean", b.op("Pow", x.tensor, b.number(2)), [-1])
    root = b.op("Reciprocal", b.op("Sqrt", b.op("Add", mean, b.number(1e-5))))
    wide = b.width()
    hidden = b.linear(b.op("Mul", b.vector(x.c, around=1), b.op("Mul", x.tensor, root)), x.c, wide, bias=False)
    return added(b, x, b.linear(b.activation(hidden), wide, x.c, bias=False))


@family("tokens", since=23)
def rms_norm(b: Builder, x: Trunk) -> Trunk:
    c = b.width()
    return x.to(b.op("RMSNormalization", b.linear(x.tensor, x.c, c), b.vector(c, around=1), axis=-1), c=c)


@family("tokens")
def skip_layer_norm(b: Builder, x: Trunk) -> Trunk:
    """ONNX Runtime's operator for a residual and its norm."""
    made = b.linear(x.tensor, x.c, x.c)
    weights = [b.vector(x.c, around=1), b.vector(x.c)]
    return x.to(b.op("SkipLayerNormalization", made, x.tensor, *weights, domain="com.microsoft", epsilon=1e-5))


@family("tokens")
def attention(b: Builder, x: Trunk) -> Trunk:
    """Queries, keys and values by weights of their own."""
    heads, size, own = 2, b.one_of(2, 4), b.one_of(2, 3)
    parts = []
    for width in (size, size, own):
        made = b.linear(b.layer_norm(x.tensor, x.c), x.c, heads * width)
        parts.append(heads_first(b, made, x.length, heads, width))
    mixed = attend(b, *parts, size, x.length, heads * own)
    return added(b, x, b.linear(mixed, heads * own, x.c))


@family("tokens")
def attention_packed_split(b: Builder, x: Trunk) -> Trunk:
    """One weight makes all three, which Split parts before heads are formed."""
    heads, size = 2, b.one_of(2, 3)
    width = heads * size
    packed = b.linear(b.layer_norm(x.tensor, x.c), x.c, 3 * width)
    parts = [heads_first(b, part, x.length, heads, size) for part in b.split(packed, [width] * 3, b.one_of(2, -1))]
    return added(b, x, b.linear(attend(b, *parts, size, x.length, width), width, x.c))


@family("tokens")
def attention_packed_slice(b: Builder, x: Trunk) -> Trunk:
    """One weight makes all three, head by head, which Slice parts after heads are formed."""
    heads, size = 2, b.one_of(2, 3)
    packed = heads_first(b, b.linear(x.tensor, x.c, 3 * heads * size), x.length, heads, 3 * size)
    parts = [b.slice(packed, i * size, (i + 1) * size, 3) for i in range(3)]
    return added(b, x, b.linear(attend(b, *parts, size, x.length, heads * size), heads * size, x.c))


@family("tokens")
def attention_packed_gather(b: Builder, x: Trunk) -> Trunk:
    """One weight makes all three, which Gather picks from an axis of three (as timm has it)."""
    heads, size = b.one_of((2, 3), (3, 2), (2, 2))
    packed = b.reshape(b.linear(x.tensor, x.c, 3 * heads * size), x.length, 3, heads, size)
    first = b.transpose(packed, 2, 0, 3, 1, 4)
    parts = [b.op("Gather", first, b.scalar(i), axis=0) for i in range(3)]
    return added(b, x, b.linear(attend(b, *parts, size, x.length, heads * size), heads * size, x.c))


@family("tokens")
def attention_grouped_queries(b: Builder, x: Trunk) -> Trunk:
    """Four heads of queries over two of keys and values, which Expand repeats."""
    heads, kept, size = 4, 2, 2
    q = heads_first(b, b.linear(x.tensor, x.c, heads * size), x.length, heads, size)
    repeated = []
    for _ in range(2):
        few = heads_first(b, b.linear(x.tensor, x.c, kept * size), x.length, kept, size)
        shape = b.ints(1, kept, heads // kept, x.length, size)
        many = b.op("Expand", b.op("Unsqueeze", few, b.ints(2)), shape)
        repeated.append(b.reshape(many, heads, x.length, size))
    return added(b, x, b.linear(attend(b, q, *repeated, size, x.length, heads * size), heads * size, x.c))


@family("tokens")
def attention_by_einsum(b: Builder, x: Trunk) -> Trunk:
    heads, size = 2, b.one_of(2, 3)
    q, k, v = (b.reshape(b.linear(x.tensor, x.c, heads * size), x.length, heads, size) for _ in range(3))
    scores = b.op("Einsum", q, b.op("Mul", k, b.number(size**-0.5)), equation="blhd,bmhd->bhlm")
    mixed = b.op("Einsum", b.op("Softmax", scores, axis=-1), v, equation="bhlm,bmhd->blhd")
    return added(b, x, b.linear(b.reshape(mixed, x.length, heads * size), heads * size, x.c))


@family("tokens", since=23)
def attention_operator(b: Builder, x: Trunk) -> Trunk:
    heads, size = 2, b.one_of(2, 4)
    q, k, v = (b.linear(x.tensor, x.c, heads * size) for _ in range(3))
    mixed = b.op("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads)
    return added(b, x, b.linear(mixed, heads * size, x.c))


@family("tokens")
def attention_of_channels(b: Builder, x: Trunk) -> Trunk:
    """XCiT: queries and keys of unit length along tokens, scores between channels of a head."""
    heads, size = 2, b.one_of(2, 3)
    q, k, v = (
        b.transpose(heads_first(b, b.linear(x.tensor, x.c, heads * size), x.length, heads, size), 0, 1, 3, 2)
        for _ in range(3)
    )
    q, k = (b.op("Div", t, b.op("Max", b.reduce("ReduceL2", t, [-1]), b.number(1e-6))) for t in (q, k))
    scores = b.op("Mul", b.op("MatMul", q, b.transpose(k, 0, 1, 3, 2)), b.vector(heads, 1, 1, around=1))
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    return added(b, x, b.linear(b.reshape(b.transpose(mixed, 0, 3, 1, 2), x.length, heads * size), heads * size, x.c))


@family("tokens")
def rotary(b: Builder, x: Trunk) -> Trunk:
    """Halves of a head turned by an angle for each place, then scores between them."""
    heads, half = 2, b.one_of(1, 2)
    size = 2 * half
    q, k, v = (
        heads_first(b, b.linear(x.tensor, x.c, heads * size, bias=False), x.length, heads, size) for _ in range(3)
    )
    angle = np.tile(np.outer(np.arange(x.length), 0.5 ** np.arange(half)), 2).astype(np.float32)
    cos, sin = b.constant(np.cos(angle)), b.constant(np.sin(angle))

    def turned(tensor: str) -> str:
        first, second = b.slice(tensor, 0, half, 3), b.slice(tensor, half, size, 3)
        swapped = b.op("Concat", b.op("Neg", second), first, axis=-1)
        return b.op("Add", b.op("Mul", tensor, cos), b.op("Mul", swapped, sin))

    mixed = attend(b, turned(q), turned(k), v, size, x.length, heads * size)
    return added(b, x, b.linear(mixed, heads * size, x.c))


@family("tokens")
def gated(b: Builder, x: Trunk) -> Trunk:
    """SwiGLU: a gate and values by two weights, or by one that Split or Slice parts."""
    wide, way = b.width(), b.one_of("two weights", "split", "slice")
    normal = b.layer_norm(x.tensor, x.c)
    if way == "two weights":
        gate, values = b.linear(normal, x.c, wide), b.linear(normal, x.c, wide)
    else:
        both = b.linear(normal, x.c, 2 * wide)
        if way == "split":
            gate, values = b.split(both, [wide, wide], -1)
        else:
            gate, values = b.slice(both, 0, wide, 2), b.slice(both, wide, np.iinfo(np.int64).max, 2)
    return added(b, x, b.linear(b.op("Mul", b.activation(gate), values), wide, x.c))


@family("tokens")
def softmax_of_channels(b: Builder, x: Trunk) -> Trunk:
    c = b.width()
    shares = b.op(b.one_of("Softmax", "LogSoftmax"), b.linear(x.tensor, x.c, c), axis=b.one_of(-1, 2))
    return x.to(b.linear(b.op("Mul", shares, b.number(2)), c, x.c))


@family("tokens")
def reductions(b: Builder, x: Trunk) -> Trunk:
    """What is left of channels, and of tokens, scales and shifts the trunk."""
    kind = b.one_of("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceLogSumExp")
    made = b.linear(x.tensor, x.c, b.width()) if b.flip() else x.tensor
    of_channels = b.reduce(kind, made, [2])
    of_tokens = b.reduce(b.one_of("ReduceMean", "ReduceMax", "ReduceMin"), x.tensor, [1])
    return x.to(b.op("Add", b.op("Mul", x.tensor, b.op("Tanh", of_channels)), of_tokens))


@family("tokens")
def positions(b: Builder, x: Trunk) -> Trunk:
    """A table of positions, as a weight or looked up."""
    if b.flip():
        return added(b, x, b.constant(b.values((1, x.length, x.c), 4)))
    return added(b, x, b.op("Gather", b.weight(x.length, x.c, fan=4), b.ints(*range(x.length))))


@family("tokens")
def embedding(b: Builder, x: Trunk) -> Trunk:
    """Vectors looked up by an index that the network's input gives for each place, pooled: a condition."""
    places, axis = ([1, 2], 1) if b.form == "image" else ([1], 2)
    width = b.width()
    looked_up = b.op("Gather", b.weight(4, width, fan=1), b.op("ArgMax", "x", axis=axis, keepdims=0), axis=0)
    pooled = b.reduce("ReduceMean", looked_up, places, keepdims=0)
    condition = b.linear(b.layer_norm(pooled, width), width, x.c)
    return added(b, x, b.op("Unsqueeze", condition, b.ints(1)))


@family("tokens")
def extra_token(b: Builder, x: Trunk) -> Trunk:
    """A token in front, expanded to the batch, that takes part and is dropped again."""
    token = b.weight(1, 1, x.c, fan=1)
    batch = b.slice(b.op("Shape", x.tensor), 0, 1, 0)
    expanded = b.op("Expand", token, b.op("Concat", batch, b.ints(1, x.c), axis=0))
    longer = b.op("Concat", expanded, x.tensor, axis=1)
    mixed = b.op("MatMul", b.weight(x.length + 1, x.length + 1), longer)
    return x.to(b.op("Slice", mixed, b.ints(1), b.ints(x.length + 1), b.ints(1)))


@family("tokens")
def tile(b: Builder, x: Trunk) -> Trunk:
    """A pooled token repeated for every place and joined to the channels."""
    pooled = b.linear(b.reduce("ReduceMean", x.tensor, [1]), x.c, 4)
    joined = b.op("Concat", x.tensor, b.op("Tile", pooled, b.ints(1, x.length, 1)), axis=2)
    return b.project(x.to(joined, c=x.c + 4), b.width())


@family("tokens")
def flatten(b: Builder, x: Trunk) -> Trunk:
    """Tokens and channels in one axis, read by one weight, whose output gates the channels."""
    flat = b.op("Flatten", x.tensor) if b.flip() else b.reshape(x.tensor, x.length * x.c)
    gate = b.op("Sigmoid", b.linear(flat, x.length * x.c, x.c))
    return x.to(b.op("Mul", x.tensor, b.op("Unsqueeze", gate, b.ints(1))))


@family("tokens")
def cumulative_sum(b: Builder, x: Trunk) -> Trunk:
    """Along tokens, or along channels."""
    made = b.linear(x.tensor, x.c, x.c)
    summed = b.op("CumSum", made, b.scalar(b.one_of(1, 2)), exclusive=int(b.flip()), reverse=int(b.flip()))
    return x.to(b.op("Mul", summed, b.number(0.4)))


@family("tokens")
def top_k(b: Builder, x: Trunk) -> Trunk:
    """Largest channels, or their index, as an output beside."""
    made = b.linear(x.tensor, x.c, b.width(4))
    if b.flip():
        values, indices = b.ops("TopK", made, b.ints(2), outputs=2, axis=-1)
        b.output(values, x.length, 2)
        b.output(indices, x.length, 2, element=TensorProto.INT64)
    else:
        b.output(b.op("ArgMax", made, axis=2, keepdims=0), x.length, element=TensorProto.INT64)
    return x.to(b.linear(x.tensor, x.c, x.c))


@family("tokens")
def quantized_linear(b: Builder, x: Trunk) -> Trunk:
    """Levels of a weight, one scale for every column or for all."""
    c = b.width()
    levels = b.constant(b.numbers.integers(0, 60, (x.c, c)).astype(np.uint8))
    if b.flip():
        scale = b.constant(np.exp(b.numbers.normal(-3, 0.2, c)).astype(np.float32))
        step = [scale, b.constant(b.numbers.integers(25, 35, c).astype(np.uint8))]
    else:
        step = [b.number(0.05), b.constant(np.array(30, np.uint8))]
    weight = b.op("DequantizeLinear", levels, *step, axis=1)
    return x.to(b.op("Mul", b.op("MatMul", x.tensor, weight), b.number(0.6)), c=c)


@family("tokens")
def shared_linear(b: Builder, x: Trunk) -> Trunk:
    """One weight read by two branches, and once more the other way round (as tied embeddings are)."""
    c = b.width()
    weight = b.weight(x.c, c, fan=x.c)
    first, second = b.op("MatMul", x.tensor, weight), b.op("MatMul", b.op("Neg", x.tensor), weight)
    wide = b.op("Add", b.activation(first), b.op("Tanh", second))
    return added(b, x, b.op("MatMul", wide, b.transpose(weight, 1, 0)))


@family("tokens")
def squeezes(b: Builder, x: Trunk) -> Trunk:
    """Axes of one that come and go, and a product of channels with channels (an outer product, pooled)."""
    c = b.one_of(2, 3)
    left, right = (b.op("Tanh", b.linear(x.tensor, x.c, c)) for _ in range(2))
    outer = b.op("Mul", b.op("Unsqueeze", left, b.ints(3)), b.op("Unsqueeze", right, b.ints(2)))
    flat = b.reshape(outer, x.length, c * c)
    return x.to(b.op("Squeeze", b.op("Unsqueeze", b.linear(flat, c * c, x.c), b.ints(0)), b.ints(0)))


@family("tokens")
def rotated_heads(b: Builder, x: Trunk) -> Trunk:
    """Heads that ONNX Runtime's own operators rotate and let attend."""
    heads, width = b.one_of(2, 3), 4
    angles = np.arange(x.length)[:, None] / 10.0 ** np.arange(width // 2)
    tables = [b.constant(table(angles).astype(np.float32)) for table in (np.cos, np.sin)]
    query, key, value = (b.linear(x.tensor, x.c, heads * width) for _ in range(3))
    first, counted = b.constant(np.zeros(1, np.int64)), {"num_heads": heads} if b.flip() else {}
    query, key = (
        b.op("RotaryEmbedding", part, first, *tables, domain="com.microsoft", **counted) for part in (query, key)
    )
    made = b.op("MultiHeadAttention", query, key, value, domain="com.microsoft", num_heads=heads)
    return x.to(b.op("Add", x.tensor, b.linear(made, heads * width, x.c)))
