"""Budgets of time: with planted times, so that what is chosen and refused is known; and once with real ones."""

from __future__ import annotations

import re
from math import prod

import numpy as np
import pytest
from planted import net

import graphmod as gm
from graphmod.errors import RefusedError
from graphmod.probe import LatencyTable
from graphmod.probe.latency import TOLERANCE
from graphmod.pruning import latency_budget

OVERHEAD = 2000
"""Microseconds that every network takes besides its operators."""


@pytest.fixture(scope="module")
def model() -> gm.Model:
    return net("(float[n,3,2,2] x) => (float[n,2,2,2] y) { [conv1] a = Conv(x, w)  [act1] r = Relu(a)"
               "  [conv2] b = Conv(r, u)  [act2] s = Relu(b)  [conv3] y = Conv(s, v) }",
               {"w": (96, 3, 1, 1), "u": (80, 96, 1, 1), "v": (2, 80, 1, 1)})  # fmt: skip


def work(model: gm.Model) -> float:
    return float(model.n_weights)


class Times:
    """Planted times: of operators their weights, those of the second one so many times, and what each takes only alone;
    of networks their weights and the overhead, and what measuring adds by chance."""

    def __init__(self, busy: float = 1.0, each: float = 0.0, noise: float = 0.0, seed: int = 0):
        self.busy, self.each, self.noise = busy, each, noise
        self.random = np.random.default_rng(seed)
        self.measured: list[gm.Model] = []

    def many(self, _, signatures, **__):
        sizes = [[o.shape for o in one.operands if o.constant and len(o.shape) == 4] for one in signatures]
        return [
            self.each + sum(prod(shape) * (self.busy if shape[0] == 80 else 1.0) for shape in shapes)
            for shapes in sizes
        ]

    def least_latency(self, models, _):
        self.measured += models.values()
        return {name: (work(one) + OVERHEAD) * self.random.uniform(1, 1 + self.noise) for name, one in models.items()}


@pytest.fixture
def planted(monkeypatch):
    def plant(times: Times) -> Times:
        monkeypatch.setattr(LatencyTable, "many", lambda *args, **kwargs: times.many(*args, **kwargs))
        monkeypatch.setattr(latency_budget, "least_latency", times.least_latency)
        return times

    return plant


def share(model: gm.Model, small: gm.Model) -> float:
    return (work(small) + OVERHEAD) / (work(model) + OVERHEAD)


@pytest.mark.parametrize("ranking", ["local", "global"])
@pytest.mark.parametrize("busy", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2])
def test_the_network_is_what_must_meet_the_budget(planted, model, ranking, busy, steps):
    """Operators alone would have it meet much sooner, more so those that were timed while the machine was busy."""
    planted(Times(busy))
    small = gm.prune(model, latency=0.5, ranking=ranking, steps=steps)
    assert 0.4 < share(model, small) <= 0.5
    first = work(model) + OVERHEAD
    absolute = gm.prune(model, latency=0.5 * first, ranking=ranking, steps=steps)
    assert share(model, absolute) == pytest.approx(share(model, small), abs=0.05)


def widths(model: gm.Model) -> tuple[int, int]:
    return model.initializers["w"].dims[0], model.initializers["u"].dims[0]


@pytest.mark.parametrize("ranking", ["local", "global"])
@pytest.mark.parametrize("multiple_of", [1, 8])
@pytest.mark.parametrize("budget", [0.27, 0.4, 0.6, 0.8, 0.97])
@pytest.mark.parametrize(("busy", "each"), [(1.0, 0.0), (0.02, 5e3), (50.0, 0.0)])
def test_nothing_a_step_larger_is_within_the_budget(planted, model, ranking, multiple_of, budget, busy, each):
    """It was measured, and over the budget, unless the budget is used as far as measuring tells; few are measured."""
    noise = 0.002
    times = planted(Times(busy, each, noise, seed=round(100 * budget)))
    small = gm.prune(model, latency=budget, ranking=ranking, multiple_of=multiple_of)
    used = share(model, small) / budget
    assert used <= 1 + noise
    own, pruned = widths(small), [one for one in times.measured if one is not model]
    larger = [one for one in pruned if sum(widths(one)) > sum(own)]
    assert all(share(model, one) > budget * (1 - noise) for one in larger)
    assert used >= (1 - noise) / TOLERANCE or any(
        sorted(np.subtract(widths(one), own)) == [0, multiple_of] for one in larger
    )
    assert len(pruned) <= 2 + np.ceil(np.log2((96 + 80) / multiple_of))


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_between_the_floor_and_the_rest_leaves_the_floor(planted, model, seed):
    """The floor is what is left where a step more is too slow, and refused where it is too slow itself."""
    planted(Times(noise=0.002, seed=seed))
    floor = (16 * 3 + 8 * 16 + 2 * 8 + OVERHEAD) / (work(model) + OVERHEAD)
    assert widths(gm.prune(model, latency=1.01 * floor)) == (16, 8)
    with pytest.raises(RefusedError, match="cannot be met"):
        gm.prune(model, latency=floor / (TOLERANCE + 0.01))


def test_a_budget_is_used_where_operators_take_longer_alone(planted, model):
    """Their sum tells that the budget cannot be met; the network meets it with far from all units gone."""
    planted(Times(each=2000.0))
    small = gm.prune(model, latency=0.6)
    assert 0.5 < share(model, small) <= 0.6


def test_a_budget_above_what_there_is_removes_nothing(planted, model):
    planted(Times())
    assert gm.prune(model, latency=1.0).n_weights == gm.prune(model, latency=1e9).n_weights == model.n_weights


@pytest.mark.parametrize("ranking", ["local", "global"])
def test_a_refusal_names_a_floor_that_can_be_met(planted, model, ranking):
    """Nothing between the floor and the whole is refused, whatever operators take."""
    planted(Times())
    with pytest.raises(RefusedError) as refused:
        gm.prune(model, latency=0.2, ranking=ranking)
    told = str(refused.value)
    assert told.startswith("latency=0.2 cannot be met: with as much gone as at_most=0.9 and multiple_of=8 allow, the ")
    taken, whole, floor, further = re.search(
        r"takes ([\d,]+) of ([\d,]+) microseconds \(([\d.]+)%\), measured as a whole \(with multiple_of=1 ([\d.]+)%\)",
        told,
    ).groups()
    assert float(whole.replace(",", "")) == work(model) + OVERHEAD
    assert float(taken.replace(",", "")) == 16 * 3 + 8 * 16 + 2 * 8 + OVERHEAD
    for percent, multiple_of in ((floor, 8), (further, 1)):
        budget = float(percent) / 100
        small = gm.prune(model, latency=budget + 0.001, ranking=ranking, multiple_of=multiple_of)
        assert share(model, small) <= (budget + 0.001) * TOLERANCE
        with pytest.raises(RefusedError, match=f"latency={0.95 * budget:g} cannot be met"):
            gm.prune(model, latency=0.95 * budget, ranking=ranking, multiple_of=multiple_of)


def test_a_finer_multiple_is_named_only_where_it_is_faster(planted, model, monkeypatch):
    planted(Times())
    for multiple_of in (1, 2):
        with pytest.raises(RefusedError) as refused:
            gm.prune(model, latency=0.01, multiple_of=multiple_of)
        assert "with multiple_of=1" not in str(refused.value)
    monkeypatch.setattr(latency_budget, "least_latency", lambda models, _: {
        name: 1000.0 * (1 + (one is model)) for name, one in models.items()
    })  # fmt: skip
    with pytest.raises(RefusedError, match="measured as a whole; what stays"):
        gm.prune(model, latency=0.01)


def test_a_real_budget(tmp_path, monkeypatch):
    """A network that takes a fiftieth without what may go: whatever else the machine does, the budget can be met."""
    monkeypatch.setenv("GRAPHMOD_CACHE", str(tmp_path))
    whole = net("(float[n,3,24,24] x) => (float[n,2,20,20] y)"
                " { a = Conv(x, w)  r = Relu(a)  b = Conv(r, u)  s = Relu(b)  y = Conv(s, v) }",
                {"w": (256, 3, 3, 3), "u": (256, 256, 3, 3), "v": (2, 256, 1, 1)})  # fmt: skip
    small = gm.prune(whole, latency=0.6)
    assert small.n_weights < 0.9 * whole.n_weights
    assert list(tmp_path.glob("latency/*.jsonl"))
