"""Small classifiers of which it is known what a target problem needs, and a small trained one."""

from __future__ import annotations

from functools import cache

import numpy as np
from planted import net

import graphmod as gm


def clusters(n: int, n_classes: int, seed: int = 0) -> gm.Data:
    """Draw samples around the corners of a simplex, one a class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    return gm.Data(
        {"x": (2 * np.eye(n_classes)[labels] + 0.3 * rng.normal(size=(n, n_classes))).astype(np.float32)}, labels
    )


def splits(n_classes: int = 4) -> gm.Splits:
    return gm.Splits(*(clusters(n, n_classes, seed) for seed, n in enumerate((256, 128, 128))))


PAIRS = "(float[n,4] x) => (float[n,4] y) { a = Gemm(x, w, c)  r = Relu(a)  %s }"


def pairs(end: str = "y = Gemm(r, v)") -> gm.Model:
    """Return a classifier in which two neurons of eight tell each of four classes: 0 and 1 class 0, and so on."""
    return net(PAIRS % end, {
        "w": np.repeat(np.eye(4, dtype=np.float32), 2, 1), "c": np.full(8, -0.5, np.float32),
        "v": np.repeat(np.eye(4, dtype=np.float32), 2, 0),
    })  # fmt: skip


def idle_block() -> tuple[gm.Model, gm.Data]:
    """Return a network of two residual blocks, u1 with v1 and u2 with v2, the first of which adds next to nothing."""
    rng = np.random.default_rng(0)

    def drawn(scale: float, *shape: int) -> np.ndarray:
        return (scale * rng.normal(size=shape) / shape[0] ** 0.5).astype(np.float32)

    model = net(
        "(float[n,4] x) => (float[n,3] y) { a = MatMul(x, w)  r = Relu(a)"
        "  b = MatMul(r, u1)  c = Relu(b)  d = MatMul(c, v1)  s = Add(r, d)"
        "  e = MatMul(s, u2)  f = Relu(e)  g = MatMul(f, v2)  t = Add(s, g)  y = MatMul(t, h) }",
        {"w": drawn(1, 4, 6), "u1": drawn(0.01, 6, 12), "v1": drawn(0.01, 12, 6), "u2": drawn(2, 6, 12),
         "v2": drawn(2, 12, 6), "h": drawn(1, 6, 3)},
    )  # fmt: skip
    x = rng.normal(size=(256, 4)).astype(np.float32)
    return model, gm.Data({"x": x}, model.run({"x": x})["y"].argmax(1))


@cache
def images() -> gm.Splits:
    """Draw noisy images of five patterns."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(5, 1, 6, 6))

    def part(n: int) -> gm.Data:
        labels = np.arange(n) % 5
        x = patterns[labels] + 0.5 * rng.normal(size=(n, 1, 6, 6))
        return gm.Data({"x": x.astype(np.float32)}, labels)

    return gm.Splits(part(320), part(200), part(200))


@cache
def trained() -> gm.Model:
    """Return a convolutional network that tells the five patterns."""
    rng = np.random.default_rng(1)
    shapes = {"w": (16, 1, 3, 3), "u": (24, 16, 3, 3), "h": (5, 96)}
    weights = {
        name: (rng.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)
        for name, shape in shapes.items()
    }
    weights |= {"c": np.zeros(16, np.float32), "b": np.zeros(24, np.float32), "g": np.zeros(5, np.float32)}
    model = net(
        "(float[n,1,6,6] x) => (float[n,5] y) { [one] a = Conv(x, w, c)  r = Relu(a)  [two] d = Conv(r, u, b)"
        "  s = Relu(d)  f = Flatten(s)  [head] y = Gemm<transB=1>(f, h, g) }",
        weights,
    )
    return gm.retrain(model, images(), epochs=6, learning_rate=3e-3)
