"""Agreement against the trace formula of CKA, and what it says of what cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest
from networks import residual, samples
from planted import net

import graphmod as gm
from graphmod.methods.deeparc import residual_sums
from graphmod.methods.deeparc.agreement import agreement
from graphmod.methods.deeparc.repair import locate

TIME_FIRST = """(float[n,6,4] x) => (float[n,3] y) {
    t = Transpose<perm=[1,0,2]>(x)  h0 = Tanh(t)  u = MatMul(h0, a)  h1 = Add(u, h0)
    g = ReduceMean<axes=[0], keepdims=0>(h1)  y = MatMul(g, q) }"""

SHUT = """(float[n,4] x) => (float[n,3] y) {
    h0 = Tanh(x)  u = MatMul(h0, a)  r = MatMul(h0, a)  h1 = Add(u, r)
    v = MatMul(h1, b)  w = Add(v, h1)  y = MatMul(w, q) }"""


def shut(scale: float) -> gm.Model:
    """Return a network whose first residual sum is zero where the scale is."""
    eye = np.eye(4, dtype=np.float32)
    return net(SHUT, {"a": np.float32(scale) * eye, "b": eye, "q": np.ones((4, 3), np.float32)})


def test_of_two_views_of_the_samples_it_is_their_similarity() -> None:
    model, data = residual([1.0, 0.5]), samples(residual([1.0, 0.5])).train
    moved = gm.Data({"x": data.inputs["x"] + np.float32(0.3)})
    names = residual_sums(model)
    first, second = (model.run(one.inputs, names) for one in (data, moved))
    for name, found in zip(names, agreement(model, model, data, moved, batch_size=300), strict=True):
        x, y = first[name].astype(np.float64), second[name].astype(np.float64)
        assert found == pytest.approx(_cka(x, y), abs=1e-5)


def _cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return the unbiased linear CKA, by the trace formula of Song et al. 2012."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        n = len(k)
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        product = np.trace(k @ m) + k.sum() * m.sum() / (n - 1) / (n - 2) - 2 * (k @ m).sum() / (n - 2)
        return float(product / n / (n - 3))

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize(("scales", "wanted"), [((0, 0), 1), ((0, 1), 0), ((1, 0), 0), ((1, 1), 1)])
def test_of_activations_that_never_change(scales: tuple[float, float], wanted: float) -> None:
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    first, second = map(shut, scales)
    assert agreement(first, second, gm.Data({"x": x}))[0] == pytest.approx(wanted)


def test_too_few_samples_and_an_axis_of_time_are_refused() -> None:
    model = residual([1.0])
    with pytest.raises(gm.InvalidDataError, match="at least 4"):
        agreement(model, model, samples(model).test[:3])
    rng = np.random.default_rng(0)
    first_time = net(TIME_FIRST, {name: rng.normal(size=(4, n)).astype(np.float32) for name, n in (("a", 4), ("q", 3))})
    x = rng.normal(size=(6, 6, 4)).astype(np.float32)
    with pytest.raises(gm.RefusedError, match="'h1' is not the batch"):
        agreement(first_time, first_time, gm.Data({"x": x}))


def test_a_healthy_model_of_another_graph_is_refused() -> None:
    model = residual([1.0, 1.0])
    with pytest.raises(gm.RefusedError, match="residual sum 'h2'; compare networks of one graph"):
        locate(model, residual([1.0]), samples(model))
