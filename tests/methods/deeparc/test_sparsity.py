"""Schedules against the papers' formulas written out plainly; what becomes zero, stays zero, and nothing else moves."""

from importlib import import_module

import numpy as np
import onnx
import pytest
from handmade import model
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from random_graphs import random_graphs

import graphmod as gm
from graphmod.methods.deeparc import sparsity
from graphmod.methods.deeparc.sparsity import SCHEDULES, Layer, layers, n_parameters, prune_retrain, shorten, sparsify
from graphmod.methods.deeparc.sparsity.quotas import quotas

NAMES = ("erk", "global", "lamp", "uniform_plus")
EACH = pytest.mark.parametrize("name", NAMES)


@st.composite
def networks(draw):
    """Draw layers: convolutions, then linear ones, each with distinct magnitudes, some of them pruned before."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width = st.integers(1, 6)
    shapes = [(draw(width), draw(width), 3, 2) for _ in range(draw(st.integers(0, 3)))]
    shapes += [(draw(width), draw(width)) for _ in range(draw(st.integers(not shapes, 3)))]
    found = []
    for place, shape in enumerate(shapes):
        magnitude = (rng.permutation(np.prod(shape)) + rng.uniform(0.1, 1)) * rng.uniform(0.1, 3)
        magnitude[rng.random(magnitude.size) < draw(st.sampled_from([0, 0, 0.5, 1]))] = 0
        found.append(Layer(f"w{place}", "Conv" if len(shape) == 4 else "MatMul", magnitude.reshape(shape)))
    return found


def left_in(found):
    return sum(layer.n_left for layer in found)


def least(found):
    """Return what Uniform+ cannot go below."""
    convolutions = [layer for layer in found if layer.op_type == "Conv"][:1]
    linear = [layer for layer in found if layer.op_type != "Conv"][-1:]
    return sum(one.n_left for one in convolutions) + sum(min(one.n_left, int(np.ceil(one.size / 5))) for one in linear)


def a_number_to_keep(data, found, at_least=0):
    most = left_in(found) - 1
    assume(most >= at_least)
    return data.draw(st.integers(at_least, most), label="keep")


def smallest_kept(layer, mask):
    return layer.magnitude[mask].min(initial=np.inf)


def largest_gone(layer, mask):
    return layer.magnitude[~mask].max(initial=0)


def test_there_are_four_schedules():
    assert set(SCHEDULES) >= set(NAMES)


@EACH
@given(found=networks(), data=st.data())
def test_so_many_weights_are_kept_and_of_each_layer_the_largest(name, found, data):
    keep = a_number_to_keep(data, found, least(found) if name == "uniform_plus" else 0)
    masks = SCHEDULES[name](found, keep)
    assert sum(int((mask & (layer.magnitude > 0)).sum()) for layer, mask in zip(found, masks, strict=True)) == keep
    for layer, mask in zip(found, masks, strict=True):
        assert mask.shape == layer.magnitude.shape
        assert smallest_kept(layer, mask) >= largest_gone(layer, mask)


@pytest.mark.parametrize("name", ["erk", "global", "uniform_plus"])  # LAMP's scores rise as small weights go
@given(found=networks(), data=st.data())
def test_pruning_in_two_steps_is_pruning_in_one(name, found, data):
    low = least(found) if name == "uniform_plus" else 0
    keep = a_number_to_keep(data, found, low)
    halfway = data.draw(st.integers(keep, left_in(found) - 1))
    between = [
        Layer(layer.tensor, layer.op_type, layer.magnitude * mask)
        for layer, mask in zip(found, SCHEDULES[name](found, halfway), strict=True)
    ]
    once = [int(mask.sum()) for mask in SCHEDULES[name](found, keep)]
    twice = once if keep == halfway else [int(mask.sum()) for mask in SCHEDULES[name](between, keep)]
    assert np.abs(np.subtract(once, twice)).max() <= 1  # where remainders are alike


@given(found=networks(), data=st.data())
def test_lamp_keeps_the_highest_scores_of_its_formula(found, data):
    scores = []
    for layer in found:
        weights = [float(w) for w in layer.magnitude.ravel()]
        scores.append([w**2 / sum(v**2 for v in weights if v >= w) if w else 0.0 for w in weights])
    keep = a_number_to_keep(data, found)
    masks = SCHEDULES["lamp"](found, keep)
    kept = [
        s for own, mask in zip(scores, masks, strict=True) for s, stays in zip(own, mask.ravel(), strict=True) if stays
    ]
    assert sorted(kept, reverse=True) == pytest.approx(sorted(np.concatenate(scores), reverse=True)[:keep])


@given(found=networks(), data=st.data())
def test_global_magnitude_keeps_the_largest_weights(found, data):
    keep = a_number_to_keep(data, found)
    masks = SCHEDULES["global"](found, keep)
    kept = np.concatenate([layer.magnitude[mask] for layer, mask in zip(found, masks, strict=True)])
    every = np.concatenate([layer.magnitude.ravel() for layer in found])
    np.testing.assert_array_equal(np.sort(kept), np.sort(every)[every.size - keep :])


def bisected(wanted, limits, total):
    """Return min(factor * wanted, limit) for the factor at which these sum to the total."""
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(middle * wanted, limits).sum() < total else (low, middle)
    return np.minimum(high * wanted, limits)


@given(pairs=st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 50)), min_size=1, max_size=8), data=st.data())
def test_quotas_are_in_proportion_up_to_their_limits(pairs, data):
    wanted, limits = (np.array(side) for side in zip(*pairs, strict=True))
    total = data.draw(st.integers(0, int(limits.sum())))
    found = np.array(quotas(wanted, limits, total))
    assert found.sum() == total
    assert ((found >= 0) & (found <= limits)).all()
    assert np.abs(found - bisected(wanted, limits, total)).max() < 1 + 1e-6


@given(found=networks(), data=st.data())
def test_erk_has_the_densities_of_its_formula(found, data):
    found = [Layer(one.tensor, one.op_type, one.magnitude + 1e-3) for one in found]  # none pruned before
    keep = a_number_to_keep(data, found)
    sizes = np.array([layer.size for layer in found])
    density = []
    for layer in found:
        n_out, n_in, *kernel = layer.magnitude.shape
        density.append((n_in + n_out + sum(kernel)) / (n_in * n_out * np.prod(kernel)))
    wanted = bisected(np.array(density) * sizes, sizes, keep)  # shares of more than all are all
    counts = [int(mask.sum()) for mask in SCHEDULES["erk"](found, keep)]
    assert np.abs(counts - wanted).max() < 1 + 1e-6


@given(found=networks(), data=st.data())
def test_uniform_plus_spares_the_ends_and_treats_the_rest_alike(found, data):
    found = [Layer(one.tensor, one.op_type, one.magnitude + 1e-3) for one in found]
    keep = a_number_to_keep(data, found, least(found))
    masks = SCHEDULES["uniform_plus"](found, keep)
    rest = list(zip(found, masks, strict=True))
    if found[0].op_type == "Conv":
        assert rest.pop(0)[1].all()
    if found[-1].op_type != "Conv":
        layer, mask = rest[-1]
        assert mask.sum() >= layer.size / 5
        if mask.sum() == np.ceil(layer.size / 5):
            rest.pop()
    if rest:
        share = sum(mask.sum() for _, mask in rest) / sum(layer.size for layer, _ in rest)
        assert all(abs(mask.sum() - share * layer.size) < 1 + 1e-6 for layer, mask in rest)


def test_uniform_plus_by_hand():
    found = [Layer(name, kind, np.arange(1.0, n + 1).reshape(shape)) for name, kind, n, shape in (
        ("first", "Conv", 20, (5, 1, 2, 2)), ("middle", "Conv", 80, (5, 4, 2, 2)), ("last", "Gemm", 50, (10, 5)),
    )]  # fmt: skip
    assert [int(mask.sum()) for mask in SCHEDULES["uniform_plus"](found, 20 + 8 + 10)] == [20, 8, 10]
    assert [int(mask.sum()) for mask in SCHEDULES["uniform_plus"](found, 20 + 40 + 25)] == [20, 40, 25]
    with pytest.raises(gm.RefusedError, match="30 weights"):
        SCHEDULES["uniform_plus"](found, 29)


# -- models


def demo():
    return gm.load(gm.demo.model_path())


@EACH
def test_the_demo_network_keeps_the_share_and_all_else(name):
    before = demo()
    digest = before.digest
    after = sparsify(before, 0.3, name)
    assert before.digest == digest
    own = {layer.tensor: layer for layer in layers(before)}
    assert sum(layer.n_left for layer in layers(after)) == round(0.3 * sum(layer.size for layer in own.values()))
    assert n_parameters(after) == before.n_weights - round(0.7 * sum(layer.size for layer in own.values()))
    for tensor in before.initializers:
        old, new = before.initializer(tensor), after.initializer(tensor)
        stays = new != 0 if tensor in own else np.ones(old.shape, bool)
        np.testing.assert_array_equal(new[stays], old[stays])
    for field in ("node", "input", "output", "value_info"):
        assert getattr(after.proto().graph, field) == getattr(before.proto().graph, field)
    after.check()


def linear(weight, **attributes):
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="fc", **attributes)
    return model([node], {"x": ["n", weight.shape[0]]}, {"y": ["n", weight.shape[1]]}, {"w": weight})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_stay(dtype):
    weight = np.random.default_rng(0).normal(size=(6, 4)).astype(dtype)
    proto = linear(weight.astype(np.float32)).proto()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    found = sparsify(gm.load(proto), 0.5, "global").initializer("w")
    assert found.dtype == dtype
    cut = np.sort(np.abs(weight).ravel())[12]
    np.testing.assert_array_equal(found, np.where(np.abs(weight) >= cut, weight, 0))


def test_values_in_lists_and_in_files(tmp_path):
    weight = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    expected = sparsify(linear(weight), 0.25).initializer("w")
    listed = linear(weight).proto()
    del listed.graph.initializer[0].dims[:]
    listed.graph.initializer[0].CopyFrom(TensorProto(name="w", dims=[6, 4], data_type=1, float_data=weight.ravel()))
    np.testing.assert_array_equal(sparsify(gm.load(listed), 0.25).initializer("w"), expected)
    outside = tmp_path / "outside.onnx"
    onnx.save(
        linear(weight).proto(), outside, save_as_external_data=True, location="w.bin", size_threshold=0,
    )  # fmt: skip
    before = (tmp_path / "w.bin").read_bytes()
    saved = sparsify(gm.load(outside), 0.25).save(tmp_path / "sparse.onnx")
    np.testing.assert_array_equal(gm.load(saved).initializer("w"), expected)
    assert (tmp_path / "w.bin").read_bytes() == before


def test_a_shared_weight_is_one_layer_and_either_side_of_a_product_counts():
    weight = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    left = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Gemm", ["left", "b"], ["y"]),
    ]  # fmt: skip
    found = layers(model(nodes, {"x": [4, 4]}, {"y": [4, 4]}, {"w": weight, "left": left}))
    assert [(layer.tensor, layer.op_type, layer.size) for layer in found] == [("w", "MatMul", 16), ("left", "Gemm", 16)]


def test_operators_of_other_domains_have_no_layers():
    node = helper.make_node("MatMul", ["x", "w"], ["y"], domain="elsewhere")
    weight = np.ones((4, 4), np.float32)
    proto = model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": weight}).proto()
    proto.graph.node[0].CopyFrom(node)
    proto.opset_import.append(helper.make_opsetid("elsewhere", 1))
    assert layers(gm.load(proto)) == ()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(graph=random_graphs(), share=st.floats(0, 1, exclude_min=True), name=st.sampled_from(["erk", "global", "lamp"]))
def test_random_graphs_change_by_zeros_alone(graph, share, name):
    before = gm.load(graph.proto)
    own = layers(before)
    assume(own)
    after = sparsify(before, share, name)
    keep = round(share * sum(layer.size for layer in own))
    assert sum(layer.n_left for layer in layers(after)) == min(keep, left_in(own))
    expected = before.proto()
    for tensor in expected.graph.initializer:
        if tensor.name in {layer.tensor for layer in own}:
            value = before.initializer(tensor.name) * (after.initializer(tensor.name) != 0)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    feeds = graph.feeds()
    np.testing.assert_array_equal(after.run(feeds)["out"], gm.load(expected).run(feeds)["out"])


def test_nothing_to_do_returns_the_model():
    before = sparsify(demo(), 0.5, "erk")
    assert sparsify(before, 0.5, "lamp") is before
    assert sparsify(before, 1.0, "lamp") is before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((1.5,), "share=1.5 is out of range"),
        ((0,), "above 0 and at most 1"),
        ((0.5, "none"), "there are erk, global, lamp, uniform_plus"),
    ],
)
def test_refusals(arguments, told):
    with pytest.raises(gm.RefusedError, match=told):
        sparsify(demo(), *arguments)


def test_a_network_without_layers_is_refused():
    nothing = model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 3]}, {"y": ["n", 3]})
    with pytest.raises(gm.RefusedError, match="nothing to sparsify"):
        sparsify(nothing, 0.5)


def test_another_module_cannot_take_a_name():
    def other(*_):
        raise AssertionError

    with pytest.raises(gm.RefusedError, match="choose another name"):
        sparsity.schedule("lamp")(other)


# -- prune and retrain


def planted(n=1000):
    """Return a model of one linear layer that classifies by three of its eight inputs, and data for it."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n, 8)).astype(np.float32)
    weight = (rng.uniform(0.01, 0.02, (8, 3)) * rng.choice([-1, 1], (8, 3))).astype(np.float32)
    weight[:3] += np.eye(3, dtype=np.float32)
    y = (x[:, :3]).argmax(axis=1)
    return linear(weight), {"x": x, "y": y}


def test_pruned_weights_stay_zero_and_both_targets_are_met():
    before, data = planted()
    run = prune_retrain(before, data, "global", remaining=9 / 24, accuracy=0.9, rate=0.25)
    assert run.reached
    assert [one.remaining * 24 for one in run.iterations] == pytest.approx([18, 14, 10, 9])  # rounded 3/4 each time
    assert n_parameters(run.model) == 9
    assert (np.diag(run.model.initializer("w")) != 0).all()
    assert run.iterations[-1].retrained >= 0.9
    assert run.seconds == pytest.approx(sum(one.seconds for one in run.iterations))


def test_no_training_where_accuracy_holds(monkeypatch):
    def retrain(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr(import_module("graphmod.methods.deeparc.sparsity.prune_retrain"), "retrain", retrain)
    before, data = planted()
    run = prune_retrain(before, data, "global", remaining=0.125, accuracy=0.9, rate=0.5)
    assert run.reached
    np.testing.assert_array_equal(run.model.initializer("w")[:3] != 0, np.eye(3, dtype=bool))


def test_training_brings_back_what_pruning_lost_and_leaves_zeros():
    before, data = planted()
    proto = before.proto()
    spoilt = before.initializer("w").copy()
    spoilt[0, 0] = -0.5  # large enough to stay, and wrong
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(spoilt, "w"))
    arguments = {"remaining": 0.5, "accuracy": 0.9, "rate": 0.5, "learning_rate": 0.03, "epochs": 40}
    run = prune_retrain(gm.load(proto), data, "global", **arguments)
    assert run.reached
    assert run.iterations[0].pruned < 0.9 <= run.iterations[0].retrained
    assert n_parameters(run.model) == 12
    pruned = sparsify(gm.load(proto), 0.5, "global").initializer("w") == 0
    np.testing.assert_array_equal(run.model.initializer("w") == 0, pruned)
    again = prune_retrain(gm.load(proto), data, "global", **arguments)
    assert again.model.digest == run.model.digest


def test_a_target_that_is_never_reached_is_told():
    before, data = planted()
    run = prune_retrain(before, data, "lamp", remaining=1 / 24, accuracy=1.0, rate=0.9, epochs=1, attempts=2)
    assert not run.reached
    assert [round(24 * one.remaining) for one in run.iterations] == [2, 1, 1]


def test_every_iteration_prunes():
    before, data = planted()
    run = prune_retrain(before, data, "global", remaining=20 / 24, accuracy=0.5, rate=0.001)
    assert [round(24 * one.remaining) for one in run.iterations] == [23, 22, 21, 20]


def test_what_the_schedule_keeps_is_told_before_anything_is_trained(monkeypatch):
    def retrain(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr(import_module("graphmod.methods.deeparc.sparsity.prune_retrain"), "retrain", retrain)
    before, data = planted()
    with pytest.raises(gm.RefusedError, match="a fifth of the last linear layer"):
        prune_retrain(before, data, "uniform_plus", remaining=0.1, accuracy=1.0)


def test_a_shortened_network_counts_by_its_original():
    before, data = planted()
    twice = model(
        [helper.make_node("Gemm", ["x", "w"], ["h"]), helper.make_node("Gemm", ["h", "v"], ["y"])],
        {"x": ["n", 8]}, {"y": ["n", 3]},
        {"w": before.initializer("w"), "v": np.eye(3, dtype=np.float32)},
    )  # fmt: skip
    run = prune_retrain(before, data, "global", of=twice, remaining=18 / 33, accuracy=0.9, rate=0.5)
    assert [one.remaining * 33 for one in run.iterations] == pytest.approx([18])
    already = prune_retrain(before, data, "global", of=twice, remaining=0.9, accuracy=0.9)
    assert already.model is before
    assert [one.remaining for one in already.iterations] == [pytest.approx(24 / 33)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"rate": 1.0}, "rate=1.0"),
        ({"remaining": 0.0}, "remaining=0.0"),
        ({"accuracy": 2.0}, "accuracy=2.0"),
        ({"attempts": 0}, "attempts=0"),
        ({"remaining": 0.001}, "parameters are never pruned"),
        ({"schedule": "none"}, "no schedule"),
    ],
)
def test_prune_retrain_refuses(arguments, told):
    with pytest.raises(gm.RefusedError, match=told):
        prune_retrain(demo(), gm.demo.splits(), **{"remaining": 0.5, "accuracy": 0.9} | arguments)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"epochs": -1}, {"learning_rate": 0}, {"batch_size": 0}])
def test_training_out_of_range_is_refused_also_where_none_is_needed(wrong):
    with pytest.raises(gm.RefusedError, match=r"at least 0|out of range"):
        prune_retrain(demo(), gm.demo.splits(), remaining=0.9, accuracy=0.5, **wrong)


# -- shortening


def residual(scales, width=6):
    """Return a network of residual blocks, each with a branch of the given scale, and a linear layer at its end."""
    rng = np.random.default_rng(5)
    weights = {"fc": rng.normal(size=(width, 3))}
    nodes, now = [], "x"
    for i, scale in enumerate(scales):
        weights |= {f"a{i}": rng.normal(size=(width, width)), f"b{i}": scale * rng.normal(size=(width, width))}
        nodes += [
            helper.make_node("MatMul", [now, f"a{i}"], [f"h{i}"]), helper.make_node("Relu", [f"h{i}"], [f"r{i}"]),
            helper.make_node("MatMul", [f"r{i}", f"b{i}"], [f"f{i}"]),
            helper.make_node("Add", [now, f"f{i}"], [f"s{i}"]),
        ]  # fmt: skip
        now = f"s{i}"
    nodes.append(helper.make_node("MatMul", [now, "fc"], ["y"]))
    values = {name: value.astype(np.float32) for name, value in weights.items()}
    return model(nodes, {"x": ["n", width]}, {"y": ["n", 3]}, values)


def test_blocks_that_do_little_go_first():
    network = residual([0.3, 1e-4, 0.3, 1e-3, 0.3, 1e-2])
    samples = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    block = 2 * 36
    for n, gone in enumerate(([], [1], [1, 3], [1, 3, 5])):
        floor = (network.n_weights - n * block) / network.n_weights
        shorter = shorten(network, samples, floor - 1e-9)
        assert shorter.n_weights == network.n_weights - n * block
        assert {f"a{i}" for i in range(6)} - set(shorter.initializers) == {f"a{i}" for i in gone}
    assert shorten(network, samples, 0.999) is network
    assert not {f"a{i}" for i in range(6)} & set(shorten(network, samples, 0).initializers)  # all that can go


def test_what_cannot_be_shortened_is_refused():
    with pytest.raises(gm.RefusedError, match=r"remaining=-0\.1 is out of range"):
        shorten(demo(), gm.demo.splits(), -0.1)
    with pytest.raises(gm.RefusedError, match="leaves nothing to look at"):
        shorten(demo(), gm.demo.splits(), 0.5, samples=0)
    with pytest.raises(gm.RefusedError, match="seed=-1 is out of range"):
        shorten(demo(), gm.demo.splits(), 0.5, seed=-1)
    weight = np.ones((4, 2), np.float32)
    with pytest.raises(gm.RefusedError, match="nothing to skip"):
        shorten(linear(weight), np.ones((8, 4), np.float32), 0.5)


def test_weights_that_are_stored_sparsely_are_refused():
    packed = gm.pack(sparsify(gm.load(gm.demo.model_path()), 0.1))
    with pytest.raises(gm.RefusedError, match="is stored sparsely"):
        layers(packed)
    assert n_parameters(gm.unpack(packed)) < n_parameters(gm.load(gm.demo.model_path()))
