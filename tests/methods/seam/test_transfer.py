"""Indirect reuse against its steps one by one, the search of its masks against a plain loop, and planted answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import net
from planted_problems import layered, some_channels, split
from torch.nn import functional as F

import graphmod as gm
from graphmod.methods import seam

MASKED = ("cw", "cb", "mw", "mb")
HEAD = ("head.weight", "head.bias")
SEARCH = {"alpha": 0.3, "mask_rate": 0.1, "head_rate": 0.05, "batch_size": 32}


def zeros(model, names=MASKED):
    return {name: np.array(model.initializer(name)) == 0 for name in names}


def share_left(model, names=MASKED):
    found = zeros(model, names).values()
    return 1 - sum(zero.sum() for zero in found) / sum(zero.size for zero in found)


# -- the search, with the final layer as head


def forward(weights, x):
    """Return the logits of the layered network with a new final layer, by torch's functions."""
    c = F.conv1d(x, weights["cw"], weights["cb"])
    c = (c - weights["mean"][:, None]) / torch.sqrt(weights["var"] + 1e-5)[:, None]
    c = F.relu(c * weights["scale"][:, None] + weights["shift"][:, None])
    return F.linear(
        torch.tanh(c.flatten(1) @ weights["mw"] + weights["mb"]), weights["head.weight"], weights["head.bias"]
    )


def by_hand(model, data, epochs, alpha, mask_rate, head_rate, batch_size, seed):
    """Search in a loop of its own, layer and masks in every epoch; yield what the network computes with after each."""
    own = {name: torch.tensor(np.array(model.initializer(name))) for name in model.initializers}
    masks = {name: torch.ones_like(own[name]) for name in MASKED}
    n_masked = sum(mask.numel() for mask in masks.values())
    rates = [{"params": list(masks.values()), "lr": mask_rate}, {"params": [own[n] for n in HEAD], "lr": head_rate}]
    adam = torch.optim.Adam(rates)
    x, y = torch.from_numpy(data.train.inputs["x"]), torch.from_numpy(np.asarray(data.train.targets, np.int64))
    order = np.random.default_rng(seed)
    for _ in range(epochs):
        rows = order.permutation(len(x))
        for start in range(0, len(x), batch_size):
            batch = rows[start : start + batch_size]
            weights = {name: value.clone() for name, value in own.items()}
            weights |= {name: own[name] * (mask > 0) for name, mask in masks.items()}
            learnt = [weights[name].requires_grad_() for name in (*MASKED, *HEAD)]
            slopes = torch.autograd.grad(F.cross_entropy(forward(weights, x[batch]), y[batch]), learnt)
            for name, slope in zip((*MASKED, *HEAD), slopes, strict=True):
                if name in masks:  # a factor of the weight, and its share of the mean
                    masks[name].grad = own[name] * slope + alpha / n_masked
                else:
                    own[name].grad = slope
            adam.step()
        yield {name: value.clone() * (masks[name] > 0 if name in masks else 1) for name, value in own.items()}


@pytest.fixture(scope="module")
def searched():
    model, data = layered()
    fresh = gm.new_head(model, 3, seed=4)
    run = seam.search(fresh, data, share=0.0, own_head=True, head_alone=None, epochs=9, seed=3, **SEARCH)
    return fresh, data, run, list(by_hand(fresh, data, 9, seed=3, **SEARCH))


def test_every_epoch_is_that_of_a_loop_of_its_own(searched):
    _, data, run, own = searched
    x = torch.from_numpy(data.calibration.inputs["x"])
    for epoch, weights in zip(run.history, own, strict=True):
        assert epoch.kept * run.n_masked == pytest.approx(sum(int((weights[name] != 0).sum()) for name in MASKED))
        assert epoch.accuracy == (forward(weights, x).argmax(1).numpy() == data.calibration.targets).mean()
    assert min(epoch.kept for epoch in run.history) < 0.8


def test_the_graph_computes_what_the_loop_s_network_does(searched):
    fresh, data, run, own = searched
    weights = own[run.epoch]
    for name in MASKED:
        np.testing.assert_array_equal(run.model.initializer(name), weights[name].numpy())
    for name in HEAD:
        np.testing.assert_allclose(run.model.initializer(name), weights[name].numpy(), rtol=1e-3, atol=1e-5)
    for name in ("scale", "shift", "mean", "var"):
        np.testing.assert_array_equal(run.model.initializer(name), fresh.initializer(name))
    assert run.model.operator_names == fresh.operator_names
    assert run.n_masked == sum(fresh.initializer(name).size for name in MASKED)
    assert gm.accuracy(run.model, data.calibration) == run.history[run.epoch].accuracy


def test_a_share_that_is_not_reached(searched):
    _, _, run, _ = searched
    assert not run.reached
    assert len(run.history) == 9
    differences = [epoch.accuracy - epoch.kept for epoch in run.history]
    assert run.epoch == differences.index(max(differences))


def test_the_first_epoch_that_keeps_the_share_ends_the_search(searched):
    fresh, data, whole, _ = searched
    share = whole.history[5].kept
    first = next(number for number, epoch in enumerate(whole.history) if epoch.kept <= share)
    run = seam.search(fresh, data, share=share, own_head=True, head_alone=None, epochs=9, seed=3, **SEARCH)
    assert run.reached
    assert run.epoch == first == len(run.history) - 1
    assert [replace(epoch, seconds=0) for epoch in run.history] == [
        replace(epoch, seconds=0) for epoch in whole.history[: first + 1]
    ]
    assert share_left(run.model) == pytest.approx(run.kept)


def test_patience_ends_a_search_for_a_share():
    model, data = layered()
    run = seam.search(model, data, share=0.0, epochs=60, patience=4, **SEARCH)
    differences = [epoch.accuracy - epoch.kept for epoch in run.history]
    assert not run.reached
    assert len(run.history) == differences.index(max(differences)) + 5 < 60


def test_an_added_head_serves_a_share_too():
    model, data = layered()
    run = seam.search(model, data, share=0.7, epochs=30, mask_rate=0.05)
    assert run.reached
    assert run.kept <= 0.7 < run.history[-2].kept
    assert [operator.op_type for operator in run.model.operators[-2:]] == ["Relu", "Gemm"]


@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax"])
def test_a_softmax_behind_the_final_layer_stays(end):
    rng = np.random.default_rng(0)
    weights = {"v": rng.normal(size=(8, 6)).astype(np.float32), "w": rng.normal(size=(6, 2)).astype(np.float32)}
    x = rng.normal(size=(300, 8)).astype(np.float32)
    data = split(x, (x[:, 0] > 0).astype(int))
    body = "(float[n,8] x) => (float[n,2] y) { h = MatMul(x, v) r = Relu(h) "
    plain = net(body + "y = MatMul(r, w) }", weights)
    ended = net(body + f"z = MatMul(r, w) y = {end}(z) }}", weights)
    own, found = (seam.search(one, data, share=0.0, own_head=True, epochs=4).model for one in (plain, ended))
    assert [operator.op_type for operator in found.operators] == ["MatMul", "Relu", "MatMul", end]
    for name in ("v", "w"):
        np.testing.assert_array_equal(own.initializer(name), found.initializer(name))
    assert (own.initializer("w") != weights["w"]).any()


# -- all steps


TRANSFER = {"share": 0.6, "epochs": 12, "tuning_epochs": 10, "tuning_rate": 0.01, "seed": 2} | SEARCH


@pytest.fixture(scope="module")
def transferred():
    model, data = layered()
    return model, data, seam.transfer(model, data, **TRANSFER)


def test_it_is_its_steps(transferred):
    model, data, found = transferred
    training = {"epochs": 10, "batch_size": 32, "learning_rate": 0.01, "seed": 2}
    fresh = gm.new_head(model, 3, seed=2)
    layer = (gm.graph.final_features(fresh), "y")
    start = gm.retrain(fresh, data, [layer], **training)
    run = seam.search(start, data, share=0.6, own_head=True, head_alone=None, patience=30, epochs=12, seed=2, **SEARCH)
    tuned = gm.retrain(gm.new_head(run.model, 3, seed=3), data, **training)
    assert found.masked.digest == run.model.digest
    assert found.model.digest == tuned.digest
    assert found.seconds >= found.run.seconds
    np.testing.assert_array_equal(start.initializer("cw"), model.initializer("cw"))


def test_masked_weights_are_the_original_s_or_zero(transferred):
    model, _, found = transferred
    assert found.run.reached
    assert share_left(found.masked) == pytest.approx(found.run.kept)
    assert found.run.kept <= 0.6
    for name, zero in zeros(found.masked).items():
        np.testing.assert_array_equal(found.masked.initializer(name)[~zero], model.initializer(name)[~zero])
    assert found.masked.outputs["y"].shape == found.model.outputs["y"].shape == ("n", 3)


def test_zeros_grow_again_as_published(transferred):
    _, _, found = transferred
    assert found.kept == pytest.approx(share_left(found.model))
    assert found.kept > found.run.kept
    for name in ("scale", "shift", "mean", "var"):  # the whole network learns, by the statistics of batches
        assert (found.model.initializer(name) != found.masked.initializer(name)).any()


def test_zeros_stay_where_they_are_asked_to(transferred):
    model, data, grown = transferred
    found = seam.transfer(model, data, keep_zeros=True, **TRANSFER)
    assert found.masked.digest == grown.masked.digest
    assert found.kept == found.run.kept == pytest.approx(share_left(found.model))
    for name, zero in zeros(found.masked).items():
        np.testing.assert_array_equal(np.array(found.model.initializer(name)) == 0, zero)


def test_the_same_seed_gives_the_same_and_the_original_stays(transferred):
    model, data, found = transferred
    before, state = model.digest, torch.random.get_rng_state()
    assert seam.transfer(model, data, **TRANSFER).model.digest == found.model.digest
    assert model.digest == before
    assert torch.equal(torch.random.get_rng_state(), state)


def test_channels_of_noise_are_of_no_use_to_another_problem():
    model, data = some_channels()
    settings = {"share": 0.3, "alpha": 0.2, "epochs": 60, "mask_rate": 0.01, "tuning_rate": 0.01, "tuning_epochs": 10}
    found = seam.transfer(model, data, keep_zeros=True, **settings)
    assert found.run.reached
    for one in (found.masked, found.model):
        left = one.initializer("first") != 0
        assert left[:4, 0].all()
        assert not left[:4, 1].any()
        assert left[4:].sum() <= 2
        assert gm.accuracy(one, data.test) > 0.97
        assert found.kept == found.run.kept == left.mean() <= 0.3


def test_features_of_every_token_are_averaged_first():
    rng = np.random.default_rng(0)
    weights = {"v": rng.normal(size=(4, 8)).astype(np.float32), "w": rng.normal(size=(8, 5)).astype(np.float32)}
    text = """(float[n,6,4] x) => (float[n,5] y) {
        h = MatMul(x, v)
        r = Tanh(h)
        t = MatMul(r, w)
        y = ReduceMax <axes = [1], keepdims = 0> (t)
    }"""
    x = rng.normal(size=(600, 6, 4)).astype(np.float32)
    labels = (x[..., 0].mean(1) > 0).astype(int)
    x[..., 0] += np.where(labels, 0.5, -0.5)[:, None].astype(np.float32)
    found = seam.transfer(net(text, weights), split(x, labels), share=0.5, mask_rate=0.02, epochs=60, tuning_rate=0.01)
    assert found.run.reached
    assert found.run.n_masked == 32
    assert gm.accuracy(found.model, split(x, labels).test) > 0.95


def test_a_fixed_batch_stays_so():
    free, data = layered()
    runs = [seam.transfer(model, data, **TRANSFER) for model in (free, gm.rebatch(free, 4))]
    assert runs[1].model.outputs["y"].shape == (4, 3)
    x = data.test.inputs["x"][:4]
    np.testing.assert_allclose(runs[1].model.run({"x": x})["y"], runs[0].model.run({"x": x})["y"], rtol=1e-4, atol=1e-5)


# -- refusals


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "give either accuracy or share"),
        ({"accuracy": 0.9, "share": 0.5}, "give either accuracy or share"),
        ({"share": 1.5}, "share=1.5 is out of range"),
        ({"share": float("nan")}, "share=nan"),
        ({"share": 0.5, "head_alone": 1}, "head_alone=1 is out of range"),
        ({"share": 0.5, "own_head": True}, "5 outputs, and the data have labels of 3 classes; graphmod.new_head"),
    ],
)
def test_searches_that_are_refused(arguments, told):
    model, data = layered()
    with pytest.raises(gm.RefusedError, match=told):
        seam.search(model, data, **arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"share": -0.1}, "share=-0.1"),
        ({"patience": 0}, "patience=0 is out of range"),
        ({"tuning_epochs": 0}, "tuning_epochs=0 is out of range"),
        ({"tuning_rate": 0.0}, "tuning_rate=0.0 is out of range"),
        ({"layer_rate": float("nan")}, "layer_rate=nan is out of range"),
        ({"seed": -1}, "seed=-1 is out of range"),
    ],
)
def test_arguments_out_of_range(arguments, told):
    with pytest.raises(gm.RefusedError, match=told):
        seam.transfer(*layered(), **arguments)


def test_labels_have_no_gaps():
    model, data = layered()
    parts = (gm.Data(part.inputs, part.targets * 2) for part in (data.train, data.calibration, data.test))
    with pytest.raises(gm.InvalidDataError, match="none that is 1"):
        seam.transfer(model, gm.Splits(*parts))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("r = Relu(x) y = MatMul(r, w)", "nothing to mask: no Conv, Gemm or MatMul before the head"),
        ("y = MatMul(x, w)", "no boundary before the final layer"),
        ("y = Softmax(x)", "no operator multiplies activations by weights"),
    ],
)
def test_there_must_be_a_network_before_the_final_layer(text, told):
    model = net(f"(float[n,8] x) => (float[n,8] y) {{ {text} }}", {"w": (8, 8)})
    x = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    with pytest.raises(gm.RefusedError, match=told):
        seam.transfer(model, split(x, np.arange(60) % 2), tuning_epochs=1)
