"""Coupling rules of the operators that ONNX Runtime adds: what its optimizers and quantizers write."""

from __future__ import annotations

import numpy as np
import pytest
from planted import feeds, net, spelled
from pruned import EXACT, error, some_units

from graphmod.pruning import groups

TOKENS = "(float[n,3,5] x) => (float[n,3,2] y)"
IMAGE = "(float[n,3,4,4] x) => (float[n,2,h,w] y)"


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def levels(seed: int, *shape: int, dtype: type = np.int8) -> np.ndarray:
    low, high = (-90, 90) if dtype is np.int8 else (40, 210)
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def scales(n: int, size: float = 0.01) -> np.ndarray:
    return (size * (1 + np.arange(n) / n)).astype(np.float32)


TABLES = {"cos": (9, 2), "sin": (9, 2), "at": np.tile(ints(0, 1, 2), (2, 1))}
QKV = {"wq": (5, 8), "wk": (5, 8), "wv": (5, 8), "v": (8, 2)}
PROJECTED = "q = MatMul(x, wq)  k = MatMul(x, wk)  u = MatMul(x, wv)"
SCALAR = np.float32(0.03)
PAIR = "(float[2,3,5] x) => (float[2,3,2] y)"
LENGTHS = {"last": np.array([2, 2], np.int32), "total": np.array(3, np.int32)}

CASES = {
    # attention
    "RotaryEmbedding": (
        PAIR, f"{PROJECTED}  a = com.microsoft.RotaryEmbedding <num_heads=2> (q, at, cos, sin)"
        "  b = com.microsoft.RotaryEmbedding(k, at, cos, sin)"
        "  o = com.microsoft.MultiHeadAttention <num_heads=2> (a, b, u)  y = MatMul(o, v)", {**QKV, **TABLES},
        {"wq.1": "aaaabbbb", "wk.1": "aaaabbbb", "wv.1": "aaaabbbb", "v.0": "aaaabbbb", "cos.1": "..", "at.1": "..."}),
    "MultiHeadAttention with a cache, a mask of keys and a bias of scores": (
        "(float[2,3,5] x, float[2,2,4,4] pk, float[2,2,4,4] pv) => (float[2,3,2] y)",
        f"{PROJECTED}  o, nk, nv = com.microsoft.MultiHeadAttention <num_heads=2> (q, k, u, b, m, e, pk, pv)"
        "  y = MatMul(o, v)",
        {**QKV, "b": (24,), "m": np.array([[1, 1, 0, 1, 1, 1, 1], [1] * 7], np.int32), "e": (1, 2, 3, 7)},
        {"wq.1": "." * 8, "wv.1": "." * 8, "b.0": "." * 24}),
    "MultiHeadAttention with a cache of zeros": (
        PAIR, f"{PROJECTED}  o, nk, nv = com.microsoft.MultiHeadAttention <num_heads=2> (q, k, u, b, m, e, p, p)"
        "  y = MatMul(o, v)",
        {**QKV, "b": (24,), "m": np.array([[1, 1, 0, 1, 1, 1, 1], [1] * 7], np.int32), "e": (1, 2, 3, 7),
         "p": (2, 2, 4, 4)},
        {"wq.1": "aaaabbbb", "wk.1": "aaaabbbb", "wv.1": "aaaabbbb", "b.0": "aaaabbbb" * 3, "e.1": "ab", "p.1": "ab",
         "p.3": "....", "v.0": "aaaabbbb"}),
    "GroupQueryAttention": (
        PAIR, f"{PROJECTED}  o, nk, nv = com.microsoft.GroupQueryAttention <num_heads=4, kv_num_heads=2, do_rotary=1>"
        " (q, k, u, p, p, last, total, cos, sin)  y = MatMul(o, v)",
        {"wq": (5, 64), "wk": (5, 32), "wv": (5, 32), "v": (64, 2), "p": (2, 2, 0, 16), "cos": (9, 8), "sin": (9, 8),
         **LENGTHS},
        {"wk.1": "a" * 16 + "b" * 16, "wv.1": "a" * 16 + "b" * 16, "wq.1": "a" * 32 + "b" * 32,
         "v.0": "a" * 32 + "b" * 32, "cos.1": "........"}),
    "GroupQueryAttention with a sink and a bias by head": (
        PAIR, f"{PROJECTED}  o, nk, nv = com.microsoft.GroupQueryAttention <num_heads=4, kv_num_heads=2>"
        " (q, k, u, , , last, total, , , , e, g)  y = MatMul(o, v)",
        {"wq": (5, 32), "wk": (5, 16), "wv": (5, 16), "v": (32, 2), "e": (1, 4, 3, 3), "g": (4,), **LENGTHS},
        {"wk.1": "a" * 8 + "b" * 8, "wq.1": "a" * 16 + "b" * 16, "e.1": "aabb", "g.0": "aabb"}),
    "GroupQueryAttention of all packed in one": (
        "(float[2,3,5] x) => (float[2,3,2] y) <float[2,3,32] o>",
        "p = MatMul(x, w)  o, nk, nv = com.microsoft.GroupQueryAttention <num_heads=4, kv_num_heads=2>"
        " (p, , , , , last, total)  y = MatMul(o, v)",
        {"w": (5, 64), "v": (32, 2), **LENGTHS},
        {"w.1": "a" * 16 + "b" * 16 + "a" * 8 + "b" * 8 + "a" * 8 + "b" * 8, "v.0": "a" * 16 + "b" * 16}),
    "QAttention": (
        TOKENS, "a = MatMul(x, w0)  q, s, z = DynamicQuantizeLinear(a)"
        "  o = com.microsoft.QAttention <num_heads=2> (q, w, b, s, ws, , z, wz)  y = MatMul(o, v)",
        {"w0": (5, 4), "w": levels(0, 4, 12), "b": (12,), "ws": scales(12), "wz": np.zeros(12, np.int8), "v": (4, 2)},
        {"w0.1": "abcd", "w.0": "abcd", "w.1": "eeff" * 3, "b.0": "eeff" * 3, "ws.0": "eeff" * 3, "v.0": "eeff"}),
    # levels
    "sums and products of levels": (
        IMAGE, "a = Conv(x, w)  b = Conv(x, w2)  qa = QuantizeLinear(a, s, z)  qb = QuantizeLinear(b, s, z)"
        "  c = com.microsoft.QLinearAdd(qa, s, z, qb, s, z, s, z)"
        "  p = com.microsoft.QLinearMul(c, s, z, qk, s, z, s, z)"
        "  d = com.microsoft.QLinearLeakyRelu <alpha=0.1> (p, s, z, s, z)"
        "  e = com.microsoft.QLinearSigmoid(d, s, z, s, z)  f = DequantizeLinear(e, s, z)  y = Conv(f, v)",
        {"w": (4, 3, 1, 1), "w2": (4, 3, 1, 1), "s": SCALAR, "z": np.uint8(128),
         "qk": levels(1, 4, 1, 1, dtype=np.uint8), "v": (2, 4, 1, 1)},
        {"w.0": "abcd", "w2.0": "abcd", "qk.0": "abcd", "v.1": "abcd"}),
    "levels that are joined and pooled": (
        IMAGE, "a = Conv(x, w)  b = Conv(x, w2)  qa = QuantizeLinear(a, s, z)  qb = QuantizeLinear(b, s, z)"
        "  c = com.microsoft.QLinearConcat <axis=1> (s, z, qb, s, z, qa, s, z)"
        "  p = com.microsoft.QLinearAveragePool <kernel_shape=[2,2]> (c, s, z, s, z)"
        "  g = com.microsoft.QLinearGlobalAveragePool(p, s, z, s, z)  f = DequantizeLinear(g, s, z)  y = Conv(f, v)",
        {"w": (4, 3, 1, 1), "w2": (3, 3, 1, 1), "s": SCALAR, "z": np.uint8(128), "v": (2, 7, 1, 1)},
        {"w.0": "abcd", "w2.0": "efg", "v.1": "efgabcd"}),
    "levels with channels last": (
        IMAGE, "a = Conv(x, w)  t = Transpose <perm=[0,2,3,1]> (a)  q = QuantizeLinear(t, s, z)"
        "  p = com.microsoft.QLinearAveragePool <kernel_shape=[2,2], channels_last=1> (q, s, z, s, z)"
        "  g = com.microsoft.QLinearGlobalAveragePool <channels_last=1> (p, s, z, s, z)"
        "  f = DequantizeLinear(g, s, z)  u = Transpose <perm=[0,3,1,2]> (f)  y = Conv(u, v)",
        {"w": (4, 3, 1, 1), "s": SCALAR, "z": np.uint8(128), "v": (2, 4, 1, 1)},
        {"w.0": "....", "v.1": "...."}),
    "a choice of levels, and a softmax of places": (
        TOKENS, "a = MatMul(x, w)  q = QuantizeLinear(a, s, z)  c = Greater(a, nil)"
        "  h = com.microsoft.QLinearWhere(c, q, s, z, k, s, z, s, z)  t = Transpose <perm=[0,2,1]> (h)"
        "  m = com.microsoft.QLinearSoftmax <axis=-1, opset=13> (t, s, z, s2, nil8)"
        "  f = DequantizeLinear(m, s2, nil8)  u = Transpose <perm=[0,2,1]> (f)  y = MatMul(u, v)",
        {"w": (5, 4), "s": SCALAR, "z": np.uint8(128), "nil": np.float32(0), "k": levels(1, 4, dtype=np.uint8),
         "s2": np.float32(1 / 256), "nil8": np.uint8(0), "v": (4, 2)},
        {"w.1": "abcd", "k.0": "abcd", "v.0": "abcd"}),
    "QGemm": (
        "(float[n,5] x) => (float[n,2] y)", "q = QuantizeLinear(x, s, z)"
        "  a = com.microsoft.QGemm <transB=1> (q, s, z, w, ws, wz, b, s, z)"
        "  c = com.microsoft.QGemm(a, s, z, v, s, nil)  y = Relu(c)",
        {"s": SCALAR, "z": np.uint8(128), "w": levels(0, 4, 5), "ws": scales(4), "wz": np.zeros(4, np.int8),
         "b": np.array([5, -9, 100, 0], np.int32), "v": levels(1, 4, 2), "nil": np.int8(3)},
        {"w.0": "abcd", "ws.0": "abcd", "wz.0": "abcd", "b.0": "abcd", "v.0": "abcd", "v.1": ".."}),
    "DynamicQuantizeMatMul": (
        TOKENS, "a = com.microsoft.DynamicQuantizeMatMul(x, w, ws, wz, b)  r = Sigmoid(a)"
        "  y = com.microsoft.DynamicQuantizeMatMul(r, v, s, z)",
        {"w": levels(0, 5, 4), "ws": scales(4), "wz": np.zeros(4, np.int8), "b": (4,), "v": levels(1, 4, 2),
         "s": np.array([0.02], np.float32), "z": np.array([0], np.int8)},
        {"w.1": "abcd", "ws.0": "abcd", "wz.0": "abcd", "b.0": "abcd", "v.0": "abcd"}),
    "MatMulIntegerToFloat": (
        TOKENS, "q, s, z = DynamicQuantizeLinear(x)  a = com.microsoft.MatMulIntegerToFloat(q, w, s, ws, z, wz, b)"
        "  y = MatMul(a, v)",
        {"w": levels(0, 5, 4), "ws": scales(4), "wz": np.zeros(4, np.int8), "b": (4,), "v": (4, 2)},
        {"w.1": "abcd", "ws.0": "abcd", "wz.0": "abcd", "b.0": "abcd", "v.0": "abcd"}),
    "DynamicQuantizeLSTM": (
        TOKENS, "t = Transpose <perm=[1,0,2]> (x)"
        "  h, l, c = com.microsoft.DynamicQuantizeLSTM <hidden_size=4> (t, w, r, b, , , , , ws, wz, rs, rz)"
        "  s = Squeeze(h, one)  k = Transpose <perm=[1,0,2]> (s)  y = MatMul(k, v)",
        {"w": levels(0, 1, 5, 16), "r": levels(1, 1, 4, 16), "b": (1, 32), "ws": scales(16).reshape(1, 16),
         "wz": np.zeros((1, 16), np.int8), "rs": np.full(1, 0.01, np.float32), "rz": np.zeros(1, np.int8),
         "one": ints(1), "v": (4, 2)},
        {"r.1": "abcd", "w.2": "abcd" * 4, "r.2": "abcd" * 4, "b.1": "abcd" * 8, "ws.1": "abcd" * 4, "v.0": "abcd"}),
    "QLinearConv of channels first": (
        IMAGE, "u = QuantizeLinear(x, s, z)  a = com.microsoft.QLinearConv(u, s, z, q, ws, wz, s, z, b)"
        "  f = DequantizeLinear(a, s, z)  y = Conv(f, v)",
        {"s": SCALAR, "z": np.uint8(128), "q": levels(0, 4, 3, 1, 1), "ws": scales(4), "wz": np.zeros(4, np.int8),
         "b": np.arange(4, dtype=np.int32), "v": (2, 4, 1, 1)},
        {"q.0": "abcd", "ws.0": "abcd", "wz.0": "abcd", "b.0": "abcd", "v.1": "abcd"}),
    "MatMulNBits": (
        "(float[n,3,32] x) => (float[n,3,2] y) <float[n,3,6] a>",
        "a = com.microsoft.MatMulNBits <N=6, K=32, bits=4, block_size=16> (x, w, s, z, , b)  y = MatMul(a, v)",
        {"w": levels(0, 6, 2, 8, dtype=np.uint8), "s": np.outer(scales(6, 0.1), [1, 2]).astype(np.float32),
         "z": levels(1, 6, 1, dtype=np.uint8), "b": (6,), "v": (6, 2)},
        {"w.0": "abcdef", "s.0": "abcdef", "z.0": "abcdef", "b.0": "abcdef", "v.0": "abcdef"}),
    "MatMulNBits that reads whole blocks": (
        "(float[n,3,5] x) => (float[n,3,2] y) <float[n,3,2] y>",
        "a = MatMul(x, w0)  y = com.microsoft.MatMulNBits <N=2, K=48, bits=4, block_size=16> (a, w, s)",
        {"w0": (5, 48), "w": levels(0, 2, 3, 8, dtype=np.uint8), "s": (2, 3)},
        {"w0.1": "a" * 16 + "b" * 16 + "c" * 16, "w.1": "abc", "s.1": "abc", "w.0": ".."}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_indices_that_go_together(name):
    signature, operators, weights, places = CASES[name]
    model = net(f"{signature} {{ {operators} }}", weights)
    found = groups(model)
    assert spelled(found, list(places)) == list(places.values())
    for seed in range(3 if len(found) else 0):
        assert error(found, some_units(found, seed), feeds(model)) <= EXACT


def test_embeddings_that_are_normalised():
    weights = {"we": (7, 4), "wp": (3, 4), "ws": (2, 4), "g": (4,), "h": (4,), "v": (4, 2)}
    signature = "(int32[n,3] x) => (float[n,3,2] y, float[n,3,2] z)"
    ends = "y = MatMul(e, v)  z = MatMul(r, v)"
    model = net(f"{signature} {{ s = Sub(x, x)  e, m, r = com.microsoft.EmbedLayerNormalization <epsilon=0.001>"
                f" (x, s, we, wp, ws, g, h)  {ends} }}", weights)  # fmt: skip
    parts = net(f"{signature} {{ s = Sub(x, x)  a = Gather(we, x)  b = Gather(ws, s)  c = Add(a, b)  r = Add(c, wp)"
                f"  e = LayerNormalization <epsilon=0.001> (r, g, h)  {ends} }}", weights)  # fmt: skip
    found = groups(model)
    places = ["we.1", "wp.1", "ws.1", "g.0", "h.0", "v.0", "we.0"]
    assert spelled(found, places) == [*["abcd"] * 6, "......."]
    for seed in range(3):
        assert error(found, some_units(found, seed), feeds(model), parts.proto()) <= EXACT
