"""DeepArc's steps against counts by hand, scipy, scikit-learn and closed forms."""

from __future__ import annotations

import weakref
from importlib import import_module

import numpy as np
import pytest
from networks import residual, samples
from planted import net
from scipy.stats import norm
from sklearn.linear_model import Ridge

import graphmod as gm
from graphmod.methods import deeparc, skipping
from graphmod.methods.skipping import outputs_without, skip
from graphmod.modules import Module, ModuleMap
from graphmod.probe import predict
from graphmod.rewrite import Region


def modules_of(model: gm.Model, *lengths: int) -> ModuleMap:
    """Return a map with modules of these lengths."""
    sums = deeparc.residual_sums(model)
    starts = np.cumsum([0, *lengths])
    parts = [sums[start : start + length] for start, length in zip(starts, lengths, strict=False)]
    return ModuleMap(model.digest, tuple(Module(part, part, 1.0) for part in parts), "greedy", 0.9, 0.0)


@pytest.fixture(scope="module")
def model():
    return residual([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])


def test_similarity_joins_what_identities_leave_alike(model):
    sim = deeparc.similarity(model, samples(model).train, passes=2)
    assert sim.boundaries == deeparc.residual_sums(model)
    assert sim.matrix[0, 1] == pytest.approx(1)
    assert sim.matrix[2, 3] == pytest.approx(1)
    lengths = [len(module) for module in deeparc.decompose(sim, 0.9999)]
    assert lengths == [2, 2, 1, 1]


@pytest.mark.parametrize(("lengths", "wanted"), [((6,), 6 / 7), ((2, 4), 5 / 7), ((1,) * 6, 1 / 7)])
def test_modularity(model, lengths, wanted):
    assert deeparc.modularity(modules_of(model, *lengths)) == pytest.approx(wanted)


def test_trend_is_the_line_of_least_squares():
    x, y = [1.0, 2.0, 4.0, 8.0], [0.1, 0.3, 0.2, 0.7]
    found = deeparc.trend(x, y)
    assert [found.slope, found.intercept] == pytest.approx(list(np.polyfit(x, y, 1)))
    assert found.correlation == pytest.approx(np.corrcoef(x, y)[0, 1])
    for few in ([1.0, 2.0], [3.0, 3.0, 3.0]):
        with pytest.raises(gm.InvalidDataError, match="3 networks or more"):
            deeparc.trend(few, [0.5] * len(few))


def test_blocks_within_modules_have_both_ends_in_one(model):
    found = deeparc.module_of(model, modules_of(model, 2, 3, 1))
    assert list(found.values()) == [None, 0, None, 1, 1, None]


def test_a_map_of_another_model_is_refused(model):
    other = modules_of(residual([1.0] * 6), 6)
    for step in (deeparc.module_of, lambda m, found: deeparc.restructure(m, found, 1)):
        with pytest.raises(gm.RefusedError, match="another model"):
            step(model, other)


def test_a_map_without_the_residual_sums_is_refused(model):
    entry = gm.similarity(model, samples(model).train, ["h0"])
    with pytest.raises(gm.RefusedError, match="where residual sum 'h1' belongs"):
        deeparc.module_of(model, gm.modularize(entry, threshold=0.5))


def test_restructure_skips_blocks_within_modules_alone(model):
    modules = modules_of(model, 2, 3, 1)
    inside = {"a1", "a3", "a4"}
    seen = set()
    for seed in range(12):
        gone = set(model.initializers) - set(deeparc.restructure(model, modules, 2, seed).initializers)
        assert len(gone & inside) == 2
        assert {name for name in gone if name.startswith("a")} <= inside
        seen.add(frozenset(gone))
    assert len(seen) == 3
    assert deeparc.restructure(model, modules, 0).digest == model.digest
    with pytest.raises(gm.RefusedError, match="3 lie in a module of several"):
        deeparc.restructure(model, modules, 4)
    with pytest.raises(gm.RefusedError, match="seed=-1"):
        deeparc.restructure(model, modules, 1, seed=-1)


def test_removal_of_an_identity_changes_nothing(model):
    data = samples(model).test
    effects = deeparc.removal(model, data, modules_of(model, 6))
    assert [effect.module for effect in effects] == [None, 0, 0, 0, 0, 0]
    for place, effect in enumerate(effects):
        if place in (1, 3):
            assert effect.removed == effect.duplicated == 1
        else:
            assert effect.removed < 1
            assert effect.duplicated < 1


@pytest.mark.parametrize("path", ["demo", "sequence"])
def test_skipping_is_removing(path):
    if path == "demo":
        model, x = gm.load(gm.demo.model_path()), gm.demo.splits().test[:40].inputs
    else:
        model = residual([1.0, 0.5, 1.0], channels_first=True)
        x = samples(model).test[:40].inputs
    blocks = [block for block in deeparc.residual_blocks(model) if deeparc.is_skippable(model, block)][::6]
    whole, without = outputs_without(model, [Region(block.entry, block.exit) for block in blocks], gm.Data(x))
    np.testing.assert_allclose(whole, model.run(x)[model.main_output], atol=1e-5)
    for block, found in zip(blocks, without, strict=True):
        wanted = gm.remove(model, block).run(x)[model.main_output]
        np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_skipping_several_is_removing_the_last_first(model):
    x = samples(model).test.inputs
    blocks = deeparc.residual_blocks(model)
    wanted = model
    for place in (4, 2, 1):
        wanted = gm.remove(wanted, blocks[place])
    skipped = skip(model, [blocks[place] for place in (1, 2, 4)])
    np.testing.assert_array_equal(skipped.run(x)["y"], wanted.run(x)["y"])
    assert skip(model, []) is model


def test_a_stand_in_takes_the_regions_place(model):
    data = samples(model).test
    block = deeparc.residual_blocks(model)[2]
    region = Region(block.entry, block.exit)

    def twice(activations):
        return 2 * activations

    _, (found,) = outputs_without(model, [region], data, stand_ins=[twice])
    entry = model.run(data.inputs, [block.entry])[block.entry]
    behind = gm.extract(model, block.exit, "y")
    np.testing.assert_allclose(found, behind.run({block.exit: 2 * entry})["y"], rtol=1e-5, atol=1e-5)


TIME_FIRST = """(float[n,6,4] x) => (float[n,3] y) {
    t = Transpose<perm=[1,0,2]>(x)  h0 = Tanh(t)  u = MatMul(h0, a)  h1 = Add(u, h0)
    g = ReduceMean<axes=[0], keepdims=0>(h1)  y = MatMul(g, q) }"""


@pytest.mark.parametrize("n", [4, 5, 6, 40])
@pytest.mark.parametrize("length", [5, 6])
def test_an_axis_of_time_is_no_axis_of_samples_however_many_there_are(n, length):
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(4, k)).astype(np.float32) for name, k in (("a", 4), ("q", 3))}
    model = net(TIME_FIRST.replace("n,6,4", f"n,{length},4"), weights)
    part = gm.Data({"x": rng.normal(size=(n, length, 4)).astype(np.float32)}, np.arange(n) % 3)
    (block,) = deeparc.residual_blocks(model)
    with pytest.raises(gm.RefusedError, match="'h0' is not the batch"):
        outputs_without(model, [Region(block.entry, block.exit)], part)
    with pytest.raises(gm.RefusedError, match="'h1' is not the batch"):
        deeparc.properties(model, gm.Splits(part, part, part), modules_of(model, 1))


def test_no_sample_is_left_out_in_silence(model):
    with pytest.raises(gm.InvalidDataError, match="takes 5 samples at a time and the data has 13; leave 3 out"):
        outputs_without(gm.rebatch(model, 5), [], samples(model).test[:13])


def test_sessions_behind_regions_are_not_kept_open(model, monkeypatch):
    blocks = [block for block in deeparc.residual_blocks(model) if deeparc.is_skippable(model, block)]
    alive: list[weakref.ref[gm.Model]] = []
    most = 0

    def watched(part, data, **options):
        nonlocal most
        alive.append(weakref.ref(part))
        most = max(most, sum(one() is not None for one in alive))
        return predict(part, data, **options)

    monkeypatch.setattr(skipping, "predict", watched)
    outputs_without(model, [Region(block.entry, block.exit) for block in blocks], samples(model).test)
    assert len(alive) == len(blocks) > 3
    assert most <= 2


@pytest.mark.parametrize(("n", "features"), [(80, 7), (30, 60)])
def test_the_probe_is_ridge_regression(n, features):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(n, features)) * 3 + 1, rng.integers(0, 4, n)
    probe = deeparc.fit_probe(x, labels, ridge=0.1)
    variance = np.square(x - x.mean(0)).sum() / min(n, features)
    wanted = Ridge(alpha=0.1 * variance).fit(x, np.eye(4)[labels])
    np.testing.assert_allclose(probe.weight, wanted.coef_.T, atol=1e-10)
    np.testing.assert_allclose((x - probe.mean) @ probe.weight + probe.bias, wanted.predict(x), atol=1e-10)


def test_separability_of_two_clusters_is_that_of_their_distance():
    """Two normal clusters at a distance d are told apart by the best line with probability Phi(d / 2)."""
    rng = np.random.default_rng(0)
    for distance in (0.5, 1.0, 3.0):

        def clusters(n, gap=distance):
            labels = rng.integers(0, 2, n)
            x = rng.normal(size=(n, 5))
            x[:, 0] += gap * labels
            return x, labels

        found = deeparc.fit_probe(*clusters(20_000)).accuracy(*clusters(20_000))
        assert found == pytest.approx(norm.cdf(distance / 2), abs=0.012)


@pytest.mark.parametrize("ridge", [-1.0, 0.0, float("nan"), float("inf")])
def test_a_probe_without_a_ridge_is_refused(ridge):
    with pytest.raises(gm.RefusedError, match="ridge"):
        deeparc.fit_probe(np.ones((4, 2)), np.array([0, 1, 0, 1]), ridge)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(5, 3), (5, 8), (5, 0)])
def test_a_probe_of_what_never_changes_tells_the_most_common_class(shape):
    probe = deeparc.fit_probe(np.ones(shape), np.array([0, 1, 1, 0, 1]))
    assert probe.accuracy(np.ones(shape), np.array([1, 1, 1, 1, 0])) == 0.8


def test_a_probe_of_infinite_features_is_refused():
    with pytest.raises(gm.InvalidDataError, match="not all finite"):
        deeparc.fit_probe(np.array([[1.0], [np.inf]]), np.array([0, 1]))


TOKENS = """(int64[n,5] x) => (float[n,3] y) {
    e = Gather(t, x)  h0 = Tanh(e)  u = MatMul(h0, a)  r = Relu(u)  h1 = Add(r, h0)
    g = ReduceMean<axes=[1], keepdims=0>(h1)  y = MatMul(g, q) }"""


def test_noise_on_tokens_is_refused():
    model = net(TOKENS, {"t": (9, 4), "a": (4, 4), "q": (4, 3)})
    x = np.random.default_rng(0).integers(0, 9, (60, 5))
    part = gm.Data({"x": x}, model.run({"x": x})["y"].argmax(1))
    data = gm.Splits(part, part, part)
    with pytest.raises(gm.RefusedError, match="nothing to add noise to"):
        deeparc.properties(model, data, modules_of(model, 1))
    found = deeparc.properties(model, data, modules_of(model, 1), perturbed=part)
    np.testing.assert_array_equal(found.robustness, found.separability)


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_noise_out_of_range_is_refused(model, noise):
    with pytest.raises(gm.RefusedError, match=r"noise=.* is out of range"):
        deeparc.properties(model, samples(model), modules_of(model, 6), noise=noise)


def test_a_negative_seed_of_properties_is_refused(model):
    with pytest.raises(gm.RefusedError, match="seed=-1 is out of range"):
        deeparc.properties(model, samples(model), modules_of(model, 6), seed=-1)


def test_the_repair_is_the_function():
    assert deeparc.repair is import_module("graphmod.methods.deeparc.repair").repair
    assert "repair" in deeparc.__all__


def test_properties_of_a_model_that_takes_more_samples_than_there_are(model):
    data = samples(model, n=20)
    by_tens = gm.rebatch(model, 10)
    found = deeparc.properties(by_tens, gm.Splits(data.train, data.calibration, data.test[:13]), modules_of(by_tens, 6))
    assert (10 * found.separability == np.round(10 * found.separability)).all()
    with pytest.raises(gm.InvalidDataError, match="takes 10 samples at a time, and the data has 9"):
        deeparc.properties(by_tens, gm.Splits(data.train, data.calibration, data.test[:9]), modules_of(by_tens, 6))


BENT = """(float[n,2] x) => (float[n,2] y) {
    h0 = Tanh(x)
    u0 = MatMul(h0, a)  r0 = Relu(u0)  v0 = MatMul(r0, zero)  h1 = Add(v0, h0)
    u1 = MatMul(h1, a)  r1 = Relu(u1)  v1 = MatMul(r1, zero)  h2 = Add(v1, h1)
    u2 = MatMul(h2, a)  r2 = Relu(u2)  v2 = MatMul(r2, bend)  h3 = Add(v2, h2)
    u3 = MatMul(h3, a)  r3 = Relu(u3)  v3 = MatMul(r3, zero)  h4 = Add(v3, h3)  y = MatMul(h4, head) }"""


def test_properties_tell_where_labels_become_linear():
    """Whether |x| is large no line tells from x; the third block adds |x|, and the others add nothing."""
    weights = {"a": [[1, -1], [0, 0]], "bend": [[0, 9], [0, 9]], "zero": [[0, 0], [0, 0]], "head": [[1, 0], [0, 1]]}
    model = net(BENT, {name: np.array(value, np.float32) for name, value in weights.items()})
    rng = np.random.default_rng(0)

    def part():
        x = rng.normal(size=(1500, 2)).astype(np.float32)
        return gm.Data({"x": x}, (np.abs(x[:, 0]) > 0.67).astype(np.int64))

    data = gm.Splits(part(), part(), part())
    found = deeparc.properties(model, data, modules_of(model, 2, 2), noise=0.3)
    assert found.module == (0, 0, 1, 1)
    assert found.separability[:2] == pytest.approx([0.5, 0.5], abs=0.06)
    assert (found.separability[2:] > 0.9).all()
    assert found.steps("separability")[0] == 0
    assert found.steps("separability")[1] == found.separability[2] - found.separability[1]
    assert (found.robustness[2:] < found.separability[2:] - 0.02).all()
    assert found.fitting == pytest.approx(found.separability, abs=0.06)
    calm = deeparc.properties(model, data, modules_of(model, 2, 2), perturbed=data.test)
    np.testing.assert_array_equal(calm.robustness, calm.separability)
    with pytest.raises(gm.RefusedError, match="no property 'size'"):
        found.steps("size")


@pytest.mark.parametrize(
    ("module", "within", "between", "told"),
    [((0, 0, 0), 0.25, np.nan, "between modules .boundaries: 3, modules: 1"),
     ((0, 1, 2), np.nan, 0.25, "within modules .boundaries: 3, modules: 3")],
)  # fmt: skip
def test_steps_of_a_kind_that_there_is_none_of_are_nan_and_not_in_silence(module, within, between, told):
    accuracy = np.array([0.25, 0.5, 0.75])
    found = deeparc.Properties(("a", "b", "c"), module, accuracy, accuracy, accuracy)
    with pytest.warns(UserWarning, match=told):
        np.testing.assert_array_equal(found.steps("fitting"), (within, between))
