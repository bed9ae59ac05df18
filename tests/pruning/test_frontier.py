"""The frontier of a network against runs of all of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from network_families import FAMILIES
from random_networks import STEPPED, network, seeded

import graphmod as gm
from graphmod.data import Data
from graphmod.pruning.frontier import Depths, Frontier

EXACT = sorted(name for name in set(FAMILIES) - STEPPED if not name.startswith("quantized"))
"""Families that ONNX Runtime computes alike in every part of a network."""


def walk(model: gm.Model, data: Data, places: list[str], batch_size: int = 2) -> None:
    """Go from place to place, and check all values on the way."""
    depths = Depths(model, places)
    frontier = Frontier(list(data.batches(batch_size)))
    expected = [model.run(dict(batch.inputs), places) for batch in data.batches(batch_size)]
    for depth in sorted({depths.of(name) for name in places}):
        here = [name for name in places if depths.of(name) == depth]
        frontier.advance(model, [*depths.crossing(depth), *here])
        for known, made in zip(expected, frontier.values(model, here), strict=True):
            for name in here:
                np.testing.assert_allclose(made[name], known[name], rtol=1e-4, atol=1e-4)


@given(st.integers(0, 2**16), st.data())
@settings(max_examples=10, deadline=None)
def test_values_are_those_of_a_whole_run(seed, drawn):
    net = seeded(seed, EXACT)
    model = gm.load(net.proto)
    floats = [name for op in model.operators for name in op.output if (k := model.tensors.get(name)) and k.is_float]
    places = drawn.draw(st.lists(st.sampled_from(floats), min_size=1, max_size=5, unique=True))
    walk(model, Data(net.feeds(seed, 4)), places)


def test_no_operator_runs_twice(monkeypatch):
    """Every part reads what the one before made, and nothing but that."""
    m = gm.load(gm.demo.model_path())
    places = [operator.output[0] for operator in m.operators if operator.op_type == "Relu"]
    ran: list[str] = []
    run = gm.Model.run

    def counted(self, feeds, outputs=None):
        if self is not m:
            ran.extend(self.operator_names)
        return run(self, feeds, outputs)

    monkeypatch.setattr(gm.Model, "run", counted)
    walk(m, gm.demo.splits().calibration[:4], places, batch_size=4)
    assert len(ran) == len(set(ran)) > 0.8 * len(m.operators)


def test_constants_stay_with_what_reads_them():
    """As inputs, they would not tell ONNX Runtime the shapes that follow from them."""
    found = gm.groups(gm.load(network(["conv", "resize", "conv"], 0).proto))
    made = [operator.output[0] for operator in found.model.operators if operator.op_type == "Constant"]
    places = [operator.output[0] for operator in found.model.operators if operator.op_type == "Conv"]
    depths = Depths(found.model, places)
    held = {name for depth in range(len(places)) for name in depths.crossing(depth)}
    assert made
    assert held.isdisjoint({*made, *found.model.initializers})


def test_what_the_model_does_not_have_is_not_held():
    m = gm.load(gm.demo.model_path())
    data = gm.demo.splits().calibration[:2]
    frontier, last = Frontier([data]), m.operators[3].output[0]
    frontier.advance(m, ["nowhere", last, "image"])
    (values,) = frontier.values(m, [last])
    assert np.array_equal(values[last], m.run(dict(data.inputs), [last])[last])
    with pytest.raises(gm.errors.RefusedError, match="nowhere"):
        list(frontier.values(m, ["nowhere"]))
