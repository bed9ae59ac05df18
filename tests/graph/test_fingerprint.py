"""Fingerprints of operators: the same wherever names are others, different wherever structure is."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import networkx as nx
import numpy as np
from disguise import disguise
from handmade import fan, model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from random_graphs import RandomGraph, random_graphs

import graphmod as gm
from graphmod.graph.fingerprint import operator_hashes

RNG = np.random.default_rng(0)


@settings(max_examples=40, deadline=None)
@given(random_graphs(), st.integers(0, 5), st.booleans())
def test_names_and_order_do_not_count(graph: RandomGraph, rounds: int, weights: bool):
    one, other = gm.load(graph.proto), gm.load(disguise(graph.proto))
    assert Counter(operator_hashes(one, rounds, weights)) == Counter(operator_hashes(other, rounds, weights))


@settings(max_examples=40, deadline=None)
@given(random_graphs(), st.integers(0, 4))
def test_each_round_only_tells_more_apart(graph: RandomGraph, rounds: int):
    m = gm.load(graph.proto)
    coarse, fine = operator_hashes(m, rounds), operator_hashes(m, rounds + 1)
    assert len(set(zip(coarse, fine, strict=True))) == len(set(fine))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["Tanh", "Neg", "Exp"]), min_size=1, max_size=12), st.integers(0, 4))
def test_partitions_of_chains_are_those_of_networkx(kinds: list[str], rounds: int):
    tensors = ["x", *(f"t{i}" for i in range(len(kinds)))]
    operators = [helper.make_node(kind, [tensors[i]], [tensors[i + 1]]) for i, kind in enumerate(kinds)]
    m = model(operators, {"x": [2]}, {tensors[-1]: [2]})
    labels = ["input", *kinds, "output"]
    chain = nx.path_graph(len(labels), create_using=nx.DiGraph)
    view = nx.Graph()
    for u, v in chain.edges:  # directions as nodes, which networkx's undirected refinement then sees
        nx.add_path(view, [u, ("from", u), ("to", v), v])
    for node in view:
        view.nodes[node]["label"] = labels[node] if isinstance(node, int) else node[0]
    reference = nx.weisfeiler_lehman_subgraph_hashes(view, node_attr="label", iterations=3 * rounds or 1)
    expected = [(reference[i + 1][3 * rounds - 1] if rounds else kind) for i, kind in enumerate(kinds)]
    found = operator_hashes(m, rounds)
    assert len(set(zip(found, expected, strict=True))) == len(set(found)) == len(set(expected))


def test_repeated_blocks_have_equal_hashes_until_values_count():
    m = fan([4] * 9, RNG, (4,))
    products = [i for i, op in enumerate(m.operators) if op.op_type == "MatMul"]
    structure, values = operator_hashes(m, 3), operator_hashes(m, 3, weights=True)
    inner = [structure[i] for i in products[2:-2]]
    assert len(set(inner)) == 1
    assert len({values[i] for i in products}) == len(products)


def test_positions_of_inputs_and_outputs_count():
    def build(first, second, part):
        split = helper.make_node("Split", ["x"], ["a", "b"], axis=0)
        step = helper.make_node("Sub", [first, second], ["d"])
        return model([split, step, helper.make_node("Neg", [part], ["y"])], {"x": [4]}, {"y": [2], "d": [2]})

    graphs = [build("a", "b", "a"), build("b", "a", "a"), build("a", "b", "b"), build("a", "a", "a")]
    assert len({operator_hashes(m, 1)[1] for m in graphs}) == 3
    assert len({tuple(operator_hashes(m, 1)) for m in graphs}) == 4


def test_short_integers_count_as_structure_and_floats_do_not():
    def build(shape, scale):
        steps = [helper.make_node("Reshape", ["x", "s"], ["r"]), helper.make_node("Mul", ["r", "f"], ["y"])]
        weights = {"s": np.array(shape), "f": np.float32(scale)}
        return operator_hashes(model(steps, {"x": [4]}, {"y": None}, weights), rounds=0)

    base, other_shape, other_scale = build([2, 2], 1), build([4, 1], 1), build([2, 2], 3)
    assert base == other_scale
    assert base[0] != other_shape[0]
    assert base[1] == other_shape[1]


def test_attributes_count_however_they_are_written():
    def build(**attributes):
        return operator_hashes(
            model([helper.make_node("Gemm", ["x", "x"], ["y"], **attributes)], {"x": [2, 2]}, {"y": [2, 2]})
        )

    assert build(alpha=2.0, transB=1) == build(transB=1, alpha=2.0)
    assert build() == build(alpha=1.0, beta=1.0, transA=0)
    assert len({tuple(one) for one in (build(), build(alpha=2.0), build(alpha=3.0), build(beta=2.0))}) == 4


def test_hashes_are_the_same_in_every_process():
    code = "import graphmod as gm; from graphmod.graph.fingerprint import operator_hashes as f\n"
    code += "print(hash(tuple(f(gm.load(gm.demo.model_path()), 4, True))))"
    told = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert told[0].stdout == told[1].stdout
