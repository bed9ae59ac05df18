"""The random networks themselves: they are valid, they run, and they are made of everything."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from random_networks import FAMILIES, OPSETS, RandomNetwork, network, networks, seeded


def assert_runs(net: RandomNetwork) -> None:
    """Assert that the network is valid and that its outputs are finite, of sane scale and of the shapes it declares."""
    onnx.checker.check_model(net.proto, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(net.proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for batch in [net.batch] if net.batch else [1, 3]:
        for value, declared in zip(session.run(None, net.feeds(batch=batch)), net.proto.graph.output, strict=True):
            dims = declared.type.tensor_type.shape.dim
            assert value.shape == tuple(batch if dim.dim_param else dim.dim_value for dim in dims)
            assert np.isfinite(value).all()
            assert value.dtype.kind == "i" or np.abs(value).max() < 1e3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_block_of_each_family_runs(name):
    for seed in range(5):
        assert_runs(network([name], seed, OPSETS[seed], batch=None if seed else 2))


@pytest.mark.parametrize("seed", range(40))
def test_seeded_networks_run(seed):
    assert_runs(seeded(seed))


@given(networks())
@settings(max_examples=40, deadline=None)
def test_drawn_networks_run(net):
    assert_runs(net)


def test_two_hundred_seeds_have_every_family_and_every_way_to_be_built():
    drawn = [seeded(seed) for seed in range(200)]
    assert frozenset().union(*(net.families for net in drawn)) == set(FAMILIES)
    assert {net.batch for net in drawn} == {None, 2}
    assert {net.proto.opset_import[0].version for net in drawn} >= set(OPSETS)
    assert {len(net.shape) for net in drawn} == {2, 3}
    assert any(len(net.proto.graph.output) > 1 for net in drawn)


def test_a_network_follows_from_its_arguments_and_its_blocks_from_name_and_seed():
    blocks = ["conv", "gate_of_channels", "attention"]
    assert network(blocks, 3).proto == network(blocks, 3).proto
    assert network(blocks, 3).proto != network(blocks, 4).proto

    def operators(net: RandomNetwork, name: str) -> list[str]:
        return [node.op_type for node in net.proto.graph.node if f".{name}/" in node.name]

    for seed in range(10):
        assert operators(network(blocks, seed), "gate_of_channels") == operators(
            network(blocks[1:], seed), "gate_of_channels"
        )


def test_every_operator_has_a_name_of_its_own():
    for seed in range(20):
        names = [node.name for node in seeded(seed).proto.graph.node]
        assert all(names)
        assert len(set(names)) == len(names)
