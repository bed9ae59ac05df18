"""Every kind of part: what it computes against numpy, what it refuses to be made for."""

import numpy as np
import pytest
from handmade import model
from onnx import helper

import graphmod as gm
from graphmod.methods.compress.kinds import CLOSED_FORM, SEARCHED, kinds
from graphmod.methods.compress.kinds.low_rank import CHANNELS
from graphmod.methods.compress.kinds.pooled import averages
from graphmod.methods.compress.kinds.retained import _with
from graphmod.methods.compress.site import Site, relative_error, rows, sums

SAMPLES = 300


@pytest.fixture
def rng():
    return np.random.default_rng(8)


def made(name, site):
    found = {one.name: one for one in (*kinds(CLOSED_FORM), *kinds(SEARCHED))}
    return list(found[name].make(site))


def dense_blocks(rng, width, hidden, n, gain=0.2):
    """Return x -> n residual blocks of two layers (h1, h2, ...) -> y."""
    weights, operators, before = {}, [], "x"
    for i in range(1, n + 1):
        weights[f"up{i}"] = (rng.normal(size=(width, hidden)) / np.sqrt(width)).astype(np.float32)
        weights[f"down{i}"] = (gain * rng.normal(size=(hidden, width)) / np.sqrt(hidden)).astype(np.float32)
        operators += [
            helper.make_node("MatMul", [before, f"up{i}"], [f"u{i}"], name=f"up{i}"),
            helper.make_node("Tanh", [f"u{i}"], [f"t{i}"], name=f"tanh{i}"),
            helper.make_node("MatMul", [f"t{i}", f"down{i}"], [f"d{i}"], name=f"down{i}"),
            helper.make_node("Add", [before, f"d{i}"], [f"h{i}"], name=f"add{i}"),
        ]
        before = f"h{i}"
    operators.append(helper.make_node("Relu", [before], ["y"], name="relu"))
    return model(operators, {"x": ["n", width]}, {"y": ["n", width]}, weights)


def site_of(network, tensors, x):
    values = network.run({"x": x}, [name for name in tensors if name != "x"])
    return Site(network, tensors, x if tensors[0] == "x" else values[tensors[0]], values[tensors[-1]])


def run(part, x):
    return x if part.model is None else part.model.run({part.entry: x})[part.exit]


def images(rng, rank, stride):
    """Return a convolution that makes images or sequences smaller."""
    sizes = [8] * (rank - 2)
    weight = rng.normal(size=(6, 4, *[3] * (rank - 2))).astype(np.float32)
    pads = [1] * 2 * (rank - 2)
    conv = helper.make_node("Conv", ["x", "w"], ["c"], pads=pads, strides=[stride] * (rank - 2), name="conv")
    shapes = {"x": ["n", 4, *sizes]}, {"y": ["n", 6, *[size // stride for size in sizes]]}
    relu = helper.make_node("Relu", ["c"], ["y"], name="relu")
    return model([conv, relu], *shapes, {"w": weight}), rng.normal(size=(SAMPLES, 4, *sizes)).astype(np.float32)


@pytest.mark.parametrize("kind", ["identity", "affine", "linear"])
def test_fits_are_least_squares(rng, kind):
    network = dense_blocks(rng, 8, 16, 1)
    x = rng.normal(size=(SAMPLES, 8)).astype(np.float32)
    site = site_of(network, ("x", "h1"), x)
    (part,) = made(kind, site)
    if kind == "identity":
        expected = x
    elif kind == "affine":
        columns = [np.polyfit(x[:, i].astype(float), site.y[:, i].astype(float), 1) for i in range(8)]
        expected = np.stack([np.polyval(c, x[:, i]) for i, c in enumerate(columns)], 1)
    else:
        design = np.c_[x, np.ones(len(x))].astype(float)
        expected = design @ np.linalg.lstsq(design, site.y.astype(float), rcond=None)[0]
    np.testing.assert_allclose(run(part, x), expected, atol=5e-3)
    assert part.error == pytest.approx(relative_error(run(part, x), site.y), abs=1e-3)


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("kind", ["linear", "pooled"])
def test_where_the_size_changes(rng, rank, kind):
    network, x = images(rng, rank, 2)
    site = site_of(network, ("x", "y"), x)
    (part,) = made(kind, site)
    step = (slice(None), slice(None), *[slice(None, None, 2)] * (rank - 2))
    read = np.moveaxis(averages(x, (2,) * (rank - 2)) if kind == "pooled" else x[step], 1, -1)
    design = np.concatenate([read, np.ones((*read.shape[:-1], 1))], -1).reshape(-1, 5).astype(float)
    wanted = np.moveaxis(site.y, 1, -1).reshape(-1, 6).astype(float)
    expected = (design @ np.linalg.lstsq(design, wanted, rcond=None)[0]).reshape(*read.shape[:-1], 6)
    np.testing.assert_allclose(np.moveaxis(run(part, x), 1, -1), expected, atol=0.02)  # the ridge shrinks a little


def test_pooled_is_for_smaller_sizes_alone(rng):
    network, x = images(rng, 4, 1)
    assert made("pooled", site_of(network, ("x", "y"), x)) == []
    assert made("identity", site_of(network, ("x", "y"), x)) == []  # the number of channels changes


def test_low_rank_finds_a_map_of_low_rank(rng):
    width = CHANNELS
    low = rng.normal(size=(width, 3)) @ rng.normal(size=(3, width)) / width
    weight = (np.eye(width) + low).astype(np.float32)
    network = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", width]}, {"y": ["n", width]}, {"w": weight}
    )
    x = rng.normal(size=(5 * SAMPLES, width)).astype(np.float32)
    (part,) = made("low_rank", site_of(network, ("x", "y"), x))
    assert part.error < 5e-3
    np.testing.assert_allclose(run(part, x), x @ weight, atol=0.05)
    assert part.model.n_weights < weight.size / 3


def test_low_rank_is_the_best_of_its_rank_on_the_data(rng):
    """Reduced-rank regression leaves what the rank cuts off of the fitted values: their smallest singular values."""
    width, n = CHANNELS, 4000
    weight = rng.normal(size=(width, 2 * width)).astype(np.float32) / 8
    shape = {"x": ["n", width]}, {"y": ["n", 2 * width]}
    network = model([helper.make_node("MatMul", ["x", "w"], ["y"])], *shape, {"w": weight})
    x = (rng.normal(size=(n, width)) * np.linspace(0.1, 3, width)).astype(np.float32)
    (part,) = made("low_rank", site_of(network, ("x", "y"), x))
    wanted = x.astype(float) @ weight
    wanted -= wanted.mean(axis=0)
    values = np.linalg.svd(wanted, compute_uv=False)
    cut = np.sqrt((values[width // 8 :] ** 2).sum() / (values**2).sum())
    assert part.error == pytest.approx(cut, rel=0.01)


def test_searched_kinds_say_how_far_off_they_are(rng):
    network = dense_blocks(rng, 8, 64, 3)
    x = rng.normal(size=(SAMPLES, 8)).astype(np.float32)
    found = []
    for kind in kinds(SEARCHED):
        found += kind.make(site_of(network, ("x", "h1", "h2", "h3"), x))
    assert {part.kind.split()[0] for part in found} == {"pruned", "factored", "collapsed", "retained"}
    for part in found:
        values = run(part, x[:256])
        assert part.error == pytest.approx(relative_error(values, site_of(network, ("x", "h3"), x).y[:256]), rel=0.05)
        assert part.model.n_weights < network.n_weights
        assert not part.is_exact


def test_factored_splits_layers(rng):
    u, v = rng.normal(size=(32, 2)), rng.normal(size=(2, 32))
    weights = {"w": (u @ v).astype(np.float32), "v": rng.normal(size=(32, 32)).astype(np.float32)}
    operators = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "v"], ["y"])]
    network = model(operators, {"x": ["n", 32]}, {"y": ["n", 32]}, weights)
    x = rng.normal(size=(SAMPLES, 32)).astype(np.float32)
    (part,) = made("factored", site_of(network, ("x", "y"), x))
    assert len(part.model.operators) == 3
    assert part.error < 1e-4


def test_the_one_block_that_matters_is_retained(rng):
    weights, operators, before = {}, [], "x"
    for i, gain in enumerate((1e-4, 2.0, 1e-4), 1):
        weights[f"w{i}"] = (gain * rng.normal(size=(8, 8))).astype(np.float32)
        operators += [
            helper.make_node("MatMul", [before, f"w{i}"], [f"m{i}"]),
            helper.make_node("Tanh", [f"m{i}"], [f"t{i}"]),
            helper.make_node("Add", [before, f"t{i}"], [f"h{i}"]),
        ]
        before = f"h{i}"
    network = model(operators, {"x": ["n", 8]}, {"h3": ["n", 8]}, weights)
    x = rng.normal(size=(SAMPLES, 8)).astype(np.float32)
    (part,) = made("retained", site_of(network, ("x", "h1", "h2", "h3"), x))
    assert part.error < 1e-2
    assert any(np.array_equal(part.model.initializer(name), weights["w2"]) for name in part.model.initializers)
    (linear,) = made("linear", site_of(network, ("x", "h1", "h2", "h3"), x))
    assert linear.error > 0.1


def test_a_block_is_retained_that_holds_a_fit(rng):
    """The block that stays is itself a linear layer of an earlier compression, its names are those of the new fit."""
    network = dense_blocks(rng, 8, 16, 2)
    x = rng.normal(size=(SAMPLES, 8)).astype(np.float32)
    before = gm.replace(network, ("h1", "h2"), x, kind="linear", max_error=1)
    site = site_of(before, ("x", "h1", "h2"), x)
    kept = next(_with(site, ("h1", "h2")))
    assert len(set(kept.model.initializers)) == 4
    assert relative_error(run(kept, x), site.y) == pytest.approx(kept.error, abs=1e-2)


def test_samples_of_a_part_that_takes_a_fixed_number(rng):
    network = gm.rebatch(dense_blocks(rng, 8, 64, 1), 48)
    x = rng.normal(size=(480, 8)).astype(np.float32)
    values = [network.run({"x": part}, ["h1"])["h1"] for part in np.split(x, 10)]
    site = Site(network, ("x", "h1"), x, np.concatenate(values))
    assert len(site.few(site.run)) == 240
    assert [part.kind for part in made("pruned", site)] == ["pruned 0.5", "pruned 0.75"]


@pytest.mark.parametrize("axis", [1, -1])
def test_few_rows_come_from_all_over(rng, axis):
    value = rng.normal(size=(40, 6, 12)).astype(np.float32)
    few, every = rows(value, axis, (), 100), rows(value, axis, (), 10**6)
    assert len(few) <= 100 < len(every)
    step = next(k for k in range(1, len(every)) if len(every[::k]) == len(few) and np.array_equal(every[::k], few))
    n_positions = 12 if axis == 1 else 6
    assert np.gcd(step, n_positions) == 1


def test_sums_that_are_not_finite_or_do_not_fit(rng):
    x = rng.normal(size=(10, 4)).astype(np.float32)
    assert sums(x, x[:5], -1, 100) is None
    assert sums(x[:, 0], x[:, 0], -1, 100) is None
    x[3, 2] = np.inf
    assert sums(x, x, -1, 100) is None
