"""Similarity against the textbook formula, written out in float64."""

import importlib
import itertools
import threading
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from handmade import fan, model
from onnx import helper

import graphmod as gm
from graphmod.modules import Module
from graphmod.probe import Similarity, similarity
from graphmod.probe.similarity import hsic_of_batch

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def hsic1(x, y):
    """Equation 3 of Nguyen, Raghu & Kornblith (2021), term by term over pairs of samples."""
    x, y = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (x, y))
    n = len(x)
    k, ell = np.zeros((n, n)), np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                k[i, j], ell[i, j] = x[i] @ x[j], y[i] @ y[j]
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ ell @ one) / ((n - 1) * (n - 2))
    return (np.trace(k @ ell) + middle - 2 / (n - 2) * (one @ k @ ell @ one)) / (n * (n - 3))


def centred(value):
    """Shift features to mean 0: HSIC of linear kernels does not change, and float64 loses no digits."""
    value = np.asarray(value, np.float64).reshape(len(value), -1)
    return value - value.mean(0)


def cka(batches):
    """Minibatch CKA of lists of activations, one list a batch."""
    count = len(batches[0])
    total = np.array([[sum(hsic1(b[i], b[j]) for b in batches) for j in range(count)] for i in range(count)])
    return total / np.sqrt(np.outer(np.diag(total), np.diag(total)))


def identities(shapes, batch="n"):
    """Return a model that passes its first input on, and one boundary-like tensor for every other input."""
    operators = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in shapes]
    return model(
        operators,
        {name: [batch, *shape] for name, shape in shapes.items()},
        {f"{name}_out": [batch, *shape] for name, shape in shapes.items()},
    )


def measure(arrays, batch_size):
    """Return the similarity of given activations: they pass through a model that changes nothing."""
    wanted = {f"i{k}": value for k, value in enumerate(arrays)}
    network = identities({name: value.shape[1:] for name, value in wanted.items()})
    return similarity(network, wanted, [f"{name}_out" for name in wanted], batch_size=batch_size).matrix


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("n", [4, 5, 16])
@pytest.mark.parametrize("shapes", [((3,), (9,)), ((2, 3, 3), (40,)), ((500,), (5, 4))])
def test_hsic_of_a_batch_is_equation_3(rng, n, shapes):
    mix = rng.normal(size=(n, 2))
    values = [mix @ rng.normal(size=(2, int(np.prod(s)))) + 0.3 * rng.normal(size=(n, int(np.prod(s)))) for s in shapes]
    values = [v.reshape(n, *s).astype(np.float32) for v, s in zip(values, shapes, strict=True)]
    expected = [[hsic1(a, b) for b in values] for a in values]
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(hsic_of_batch(values) / scale, expected / scale, atol=2e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e6, 1e15])
@pytest.mark.parametrize("batch_size", [4, 10, 40])
def test_minibatch_cka_equals_the_reference(rng, scale, batch_size):
    base = rng.normal(size=(40, 6))
    arrays = [(base @ rng.normal(size=(6, w)) + rng.normal(size=(40, w))) for w in (3, 12, 30)]
    arrays = [(v * s).astype(np.float32) for v, s in zip(arrays, (1, scale, 1), strict=True)]
    parts = [slice(i, i + batch_size) for i in range(0, 40, batch_size)]
    expected = cka([[v[p] for v in arrays] for p in parts])
    np.testing.assert_allclose(measure(arrays, batch_size), expected, atol=2e-5)


def test_products_that_overflow_float32(rng):
    arrays = [(rng.normal(size=(20, 8)) * 1e25).astype(np.float32), rng.normal(size=(20, 5)).astype(np.float32)]
    with np.errstate(over="ignore"):
        assert not np.isfinite(arrays[0] @ arrays[0].T).all()
    expected = cka([[v.astype(np.float64) for v in arrays]])
    np.testing.assert_allclose(measure(arrays, 20), expected, atol=1e-6)


@pytest.mark.parametrize("offset", [30.0, 1e2, 1e3, 1e4])
def test_a_mean_far_larger_than_the_spread(rng, offset):
    base = rng.normal(size=(24, 4))
    wide = (base @ rng.normal(size=(4, 50)) + offset).astype(np.float32)
    other = (base @ rng.normal(size=(4, 10))).astype(np.float32)
    expected = cka([[centred(wide), centred(other)]])
    np.testing.assert_allclose(measure([wide, other], 24), expected, atol=2e-3)


def test_half_precision_activations_lose_no_more_digits(rng):
    wide = (rng.normal(size=(16, 300)) + 2).astype(np.float16)
    expected = hsic1(centred(wide), centred(wide))
    assert hsic_of_batch([wide])[0, 0] == pytest.approx(expected, rel=1e-4)


def test_invariances(rng):
    base = rng.normal(size=(32, 6))
    x, y = (base @ rng.normal(size=(6, w)) + 0.5 * rng.normal(size=(32, w)) for w in (8, 11))
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    variants = [x, x @ turn, 37.5 * x, x + rng.normal(size=8), x[:, ::-1], y]
    found = measure([v.astype(np.float32) for v in variants], 16)
    np.testing.assert_allclose(found[:5, :5], 1, atol=1e-5)
    np.testing.assert_allclose(found[:5, 5], found[0, 5], atol=1e-5)
    assert 0.05 < found[0, 5] < 0.95
    stretched = measure([(x * np.arange(1, 9)).astype(np.float32), x.astype(np.float32)], 16)
    assert stretched[0, 1] < 0.999  # linear CKA is not invariant to every linear map


def test_unbiased_for_independent_features(rng):
    draws = np.array([hsic_of_batch([rng.normal(size=(8, 3)), rng.normal(size=(8, 5)) + 2])[0, 1] for _ in range(3000)])
    error = draws.std(ddof=1) / np.sqrt(len(draws))
    assert abs(draws.mean()) < 4 * error
    biased = np.mean(
        [np.linalg.norm(centred(rng.normal(size=(8, 3))).T @ centred(rng.normal(size=(8, 5)))) ** 2 for _ in range(300)]
    )
    assert biased / 49 > 20 * error  # the usual estimator would have been caught


def test_the_batch_size_matters_only_as_noise(rng):
    base = rng.normal(size=(6000, 5))
    arrays = [(base @ rng.normal(size=(5, w)) + rng.normal(size=(6000, w))).astype(np.float32) for w in (6, 9)]
    small, large = (measure(arrays, size)[0, 1] for size in (12, 600))
    assert small == pytest.approx(large, abs=0.03)


def test_dead_layer_is_nan_and_named(rng):
    live = [rng.normal(size=(12, 4)).astype(np.float32) for _ in range(2)]
    for dead in (
        np.zeros((12, 3), np.float32),
        np.full((12, 5), 0.1, np.float32),
        np.full((12, 700), 1234.567, np.float32),
    ):
        with pytest.warns(UserWarning, match="i1_out"):
            found = measure([live[0], dead, live[1]], 6)
        assert np.isnan(found[1]).all()
        assert np.isnan(found[:, 1]).all()
        assert np.isfinite(np.delete(np.delete(found, 1, 0), 1, 1)).all()


def test_a_layer_dead_in_one_batch_only_is_alive(rng):
    value = rng.normal(size=(12, 4)).astype(np.float32)
    value[:6] = 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure([value, rng.normal(size=(12, 4)).astype(np.float32)], 6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("samples", "batch_size"), [(3, 64), (64, 3), (1, 1)])
def test_too_few_samples(rng, samples, batch_size):
    with pytest.raises(gm.InvalidDataError, match="at least 4"):
        measure([rng.normal(size=(samples, 4)).astype(np.float32)], batch_size)


def test_an_uneven_number_of_samples(rng):
    network, x = fan([8, 6, 5], rng), rng.normal(size=(65, 7)).astype(np.float32)
    found = similarity(network, x, batch_size=64)
    assert found.n_samples == 65
    assert np.isfinite(found.matrix).all()


def test_boundaries_of_a_model(rng):
    network, x = fan([8, 6, 5], rng), rng.normal(size=(30, 7)).astype(np.float32)
    found = similarity(network, x, batch_size=30)
    assert list(found.boundaries) == gm.boundaries(network)
    values = network.run({"x": x}, found.boundaries)
    np.testing.assert_allclose(found.matrix, cka([list(values.values())]), atol=2e-5)
    np.testing.assert_allclose(found.matrix, found.matrix.T)


def test_fixed_batch(rng):
    network = gm.load(LIGHT / "light_squeezenet.onnx")
    ((name, kind),) = network.inputs.items()
    x = rng.normal(size=(6, *kind.shape[1:])).astype(np.float32)
    wanted = gm.boundaries(network)[:4]
    found = similarity(network, {name: x}, wanted, batch_size=6)
    values = [np.concatenate([network.run({name: x[i : i + 1]}, [b])[b] for i in range(6)]) for b in wanted]
    alive = [i for i, v in enumerate(values) if np.ptp(v, axis=0).any()]
    assert np.isnan(np.diag(found.matrix)).sum() == len(wanted) - len(alive)
    expected = cka([[centred(values[i]) for i in alive]])
    np.testing.assert_allclose(found.matrix[np.ix_(alive, alive)], expected, atol=2e-3)


def test_not_all_the_data_is_held(rng):
    network = identities({"x": (20_000,)})
    x = rng.normal(size=(400, 20_000)).astype(np.float32)
    data = gm.Data({"x": x})
    similarity(network, data, ["x_out"], batch_size=8)
    tracemalloc.start()
    similarity(network, data, ["x_out"], batch_size=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 3


def test_same_result_twice(rng):
    network, x = fan([8, 6, 5], rng), rng.normal(size=(100, 7)).astype(np.float32)
    first, second = (similarity(network, x, batch_size=16).matrix for _ in range(2))
    assert first.tobytes() == second.tobytes()


def orders_of(seed, passes, n):
    rng = np.random.default_rng(seed)
    return [rng.permutation(n) for _ in range(passes)]


@pytest.mark.parametrize("batch", ["n", 2])
@pytest.mark.parametrize(("n", "batch_size"), [(24, 8), (26, 8), (20, 64)])
def test_several_passes_each_shuffled_anew(rng, n, batch_size, batch):
    network, x = identities({"x": (3, 4), "z": (5,)}, batch), rng.normal(size=(n, 3, 4)).astype(np.float32)
    z = (x.reshape(n, 12)[:, :5] + rng.normal(size=(n, 5))).astype(np.float32)
    found = similarity(network, {"x": x, "z": z}, ["x_out", "z_out"], batch_size=batch_size, passes=3, seed=4)
    unit = 1 if batch == "n" else batch
    n_batches = -(-n // batch_size)
    edges = np.linspace(0, n // unit, n_batches + 1).round().astype(int) * unit
    rows = [order[a:b] for order in orders_of(4, 3, n) for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(found.matrix, cka([[x[r], z[r]] for r in rows]), atol=1e-5)
    assert (found.passes, len(found.batches), found.n_samples) == (3, 3 * n_batches, n)
    for hsic, r in zip(found.batches, rows, strict=True):
        assert hsic[0, 1] == pytest.approx(hsic1(x[r], z[r]), rel=1e-3, abs=1e-3)


def test_the_batches_sum_up_to_the_similarity(rng):
    network, x = fan([8, 6, 5], rng), rng.normal(size=(100, 7)).astype(np.float32)
    for passes in (1, 2):
        found = similarity(network, x, batch_size=16, passes=passes)
        total = found.batches.sum(axis=0)
        np.testing.assert_allclose(found.matrix, total / np.sqrt(np.outer(np.diag(total), np.diag(total))), rtol=1e-12)
        assert found.batches.shape == (7 * passes, *found.matrix.shape)


def test_batches_that_would_take_too_much_memory_are_added_up(rng, monkeypatch):
    network, x = fan([8, 6, 5], rng), rng.normal(size=(100, 7)).astype(np.float32)
    whole = similarity(network, x, batch_size=16, passes=2)
    monkeypatch.setattr(importlib.import_module("graphmod.probe.similarity"), "_KEPT", 6 * whole.batches[0].nbytes)
    found = similarity(network, x, batch_size=16, passes=2)
    np.testing.assert_allclose(found.matrix, whole.matrix, rtol=1e-12)
    rows = [[0, 1, 2], [3, 4, 5], [6], [7, 8, 9], [10, 11, 12], [13]]  # three in a row, but never of two passes
    np.testing.assert_allclose(found.batches, [whole.batches[r].sum(axis=0) for r in rows])


def test_more_passes_mean_less_noise(rng):
    """Which samples meet in a batch is chance, and less of it the more often they are shuffled."""
    base = rng.normal(size=(120, 5))
    arrays = [(base @ rng.normal(size=(5, w)) + rng.normal(size=(120, w))).astype(np.float32) for w in (6, 9)]
    network = identities({f"i{i}": a.shape[1:] for i, a in enumerate(arrays)})
    data, names = {f"i{i}": a for i, a in enumerate(arrays)}, ["i0_out", "i1_out"]

    def spread(passes):
        seeds = range(100, 112)
        found = (similarity(network, data, names, batch_size=12, passes=passes, seed=s, threads=1) for s in seeds)
        return np.std([one.matrix[0, 1] for one in found])

    assert spread(16) < 0.7 * spread(2)


def test_shuffled_passes_do_not_hold_the_data_twice(rng):
    network = identities({"x": (20_000,)})
    data = gm.Data({"x": rng.normal(size=(400, 20_000)).astype(np.float32)})
    similarity(network, data, ["x_out"], batch_size=8, passes=2)
    tracemalloc.start()
    similarity(network, data, ["x_out"], batch_size=8, passes=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < data.inputs["x"].nbytes / 3


def test_no_pass_is_refused(rng):
    with pytest.raises(gm.RefusedError, match="passes=0"):
        similarity(fan([4], rng), rng.normal(size=(20, 7)).astype(np.float32), passes=0)


def test_boundaries_whose_first_axis_is_not_the_batch(rng):
    operators = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Reshape", ["a", "s"], ["y"])]
    network = model(operators, {"x": ["n", 3, 4]}, {"y": ["m", 4]}, {"s": np.array([-1, 4])})
    x = rng.normal(size=(20, 3, 4)).astype(np.float32)
    with pytest.raises(gm.RefusedError, match="'y' is not the batch"):
        similarity(network, x, ["a", "y"])
    assert similarity(network, x).boundaries == ("a",)
    assert similarity(network, x, ["x", "a"]).matrix.shape == (2, 2)
    assert similarity(network, x, ["x"]).matrix[0, 0] == pytest.approx(1)
    with pytest.raises(gm.RefusedError, match="no boundaries"):
        similarity(network, x, [])


@pytest.mark.parametrize("length", [8, 7, 5])
def test_sequences_with_time_first_though_as_long_as_a_batch(rng, length):
    """61 samples are five batches of 8 and three of 7; what the runtime is asked before are 5 samples, else 6."""
    operators = [
        helper.make_node("Tanh", ["x"], ["a"]),
        helper.make_node("Transpose", ["a"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Tanh", ["t"], ["b"]),
        helper.make_node("Transpose", ["b"], ["y"], perm=[1, 0, 2]),
    ]
    network = model(operators, {"x": ["n", "t", 3]}, {"y": ["n", "t", 3]})
    for n in (61, 64):
        x = rng.normal(size=(n, length, 3)).astype(np.float32)
        assert similarity(network, x, batch_size=8).boundaries == ("a", "y")
        with pytest.raises(gm.RefusedError, match="'b' is not the batch"):
            similarity(network, x, ["a", "b"], batch_size=8)


def test_a_boundary_named_twice_and_a_negative_seed(rng):
    network, x = fan([4], rng), rng.normal(size=(20, 7)).astype(np.float32)
    np.testing.assert_allclose(similarity(network, x, ["t0", "t0"]).matrix, np.ones((2, 2)))
    with pytest.raises(gm.RefusedError, match="the seed must be at least 0"):
        similarity(network, x, passes=2, seed=-1)
    with pytest.raises(gm.RefusedError, match="the seed must be at least 0"):
        gm.modules.stability(similarity(network, x, batch_size=5), threshold=0.5, seed=-1)


def test_no_thread_stays_behind(rng):
    before = threading.active_count()
    similarity(fan([4], rng), rng.normal(size=(20, 7)).astype(np.float32), batch_size=5)
    assert threading.active_count() == before


def test_save_load_plot(rng, tmp_path):
    network = fan([8, 6], rng)
    found = similarity(network, rng.normal(size=(20, 7)).astype(np.float32))
    back = Similarity.load(found.save(tmp_path / "s.npz"))
    assert back.matrix.tobytes() == found.matrix.tobytes()
    assert (back.boundaries, back.blocks, back.digest) == (found.boundaries, found.blocks, network.digest)
    assert (back.n_samples, back.batch_size, back.passes) == (20, 64, 1)
    assert back.batches.tobytes() == found.batches.tobytes()
    for suffix, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")):
        figure = back.plot(tmp_path / f"s{suffix}")
        assert (tmp_path / f"s{suffix}").read_bytes().startswith(magic)
        np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), found.matrix)
    with pytest.raises(gm.NotWritableError):
        found.save(tmp_path / "missing" / "s.npz")


def test_squares_are_drawn_around_modules(rng):
    found = similarity(fan([8, 6, 5, 4], rng), rng.normal(size=(20, 7)).astype(np.float32))
    first, *middle, last = found.boundaries
    modules = [Module((first,), (first,), 1.0), Module((*middle, last), (*middle, last), 0.5)]
    squares = [patch.get_bbox().bounds for patch in found.plot(modules=modules).axes[0].patches]
    assert squares == [(-0.5, -0.5, 1, 1), (0.5, 0.5, len(middle) + 1, len(middle) + 1)]
    assert not found.plot().axes[0].patches
    with pytest.raises(gm.RefusedError, match="'elsewhere', which is not compared here"):
        found.plot(modules=[Module(("elsewhere",), ("elsewhere",), 1.0)])


def test_a_file_of_an_older_version(rng, tmp_path):
    found = similarity(fan([8, 6], rng), rng.normal(size=(20, 7)).astype(np.float32))
    with np.load(found.save(tmp_path / "s.npz")) as content:
        np.savez(tmp_path / "old.npz", **{k: v for k, v in content.items() if k not in ("batches", "passes")})
    back = Similarity.load(tmp_path / "old.npz")
    assert back.matrix.tobytes() == found.matrix.tobytes()
    assert (back.batches, back.passes) == (None, 1)
    again = Similarity.load(back.save(tmp_path / "again.npz"))
    assert again.batches is None


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "array", "other"])
def test_what_is_no_similarity(rng, tmp_path, kind):
    path = tmp_path / "s.npz"
    if kind == "text":
        path.write_text("no archive")
    elif kind == "truncated":
        found = similarity(fan([8, 6], rng), rng.normal(size=(20, 7)).astype(np.float32))
        path.write_bytes(found.save(path).read_bytes()[:300])
    elif kind == "array":
        with path.open("wb") as stream:
            np.save(stream, np.ones(3))
    elif kind == "other":
        np.savez(path, matrix=np.ones(3))
    with pytest.raises(gm.InvalidDataError, match="holds no similarity"):
        Similarity.load(path)
