"""Recovery of pruned networks: where training starts, and of half precision."""

import numpy as np
import pytest
import torch
from handmade import fan
from planted import net

import graphmod as gm
from graphmod.pruning.recovery import recovered

torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_a_network_of_half_precision_recovers(kind):
    rng = np.random.default_rng(0)
    start = gm.retype(fan([32, 32, 4], rng), kind)
    x = rng.normal(size=(300, 7)).astype(np.float32)
    data = gm.Data({"x": x}, start.run({"x": x})["t2"].argmax(axis=1))
    cut, recovered = (gm.prune(start, 0.8, data=data, **o) for o in ({}, {"epochs": 40, "learning_rate": 0.02}))
    assert {str(op.op_type) for op in recovered.operators} == {str(op.op_type) for op in cut.operators}
    assert [cut.tensors[name] for name in cut.constants] == [recovered.tensors[name] for name in recovered.constants]
    assert gm.accuracy(recovered, data) > gm.accuracy(cut, data) + 0.05


def classifier(share: float) -> gm.Model:
    """Return a network that is right on about this share of samples whose label is the sign of what they are."""
    text = "(float[n,1] x) => (float[n,2] y) { d = Sub(x, shift)  y = MatMul(d, w) }"
    return net(text, {"shift": np.float32([[1 - share]]) * 2, "w": np.float32([[-1, 1]])})


@pytest.mark.parametrize(
    ("reached", "fitted", "from_fitted", "expected", "n_trained"),
    [
        (0.99, 0.5, 0.5, 0.99, 1),  # near
        (0.95, 0.5, 0.99, 0.95, 1),  # not near, not far, and better than what it could have started from
        (0.70, 0.6, 0.90, 0.90, 2),
        (0.80, 0.6, 0.70, 0.80, 2),
        (0.95, 0.97, 0.98, 0.98, 2),
    ],
)
def test_where_training_stays_far_it_starts_from_fitted_weights(
    monkeypatch, reached, fitted, from_fitted, expected, n_trained
):
    shares = {"model": 0.3, "reached": reached, "fitted": fitted, "from fitted": from_fitted, "teacher": 1.0}
    networks = {name: classifier(share) for name, share in shares.items()}
    calls = []

    def trained(start, *_, **__):
        calls.append(start)
        return networks["reached" if start is networks["model"] else "from fitted"]

    monkeypatch.setattr("graphmod.train.retrain", trained)
    x = np.random.default_rng(0).uniform(-1, 1, (2000, 1)).astype(np.float32)
    data = gm.Data({"x": x}, (x[:, 0] > 0).astype(np.int64))
    found = recovered(networks["model"], lambda: networks["fitted"], networks["teacher"], data, 1, None, 0, False)
    assert gm.accuracy(found, data) == pytest.approx(gm.accuracy(classifier(expected), data))
    assert len(calls) == n_trained
