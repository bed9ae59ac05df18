"""Shortest paths by two criteria, against all paths there are."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphmod.methods.compress.shortest import pareto_paths


def all_paths(starts, stops):
    """Yield every path from the first position to the last as places of edges."""
    last = max(stops, default=0)
    pending = [((), 0)]
    while pending:
        path, at = pending.pop()
        if at == last:
            yield path
            continue
        pending += [((*path, edge), stops[edge]) for edge in range(len(starts)) if starts[edge] == at]


@st.composite
def graphs(draw):
    n = draw(st.integers(1, 6))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(1, n)).filter(lambda pair: pair[0] < pair[1])
    drawn = draw(st.lists(pairs, max_size=12))
    steps = [(i, i + 1) for i in range(n)] if draw(st.booleans()) else []
    edges = [*steps, *drawn] or [(0, n)]
    latencies = [draw(st.integers(0, 7)) for _ in edges]
    # multiples of 1/8 add up exactly, whatever the order
    errors = [draw(st.one_of(st.integers(0, 20).map(lambda k: k / 8), st.just(float("inf")))) for _ in edges]
    return [a for a, _ in edges], [b for _, b in edges], latencies, errors


@settings(max_examples=100, deadline=None)
@given(graphs(), st.one_of(st.none(), st.integers(0, 25)))
def test_the_front_is_that_of_all_paths(graph, most):
    starts, stops, latencies, errors = graph
    sums = {
        (sum(latencies[e] for e in path), sum(errors[e] for e in path))
        for path in all_paths(starts, stops)
        if all(errors[e] < float("inf") for e in path)
    }
    sums = {one for one in sums if most is None or one[0] <= most}
    best = sorted(one for one in sums if not any(o != one and o[0] <= one[0] and o[1] <= one[1] for o in sums))
    found = pareto_paths(starts, stops, latencies, errors, most)
    assert [(path.latency, path.error) for path in found] == best
    for path in found:
        assert path.latency == sum(latencies[e] for e in path.edges)
        assert path.error == sum(errors[e] for e in path.edges)
        ends = [0, *(stops[e] for e in path.edges)]
        assert [(starts[e], stops[e]) for e in path.edges] == list(pairwise(ends))
        assert ends[-1] == max(stops)


def test_edges_that_cost_nothing():
    (path,) = pareto_paths([0, 1, 0], [1, 2, 2], [0, 0, 0], [0.0, 0.0, 1.0])
    assert (path.latency, path.error, path.edges) == (0, 0.0, (0, 1))


def test_no_way_through():
    assert pareto_paths([0, 1], [1, 2], [1, 1], [0.0, float("inf")]) == []
    assert pareto_paths([1], [2], [1], [0.0]) == []


@pytest.mark.parametrize("n", [60])
def test_many_edges_are_no_matter(n):
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n)]
    found = pareto_paths(
        [a for a, _ in pairs],
        [b for _, b in pairs],
        [100 if b == a + 1 else 10 for a, b in pairs],
        [0.0 if b == a + 1 else float((b - a) ** 2) for a, b in pairs],
    )
    assert found[-1].error == 0
    assert found[-1].latency == 100 * (n - 1)
    assert found[0].latency == 10
