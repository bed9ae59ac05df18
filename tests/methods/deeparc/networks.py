"""Networks with blocks of which it is known what they do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from planted import net

import graphmod as gm

WIDTH, CLASSES = 12, 3


def residual(scales: Sequence[float], seed: int = 0, channels_first: bool = False) -> gm.Model:
    """Return a residual network of linear rectified branches, the i-th times ``scales[i]``: 0 makes it an identity.

    On vectors, or with ``channels_first`` on sequences by convolutions of size 1.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, object] = {"head": rng.normal(size=(WIDTH, CLASSES)).astype(np.float32)}
    lines = []
    for i, scale in enumerate(scales):
        first, second = (rng.normal(size=(2, WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32)
        if channels_first:
            first, second = first[..., None], second[..., None]
        weights[f"a{i}"], weights[f"b{i}"] = first, np.float32(scale) * second
        op = f"Conv(h{i}, a{i})" if channels_first else f"MatMul(h{i}, a{i})"
        back = f"Conv(r{i}, b{i})" if channels_first else f"MatMul(r{i}, b{i})"
        lines.append(f"u{i} = {op}  r{i} = Relu(u{i})  v{i} = {back}  h{i + 1} = Add(v{i}, h{i})")
    end = f"h{len(scales)}"
    shape = f"n,{WIDTH},5" if channels_first else f"n,{WIDTH}"
    pooled = f"g = GlobalAveragePool({end})  f = Flatten(g)" if channels_first else f"f = Identity({end})"
    body = f"h0 = Tanh(x)  {'  '.join(lines)}  {pooled}  y = MatMul(f, head)"
    return net(f"(float[{shape}] x) => (float[n,{CLASSES}] y) {{ {body} }}", weights)


def samples(model: gm.Model, n: int = 300, seed: int = 1) -> gm.Splits:
    """Return normal samples, labelled as the network labels them."""
    rng = np.random.default_rng(seed)

    def part() -> gm.Data:
        shape = [size if isinstance(size, int) else n for size in model.inputs["x"].shape]
        x = rng.normal(size=shape).astype(np.float32)
        return gm.Data({"x": x}, model.run({"x": x})["y"].argmax(1))

    return gm.Splits(part(), part(), part())
