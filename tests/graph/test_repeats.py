"""Repeated parts: planted ones are found, and whatever is found is alike."""

import networkx as nx
import numpy as np
import pytest
from handmade import fan, model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from random_graphs import random_graphs

import graphmod as gm
from graphmod.graph.repeats import repeats, structural_order


def chain(kinds, shape=("n", 4)):
    """Return a chain of unary operators, by the first letters of their types."""
    types = {"R": "Relu", "N": "Neg", "T": "Tanh", "S": "Sigmoid", "E": "Exp"}
    steps = [helper.make_node(types[kind], [f"t{i}"], [f"t{i + 1}"], f"op{i}") for i, kind in enumerate(kinds)]
    return model(steps, {"t0": list(shape)}, {f"t{len(kinds)}": list(shape)})


def most_saved(text, size):
    """Return what the best part of a string saves, by trying every part."""
    parts = {text[i:j] for i in range(len(text)) for j in range(i + size, len(text) + 1)}
    return max(((text.count(part) - 1) * len(part) for part in parts if text.count(part) > 1), default=0)


@settings(max_examples=150, deadline=None)
@given(st.text("RNT", min_size=1, max_size=24), st.integers(1, 4))
def test_of_a_chain_the_best_part_is_found_first(kinds, size):
    found = repeats(chain(kinds), size)
    assert (found[0].saved if found else 0) == most_saved(kinds, size)
    for part in found:
        assert len({"".join(kinds[place] for place in places) for places in part.occurrences}) == 1


def test_parts_share_no_operators():
    found = repeats(chain("RNTSRNTSEERNTSNNNN"), 2)
    places = [place for part in found for places in part.occurrences for place in places]
    assert len(places) == len(set(places))
    assert [(part.size, len(part.occurrences)) for part in found] == [(4, 3), (2, 2)]


def test_wiring_counts_and_order_in_the_file_does_not():
    def block(i, first, second):
        return [
            helper.make_node("Relu", [f"x{i}"], [f"a{i}"]),
            helper.make_node("Tanh", [f"x{i}"], [f"b{i}"]),
            helper.make_node("Sub", [f"{first}{i}", f"{second}{i}"], [f"x{i + 1}"]),
        ]

    def built(*blocks):
        operators = [operator for block in blocks for operator in block]
        return model(operators, {"x0": ["n", 4]}, {f"x{len(blocks)}": ["n", 4]})

    alike = block(1, "a", "b")
    swapped = [alike[1], alike[0], alike[2]]
    assert [part.saved for part in repeats(built(block(0, "a", "b"), swapped), 3)] == [3]
    assert repeats(built(block(0, "a", "b"), block(1, "b", "a")), 3) == []


def test_shapes_of_weights_and_attributes_count():
    rng = np.random.default_rng(0)
    assert [(part.size, len(part.occurrences)) for part in repeats(fan([4, 8, 8, 8], rng, (7, 8)), 2)] == [(2, 2)]
    kinds = [helper.make_node("LeakyRelu", [f"t{i}"], [f"t{i + 1}"], alpha=alpha) for i, alpha in enumerate((0.1, 0.2))]
    assert repeats(model(kinds, {"t0": ["n", 4]}, {"t2": ["n", 4]}), 1) == []


@pytest.mark.parametrize("exporter", ["current", "torchscript"])
def test_layers_of_a_transformer_are_one_part(zoo_network, exporter):
    network = zoo_network("vit12", exporter).model
    first = repeats(network)[0]
    assert len(first.occurrences) in (11, 12)
    assert first.saved > 0.75 * len(network.operators)


@settings(max_examples=60, deadline=None)
@given(random_graphs())
def test_no_part_depends_on_what_depends_on_it(graph):
    built = gm.load(graph.proto)
    order = structural_order(built)
    rank = {place: i for i, place in enumerate(order)}
    assert sorted(order) == list(range(len(built.operators)))
    assert all(
        rank[built.producer[t]] < rank[i] for i, reads in enumerate(built.reads) for t in reads if t in built.producer
    )
    view = nx.DiGraph(built.graph)
    owner = {}
    for number, part in enumerate(repeats(built, 1)):
        for k, places in enumerate(part.occurrences):
            owner.update({built.operator_names[place]: (number, k) for place in places})
    whole = nx.quotient_graph(view, lambda a, b: a in owner and owner.get(a) == owner.get(b))
    assert nx.is_directed_acyclic_graph(whole)


def test_a_deep_chain_is_no_matter_of_recursion_or_time():
    found = repeats(chain("RNTSE" * 2000), 4)
    assert (found[0].size, len(found[0].occurrences)) == (5, 2000)
