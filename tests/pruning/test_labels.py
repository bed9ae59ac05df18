"""The union-find of labels, against networkx."""

import networkx as nx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphmod.pruning.labels import Couplings

PAIRS = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40)


@settings(deadline=None)
@given(st.lists(PAIRS, max_size=4), st.sets(st.integers(0, 29), max_size=4))
def test_classes_are_connected_components(batches, kept):
    couplings, graph = Couplings(), nx.Graph()
    labels = couplings.fresh(30)
    graph.add_nodes_from(labels.tolist())
    for number in sorted(kept):
        couplings.keep(labels[[number]], f"because of {number}")
    for batch in batches:
        if batch:
            couplings.tie(*np.array(batch).T)
            graph.add_edges_from(batch)
    for component in nx.connected_components(graph):
        own = np.array(sorted(component))
        assert set(couplings.find(own).tolist()) == {own.min()}
        assert couplings.is_kept(own).all() == bool(component & kept) == bool(couplings.reason(own))
        if component & kept:
            assert couplings.reason(own) == f"because of {min(component & kept)}"


def test_labels_that_broadcast_are_tied_so():
    couplings = Couplings()
    grid, rows = couplings.fresh(6).reshape(2, 3), couplings.fresh(2)
    couplings.tie(grid, rows[:, None])
    assert len(np.unique(couplings.find(np.arange(8)))) == 2
    assert couplings.find(grid[1]).tolist() == couplings.find(rows[[1, 1, 1]]).tolist()


def test_what_should_carry_wins_over_what_should_not():
    couplings = Couplings()
    first, second, third = (couplings.fresh(2) for _ in range(3))
    couplings.prefer(first, carries=False)
    assert (couplings.preference(first), couplings.preference(second)) == (-1, 0)
    couplings.prefer(third, carries=True)
    couplings.tie(first, third)
    assert couplings.preference(first) == 1


def test_many_labels_grow_without_forgetting():
    couplings = Couplings()
    couplings.keep(couplings.fresh(10), "first")
    last = couplings.fresh(100_000)
    couplings.tie(last[:10], np.arange(10))
    assert couplings.is_kept(last).sum() == 10
    assert couplings.reason(last) == "first"
