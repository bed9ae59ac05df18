"""Where a network is cut before what learns, against dominators of the graph of data flow."""

import networkx as nx
import numpy as np
from hypothesis import given, settings
from random_graphs import random_graphs
from random_networks import networks

import graphmod as gm
from graphmod.graph import activations, boundaries, data_flow, primary_input
from graphmod.rewrite import Region
from graphmod.train import Cache, Prefix


def check(model):
    source = primary_input(model)
    trunk = [source, *boundaries(model)]
    for tensor in [name for name in model.producer if name in activations(model, source)][:12]:
        flow = data_flow(model, source, tensor)
        above = nx.immediate_dominators(flow, source)
        passed, at = {source, tensor}, tensor
        while at != source:
            at = above[at]
            passed.add(at)
        known = [name for name in trunk if name in model.tensors and model.tensors[name].shape is not None]
        cut = max((name for name in known if name in passed), key=trunk.index)
        assert Prefix(model, [Region(tensor, trunk[-1])], trunk[-1]).cut == cut


@settings(max_examples=15, deadline=None)
@given(random_graphs())
def test_the_cut_is_the_last_boundary_that_all_paths_pass(drawn):
    check(gm.load(drawn.proto))


@settings(max_examples=10, deadline=None)
@given(networks())
def test_so_it_is_in_networks(drawn):
    check(gm.load(drawn.proto))


def test_the_first_of_several_regions_decides_and_nothing_is_run_that_is_not_needed(tmp_path, monkeypatch):
    model = gm.load(gm.demo.model_path())
    tree = gm.blocks(model)
    regions = [Region(tree[path].entry, tree[path].exit) for path in ("layer3.2", "layer2.4")]
    prefix = Prefix(model, regions, tree["layer3.2"].exit)
    assert prefix.cut == tree["layer2.4"].entry
    assert list(prefix.suffix.outputs) == [tree["layer3.2"].exit]
    opened = []
    session = gm.Model.session
    monkeypatch.setattr(
        gm.Model, "session", lambda one, *a, **k: (opened.append(len(one.operators)), session(one, *a, **k))[1]
    )
    data = gm.demo.splits().test[:9]
    found = prefix.cached(data, Cache(tmp_path)).inputs[prefix.cut]
    assert opened == [1 + model.producer[prefix.cut]]
    np.testing.assert_allclose(found, model.run(data.inputs, [prefix.cut])[prefix.cut], atol=1e-5)
    assert not list(tmp_path.iterdir())
    on_disk = prefix.cached(data, Cache(tmp_path, room=100)).inputs[prefix.cut]
    assert isinstance(on_disk, np.memmap)
    np.testing.assert_array_equal(on_disk, found)
