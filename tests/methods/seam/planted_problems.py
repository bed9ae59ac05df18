"""Networks of which it is known what a target problem needs, and data for these."""

from __future__ import annotations

import numpy as np
from planted import net

import graphmod as gm


def split(x: np.ndarray, y: np.ndarray) -> gm.Splits:
    """Return samples in three equal parts."""
    size = len(x) // 3
    parts = [gm.Data({"x": x[i * size : (i + 1) * size]}, y[i * size : (i + 1) * size]) for i in range(3)]
    return gm.Splits(*parts)


def some_inputs() -> tuple[gm.Model, gm.Splits]:
    """Return a linear layer of four classes, and a problem that two of its eight inputs and of its logits answer."""
    rng = np.random.default_rng(0)
    weight = np.float32(rng.uniform(0.3, 0.6, (8, 4)) * rng.choice([-1, 1], (8, 4)))
    weight[[0, 1], [0, 1]] = 2
    x = rng.normal(size=(900, 8)).astype(np.float32)
    bias = np.full(4, 5, np.float32)  # the head's ReLU lets all pass
    model = net("(float[n,8] x) => (float[n,4] y) { y = Gemm(x, w, b) }", {"w": weight, "b": bias})
    return model, split(x, (x[:, 1] > x[:, 0]).astype(int))


def some_channels() -> tuple[gm.Model, gm.Splits]:
    """Return a convolutional network of which the last four of eight channels see nothing but noise."""
    rng = np.random.default_rng(1)
    first = np.zeros((8, 2, 3), np.float32)
    first[:4, 0] = rng.uniform(0.5, 1, (4, 3)) * np.array([[1], [-1], [1], [-1]])
    first[4:, 1] = rng.uniform(0.5, 1, (4, 3))
    last = rng.uniform(0.3, 0.6, (8, 5)).astype(np.float32)
    labels = rng.integers(0, 2, 900)
    x = rng.normal(size=(900, 2, 12)).astype(np.float32)
    x[:, 0] += np.where(labels, 1.0, -1.0)[:, None].astype(np.float32)
    text = """(float[n,2,12] x) => (float[n,5] y) {
        c = Conv(x, first)
        r = Relu(c)
        p = GlobalAveragePool(r)
        f = Flatten(p)
        y = MatMul(f, last)
    }"""
    return net(text, {"first": first, "last": last}), split(x, labels)


def layered(seed: int = 0) -> tuple[gm.Model, gm.Splits]:
    """Return a network with every kind of masked value, with a normalization, and a problem of three classes."""
    rng = np.random.default_rng(seed)

    def drawn(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / max(1, np.prod(shape[1:])) ** 0.5).astype(np.float32)

    weights = {
        "cw": drawn(6, 2, 3), "cb": drawn(6), "scale": 1 + 0.1 * drawn(6), "shift": drawn(6), "mean": drawn(6),
        "var": np.abs(drawn(6)) + np.float32(0.5), "mw": 2 * drawn(24, 10), "mb": drawn(10), "gw": 3 * drawn(5, 10),
        "gb": drawn(5) + 3,
    }  # fmt: skip
    text = """(float[n,2,6] x) => (float[n,5] y) {
        c = Conv(x, cw, cb)
        normal = BatchNormalization(c, scale, shift, mean, var)
        r = Relu(normal)
        f = Flatten(r)
        product = MatMul(f, mw)
        sum = Add(mb, product)
        t = Tanh(sum)
        y = Gemm <transB = 1> (t, gw, gb)
    }"""
    model = net(text, weights)
    x = rng.normal(size=(240, 2, 6)).astype(np.float32)
    logits = model.run({"x": x})["y"][:, :3]
    return model, split(x, (logits - logits.mean(0)).argmax(1))
