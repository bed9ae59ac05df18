"""Latencies: that they are in proportion, with wide margins."""

import gc

import numpy as np
import pytest
from handmade import fan

import graphmod as gm
from graphmod.probe import block_latency, latency


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def test_a_deeper_model_is_slower(rng):
    models = {"shallow": fan([96] * 4, rng, (96,)), "deep": fan([96] * 32, rng, (96,))}
    timed = latency(models, {"x": rng.normal(size=(32, 96)).astype(np.float32)}, rounds=15)
    assert timed["deep"].median > 2 * timed["shallow"].median > 0
    for one in timed.values():
        assert 0 < one.lower <= one.median <= one.upper


def test_each_model_may_have_its_own_arrays(rng):
    models = {"a": fan([8], rng, (4,)), "x": fan([8], rng, (6,))}
    feeds = {key: {"x": np.zeros((2, w), np.float32)} for key, w in (("a", 4), ("x", 6))}
    assert set(latency(models, feeds, rounds=2)) == {"a", "x"}


def test_arrays_that_do_not_fit(rng):
    with pytest.raises(gm.InvalidDataError, match="'x'"):
        latency({"m": fan([8], rng)}, {"x": np.zeros((2, 9), np.float32)}, rounds=1)
    with pytest.raises(gm.InvalidDataError, match="'x'"):
        latency({"m": fan([8], rng)}, {}, rounds=1)
    assert gc.isenabled()


def test_models_without_names_are_refused(rng):
    with pytest.raises(gm.RefusedError, match="by name"):
        latency(fan([8], rng), {"x": np.zeros((2, 4), np.float32)})


@pytest.mark.parametrize("batch", ["n", 8])
def test_blocks_sum_to_the_order_of_the_whole(rng, batch):
    network = fan([128] * 6, rng, (128,), batch=batch)
    parts = [gm.Block(str(i), "x" if not i else f"t{i - 1}", f"t{i}", ()) for i in range(6)]
    x = rng.normal(size=(8, 128)).astype(np.float32)
    timed = block_latency(network, parts, gm.Data({"x": np.repeat(x, 2, 0)}), batch_size=8)
    whole = latency({"m": network}, {"x": x}, rounds=15)["m"].median
    assert set(timed) == {part.path for part in parts}
    assert min(timed.values()) >= 0
    assert whole / 4 < sum(timed.values()) < 4 * whole


def test_an_expensive_block_stands_out(rng):
    network = fan([16, 600, 600, 16, 16], rng, (16,))
    parts = [gm.Block("wide", "t0", "t2", ()), gm.Block("narrow", "t3", "t4", ())]
    timed = block_latency(network, parts, gm.Data({"x": np.zeros((64, 16), np.float32)}), batch_size=64)
    assert timed["wide"] > 5 * timed["narrow"]
