"""A network without some units computes what the original does without their slices: groups, networks, families."""

import architectures
import numpy as np
import pytest
import random_networks
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from network_families import FAMILIES
from pruned import EXACT, error, some_units

import graphmod as gm
from graphmod.pruning import cut, groups

SMOOTH = sorted(set(FAMILIES) - random_networks.STEPPED)


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_each_group_of_real_networks(name, exporter):
    network = zoo.network(name, exporter)
    found = groups(network.model)
    assert len(found)
    for group in found.groups[:: max(1, len(found) // 3)]:
        gone = some_units(found, seed=0, share=0.5, only=group.name)
        assert error(found, gone, network.feeds) <= EXACT, group


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_all_groups_of_real_networks_at_once(name, exporter):
    network = zoo.network(name, exporter)
    found = groups(network.model)
    assert error(found, some_units(found, seed=1), network.feeds) <= EXACT


@pytest.mark.parametrize("family", SMOOTH)
def test_every_family_of_operators(family):
    stem = "conv" if FAMILIES[family].form == "image" else "linear"
    network = random_networks.network([stem, family], 0)
    found = groups(gm.load(network.proto))
    assert error(found, some_units(found, 0), network.feeds(0, 3)) <= EXACT


@settings(max_examples=20, deadline=None)
@given(random_networks.networks(families=SMOOTH), st.integers(0, 9))
def test_random_networks_stay_valid_and_equal(network, seed):
    found = groups(gm.load(network.proto))
    assert error(found, some_units(found, seed), network.feeds(seed)) <= EXACT


@settings(max_examples=15, deadline=None)
@given(random_networks.networks(), st.integers(0, 9))
def test_random_networks_of_all_families_run_with_outputs_of_the_same_shape(network, seed):
    model = gm.load(network.proto)
    found = groups(model)
    small = cut(found, some_units(found, seed))
    assert small.outputs == model.outputs
    for batch in (1, 4):
        feeds = network.feeds(seed, batch)
        was, now = model.run(feeds), small.run(feeds)
        assert {name: value.shape for name, value in was.items()} == {name: value.shape for name, value in now.items()}


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(random_networks.networks(families=SMOOTH), st.integers(0, 2**16))
def test_many_random_networks(network, seed):
    found = groups(gm.load(network.proto))
    assert error(found, some_units(found, seed), network.feeds(seed)) <= EXACT


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter"), architectures.exports())
def test_each_group_of_every_architecture(name, exporter):
    model = gm.load(architectures.export(name, exporter))
    found = groups(model)
    examples = [
        {key: value.numpy() for key, value in zip(model.inputs, one, strict=True)}
        for one in architectures.examples(name, exporter)
    ]
    for group in found:
        gone = some_units(found, seed=0, share=0.5, only=group.name)
        assert error(found, gone, examples[0]) <= EXACT, group
    small = cut(found, some_units(found, seed=0, share=0.5))
    for feeds in examples:
        for output, value in model.run(feeds).items():
            assert small.run(feeds)[output].shape == value.shape
            assert np.isfinite(small.run(feeds)[output]).all() == np.isfinite(value).all()
