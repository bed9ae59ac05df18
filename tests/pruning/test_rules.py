"""Coupling rules on networks written by hand, whose units are known: which indices go together, which stay, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import random_networks
from network_families import FAMILIES
from onnx import helper, numpy_helper
from planted import feeds, graph, net, spelled
from pruned import EXACT, error, some_units

from graphmod.model import load
from graphmod.pruning import cut, groups

TOKENS = "(float[n,3,5] x) => (float[n,3,2] y)"


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """A network, and for axes of its tensors which indices go together."""

    operators: str
    weights: dict[str, object]
    places: dict[str, str]
    signature: str = "(float[n,3,4,4] x) => (float[n,2,h,w] y)"
    opset: int = 17
    options: dict[str, object] = field(default_factory=dict)


def conv(n_out: int, n_in: int, *kernel: int) -> tuple[int, ...]:
    return (n_out, n_in, *(kernel or (1, 1)))


TOK = {"signature": TOKENS}

CASES = {
    "a convolution after another": Case(
        "a = Conv(x, w, b)  r = Relu(a)  y = Conv(r, v)",
        {"w": conv(4, 3), "b": (4,), "v": conv(2, 4)},
        {"w.0": "abcd", "b.0": "abcd", "v.1": "abcd", "w.1": "...", "v.0": ".."},
    ),
    "a residual joins what its branches make": Case(
        "a = Conv(x, w)  r = Relu(a)  b = Conv(r, w2)  c = Add(a, b)  y = Conv(c, v)",
        {"w": conv(3, 3), "w2": conv(3, 3), "v": conv(2, 3)},
        {"w.0": "abc", "w2.0": "abc", "w2.1": "abc", "v.1": "abc"},
    ),
    "a gate of channels, and one of places": Case(
        "a = Conv(x, w)  p = GlobalAveragePool(a)  g = Conv(p, w2)  s = Sigmoid(g)  b = Mul(a, s)"
        "  q = Conv(b, w3)  t = Sigmoid(q)  c = Mul(t, b)  y = Conv(c, v)",
        {"w": conv(4, 3), "w2": conv(4, 4), "w3": conv(1, 4), "v": conv(2, 4)},
        {"w.0": "abcd", "w2.0": "abcd", "w2.1": "abcd", "w3.1": "abcd", "v.1": "abcd"},
    ),
    "scales that broadcast by channel, and scalars that do not": Case(
        "a = Conv(x, w)  b = Mul(a, s)  c = Add(t, b)  d = PRelu(c, p)  e = Mul(d, one)  y = Conv(e, v)",
        {"w": conv(4, 3), "s": (4, 1, 1), "t": (1, 4, 1, 1), "p": (4, 1, 1), "one": (1,), "v": conv(2, 4)},
        {"w.0": "abcd", "s.0": "abcd", "t.1": "abcd", "p.0": "abcd", "v.1": "abcd", "one.0": "."},
    ),
    "slices joined in another order": Case(
        "a = Conv(x, w)  p = Slice(a, two, six, one)  q = Slice(a, none, two, one)  c = Concat <axis=1> (p, q, q)"
        "  y = Conv(c, v)",
        {"w": conv(6, 3), "two": ints(2), "six": ints(99), "none": ints(0), "one": ints(1), "v": conv(2, 8)},
        {"w.0": "abcdef", "v.1": "cdefabab"},
    ),
    "a slice counted from the end": Case(
        "a = Conv(x, w)  p = Slice(a, s, e, axis)  y = Conv(p, v)",
        {"w": conv(6, 3), "s": ints(-5), "e": ints(-2), "axis": ints(-3), "v": conv(2, 3)},
        {"w.0": "abcdef", "v.1": "bcd"},
    ),
    "unequal parts": Case(
        "a = Conv(x, w)  p, q, r = Split <axis=1> (a, sizes)  b = Conv(q, w2)  c = Add(b, r)  d = Conv(c, w3)"
        "  e = Concat <axis=1> (d, p)  y = Conv(e, v)",
        {"w": conv(6, 3), "sizes": ints(1, 2, 3), "w2": conv(3, 2), "w3": conv(1, 3), "v": conv(2, 2)},
        {"w.0": "abcdef", "w2.1": "bc", "w2.0": "def", "w3.1": "def", "v.1": "ga", "w3.0": "g"},
    ),
    "a permutation": Case(
        "a = Conv(x, w)  p = Gather <axis=1> (a, order)  y = Conv(p, v)",
        {"w": conv(4, 3), "order": ints(2, -4, 3, 1, 2), "v": conv(2, 5)},
        {"w.0": "abcd", "v.1": "cadbc"},
    ),
    "a channel shuffle": Case(
        "a = Conv(x, w)  b = Reshape(a, s1)  c = Transpose <perm=[0,2,1,3,4]> (b)  d = Reshape(c, s2)"
        "  e = Conv <group=6> (d, w2)  y = Conv(e, v)",
        {"w": conv(6, 3), "s1": ints(0, 2, 3, 4, 4), "s2": ints(0, 6, 4, 4), "w2": conv(6, 1), "v": conv(2, 6)},
        {"w.0": "abcabc", "v.1": "aabbcc", "w2.0": "aabbcc"},
    ),
    "a pixel shuffle by reshapes": Case(
        "a = Conv(x, w)  b = Reshape(a, s1)  c = Transpose <perm=[0,1,4,2,5,3]> (b)  d = Reshape(c, s2)"
        "  y = Conv(d, v)",
        {"w": conv(12, 3), "s1": ints(0, 3, 2, 2, 4, 4), "s2": ints(0, 3, 8, 8), "v": conv(2, 3)},
        {"w.0": "aaaabbbbcccc", "v.1": "abc"},
    ),
    "depth to space, columns first": Case(
        "a = Conv(x, w)  b = DepthToSpace <blocksize=2, mode=\"CRD\"> (a)  y = Conv(b, v)",
        {"w": conv(12, 3), "v": conv(2, 3)},
        {"w.0": "aaaabbbbcccc", "v.1": "abc"},
    ),
    "depth to space, depth first": Case(
        "a = Conv(x, w)  b = DepthToSpace <blocksize=2> (a)  y = Conv(b, v)",
        {"w": conv(12, 3), "v": conv(2, 3)},
        {"w.0": "abcabcabcabc", "v.1": "abc"},
    ),
    "space to depth": Case(
        "a = Conv(x, w)  b = SpaceToDepth <blocksize=2> (a)  y = Conv(b, v)",
        {"w": conv(3, 3), "v": conv(2, 12)},
        {"w.0": "abc", "v.1": "abcabcabcabc"},
    ),
    "space to depth by reshapes": Case(
        "a = Conv(x, w)  b = Reshape(a, s1)  c = Transpose <perm=[0,3,5,1,2,4]> (b)  d = Reshape(c, s2)"
        "  y = Conv(d, v)",
        {"w": conv(3, 3), "s1": ints(0, 3, 2, 2, 2, 2), "s2": ints(0, 12, 2, 2), "v": conv(2, 12)},
        {"w.0": "abc", "v.1": "abcabcabcabc"},
    ),
    "windows": Case(
        "a = Conv(x, w)  b = Reshape(a, s1)  c = Transpose <perm=[0,2,4,3,5,1]> (b)  d = Reshape(c, s2)"
        "  e = MatMul(d, w2)  y = MatMul(e, v)",
        {"w": conv(3, 3), "s1": ints(0, 3, 2, 2, 2, 2), "s2": ints(-1, 4, 3), "w2": (3, 5), "v": (5, 2)},
        {"w.0": "abc", "w2.0": "abc", "w2.1": "defgh", "v.0": "defgh"},
        "(float[n,3,4,4] x) => (float[m,4,2] y)",
    ),
    "a flattened image": Case(
        "a = Conv(x, w)  f = Flatten(a)  y = Gemm(f, v, b)",
        {"w": conv(3, 3, 3, 3), "v": (12, 2), "b": (2,)},
        {"w.0": "abc", "v.0": "aaaabbbbcccc", "v.1": "..", "b.0": ".."},
        "(float[n,3,4,4] x) => (float[n,2] y)",
    ),
    "grouped convolutions: the same place in all groups": Case(
        "a = Conv(x, w)  b = Conv <group=2> (a, w2, c)  y = Conv(b, v)",
        {"w": conv(6, 3), "w2": conv(4, 3), "c": (4,), "v": conv(2, 4)},
        {"w.0": "abcabc", "w2.1": "abc", "w2.0": "dede", "c.0": "dede", "v.1": "dede"},
    ),
    "a depthwise convolution of two outputs a channel": Case(
        "a = Conv(x, w)  b = Conv <group=3> (a, w2)  y = Conv(b, v)",
        {"w": conv(3, 3), "w2": conv(6, 1), "v": conv(2, 6)},
        {"w.0": "abc", "w2.0": "aabbcc", "v.1": "aabbcc"},
    ),
    "a transposed convolution": Case(
        "a = Conv(x, w)  b = ConvTranspose(a, w2, c)  y = Conv(b, v)",
        {"w": conv(4, 3), "w2": (4, 3, 2, 2), "c": (3,), "v": conv(2, 3)},
        {"w.0": "abcd", "w2.0": "abcd", "w2.1": "efg", "c.0": "efg", "v.1": "efg"},
    ),
    "a grouped transposed convolution": Case(
        "a = Conv(x, w)  b = ConvTranspose <group=2> (a, w2, c)  y = Conv(b, v)",
        {"w": conv(6, 3), "w2": (6, 3, 2, 2), "c": (6,), "v": conv(2, 6)},
        {"w.0": "abcabc", "w2.0": "abcabc", "w2.1": "def", "c.0": "defdef", "v.1": "defdef"},
    ),
    "tied weights tie what they read and make": Case(
        "a = Conv(x, w)  b = Conv(a, s)  c = Relu(b)  d = Conv(c, s)  y = Conv(d, v)",
        {"w": conv(4, 3), "s": conv(4, 4), "v": conv(2, 4)},
        {"w.0": "abcd", "s.0": "abcd", "s.1": "abcd", "v.1": "abcd"},
    ),
    "batch normalisation": Case(
        "a = Conv(x, w)  b = BatchNormalization(a, g, h, m, s)  y = Conv(b, v)",
        {"w": conv(3, 3), "g": (3,), "h": (3,), "m": (3,), "s": np.ones(3, np.float32), "v": conv(2, 3)},
        {"w.0": "abc", "g.0": "abc", "h.0": "abc", "m.0": "abc", "s.0": "abc"},
    ),
    "group normalisation": Case(
        "a = Conv(x, w)  b = GroupNormalization <num_groups=2> (a, g, h)  y = Conv(b, v)",
        {"w": conv(6, 3), "g": (6,), "h": (6,), "v": conv(2, 6)},
        {"w.0": "abcabc", "g.0": "abcabc", "h.0": "abcabc"},
        opset=21, options={"ir_version": 10},
    ),
    "group normalisation by instance normalisation": Case(
        "a = Conv(x, w)  b = Reshape(a, s1)  c = InstanceNormalization(b, g, h)  d = Reshape(c, s2)  e = Mul(d, k)"
        "  y = Conv(e, v)",
        {"w": conv(6, 3), "s1": ints(0, 2, -1), "g": (2,), "h": (2,), "s2": ints(0, 6, 4, 4), "k": (6, 1, 1),
         "v": conv(2, 6)},
        {"w.0": "abcabc", "k.0": "abcabc", "v.1": "abcabc", "g.0": ".."},
    ),
    "padding adds channels that are no unit's, until something is added to them": Case(
        "a = Conv(x, w)  b = Pad(a, p)  c = Conv(a, w2)  d = Add(b, c)  y = Conv(d, v)",
        {"w": conv(3, 3), "p": ints(0, 1, 0, 0, 0, 2, 0, 0), "w2": conv(6, 3), "v": conv(2, 6)},
        {"w.0": "abc", "w2.0": "dabcef", "v.1": "dabcef"},
    ),
    "padding alone": Case(
        "a = Conv(x, w)  b = Pad(a, p)  y = Conv(b, v)",
        {"w": conv(3, 3), "p": ints(0, 1, 1, 0, 0, 1, 0, 0), "v": conv(2, 5)},
        {"w.0": "abc", "v.1": ".abc."},
    ),
    "channels repeated": Case(
        "a = Conv(x, w)  b = Tile(a, r)  y = Conv(b, v)",
        {"w": conv(3, 3), "r": ints(1, 2, 1, 1), "v": conv(2, 6)},
        {"w.0": "abc", "v.1": "abcabc"},
    ),
    "a vector expanded to the image": Case(
        "p = GlobalAveragePool(x)  a = Conv(p, w)  b = Expand(a, s)  c = Conv(x, w2)  d = Mul(b, c)  y = Conv(d, v)",
        {"w": conv(3, 3), "s": ints(1, 3, 4, 4), "w2": conv(3, 3), "v": conv(2, 3)},
        {"w.0": "abc", "w2.0": "abc", "v.1": "abc"},
    ),
    "resized by scales": Case(
        "a = Conv(x, w)  b = Resize <mode=\"nearest\"> (a, , k)  y = Conv(b, v)",
        {"w": conv(3, 3), "k": np.array([1, 1, 2, 2], np.float32), "v": conv(2, 3)},
        {"w.0": "abc", "v.1": "abc"},
    ),
    "resized to named sizes": Case(
        "a = Conv(x, w)  b = Resize <mode=\"linear\"> (a, , , k)  y = Conv(b, v)",
        {"w": conv(3, 3), "k": ints(2, 3, 8, 6), "v": conv(2, 3)},
        {"w.0": "abc", "v.1": "abc"},
        "(float[2,3,4,4] x) => (float[2,2,8,6] y)",
    ),
    "resized to named sizes of some axes": Case(
        "a = Conv(x, w)  b = Resize <mode=\"nearest\", axes=[-1,1]> (a, , , k)  y = Conv(b, v)",
        {"w": conv(3, 3), "k": ints(6, 3), "v": conv(2, 3)},
        {"w.0": "abc", "v.1": "abc"},
        opset=18,
    ),
    "pooled": Case(
        "a = Conv(x, w)  b, i = MaxPool <kernel_shape=[2,2]> (a)  c = AveragePool <kernel_shape=[2,2]> (b)"
        "  y = Conv(c, v)",
        {"w": conv(3, 3), "v": conv(2, 3)},
        {"w.0": "abc", "v.1": "abc"},
    ),
    "local response normalisation by a moving average over channels": Case(
        "a = Conv(x, w)  q = Mul(a, a)  f = Reshape(q, s1)  p = Pad(f, pads)"
        "  m = AveragePool <kernel_shape=[3,1,1]> (p)  u = Squeeze(m, one)  e = Add(u, k)  d = Sqrt(e)  n = Div(a, d)"
        "  y = Conv(n, v)",
        {"w": conv(6, 3), "s1": ints(-1, 1, 6, 4, 4), "pads": ints(0, 0, 1, 0, 0, 0, 0, 1, 0, 0), "one": ints(1),
         "k": np.float32(0.5), "v": conv(2, 6)},
        {"w.0": "abcdef", "v.1": "abcdef"},
    ),
    "local response normalisation of an even number of neighbours, padded by the average": Case(
        "a = Conv(x, w)  q = Mul(a, a)  f = Unsqueeze(q, one)"
        "  m = AveragePool <kernel_shape=[4,1,1], pads=[2,0,0,1,0,0], count_include_pad=1> (f)  u = Squeeze(m, one)"
        "  e = Add(u, k)  d = Sqrt(e)  n = Div(a, d)  y = Conv(n, v)",
        {"w": conv(6, 3), "one": ints(1), "k": np.float32(0.5), "v": conv(2, 6)},
        {"w.0": "abcdef", "v.1": "abcdef"},
    ),
    "a moving average of channels that shortens the axis": Case(
        "a = Conv(x, w)  f = Unsqueeze(a, one)  m = AveragePool <kernel_shape=[3,1,1]> (f)  u = Squeeze(m, one)"
        "  y = Conv(u, v)",
        {"w": conv(6, 3), "one": ints(1), "v": conv(2, 4)}, {"w.0": ".abcd.", "v.1": "abcd"},
    ),
    "an average by larger steps": Case(
        "a = Conv(x, w)  f = Unsqueeze(a, one)  m = AveragePool <kernel_shape=[3,1,1], strides=[3,1,1]> (f)"
        "  u = Squeeze(m, one)  y = Conv(u, v)",
        {"w": conv(6, 3), "one": ints(1), "v": conv(2, 2)}, {"w.0": "......", "v.1": ".."},
    ),
    "a weight that is computed from others": Case(
        "t = Transpose <perm=[1,0,2,3]> (w)  k = Mul(t, s)  a = Conv(x, k)  y = Conv(a, v)",
        {"w": conv(3, 4), "s": (4, 1, 1, 1), "v": conv(2, 4)},
        {"w.1": "abcd", "s.0": "abcd", "v.1": "abcd"},
    ),
    "a quantised weight by channel": Case(
        "w = DequantizeLinear <axis=0> (q, s, z)  a = Conv(x, w)  y = Conv(a, v)",
        {"q": np.arange(12, dtype=np.int8).reshape(4, 3, 1, 1), "s": np.array([0.1, 0.2, 0.3, 0.4], np.float32),
         "z": np.array([1, 0, 2, 0], np.int8), "v": conv(2, 4)},
        {"q.0": "abcd", "s.0": "abcd", "z.0": "abcd", "v.1": "abcd"},
    ),
    "an integer convolution": Case(
        "u, us, uz = DynamicQuantizeLinear(x)  a = ConvInteger(u, q, uz, z)  f = Cast <to=1> (a)  y = Conv(f, v)",
        {"q": np.arange(12, dtype=np.uint8).reshape(4, 3, 1, 1), "z": np.array(3, np.uint8), "v": conv(2, 4)},
        {"q.0": "abcd", "v.1": "abcd"},
    ),
    "a quantised convolution": Case(
        "u = QuantizeLinear(x, s, zx)  a = QLinearConv(u, s, zx, q, ws, wz, s, zx, b)  f = DequantizeLinear(a, s, zx)"
        "  y = Conv(f, v)",
        {"s": np.float32(0.05), "zx": np.uint8(128), "q": np.arange(-6, 6, dtype=np.int8).reshape(4, 3, 1, 1),
         "ws": np.array([0.1, 0.2, 0.3, 0.4], np.float32), "wz": np.zeros(4, np.int8),
         "b": np.arange(4, dtype=np.int32), "v": conv(2, 4)},
        {"q.0": "abcd", "ws.0": "abcd", "wz.0": "abcd", "b.0": "abcd", "v.1": "abcd"},
    ),
    # positions
    "unpooled": Case(
        "a = Conv(x, w)  b, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a)  r = Relu(b)"
        "  c = MaxUnpool <kernel_shape=[2,2], strides=[2,2]> (r, i)  y = Conv(c, v)",
        {"w": conv(4, 3), "v": conv(2, 4)},
        {"w.0": "abcd", "v.1": "abcd"},
    ),
    "unpooled to a named shape": Case(
        "a = Conv(x, w)  b, i = MaxPool <kernel_shape=[2,2], strides=[2,2]> (a)"
        "  c = MaxUnpool <kernel_shape=[2,2], strides=[2,2]> (b, i, s)  y = Conv(c, v)",
        {"w": conv(4, 3), "s": ints(2, 4, 4, 4), "v": conv(2, 4)},
        {"w.0": "abcd", "v.1": "abcd"}, "(float[2,3,4,4] x) => (float[2,2,h,w] y) <float[2,4,4,4] c>",
    ),
    "sampled on a grid": Case(
        "a = Conv(x, w)  t = Expand(theta, e)  g = AffineGrid(t, s)  b = GridSample(a, g)  y = Conv(b, v)",
        {"w": conv(4, 3), "theta": (1, 2, 3), "e": ints(2, 1, 1), "s": ints(2, 4, 5, 6), "v": conv(2, 4)},
        {"w.0": "abcd", "v.1": "abcd"}, "(float[2,3,4,4] x) => (float[2,2,h,w] y)", 20,
    ),
    "regions of interest": Case(
        "a = Conv(x, w)  b = RoiAlign <output_height=2, output_width=2> (a, rois, at)"
        "  c = MaxRoiPool <pooled_shape=[2,2]> (a, boxes)  d = Add(b, c)  y = Conv(d, v)",
        {"w": conv(4, 3), "rois": np.array([[0, 0, 3, 3], [1, 0, 3, 2]], np.float32), "at": ints(0, 1),
         "boxes": np.array([[0, 0, 0, 3, 3], [1, 1, 0, 3, 2]], np.float32), "v": conv(2, 4)},
        {"w.0": "abcd", "rois.0": "..", "v.1": "abcd"},
    ),
    "deformable convolution": Case(
        "a = Conv(x, w)  o = Conv <pads=[1,1,1,1]> (x, w1)  m = Conv <pads=[1,1,1,1]> (x, w2)"
        "  b = DeformConv <pads=[1,1,1,1]> (a, w3, o, c, m)  y = Conv(b, v)",
        {"w": conv(4, 3), "w1": conv(18, 3, 3, 3), "w2": conv(9, 3, 3, 3), "w3": conv(3, 4, 3, 3), "c": (3,),
         "v": conv(2, 3)},
        {"w.0": "abcd", "w3.1": "abcd", "w3.0": "efg", "c.0": "efg", "v.1": "efg", "w1.0": "." * 18, "w2.0": "." * 9},
        opset=19,
    ),
    "deformable convolution of groups that share offsets": Case(
        "a = Conv(x, w)  o = Conv(x, w1)  b = DeformConv <offset_group=2> (a, w3, o)  y = Conv(b, v)",
        {"w": conv(6, 3), "w1": conv(4, 3), "w3": conv(3, 6), "v": conv(2, 3)},
        {"w.0": "abcabc", "w3.1": "abcabc", "w3.0": "def", "v.1": "def", "w1.0": "...."}, opset=19,
    ),
    "columns to an image": Case(
        "a = Conv(x, w)  f = Reshape(a, s)  b = Col2Im <strides=[2,2]> (f, i, k)  y = Conv(b, v)",
        {"w": conv(12, 3), "s": ints(0, 12, 16), "i": ints(8, 8), "k": ints(2, 2), "v": conv(2, 3)},
        {"w.0": "aaaabbbbcccc", "v.1": "abc"}, opset=18,
    ),
    "cut to the center": Case(
        "a = Conv(x, w)  b = CenterCropPad <axes=[1,-1]> (a, s)  y = Conv(b, v)",
        {"w": conv(4, 3), "s": ints(4, 2), "v": conv(2, 4)},
        {"w.0": "abcd", "v.1": "abcd"}, opset=18,
    ),
    "a Fourier transform of positions": Case(
        "a = Conv(x, w)  u = Unsqueeze(a, last)  b = DFT <onesided=1, axis=3> (u)"
        "  r = ReduceSum <keepdims=0> (b, last)  y = Conv(r, v)",
        {"w": conv(4, 3), "last": ints(-1), "v": conv(2, 4)},
        {"w.0": "abcd", "v.1": "abcd"},
    ),
    # indices
    "elements gathered along positions": Case(
        "a = Conv(x, w)  b = GatherElements <axis=-1> (a, i)  y = Conv(b, v)",
        {"w": conv(4, 3), "i": np.arange(64, dtype=np.int64).reshape(2, 4, 4, 2) % 4, "v": conv(2, 4)},
        {"w.0": "abcd", "i.1": "abcd", "v.1": "abcd"}, "(float[2,3,4,4] x) => (float[2,2,h,w] y)",
    ),
    "elements of the first channels": Case(
        "a = Conv(x, w)  b = GatherElements <axis=3> (a, i)  y = Conv(b, v)",
        {"w": conv(4, 3), "i": np.arange(48, dtype=np.int64).reshape(2, 3, 4, 2) % 4, "v": conv(2, 3)},
        {"w.0": "abcd", "i.1": "abc", "v.1": "abc"}, "(float[2,3,4,4] x) => (float[2,2,h,w] y)",
    ),
    "elements put along positions": Case(
        "a = Conv(x, w)  c = Conv(x, w2)  u = Slice(c, zero, two, last)"
        "  b = ScatterElements <axis=3, reduction=\"add\"> (a, i, u)  y = Conv(b, v)",
        {"w": conv(4, 3), "w2": conv(4, 3), "zero": ints(0), "two": ints(2), "last": ints(3),
         "i": np.arange(64, dtype=np.int64).reshape(2, 4, 4, 2) % 4, "v": conv(2, 4)},
        {"w.0": "abcd", "w2.0": "abcd", "i.1": "abcd", "v.1": "abcd"}, "(float[2,3,4,4] x) => (float[2,2,h,w] y)", 16,
    ),
    "rows gathered by tuples": Case(
        "a = MatMul(x, w)  b = GatherND(a, i)  c = Relu(b)  y = MatMul(c, v)",
        {"w": (5, 4), "i": np.array([[[0, 1], [1, 2]], [[1, 0], [0, 0]]]), "v": (4, 2)},
        {"w.1": "abcd", "v.0": "abcd"}, "(float[2,3,5] x) => (float[2,2,2] y)",
    ),
    "rows gathered by tuples, sample by sample": Case(
        "a = MatMul(x, w)  b = GatherND <batch_dims=1> (a, i)  c = Relu(b)  y = MatMul(c, v)",
        {"w": (5, 4), "i": np.array([[[0], [1]], [[1], [2]]]), "v": (4, 2)},
        {"w.1": "abcd", "v.0": "abcd"}, "(float[2,3,5] x) => (float[2,2,2] y)",
    ),
    "rows put by tuples": Case(
        "a = MatMul(x, w)  u = MatMul(z, w2)  b = ScatterND(a, i, u)  y = MatMul(b, v)",
        {"w": (5, 4), "z": (2, 3), "w2": (3, 4), "i": np.array([[0, 1], [1, 2]]), "v": (4, 2)},
        {"w.1": "abcd", "w2.1": "abcd", "z.0": "..", "v.0": "abcd"}, "(float[2,3,5] x) => (float[2,3,2] y)",
    ),
    "a cache that is written to": Case(
        "a = MatMul(x, w)  u = MatMul(z, w2)  b = TensorScatter <axis=1> (a, u)  y = MatMul(b, v)",
        {"w": (5, 4), "z": (2, 2, 3), "w2": (3, 4), "v": (4, 2)},
        {"w.1": "abcd", "w2.1": "abcd", "z.1": "..", "v.0": "abcd"}, "(float[2,3,5] x) => (float[2,3,2] y)", 24,
        {"ir_version": 10},
    ),
    "sequences turned round": Case(
        "a = MatMul(x, w)  b = ReverseSequence <batch_axis=0, time_axis=1> (a, n)  y = MatMul(b, v)",
        {"w": (5, 4), "n": ints(2, 3), "v": (4, 2)},
        {"w.1": "abcd", "v.0": "abcd", "n.0": ".."}, "(float[2,3,5] x) => (float[2,3,2] y)",
    ),
    "classes one by one": Case(
        "c = ArgMax <axis=-1, keepdims=0> (x)  h = OneHot(c, d, o)  a = MatMul(h, w)  y = MatMul(a, v)",
        {"d": np.int64(5), "o": np.array([0, 1], np.float32), "w": (5, 4), "v": (4, 2)},
        {"w.0": ".....", "w.1": "abcd", "v.0": "abcd"}, **TOK,
    ),
    "channels turned round": Case(
        "a = Conv(x, w)  b = Slice(a, s, e, one, s)  y = Conv(b, v)",
        {"w": conv(4, 3), "s": ints(-1), "e": ints(-(2**63)), "one": ints(1), "v": conv(2, 4)},
        {"w.0": "abcd", "v.1": "dcba"},
    ),
    "noise by channel": Case(
        "a = Conv(x, w)  r = RandomNormal <shape=[1,4,1,1], scale=0.000001> ()  b = Add(a, r)  y = Conv(b, v)",
        {"w": conv(4, 3), "v": conv(2, 4)},
        {"w.0": "abcd", "v.1": "abcd"},
    ),
    # matrix products
    "two linear layers": Case(
        "a = MatMul(x, w)  b = Add(a, c)  r = Relu(b)  y = MatMul(r, v)",
        {"w": (5, 4), "c": (4,), "v": (4, 2)},
        {"w.0": ".....", "w.1": "abcd", "c.0": "abcd", "v.0": "abcd"}, **TOK,
    ),
    "transposed operands of Gemm": Case(
        "a = Gemm <transB=1> (x, w, c)  t = Transpose(a)  b = Gemm <transA=1> (t, w2)  y = Gemm <transA=1, transB=1>"
        " (u, b, d)",
        {"w": (4, 5), "c": (1, 4), "w2": (4, 3), "u": (3, 6), "d": (6, 1)},
        {"w.0": "abcd", "c.1": "abcd", "w2.0": "abcd", "w2.1": "efg", "u.0": "efg", "u.1": "......"},
        "(float[n,5] x) => (float[6,n] y)",
    ),
    "a weight on the left": Case(
        "a = MatMul(w, x)  r = Relu(a)  b = MatMul(w2, r)  y = MatMul(b, v)",
        {"w": (4, 3), "w2": (3, 4), "v": (5, 2)},
        {"w.0": "abcd", "w2.1": "abcd", "w2.0": "...", "v.0": "....."}, **TOK,
    ),
    "weights by batch": Case(
        "t = Transpose <perm=[1,0,2]> (x)  a = MatMul(t, w)  r = Relu(a)  b = MatMul(r, w2)"
        "  y = Transpose <perm=[1,0,2]> (b)",
        {"w": (3, 5, 4), "w2": (3, 4, 2)},
        {"w.2": "abcd", "w2.1": "abcd", "w.0": "..."}, **TOK,
    ),
    "a diagonal of weights": Case(
        "d = Einsum <equation=\"ii->i\"> (k)  a = MatMul(x, w)  b = Mul(a, d)  y = MatMul(b, v)",
        {"w": (5, 4), "k": (4, 4), "v": (4, 2)},
        {"w.1": "abcd", "k.0": "abcd", "k.1": "abcd", "v.0": "abcd"}, **TOK,
    ),
    "Einsum": Case(
        "a = Einsum <equation=\"bti, oi -> bto\"> (x, w)  b = Einsum <equation=\"...o,oh\"> (a, w2)  y = MatMul(b, v)",
        {"w": (4, 5), "w2": (4, 3), "v": (3, 2)},
        {"w.0": "abcd", "w2.0": "abcd", "w2.1": "efg", "v.0": "efg"}, **TOK,
    ),
    "Einsum with heads": Case(
        "a = Einsum <equation=\"bti,ihd->bhtd\"> (x, w)  b = Einsum <equation=\"...htd,hdo->...to\"> (a, w2)"
        "  y = MatMul(b, v)",
        {"w": (5, 2, 3), "w2": (2, 3, 4), "v": (4, 2)},
        {"w.1": "ab", "w.2": "cde", "w2.0": "ab", "w2.1": "cde", "w2.2": "fghi", "v.0": "fghi"}, **TOK,
    ),
    "an integer matrix product": Case(
        "u, us, uz = DynamicQuantizeLinear(x)  a = MatMulInteger(u, q, uz, z)  f = Cast <to=1> (a)  y = MatMul(f, v)",
        {"q": np.arange(20, dtype=np.uint8).reshape(5, 4), "z": np.array([1, 2, 3, 4], np.uint8), "v": (4, 2)},
        {"q.1": "abcd", "z.0": "abcd", "v.0": "abcd"}, **TOK,
    ),
    "a quantised matrix product": Case(
        "u = QuantizeLinear(x, s, zx)  a = QLinearMatMul(u, s, zx, q, ws, wz, s, zx)  f = DequantizeLinear(a, s, zx)"
        "  y = MatMul(f, v)",
        {"s": np.float32(0.05), "zx": np.uint8(128), "q": np.arange(-10, 10, dtype=np.int8).reshape(5, 4),
         "ws": np.array([0.1, 0.2, 0.3, 0.4], np.float32), "wz": np.zeros(4, np.int8), "v": (4, 2)},
        {"q.1": "abcd", "ws.0": "abcd", "wz.0": "abcd", "v.0": "abcd"}, **TOK,
    ),
    "an embedding table, tied with what the logits are made by": Case(
        "e = Gather(w, x)  a = MatMul(e, u)  r = Relu(a)  f = MatMul(r, u2)  t = Transpose(w)  y = MatMul(f, t)",
        {"w": (7, 4), "u": (4, 3), "u2": (3, 4)},
        {"w.1": "abcd", "u.0": "abcd", "u2.1": "abcd", "w.0": ".......", "u.1": "efg", "u2.0": "efg"},
        "(int64[n,3] x) => (float[n,3,7] y)",
    ),
    "layer normalisation": Case(
        "a = MatMul(x, w)  b = LayerNormalization(a, g, h)  y = MatMul(b, v)",
        {"w": (5, 4), "g": (4,), "h": (4,), "v": (4, 2)},
        {"w.1": "abcd", "g.0": "abcd", "h.0": "abcd", "v.0": "abcd"}, **TOK,
    ),
    "layer normalisation by its parts": Case(
        "a = MatMul(x, w)  m = ReduceMean <axes=[-1]> (a)  c = Sub(a, m)  s = Mul(c, c)  q = ReduceMean <axes=[-1]> (s)"
        "  e = Add(q, eps)  d = Sqrt(e)  k = Div(c, d)  i = Mul(k, g)  y = MatMul(i, v)",
        {"w": (5, 4), "eps": np.float32(1e-5), "g": (4,), "v": (4, 2)},
        {"w.1": "abcd", "g.0": "abcd", "v.0": "abcd"}, **TOK,
    ),
    "a normalisation that ONNX Runtime adds to the standard": Case(
        "a = MatMul(x, w)  b = SimplifiedLayerNormalization <axis=-1, epsilon=0.00001> (a, g)  y = MatMul(b, v)",
        {"w": (5, 4), "g": (4,), "v": (4, 2)},
        {"w.1": "abcd", "g.0": "abcd", "v.0": "abcd"}, **TOK,
    ),
    # heads
    "heads of separate projections": Case(
        "q = MatMul(x, wq)  k = MatMul(x, wk)  u = MatMul(x, wv)"
        "  q4 = Reshape(q, s)  qt = Transpose <perm=[0,2,1,3]> (q4)"
        "  k4 = Reshape(k, s)  kt = Transpose <perm=[0,2,3,1]> (k4)"
        "  u4 = Reshape(u, s)  ut = Transpose <perm=[0,2,1,3]> (u4)"
        "  a = MatMul(qt, kt)  p = Softmax(a)  o = MatMul(p, ut)"
        "  ot = Transpose <perm=[0,2,1,3]> (o)  of = Reshape(ot, f)  y = MatMul(of, v)",
        {"wq": (5, 6), "wk": (5, 6), "wv": (5, 6), "s": ints(0, 0, 2, 3), "f": ints(0, 0, 6), "v": (6, 2)},
        {"wq.1": "aaabbb", "wk.1": "aaabbb", "wv.1": "aaabbb", "v.0": "aaabbb"}, **TOK,
    ),
    "heads of one packed projection, split": Case(
        "h = MatMul(x, w)  q, k, u = Split <axis=2> (h)"
        "  q4 = Reshape(q, s)  qt = Transpose <perm=[0,2,1,3]> (q4)"
        "  k4 = Reshape(k, s)  kt = Transpose <perm=[0,2,3,1]> (k4)"
        "  u4 = Reshape(u, s)  ut = Transpose <perm=[0,2,1,3]> (u4)"
        "  a = MatMul(qt, kt)  p = Softmax(a)  o = MatMul(p, ut)"
        "  ot = Transpose <perm=[0,2,1,3]> (o)  of = Reshape(ot, f)  y = MatMul(of, v)",
        {"w": (5, 18), "s": ints(0, 0, 2, 3), "f": ints(0, 0, 6), "v": (6, 2)},
        {"w.1": "aaabbbaaabbbaaabbb", "v.0": "aaabbb"}, **TOK,
    ),
    "heads of one packed projection, by an axis of three": Case(
        "h = MatMul(x, w)  h5 = Reshape(h, s)  t = Transpose <perm=[2,0,3,1,4]> (h5)"
        "  q = Gather(t, i0)  k = Gather(t, i1)  u = Gather(t, i2)  kt = Transpose <perm=[0,1,3,2]> (k)"
        "  a = MatMul(q, kt)  p = Softmax(a)  o = MatMul(p, u)"
        "  ot = Transpose <perm=[0,2,1,3]> (o)  of = Reshape(ot, f)  y = MatMul(of, v)",
        {"w": (5, 18), "s": ints(0, 0, 3, 2, 3), "i0": np.int64(0), "i1": np.int64(1), "i2": np.int64(2),
         "f": ints(0, 0, -1), "v": (6, 2)},
        {"w.1": "aaabbbaaabbbaaabbb", "v.0": "aaabbb"}, **TOK,
    ),
    "heads of one packed projection, by slices": Case(
        "h = MatMul(x, w)  h5 = Reshape(h, s)  t = Transpose <perm=[2,0,3,1,4]> (h5)"
        "  q1 = Slice(t, i0, i1, i0)  k1 = Slice(t, i1, i2, i0)  u1 = Slice(t, i2, i3, i0)"
        "  q = Squeeze(q1, i0)  k = Squeeze(k1, i0)  u = Squeeze(u1, i0)  kt = Transpose <perm=[0,1,3,2]> (k)"
        "  a = MatMul(q, kt)  p = Softmax(a)  o = MatMul(p, u)"
        "  ot = Transpose <perm=[0,2,1,3]> (o)  of = Reshape(ot, f)  y = MatMul(of, v)",
        {"w": (5, 18), "s": ints(0, 0, 3, 2, 3), "i0": ints(0), "i1": ints(1), "i2": ints(2), "i3": ints(3),
         "f": ints(0, 0, -1), "v": (6, 2)},
        {"w.1": "aaabbbaaabbbaaabbb", "v.0": "aaabbb"}, **TOK,
    ),
    "query heads that share a key": Case(
        "q = MatMul(x, wq)  k = MatMul(x, wk)  u = MatMul(x, wv)"
        "  q4 = Reshape(q, s)  qt = Transpose <perm=[0,2,1,3]> (q4)"
        "  k4 = Reshape(k, s2)  kt = Transpose <perm=[0,2,1,3]> (k4)  k5 = Unsqueeze(kt, i2)  ke = Expand(k5, e)"
        "  kh = Reshape(ke, h)  kk = Transpose <perm=[0,1,3,2]> (kh)"
        "  u4 = Reshape(u, s2)  ut = Transpose <perm=[0,2,1,3]> (u4)  u5 = Unsqueeze(ut, i2)  ue = Expand(u5, e)"
        "  uh = Reshape(ue, h)"
        "  a = MatMul(qt, kk)  p = Softmax(a)  o = MatMul(p, uh)"
        "  ot = Transpose <perm=[0,2,1,3]> (o)  of = Reshape(ot, f)  y = MatMul(of, v)",
        {"wq": (5, 12), "wk": (5, 6), "wv": (5, 6), "s": ints(0, 0, 4, 3), "s2": ints(0, 0, 2, 3), "i2": ints(2),
         "e": ints(1, 2, 2, 3, 3), "h": ints(0, 4, 3, 3), "f": ints(0, 0, 12), "v": (12, 2)},
        {"wk.1": "aaabbb", "wv.1": "aaabbb", "wq.1": "aaaaaabbbbbb", "v.0": "aaaaaabbbbbb"}, **TOK,
    ),
    "talking heads": Case(
        "q = MatMul(x, wq)  k = MatMul(x, wk)  u = MatMul(x, wv)"
        "  q4 = Reshape(q, s)  qt = Transpose <perm=[0,2,1,3]> (q4)"
        "  k4 = Reshape(k, s)  kt = Transpose <perm=[0,2,3,1]> (k4)"
        "  u4 = Reshape(u, s3)  ut = Transpose <perm=[0,2,1,3]> (u4)"
        "  a = MatMul(qt, kt)  b = Conv(a, w1)  p = Softmax(b)  o = MatMul(p, ut)"
        "  ot = Transpose <perm=[0,2,1,3]> (o)  of = Reshape(ot, f)  y = MatMul(of, v)",
        {"wq": (5, 6), "wk": (5, 6), "wv": (5, 9), "s": ints(0, 0, 2, 3), "s3": ints(0, 0, 3, 3), "f": ints(0, 0, 9),
         "w1": conv(3, 2), "v": (9, 2)},
        {"wq.1": "aaabbb", "wk.1": "aaabbb", "w1.1": "ab", "w1.0": "cde", "wv.1": "cccdddeee", "v.0": "cccdddeee"},
        **TOK,
    ),
    # recurrent
    "LSTM": Case(
        "t = Transpose <perm=[1,0,2]> (x)  h, l, c = LSTM <hidden_size=3> (t, w, r, b, , , , p)  s = Squeeze(h, one)"
        "  k = Transpose <perm=[1,0,2]> (s)  y = MatMul(k, v)",
        {"w": (1, 12, 5), "r": (1, 12, 3), "b": (1, 24), "p": (1, 9), "one": ints(1), "v": (3, 2)},
        {"r.2": "abc", "w.1": "abc" * 4, "r.1": "abc" * 4, "b.1": "abc" * 8, "p.1": "abc" * 3, "v.0": "abc"}, **TOK,
    ),
    "LSTM in both directions, from states": Case(
        "t = Transpose <perm=[1,0,2]> (x)  f = ReduceMean <axes=[0], keepdims=0> (t)  g = MatMul(f, w0)"
        "  g3 = Reshape(g, s0)  h0 = Transpose <perm=[1,0,2]> (g3)"
        "  h, l, c = LSTM <hidden_size=3, direction=\"bidirectional\"> (t, w, r, b, , h0, h0)"
        "  k = Transpose <perm=[2,0,1,3]> (h)  m = Reshape(k, s)  y = MatMul(m, v)",
        {"w": (2, 12, 5), "r": (2, 12, 3), "b": (2, 24), "w0": (5, 6), "s0": ints(0, 2, 3), "s": ints(0, 0, 6),
         "v": (6, 2)},
        {"r.2": "abc", "w.1": "abc" * 4, "b.1": "abc" * 8, "w0.1": "abcabc", "v.0": "abcabc"}, **TOK,
    ),
    "GRU": Case(
        "t = Transpose <perm=[1,0,2]> (x)  h, l = GRU <hidden_size=3, linear_before_reset=1> (t, w, r, b)"
        "  s = Squeeze(h, one)  k = Transpose <perm=[1,0,2]> (s)  y = MatMul(k, v)",
        {"w": (1, 9, 5), "r": (1, 9, 3), "b": (1, 18), "one": ints(1), "v": (3, 2)},
        {"r.2": "abc", "w.1": "abc" * 3, "r.1": "abc" * 3, "b.1": "abc" * 6, "v.0": "abc"}, **TOK,
    ),
    "RNN": Case(
        "t = Transpose <perm=[1,0,2]> (x)  h, l = RNN <hidden_size=3> (t, w, r)"
        "  s = Squeeze(h, one)  k = Transpose <perm=[1,0,2]> (s)  y = MatMul(k, v)",
        {"w": (1, 3, 5), "r": (1, 3, 3), "one": ints(1), "v": (3, 2)},
        {"r.2": "abc", "w.1": "abc", "r.1": "abc", "v.0": "abc"}, **TOK,
    ),
    # attention operators
    "Attention of three axes": Case(
        "q = MatMul(x, wq)  k = MatMul(x, wk)  u = MatMul(x, wv)"
        "  o = Attention <q_num_heads=2, kv_num_heads=2> (q, k, u)  y = MatMul(o, v)",
        {"wq": (5, 6), "wk": (5, 6), "wv": (5, 8), "v": (8, 2)},
        {"wq.1": "aaabbb", "wk.1": "aaabbb", "wv.1": "aaaabbbb", "v.0": "aaaabbbb"}, TOKENS, 23, {"ir_version": 10},
    ),
    "Attention of four axes, queries that share a key, and a mask by head": Case(
        "q = MatMul(x, wq)  k = MatMul(x, wk)  u = MatMul(x, wv)"
        "  q4 = Reshape(q, s)  qt = Transpose <perm=[0,2,1,3]> (q4)"
        "  k4 = Reshape(k, s2)  kt = Transpose <perm=[0,2,1,3]> (k4)"
        "  u4 = Reshape(u, s2)  ut = Transpose <perm=[0,2,1,3]> (u4)"
        "  o = Attention(qt, kt, ut, mask)"
        "  ot = Transpose <perm=[0,2,1,3]> (o)  of = Reshape(ot, f)  y = MatMul(of, v)",
        {"wq": (5, 12), "wk": (5, 6), "wv": (5, 6), "s": ints(0, 0, 4, 3), "s2": ints(0, 0, 2, 3),
         "mask": (1, 4, 3, 3), "f": ints(0, 0, 12), "v": (12, 2)},
        {"wk.1": "aaabbb", "wq.1": "aaaaaabbbbbb", "mask.1": "aabb", "v.0": "aaaaaabbbbbb"}, TOKENS, 23,
        {"ir_version": 10},
    ),
    "heads that are rotated": Case(
        "q = MatMul(x, wq)  r = RotaryEmbedding <num_heads=2> (q, cos, sin, at)  k = MatMul(x, wk)"
        "  o = Attention <q_num_heads=2, kv_num_heads=2> (r, k, k)  y = MatMul(o, v)",
        {"wq": (5, 8), "cos": (4, 2), "sin": (4, 2), "at": np.arange(6, dtype=np.int64).reshape(2, 3) % 4, "wk": (5, 8),
         "v": (8, 2)},
        {"wq.1": "aaaabbbb", "wk.1": "aaaabbbb", "v.0": "aaaabbbb"},
        "(float[2,3,5] x) => (float[2,3,2] y)", 23, {"ir_version": 10},
    ),
    "com.microsoft: Attention with a bias by head": Case(
        "a = MatMul(x, w0)  o = com.microsoft.Attention <num_heads=2> (a, w, b, , , m)  y = MatMul(o, v)",
        {"w0": (5, 4), "w": (4, 12), "b": (12,), "m": (1, 2, 3, 3), "v": (4, 2)},
        {"w0.1": "abcd", "w.0": "abcd", "w.1": "eeffeeffeeff", "b.0": "eeffeeffeeff", "m.1": "ef", "v.0": "eeff"},
        "(float[1,3,5] x) => (float[1,3,2] y)",
    ),
    "com.microsoft: MultiHeadAttention": Case(
        "q = MatMul(x, wq)  k = MatMul(x, wk)  u = MatMul(x, wv)"
        "  o = com.microsoft.MultiHeadAttention <num_heads=2> (q, k, u, b)  y = MatMul(o, v)",
        {"wq": (5, 6), "wk": (5, 6), "wv": (5, 6), "b": (18,), "v": (6, 2)},
        {"wq.1": "aaabbb", "wk.1": "aaabbb", "wv.1": "aaabbb", "b.0": "aaabbb" * 3, "v.0": "aaabbb"}, **TOK,
    ),
    "com.microsoft: SkipLayerNormalization": Case(
        "a = MatMul(x, w)  b = MatMul(x, w2)  c, , , d = com.microsoft.SkipLayerNormalization(a, b, g, h, i)"
        "  e = Add(c, d)  y = MatMul(e, v)",
        {"w": (5, 4), "w2": (5, 4), "g": (4,), "h": (4,), "i": (4,), "v": (4, 2)},
        {"w.1": "abcd", "w2.1": "abcd", "g.0": "abcd", "h.0": "abcd", "i.0": "abcd", "v.0": "abcd"}, **TOK,
    ),
    "com.microsoft: FusedMatMul": Case(
        "a = com.microsoft.FusedMatMul <transB=1, alpha=0.5> (x, w)  b = com.microsoft.BiasGelu(a, c)"
        "  y = MatMul(b, v)",
        {"w": (4, 5), "c": (4,), "v": (4, 2)},
        {"w.0": "abcd", "c.0": "abcd", "v.0": "abcd"}, **TOK,
    ),
    "com.microsoft: FusedConv with a residual": Case(
        "a = Conv(x, w)  b = com.microsoft.FusedConv <activation=\"Relu\"> (a, w2, c, a)  y = Conv(b, v)",
        {"w": conv(4, 3), "w2": conv(4, 4), "c": (4,), "v": conv(2, 4)},
        {"w.0": "abcd", "w2.0": "abcd", "w2.1": "abcd", "c.0": "abcd", "v.1": "abcd"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_indices_that_go_together(name):
    case = CASES[name]
    model = net(f"{case.signature} {{ {case.operators} }}", case.weights, case.opset, **case.options)
    found = groups(model)
    assert spelled(found, list(case.places)) == list(case.places.values())
    for seed in range(2 if len(found) else 0):
        assert error(found, some_units(found, seed), feeds(model)) <= EXACT


S1, S2 = "(float[n,3,4,4] x) => (float[n,2,h,w] y)", "(float[n,3,4,4] x) => (float[n,k] y)"

REVISIONS = {
    "Slice by attributes": (
        9, S1, "a = Conv(x, w)  b = Slice <axes=[1], starts=[1], ends=[-1]> (a)  y = Conv(b, v)",
        {"w": conv(5, 3), "v": conv(2, 3)}, ["abcde", "bcd"],
    ),
    "Slice of the first axes": (
        9, S1, "a = Conv(x, w)  b = Slice <starts=[0,2], ends=[9,4]> (a)  y = Conv(b, v)",
        {"w": conv(5, 3), "v": conv(2, 2)}, ["abcde", "cd"],
    ),
    "Slice by 32-bit inputs": (
        10, S1, "a = Conv(x, w)  b = Slice(a, s, e, s)  y = Conv(b, v)",
        {"w": conv(5, 3), "s": np.array([1], np.int32), "e": np.array([4], np.int32), "v": conv(2, 3)},
        ["abcde", "bcd"],
    ),
    "Split by an attribute": (
        7, S1, "a = Conv(x, w)  b, c = Split <axis=1, split=[2,3]> (a)  d = Concat <axis=1> (c, b)  y = Conv(d, v)",
        {"w": conv(5, 3), "v": conv(2, 5)}, ["abcde", "cdeab"],
    ),
    "Split into equal parts": (
        11, S1, "a = Conv(x, w)  b, c = Split <axis=-3> (a)  d = Concat <axis=1> (c, b)  y = Conv(d, v)",
        {"w": conv(6, 3), "v": conv(2, 6)}, ["abcdef", "defabc"],
    ),
    "Split by an input": (
        13, S1, "a = Conv(x, w)  b, c = Split <axis=1> (a, s)  d = Concat <axis=1> (c, b)  y = Conv(d, v)",
        {"w": conv(5, 3), "s": ints(2, 3), "v": conv(2, 5)}, ["abcde", "cdeab"],
    ),
    "Split into equal parts, sizes left out": (
        13, S1, "a = Conv(x, w)  b, c, e = Split <axis=1> (a)  d = Concat <axis=1> (c, b, e)  y = Conv(d, v)",
        {"w": conv(6, 3), "v": conv(2, 6)}, ["abcdef", "cdabef"],
    ),
    "Split by a number": (
        18, S1,
        "a = Conv(x, w)  b, c, e = Split <axis=1, num_outputs=3> (a)  d = Concat <axis=1> (c, b, e)  y = Conv(d, v)",
        {"w": conv(5, 3), "v": conv(2, 5)}, ["abcde", "cdabe"],
    ),
    "Squeeze and Unsqueeze by attributes": (
        11, S2, "p = GlobalAveragePool(x)  a = Conv(p, w)  s = Squeeze <axes=[2,3]> (a)  u = Unsqueeze <axes=[1]> (s)"
        "  f = Flatten(u)  y = Gemm(f, v)",
        {"w": conv(4, 3), "v": (4, 2)}, ["abcd", "abcd"],
    ),
    "Squeeze and Unsqueeze by inputs": (
        13, S2, "p = GlobalAveragePool(x)  a = Conv(p, w)  s = Squeeze(a, i)  u = Unsqueeze(s, j)  f = Flatten(u)"
        "  y = Gemm(f, v)",
        {"w": conv(4, 3), "i": ints(-1, 2), "j": ints(1, -1), "v": (4, 2)}, ["abcd", "abcd"],
    ),
    "Squeeze of whatever is single": (
        17, S2, "p = GlobalAveragePool(x)  a = Conv(p, w)  s = Squeeze(a)  y = Gemm(s, v)",
        {"w": conv(2, 3), "v": (2, 2)}, ["ab", "ab"],
    ),
    "Pad by an attribute": (
        10, S1, "a = Conv(x, w)  b = Pad <pads=[0,1,0,0,0,1,0,0]> (a)  c = Conv(x, w2)  d = Add(b, c)  y = Conv(d, v)",
        {"w": conv(3, 3), "w2": conv(5, 3), "v": conv(2, 5)}, ["abc", "dabce"],
    ),
    "Pad by an input": (
        11, S1, "a = Conv(x, w)  b = Pad(a, p)  y = Conv(b, v)",
        {"w": conv(3, 3), "p": ints(0, 0, 1, 1, 0, 2, 1, 1), "v": conv(2, 5)}, ["abc", "abc.."],
    ),
    "Pad of some axes": (
        18, S1, "a = Conv(x, w)  b = Pad(a, p, , axes)  y = Conv(b, v)",
        {"w": conv(3, 3), "p": ints(1, 1, 0, 1), "axes": ints(-1, 1), "v": conv(2, 5)}, ["abc", ".abc."],
    ),
    "reductions by attributes": (
        11, S2, "a = Conv(x, w)  m = ReduceMean <axes=[2,-1], keepdims=0> (a)  s = ReduceSum <axes=[2,3]> (a)"
        "  f = Flatten(s)  c = Add(m, f)  y = Gemm(c, v)",
        {"w": conv(4, 3), "v": (4, 2)}, ["abcd", "abcd"],
    ),
    "a reduction of some axes by an input": (
        13, S2, "a = Conv(x, w)  s = ReduceSum <keepdims=0> (a, i)  y = Gemm(s, v)",
        {"w": conv(4, 3), "i": ints(2, 3), "v": (4, 2)}, ["abcd", "abcd"],
    ),
    "reductions by inputs": (
        18, S2, "a = Conv(x, w)  m = ReduceMax <keepdims=0> (a, i)  n = ReduceMean <noop_with_empty_axes=1> (m)"
        "  y = Gemm(n, v)",
        {"w": conv(4, 3), "i": ints(2, 3), "v": (4, 2)}, ["abcd", "abcd"],
    ),
    "Clip by attributes": (
        10, S1, "a = Conv(x, w)  b = Clip <min=0.0, max=6.0> (a)  y = Conv(b, v)",
        {"w": conv(4, 3), "v": conv(2, 4)}, ["abcd", "abcd"],
    ),
    "Clip by inputs": (
        12, S1, "a = Conv(x, w)  b = Clip(a, , k)  y = Conv(b, v)",
        {"w": conv(4, 3), "k": np.float32(0.5), "v": conv(2, 4)}, ["abcd", "abcd"],
    ),
    "Upsample": (
        9, S1, "a = Conv(x, w)  b = Upsample(a, k)  y = Conv(b, v)",
        {"w": conv(4, 3), "k": np.array([1, 1, 2, 2], np.float32), "v": conv(2, 4)}, ["abcd", "abcd"],
    ),
    "Resize by scales alone": (
        10, S1, "a = Conv(x, w)  b = Resize(a, k)  y = Conv(b, v)",
        {"w": conv(4, 3), "k": np.array([1, 1, 2, 2], np.float32), "v": conv(2, 4)}, ["abcd", "abcd"],
    ),
    "Dropout with a share": (
        7, S1, "a = Conv(x, w)  b = Dropout <ratio=0.5> (a)  y = Conv(b, v)",
        {"w": conv(4, 3), "v": conv(2, 4)}, ["abcd", "abcd"],
    ),
    "Softmax of the places alone": (
        13, S1, "a = Conv(x, w)  b = Softmax(a)  y = Conv(b, v)",
        {"w": conv(4, 3), "v": conv(2, 4)}, ["abcd", "abcd"],
    ),
    "BatchNormalization before training mode": (
        9, S1, "a = Conv(x, w)  b = BatchNormalization(a, g, g, g, s)  y = Conv(b, v)",
        {"w": conv(4, 3), "g": (4,), "s": np.ones(4, np.float32), "v": conv(2, 4)}, ["abcd", "abcd"],
    ),
    "BatchNormalization of positions": (
        8, S1, "a = Conv(x, w)  b = BatchNormalization <spatial=0> (a, g, g, g, s)  y = Conv(b, v)",
        {"w": conv(4, 3), "g": (4, 4, 4), "s": np.ones((4, 4, 4), np.float32), "v": conv(2, 4)}, ["abcd", "abcd"],
    ),
    "a Constant of floats": (
        13, S1, "a = Conv(x, w)  c = Constant <value_floats=[1.0,2.0,3.0,4.0]> ()"
        "  i = Constant <value_ints=[1,2,3,0]> ()"
        "  b = Gather <axis=1> (a, i)  p = GlobalAveragePool(b)  f = Flatten(p)  d = Mul(f, c)  s = Reshape(d, e)"
        "  y = Conv(s, v)",
        {"w": conv(4, 3), "e": ints(-1, 4, 1, 1), "v": conv(2, 4)}, ["abcd", "bcda"],
    ),
    "Gelu": (
        20, S1, "a = Conv(x, w)  b = Gelu(a)  y = Conv(b, v)",
        {"w": conv(4, 3), "v": conv(2, 4)}, ["abcd", "abcd"],
    ),
    "the newest Reshape, Transpose and Flatten": (
        21, S2, "a = Conv(x, w)  b = Reshape <allowzero=1> (a, s)  c = Transpose <perm=[0,2,1]> (b)  d = Flatten(c)"
        "  y = Gemm(d, v)",
        {"w": conv(3, 3), "s": ints(-1, 3, 16), "v": (48, 2)}, ["abc", "abc" * 16],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REVISIONS)
def test_revisions_of_operators(name):
    opset, signature, operators, weights, units = REVISIONS[name]
    model = net(f"{signature} {{ {operators} }}", weights, opset, 10 if opset > 20 else 8)
    found = groups(model)
    places = ["w.0", "v.0" if "Gemm" in operators else "v.1"]
    assert spelled(found, places) == units
    for seed in range(3):
        assert error(found, some_units(found, seed), feeds(model, 3)) <= EXACT


KEPT = {
    "the input": ("y = Conv(x, w)", {"w": conv(2, 3)}, "w.1", "input 'x' of the network"),
    "the output": ("y = Conv(x, w)", {"w": conv(2, 3)}, "w.0", "output 'y' of the network"),
    "an unknown operator": (
        "a = Conv(x, w)  b = Det(a)  y = Add(a, b)", {"w": conv(2, 3)}, "w.0", "Det 'Det_1' has no coupling rule"),
    "positions": (
        "a = Conv(x, w)  b = Transpose <perm=[0,2,3,1]> (a)  y = Conv(b, v)", {"w": conv(4, 3), "v": conv(2, 4)},
        "w.0", "positions that Conv 'Conv_2' moves over"),
    "TopK": (
        "a = Conv(x, w)  b, i = TopK <axis=1> (a, k)  y = Conv(b, v)", {"w": conv(4, 3), "k": ints(2), "v": conv(2, 2)},
        "w.0", "TopK 'TopK_1' returns places along the axis"),
    "ArgMax": (
        "a = Conv(x, w)  b = ArgMax <axis=1> (a)  c = Cast <to=1> (b)  y = Conv(c, v)",
        {"w": conv(4, 3), "v": conv(2, 1)}, "w.0", "ArgMax 'ArgMax_1' returns places along the axis"),
    "CumSum": (
        "a = Conv(x, w)  b = CumSum(a, one)  y = Conv(b, v)", {"w": conv(4, 3), "one": np.int64(1), "v": conv(2, 4)},
        "w.0", "CumSum 'CumSum_1' adds up along the axis"),
    "Softmax": (
        "a = Conv(x, w)  b = Softmax <axis=1> (a)  y = Conv(b, v)", {"w": conv(4, 3), "v": conv(2, 4)}, "w.0",
        "Softmax 'Softmax_1' compares the values along the axis"),
    "entries that data choose": (
        "g = Cast <to=7> (x)  a = Gather(w, g)  r = ReduceMean <axes=[1,2], keepdims=0> (a)  t = Transpose"
        " <perm=[0,2,1]> (r)  s = Unsqueeze(t, i)  y = Conv(s, v)",
        {"w": (4, 3), "i": ints(3), "v": conv(2, 3)}, "w.0", "Gather 'Gather_1' looks entries up by index"),
    "every other index": (
        "a = Conv(x, w)  b = Slice(a, z, e, one, two)  y = Conv(b, v)",
        {"w": conv(4, 3), "z": ints(0), "e": ints(9), "one": ints(1), "two": ints(2), "v": conv(2, 2)}, "w.0",
        "Slice 'Slice_1' takes indices in steps of 2"),
    "mirrored channels": (
        "a = Conv(x, w)  b = Pad <mode=\"reflect\"> (a, p)  y = Conv(b, v)",
        {"w": conv(4, 3), "p": ints(0, 1, 0, 0, 0, 1, 0, 0), "v": conv(2, 6)}, "w.0",
        "Pad 'Pad_1' cuts or mirrors the axis"),
    "resized channels": (
        "a = Conv(x, w)  b = Resize <mode=\"nearest\"> (a, , k)  y = Conv(b, v)",
        {"w": conv(4, 3), "k": np.array([1, 0.5, 1, 1], np.float32), "v": conv(2, 2)}, "w.0",
        "positions that Resize 'Resize_1' resizes"),
    "channels that are scaled, though not in number": (
        "a = Conv(x, w)  b = Resize <mode=\"nearest\"> (a, , k)  y = Conv(b, v)",
        {"w": conv(4, 3), "k": np.array([1, 1.2, 1, 1], np.float32), "v": conv(2, 4)}, "w.0",
        "positions that Resize 'Resize_1' resizes"),
    "channels that are cut and resized": (
        "a = Conv(x, w)  b = Resize <mode=\"nearest\", coordinate_transformation_mode=\"tf_crop_and_resize\"> (a, r, k)"
        "  y = Conv(b, v)",
        {"w": conv(4, 3), "r": np.array([0, 0.4, 0, 0, 1, 0.6, 1, 1], np.float32),
         "k": np.array([1, 1, 2, 2], np.float32), "v": conv(2, 4)}, "w.0", "positions that Resize 'Resize_1' resizes"),
    "places that count channels": (
        "a = Conv(x, w)  b, i = MaxPool <kernel_shape=[2,2]> (a)  j = Cast <to=1> (i)  k = Add(b, j)  y = Conv(k, v)",
        {"w": conv(4, 3), "v": conv(2, 4)}, "w.0", "MaxPool 'MaxPool_1' returns places that count channels"),
    "places of another shape": (
        "a = Conv(x, w)  b, i = MaxPool <kernel_shape=[3,3]> (a)  c = MaxUnpool <kernel_shape=[2,2]> (b, i)"
        "  y = Conv(c, v)",
        {"w": conv(4, 3), "v": conv(2, 4)}, "w.0", "are not those of a MaxPool of its shape"),
    "a diagonal of ones": (
        "t = EyeLike(w2)  a = MatMul(w2, t)  i = Unsqueeze(a, k)  y = Conv(x, i)",
        {"w2": (2, 3), "k": ints(2, 3)}, "w2.0", "EyeLike 'EyeLike_0' compares places along two axes"),
    "what values choose": (
        "a = Conv(x, w)  p = NonZero(a)  f = Cast <to=1> (p)  m = ReduceMean(f)  y = Mul(m, a)",
        {"w": conv(2, 3)}, "w.0", "NonZero 'NonZero_1' chooses by values what it returns"),
    "channels that are gathered by index": (
        "a = Conv(x, w)  b = GatherElements <axis=1> (a, i)  y = Conv(b, v)",
        {"w": conv(4, 3), "i": np.zeros((2, 2, 4, 4), np.int64), "v": conv(2, 2)}, "w.0",
        "GatherElements 'GatherElements_1' looks entries up by index"),
    "groups that do not come out even": (
        "a = Conv(x, w)  b = InstanceNormalization(a, g, g)  c = Conv <group=3> (b, u)  y = Conv(c, v)",
        {"w": conv(4, 3), "g": (4,), "u": conv(6, 2), "v": conv(2, 6)}, "w.0", "in a way that does not come out even"),
    "axes that are mixed": (
        "a = Conv(x, w)  b = Reshape(a, s)  c = Relu(b)  d = Reshape(c, t)  y = Conv(d, v)",
        {"w": conv(6, 3), "s": ints(0, 4, 24), "t": ints(0, 6, 4, 4), "v": conv(2, 6)}, "w.0",
        "mixes axes whose sizes have no common factors"),
    "one scale for a block": (
        "a = Conv(x, w)  q = QuantizeLinear <axis=1, block_size=2> (a, s)  b = DequantizeLinear <axis=1, block_size=2>"
        " (q, s)  y = Conv(b, v)", {"w": conv(4, 3), "s": np.ones((2, 2, 4, 4), np.float32), "v": conv(2, 4)}, "w.0",
        "has one scale for a block of several"),
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_what_stays_says_why(name):
    operators, weights, place, reason = KEPT[name]
    dims = "2,3,4,4" if "block" in name else "n,3,4,4"
    opset, ir_version = (21, 10) if "block" in name else (17, 8)
    model = net(f"(float[{dims}] x) => (float[{dims[0]},c,h,w] y) {{ {operators} }}", weights, opset, ir_version)
    found = groups(model)
    tensor, axis = place.split(".")
    labels = found.analysis.axes[tensor][int(axis)]
    assert (found.unit_of[labels] == -1).all()
    assert reason in found.analysis.couplings.reason(labels)
    if name not in ("the input", "the output", "entries that data choose"):
        assert any(one.reason == found.analysis.couplings.reason(labels) for one in found.kept)


def test_a_body_that_captures_keeps_what_it_reads():
    then = graph("() => (float[n,4,4,4] p) { p = Relu(a) }", {})
    other = graph("() => (float[n,4,4,4] q) { q = Tanh(a) }", {})
    made = graph("(float[n,3,4,4] x) => (float[n,2,4,4] y) { a = Conv(x, w)  b = Conv(a, u)  y = Conv(b, v) }",
                 {"w": conv(4, 3), "u": conv(4, 4), "v": conv(2, 4), "c": np.array(True)})  # fmt: skip
    made.node.insert(1, helper.make_node("If", ["c"], ["i"], "choice", then_branch=then, else_branch=other))
    made.node[2].input[0] = "i"
    found = groups(load(helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])))
    assert spelled(found, ["w.0", "u.1", "u.0", "v.1"]) == ["....", "....", "abcd", "abcd"]
    assert found.kept[0].reason == "If 'choice' has no coupling rule"


def test_a_function_keeps_what_it_reads_and_makes():
    body = [helper.make_node("Relu", ["i"], ["o"])]
    function = helper.make_function("local", "Own", ["i"], ["o"], body, [helper.make_opsetid("", 17)])
    model = net("(float[n,3,4,4] x) => (float[n,2,4,4] y) { a = Conv(x, w)  b = local.Own(a)  c = Conv(b, u)"
                "  y = Conv(c, v) }", {"w": conv(4, 3), "u": conv(4, 4), "v": conv(2, 4)},
                functions=[function])  # fmt: skip
    found = groups(model)
    assert spelled(found, ["w.0", "u.1", "u.0", "v.1"]) == ["....", "....", "abcd", "abcd"]
    assert "Own" in found.kept[0].reason
    small = cut(found, some_units(found, 0))
    assert small.proto().functions == model.proto().functions


def test_initializers_that_can_be_overridden_stay():
    model = net("(float[n,3,4,4] x, float[4,3,1,1] w) => (float[n,2,4,4] y) { a = Conv(x, w)  y = Conv(a, v) }",
                {"w": conv(4, 3), "v": conv(2, 4)})  # fmt: skip
    (kept, _) = groups(model).kept
    assert (kept.operator, kept.reason) == ("Conv_0", "'w' can be overridden as an input")


def test_sparse_weights_stay():
    made = graph("(float[n,5] x) => (float[n,2] y) { a = MatMul(x, w)  b = MatMul(a, s)  c = MatMul(b, u)"
                 "  y = MatMul(c, v) }", {"w": (5, 4), "u": (3, 4), "v": (4, 2)})  # fmt: skip
    values = numpy_helper.from_array(np.array([1, 2], np.float32), "s")
    places = numpy_helper.from_array(np.array([0, 7], np.int64), "s_places")
    made.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 3]))
    found = groups(load(helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])))
    assert spelled(found, ["w.1", "u.0", "u.1", "v.0"]) == ["....", "...", "abcd", "abcd"]
    assert {one.reason for one in found.kept} >= {"'s' is stored sparsely"}
    assert cut(found, some_units(found, 0)).proto().graph.sparse_initializer == made.sparse_initializer


def test_sparse_constants_stay():
    made = graph("(float[n,5] x) => (float[n,2] y) { a = MatMul(x, w)  b = MatMul(a, s)  y = MatMul(b, v) }",
                 {"w": (5, 4), "v": (3, 2)})  # fmt: skip
    values = numpy_helper.from_array(np.array([1, 2], np.float32), "s_values")
    places = numpy_helper.from_array(np.array([0, 7], np.int64), "s_places")
    sparse = helper.make_sparse_tensor(values, places, [4, 3])
    made.node.insert(0, helper.make_node("Constant", [], ["s"], name="stored", sparse_value=sparse))
    found = groups(load(helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])))
    assert spelled(found, ["w.1", "v.0"]) == ["....", "..."]
    assert found.kept[0].reason == "Constant 'stored' is stored sparsely"
    assert found.weight("s") is None


def test_a_function_of_the_name_of_a_known_operator_is_not_taken_for_it():
    body = [helper.make_node("Softmax", ["i"], ["o"], axis=1)]
    own = helper.make_function("com.microsoft", "Gelu", ["i"], ["o"], body, [helper.make_opsetid("", 17)])
    model = net("(float[n,5] x) => (float[n,2] y) { a = MatMul(x, w)  b = com.microsoft.Gelu(a)  y = MatMul(b, v) }",
                {"w": (5, 4), "v": (4, 2)}, functions=[own])  # fmt: skip
    assert groups(model).kept[0].reason == "Gelu 'Gelu_1' has no coupling rule"


def test_a_product_of_vectors_with_zero_points_has_no_axes():
    model = net("(uint8[3] x) => (float z) { y = MatMulInteger(x, q, p, p)  z = Cast <to=1> (y) }",
                {"q": np.arange(3, dtype=np.uint8), "p": np.array([3], np.uint8)})  # fmt: skip
    assert not len(groups(model))


def test_states_of_two_directions_keep_both():
    """The directions of a state that a weight makes stay, where its units do."""
    model = net("(float[n,3,5] x) => (float[3,2,n,3] y) { t = Transpose <perm=[1,0,2]> (x)"
                "  f = ReduceMean <axes=[0], keepdims=0> (t)  g = MatMul(f, w0)  g3 = Reshape(g, s)"
                "  h = Transpose <perm=[1,0,2]> (g3)"
                "  y, l = GRU <hidden_size=3, direction=\"bidirectional\"> (t, w, r, , , h) }",
                {"w": (2, 9, 5), "r": (2, 9, 3), "w0": (5, 6), "s": ints(0, 2, 3)})  # fmt: skip
    assert not len(groups(model))


def test_sizes_that_bound_a_resize_stay_as_they_are():
    text = ("a = Conv(x, w)  b = Resize <mode=\"nearest\", keep_aspect_ratio_policy=\"not_larger\", axes=[2,3]>"
            " (a, , , k)  y = Conv(b, v)")  # fmt: skip
    model = net(f"(float[1,3,h,w] x) => (float[1,2,p,q] y) {{ {text} }}",
                {"w": conv(4, 3), "k": ints(8, 8), "v": conv(2, 4)}, 18)  # fmt: skip
    found = groups(model, {"x": (1, 3, 4, 8)})
    small = cut(found, some_units(found, 0))
    assert small.initializer("w").shape[0] < 4
    for shape in [(1, 3, 4, 8), (1, 3, 8, 4)]:
        given = {"x": np.ones(shape, np.float32)}
        assert small.run(given)["y"].shape == model.run(given)["y"].shape


def test_positions_that_weights_make_stay_where_attention_scores_them():
    """A bias of scores that is computed by a weight must not lose the positions that this weight makes."""
    text = ("q = MatMul(x, wq)  t = MatMul(x, w1)  m = MatMul(t, w2)  m4 = Unsqueeze(m, one)"
            "  o = Attention <q_num_heads=2, kv_num_heads=2> (q, q, q, m4)  y = MatMul(o, v)")  # fmt: skip
    weights = {"wq": (5, 6), "w1": (5, 4), "w2": (4, 3), "one": ints(1), "v": (6, 2)}
    model = net(f"{TOKENS} {{ {text} }}", weights, 23, 10)
    found = groups(model)
    assert spelled(found, ["wq.1", "w1.1", "w2.1"]) == ["aaabbb", "cdef", "..."]
    assert error(found, some_units(found, 0), feeds(model)) <= EXACT


@pytest.mark.parametrize(("opset", "attributes"), [(11, ""), (13, ""), (18, ", num_outputs=3")])
@pytest.mark.parametrize("gone", [[5], [0], [1, 3, 5], [0, 2]])
def test_equal_parts_may_become_unequal(opset, attributes, gone):
    model = net("(float[n,3,4,4] x) => (float[n,2,4,4] y) { a = Conv(x, w) "
                f" b, c, d = Split <axis=1{attributes}> (a)  e = Concat <axis=1> (d, b, c)  y = Conv(e, v) }}",
                {"w": conv(6, 3), "v": conv(2, 6)}, opset)  # fmt: skip
    found = groups(model)
    removed = np.zeros(6, bool)
    removed[gone] = True
    assert error(found, removed, feeds(model)) <= EXACT


def test_operators_that_cannot_be_coupled_are_reported_as_kept():
    model = net("(float[n,3,4,4] x) => (float[n,2,h,w] y) { a = com.microsoft.Inverse(x)  b = Conv(a, u)"
                "  y = Conv(b, v) }", {"u": conv(4, 3), "v": conv(2, 4)})  # fmt: skip
    found = groups(model)
    assert [one.operator for one in found.kept] == ["Conv_1", "Conv_2"]
    assert found.kept[0].reason == "Conv 'Conv_1' reads or makes 'a', whose shape is not known"


def optimised(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return a model as ONNX Runtime saves it once it has fused what it can."""
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path), 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


@pytest.mark.parametrize("seed", range(8))
def test_what_onnx_runtime_has_fused_is_coupled_as_before(seed, tmp_path):
    """The operators that it makes of others leave no fewer units free, and are cut as exactly."""
    families = sorted(set(FAMILIES) - random_networks.STEPPED - {"quantized_linear"})
    network = random_networks.seeded(seed, families)
    fused = load(optimised(network.proto, tmp_path / "fused.onnx"))
    found = groups(fused)
    assert found.n_units >= groups(load(network.proto)).n_units
    assert error(found, some_units(found, seed), network.feeds(seed)) <= EXACT


@pytest.mark.parametrize(
    "text",
    [
        "t = Concat <axis=0> (s, three, six)  b = Expand(a, t)",
        "t = Concat <axis=0> (m, three, six)  u = Mul(t, s)  b = Reshape(a, u)",
        "t = Concat <axis=0> (s, three, six)  b = Resize(a, , , t)",
        "t = Concat <axis=0> (s, three, six)  c = ConstantOfShape(t)  b = Add(a, c)",
        "t = Concat <axis=0> (three, s)  b = Tile(a, t)",
        "t = Sub(s, s)  b = Slice(a, t, six, axis)",
        "t = Sub(s, s)  b = Slice(a, t, six, place)",
        "t = Add(s, place)  b = Slice(a, zero, six, t)",
    ],
)
@pytest.mark.parametrize("told", ["", "\n<float[n,3,6] b>\n", "\n<float[n,3,6] b, float[n,3,6] c>\n"])
def test_sizes_and_places_that_data_tell_keep_what_they_are_of(text, told):
    weights = {"w": (5, 6), "v": (6, 2), "zero": ints(0), "three": ints(3), "six": ints(6), "m": ints(-1),
               "axis": ints(2), "place": ints(1)}  # fmt: skip
    signature = "(float[n,3,5] x, int64[1] s) => (float[n,t,2] y) "
    network = net(f"{signature}{told}{{ a = MatMul(x, w)  {text}  y = MatMul(b, v) }}", weights)
    found = groups(network)
    assert not len(found)
    assert any(
        "whose value is computed from data" in one.reason or "shape is not known" in one.reason for one in found.kept
    )
