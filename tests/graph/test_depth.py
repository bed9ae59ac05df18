"""Graphs that are deep: no recursion limit, and no time that grows faster than they do."""

from __future__ import annotations

import sys
import time

import networkx as nx
import numpy as np
from handmade import model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import graphmod as gm
from graphmod.graph.boundaries import dominators


def chain(n: int) -> gm.Model:
    operators = [
        helper.make_node("Relu", [f"t{i}" if i else "x"], [f"t{i + 1}"], f"/layers.{i // 10}/relu{i % 10}/Relu")
        for i in range(n)
    ]
    return model(operators, {"x": ["n", 4]}, {f"t{n}": ["n", 4]})


def nested(depth: int) -> gm.Model:
    """x + f(x), where f is the same again, so many times."""
    down = [helper.make_node("Relu", [f"a{i}" if i else "x"], [f"a{i + 1}"]) for i in range(depth)]
    up = [
        helper.make_node("Add", [f"a{depth}" if i == depth - 1 else f"s{i + 1}", f"a{i}" if i else "x"], [f"s{i}"])
        for i in reversed(range(depth))
    ]
    return model([*down, *up], {"x": ["n", 4]}, {"s0": ["n", 4]})


def collected(n: int) -> gm.Model:
    """A chain of which a last operator adds up all tensors: n paths meet at once."""
    operators = [helper.make_node("Relu", [f"t{i}" if i else "x"], [f"t{i + 1}"]) for i in range(n)]
    operators.append(helper.make_node("Sum", [f"t{i + 1}" for i in range(n)], ["y"]))
    return model(operators, {"x": ["n", 4]}, {"y": ["n", 4]})


def test_a_long_chain():
    n = 20_000
    deep = chain(n)
    assert gm.boundaries(deep) == [f"t{i + 1}" for i in range(n)]
    tree = gm.blocks(deep)
    assert len(tree["layers.1999"].operators) == 10
    part = gm.graph.subgraph(deep, ["t10"], [f"t{n - 10}"])
    assert len(part.operators) == n - 20
    assert gm.graph.cost(deep, deep.operator_names[:5]).weights == 0


def test_an_operator_of_a_long_chain_is_removed():
    n = 5000
    shorter = gm.remove(chain(n), "layers.20")
    assert len(shorter.operators) == n - 10
    x = np.array([[-1, 0, 1, 2]], np.float32)
    np.testing.assert_array_equal(shorter.run({"x": x})[f"t{n}"], np.maximum(x, 0))


def test_deep_nesting():
    depth = sys.getrecursionlimit() // 2 + 100  # several levels of tree a level of nesting
    deep = nested(depth)
    assert gm.boundaries(deep) == ["s0"]
    tree = gm.blocks(deep)
    levels, block = 0, tree
    while block.children:
        block = max(block.children, key=lambda child: len(child.operators))
        levels += 1
    assert levels > sys.getrecursionlimit()
    assert tree == gm.Block(tree.path, tree.entry, tree.exit, tree.operators, tree.children)


def test_many_paths_that_meet_at_once():
    n = 5000
    start = time.perf_counter()
    assert gm.boundaries(collected(n)) == ["t1", "y"]
    assert time.perf_counter() - start < 5


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_dominators_are_those_of_networkx(data):
    n = data.draw(st.integers(2, 12))
    edges = data.draw(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=30))
    whole = nx.DiGraph([(a, b) for a, b in edges if a < b] + [(i, i + 1) for i in range(0, n - 1, 3)])
    source, sink = min(whole), max(whole)
    kept = (nx.descendants(whole, source) | {source}) & (nx.ancestors(whole, sink) | {sink})
    if not {source, sink} <= kept or not nx.has_path(whole, source, sink):
        return
    flow = whole.subgraph(kept)
    immediate, expected, node = nx.immediate_dominators(flow, source), [], sink
    while node != source:
        expected.append(node)
        node = immediate[node]
    assert dominators(flow, source, sink) == expected[::-1]
