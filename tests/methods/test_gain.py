"""Regions by gain a second: gains against finite differences, runs against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import net

import graphmod as gm
from graphmod.errors import RefusedError
from graphmod.methods.gain import _gains, _runs, _Step, rank_regions
from graphmod.rewrite import Region
from graphmod.train import trained_weights


@pytest.fixture(scope="module")
def case() -> tuple[gm.Model, gm.Data]:
    part = gm.demo.splits().train
    rng = np.random.default_rng(0)
    x = part.inputs["image"] + rng.normal(0, 0.3, part.inputs["image"].shape).astype(np.float32)
    return gm.load(gm.demo.model_path()), gm.Data({"image": x}, part.targets)[:128]


def test_the_gain_is_the_fall_of_the_held_out_loss_a_unit_of_rate(case: tuple[gm.Model, gm.Data]) -> None:
    model, data = case
    gains, _ = _gains(model, data, None)
    net = gm.to_torch(model).double()
    x, y = torch.from_numpy(data.inputs["image"]).double(), torch.from_numpy(data.targets).long()
    parameters = list(net.parameters())
    first = torch.nn.functional.cross_entropy(net(x[:64]), y[:64])
    gradients = torch.autograd.grad(first, parameters)
    with torch.no_grad():
        before = torch.nn.functional.cross_entropy(net(x[64:]), y[64:])
        rate = 1e-6
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= rate * gradient
        after = torch.nn.functional.cross_entropy(net(x[64:]), y[64:])
    assert sum(gains.values()) == pytest.approx(float((before - after) / rate), rel=1e-2)


def test_candidates_have_the_weights_that_training_them_changes(case: tuple[gm.Model, gm.Data]) -> None:
    model, data = case
    found = rank_regions(model, data, 0.1)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        names = trained_weights(model, [Region(one.entry, one.exit)])
        assert one.weights == sum(model.constants[name].size for name in names if name in model.constants)
        assert one.weights <= 0.1 * model.n_weights


def test_noise_on_the_image_is_met_early(case: tuple[gm.Model, gm.Data]) -> None:
    model, data = case
    best = rank_regions(model, data)[0]
    assert gm.boundaries(model).index(best.exit) < len(gm.boundaries(model)) / 2


@pytest.mark.parametrize("seed", range(30))
def test_runs_are_the_longest_within_the_budget(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = {str(i): int(rng.integers(1, 9)) for i in range(12)}
    steps = [_Step(frozenset(str(i) for i in range(12) if rng.random() < 0.12), 1.0) for _ in range(10)]

    def size(start: int, stop: int) -> int:
        return sum(sizes[name] for name in frozenset[str]().union(*(step.weights for step in steps[start:stop])))

    fitting = {(a, b) for a in range(10) for b in range(a + 1, 11) if size(a, b) <= 15}
    found = _runs(steps, sizes, 15)
    assert set(found) <= fitting
    assert all(steps[a].weights and steps[b - 1].weights for a, b in found)
    for a, b in fitting:  # whatever fits lies, but for steps without weights, within a run that was found
        heavy = [i for i in range(a, b) if steps[i].weights]
        assert not heavy or any(start <= heavy[0] and heavy[-1] < stop for start, stop in found)


def test_bad_arguments_are_refused(case: tuple[gm.Model, gm.Data]) -> None:
    model, data = case
    for share in (0, -1, 1.5):
        with pytest.raises(RefusedError, match="out of range"):
            rank_regions(model, data, share)
    with pytest.raises(RefusedError, match="allow more"):
        rank_regions(model, data, 1e-9)
    with pytest.raises(RefusedError, match="at least two"):
        rank_regions(model, data[:1])


def test_a_network_without_weights_is_refused() -> None:
    model = net("(float[n,3] x) => (float[n,3] y) { y = Relu(x) }", {})
    data = gm.Data({"x": np.eye(3, dtype=np.float32)}, np.arange(3))
    with pytest.raises(RefusedError, match="no gradient reaches a weight"):
        rank_regions(model, data)
