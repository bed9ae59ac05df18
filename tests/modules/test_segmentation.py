"""Segmentations against brute force over all of them."""

import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import graphmod as gm
from graphmod.modules import dissimilarity
from graphmod.modules.segmentation import fewest, greedy, optimal


@st.composite
def similarities(draw, most=8):
    n = draw(st.integers(1, most))
    value = st.one_of(st.floats(-0.2, 1), st.sampled_from([0.0, 0.5, 0.9, 1.0, float("nan")]))
    matrix = draw(arrays(np.float64, (n, n), elements=value))
    dead = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    matrix = np.triu(np.nan_to_num(matrix, nan=0.3), 1)
    matrix = matrix + matrix.T + np.eye(n)
    if draw(st.booleans()):
        matrix[dead], matrix[:, dead] = np.nan, np.nan
    return matrix


def known(matrix, i, j):
    return 0.0 if np.isnan(matrix[i, j]) else matrix[i, j]


def runs(starts, n):
    return [range(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]


def cost(matrix, starts):
    return sum(1 - known(matrix, i, j) for run in runs(starts, len(matrix)) for i, j in combinations(run, 2))


def segmentations(n, count):
    return [[0, *cuts] for cuts in combinations(range(1, n), count - 1)]


@settings(max_examples=150, deadline=None)
@given(similarities(), st.data())
def test_optimal_is_the_best_of_all(matrix, data):
    n = len(matrix)
    count = data.draw(st.integers(1, n))
    found = optimal(matrix, count)
    assert found in segmentations(n, count)
    assert cost(matrix, found) == pytest.approx(min(cost(matrix, s) for s in segmentations(n, count)), abs=1e-9)
    assert dissimilarity(matrix, found) == pytest.approx(cost(matrix, found), abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(similarities(), st.floats(0, 1))
def test_fewest_is_the_shortest_and_the_best_of_these(matrix, threshold):
    n = len(matrix)

    def allowed(starts):
        return all(known(matrix, i, j) >= threshold for run in runs(starts, n) for i, j in combinations(run, 2))

    found = fewest(matrix, threshold)
    possible = [s for count in range(1, n + 1) for s in segmentations(n, count) if allowed(s)]
    shortest = [s for s in possible if len(s) == len(possible[0])]
    assert found in shortest
    assert cost(matrix, found) == pytest.approx(min(cost(matrix, s) for s in shortest), abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(similarities(), st.floats(0, 1), st.data())
def test_greedy_follows_the_rule(matrix, threshold, data):
    forced = data.draw(st.sets(st.integers(0, len(matrix) - 1)))
    cuts = [i for i in range(1, len(matrix)) if i in forced or not matrix[i - 1, i] > threshold]
    assert greedy(matrix, threshold, sorted(forced)) == [0, *cuts]


def keeps(matrix, starts, floor, cuts):
    """Whether every pair within a run is similar enough, and a run starts at every cut."""
    pairs = ((i, j) for run in runs(starts, len(matrix)) for i, j in combinations(run, 2))
    return set(cuts) <= set(starts) and (floor is None or all(known(matrix, i, j) >= floor for i, j in pairs))


@settings(max_examples=120, deadline=None)
@given(similarities(), st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.5, 0.9, 1.0])), st.data())
def test_optimal_with_a_floor_and_cuts_is_the_best_of_all_that_keep_them(matrix, floor, data):
    n = len(matrix)
    cuts = sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=3)))
    count = data.draw(st.integers(1, n))
    possible = {k: [s for s in segmentations(n, k) if keeps(matrix, s, floor, cuts)] for k in range(1, n + 1)}
    if possible[count]:
        found = optimal(matrix, count, floor=floor, cuts=cuts)
        assert found in possible[count]
        assert cost(matrix, found) == pytest.approx(min(cost(matrix, s) for s in possible[count]), abs=1e-9)
    else:
        least = min(k for k, some in possible.items() if some)
        assert least > count
        with pytest.raises(gm.RefusedError, match=f"the fewest that will do are {least}$"):
            optimal(matrix, count, floor=floor, cuts=cuts)


@settings(max_examples=100, deadline=None)
@given(similarities(), st.floats(0, 1), st.data())
def test_fewest_with_cuts(matrix, threshold, data):
    n = len(matrix)
    cuts = sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=3)))
    found = fewest(matrix, threshold, cuts)
    possible = [s for k in range(1, n + 1) for s in segmentations(n, k) if keeps(matrix, s, threshold, cuts)]
    shortest = [s for s in possible if len(s) == len(possible[0])]
    assert found in shortest
    assert cost(matrix, found) == pytest.approx(min(cost(matrix, s) for s in shortest), abs=1e-9)


def test_a_thousand_boundaries():
    n = 1000
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) / 100
    start = time.process_time()
    assert len(fewest(np.exp(-apart), 0.9)) == 91  # of 11 in a row all are at least exp(-0.1) = 0.905 similar
    assert time.process_time() - start < 2


@pytest.mark.parametrize("count", [0, 4, -1])
def test_numbers_of_modules_out_of_range(count):
    with pytest.raises(gm.RefusedError, match="1 to 3"):
        optimal(np.eye(3), count)
