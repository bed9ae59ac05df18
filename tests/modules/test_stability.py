"""Stability: planted modules that stay, planted ones that cannot, and resampling written out."""

import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphmod as gm
from graphmod.modules import modularize, stability
from graphmod.modules.stability import adjusted_rand
from graphmod.modules.stability import resampled as resampled_matrices
from graphmod.probe import Similarity, cka
from graphmod.probe.similarity import hsic_of_batch

RNG = np.random.default_rng(31)


def measured(representations, batch_size=16, passes=1):
    """Return the similarity of given representations, as :func:`graphmod.similarity` measures it."""
    n = len(representations[0])
    rows = [RNG.permutation(n) if passes > 1 else np.arange(n) for _ in range(passes)]
    batches = np.stack(
        [
            hsic_of_batch([x[order[start : start + batch_size]] for x in representations])
            for order in rows
            for start in range(0, n, batch_size)
        ]
    )
    names = tuple(f"t{i}" for i in range(len(representations)))
    matrix = cka(batches.sum(axis=0))
    return Similarity(matrix, names, names, "d", n, batch_size, batches, passes)


def planted(lengths, noise=0.1, n=320):
    """Return representations that are one signal, and noise of each one's own, along every planted module."""
    found = []
    for length in lengths:
        signal = RNG.normal(size=(n, 10))
        found += [signal + noise * RNG.normal(size=signal.shape) for _ in range(length)]
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.5},
        {"n_modules": 3},
        {"n_modules": 3, "floor": 0.5},
        {"method": "greedy", "threshold": 0.5},
        {"method": "greedy", "n_modules": 3},
        {"n_modules": 3, "cuts": ["t4"]},
    ],
)
@pytest.mark.parametrize("passes", [1, 3])
def test_planted_modules_stay(options, passes):
    found = stability(measured(planted([4, 2, 5]), passes=passes), **options, resamples=50)
    expected = np.zeros(11)
    expected[[0, 4, 6]] = 1
    np.testing.assert_array_equal(found.begins, expected)
    assert found.n_modules == {3: 1.0}
    assert (found.agreement, found.same) == (1.0, 1.0)
    assert [len(module) for module in found.modules] == [4, 2, 5]


def test_where_nothing_tells_two_places_apart_both_are_told():
    """One boundary is a mixture of the modules around it, as like the one as the other."""
    left, right = RNG.normal(size=(2, 320, 10))
    around = [x + 0.3 * RNG.normal(size=x.shape) for x in (left, left, left, right, right, right)]

    def mixed(share):
        seen = measured([*around[:3], share * left + (1 - share) * right, *around[3:]])
        return seen, seen.matrix[3, :3].sum() - seen.matrix[3, 4:].sum()

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if mixed(middle)[1] > 0 else (middle, high)
    found = stability(mixed(low)[0], n_modules=2, resamples=400)
    assert found.begins[[0, 1, 2, 5, 6]].tolist() == [1, 0, 0, 0, 0]
    assert found.begins[3] + found.begins[4] == pytest.approx(1)
    assert 0.3 < found.begins[3] < 0.7
    assert 0.3 < found.same < 0.7
    assert 0.4 < found.agreement < 0.95


def test_resampling_written_out():
    seen = measured(planted([2, 2], n=96, noise=1.0))
    found = stability(seen, threshold=0.25, resamples=60, seed=7)
    rng = np.random.default_rng(7)
    begins, numbers = Counter(), Counter()
    for _ in range(60):
        drawn = rng.integers(6, size=6)
        total = sum(seen.batches[i] for i in drawn)
        matrix = total / np.sqrt(np.outer(np.diag(total), np.diag(total)))
        again = Similarity(matrix, seen.boundaries, seen.blocks, "d", 96, 16)
        modules = modularize(again, threshold=0.25)
        begins.update(module.boundaries[0] for module in modules)
        numbers[len(modules)] += 1
    assert {name: found.of(name) * 60 for name in seen.boundaries} == pytest.approx(
        {n: begins[n] for n in seen.boundaries}
    )
    assert found.n_modules == pytest.approx({n: count / 60 for n, count in numbers.items()})
    assert sum(found.n_modules.values()) == pytest.approx(1)


def test_the_spread_of_a_resampled_similarity_is_that_of_new_samples():
    """Also if samples were passed over several times: that makes no more of them."""
    signal = RNG.normal(size=(60, 320, 6))
    pairs = [[x, x + 2 * RNG.normal(size=x.shape)] for x in signal]
    spread = np.std([measured(pair).matrix[0, 1] for pair in pairs])

    def resampled(seen):
        rng = np.random.default_rng(0)
        per_pass = len(seen.batches) // seen.passes
        sums = (seen.batches[rng.integers(len(seen.batches), size=per_pass)].sum(axis=0) for _ in range(300))
        return np.std([cka(total)[0, 1] for total in sums])

    for passes in (1, 5):
        told = np.mean([resampled(measured(pair, passes=passes)) for pair in pairs[:20]])
        assert 0.7 < told / spread < 1.5, passes
    seen = measured(pairs[0], passes=5)
    own = np.std([matrix[0, 1] for matrix in resampled_matrices(seen, 300, 0)])
    assert own == pytest.approx(resampled(seen), rel=0.2)


def rand_by_pairs(one, other, n):
    """Return the adjusted Rand index from its definition: counts over all pairs."""
    group = [np.searchsorted(starts, np.arange(n), side="right") for starts in (one, other)]
    pairs = list(combinations(range(n), 2))
    a, b = (np.array([g[i] == g[j] for i, j in pairs]) for g in group)
    both, expected = (a & b).sum(), a.sum() * b.sum() / len(pairs)
    most = (a.sum() + b.sum()) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 9), st.data())
def test_the_adjusted_rand_index(n, data):
    one, other = (sorted({0, *data.draw(st.sets(st.integers(1, n - 1)))}) for _ in range(2))
    assert adjusted_rand(one, other, n) == pytest.approx(rand_by_pairs(one, other, n), abs=1e-12)
    assert adjusted_rand(one, one, n) == 1


def test_same_seed_same_result():
    seen = measured(planted([3, 3], noise=1.0))
    first, second, other = (stability(seen, threshold=0.25, resamples=40, seed=seed) for seed in (1, 1, 2))
    assert first.begins.tobytes() == second.begins.tobytes()
    assert (first.agreement, first.n_modules) == (second.agreement, second.n_modules)
    assert first.begins.tobytes() != other.begins.tobytes()


def test_as_json():
    found = stability(measured(planted([2, 3])), n_modules=2, resamples=10)
    told = json.loads(json.dumps(found.as_dict()))
    assert told == {
        "begins": {"t0": 1.0, "t1": 0.0, "t2": 1.0, "t3": 0.0, "t4": 0.0},
        "n_modules": {"2": 1.0},
        "agreement": 1.0,
        "same": 1.0,
        "resamples": 10,
    }


def test_refusals():
    seen = measured(planted([2, 2]))
    bare = Similarity(seen.matrix, seen.boundaries, seen.blocks, "d", 320, 16)
    with pytest.raises(gm.RefusedError, match="keeps no batches, too few"):
        stability(bare, threshold=0.5)
    for passes in (1, 3):
        with pytest.raises(gm.RefusedError, match="keeps 1 batch, too few"):
            stability(measured(planted([2, 2]), batch_size=320, passes=passes), threshold=0.5)
    with pytest.raises(gm.RefusedError, match="resamples=0"):
        stability(seen, threshold=0.5, resamples=0)
    with pytest.raises(gm.RefusedError, match="either a threshold or"):
        stability(seen)
    with pytest.raises(gm.RefusedError, match="'nowhere' is none of the 4 boundaries"):
        stability(seen, threshold=0.5, resamples=2).of("nowhere")


def test_a_resample_that_cannot_keep_the_floor_has_as_few_modules_as_can():
    seen = measured(planted([3, 3], noise=1.0, n=128), batch_size=8)
    floor = float(seen.matrix[:3, :3].min() + seen.matrix[3:, 3:].min()) / 2 - 0.02
    found = stability(
        seen, n_modules=2, floor=max(0.0, min(floor, seen.matrix[:3, :3].min(), seen.matrix[3:, 3:].min()))
    )
    assert sum(found.n_modules.values()) == pytest.approx(1)
    assert min(found.n_modules) == 2
    assert max(found.n_modules) > 2
