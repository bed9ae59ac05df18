"""Optimizers, against torch's own and against singular values."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import graphmod as gm
from graphmod.methods.deeparc import sparsity
from graphmod.train import OPTIMIZERS
from graphmod.train.optimizers import Muon, orthogonal


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_orthogonal_brings_singular_values_near_one_and_keeps_their_spaces(n, rows, columns, seed):
    rng = np.random.default_rng(seed)
    found, wanted = [], []
    rank = min(rows, columns)
    for _ in range(n):
        u = np.linalg.qr(rng.normal(size=(rows, rank)))[0]
        v = np.linalg.qr(rng.normal(size=(columns, rank)))[0]
        found.append((u * rng.uniform(0.2, 1, rank)) @ v.T)
        wanted.append((u, v))
    steps = orthogonal(torch.from_numpy(np.stack(found))).numpy()
    for step, (u, v) in zip(steps, wanted, strict=True):
        inner = u.T @ step @ v
        np.testing.assert_allclose(u @ inner @ v.T, step, atol=1e-10)
        np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-10)
        assert 0.6 < np.diag(inner).min() <= np.diag(inner).max() < 1.3


def test_a_gradient_of_zero_moves_nothing():
    weight = nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.zeros(3, 4)
    Muon([weight], lr=0.1).step()
    assert (weight == 1).all()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has one since 2.9")
def test_muon_goes_the_way_of_torchs_own():
    torch.manual_seed(0)
    start = [torch.randn(6, 4), torch.randn(5, 9), torch.randn(6, 4)]
    steps = [[torch.randn_like(one) for one in start] for _ in range(4)]

    def ends(make):
        weights = [nn.Parameter(one.clone()) for one in start]
        optimizer = make(weights)
        for gradients in steps:
            for one, gradient in zip(weights, gradients, strict=True):
                one.grad = gradient.clone()
            optimizer.step()
        return weights

    ours = ends(lambda weights: Muon(weights, lr=0.02, momentum=0.9))
    theirs = ends(lambda weights: torch.optim.Muon(weights, lr=0.02, momentum=0.9, weight_decay=0.0))
    for own, other, begun in zip(ours, theirs, start, strict=True):
        assert torch.dist(own, other) < 0.03 * torch.dist(begun, other)  # bfloat16 has 8 bits


def test_convolutions_are_matrices_and_vectors_and_depthwise_filters_are_left_to_adam():
    net = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 1), nn.Linear(8, 5)])
    parameters = list(net.parameters())
    parts = OPTIMIZERS["muon"](parameters, 1e-3)
    held = [[one for group in part.param_groups for one in group["params"]] for part in parts]
    assert sorted(len(part) for part in held) == [2, 6]
    assert {id(one) for one in held[0]} == {id(net[0].weight), id(net[3].weight)}
    assert {id(one) for part in held for one in part} == set(map(id, parameters))


def test_a_convolution_moves_as_its_matrix_does():
    torch.manual_seed(0)
    conv, matrix = (nn.Parameter(torch.zeros(shape)) for shape in ((4, 3, 2, 2), (4, 12)))
    conv.grad = torch.randn(4, 3, 2, 2)
    matrix.grad = conv.grad.reshape(4, 12).clone()
    for one in (conv, matrix):
        Muon([one], lr=0.1).step()
    assert torch.equal(conv.reshape(4, 12), matrix)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_each_learns_keeps_zeros_and_repeats_itself(name):
    m, data = gm.load(gm.demo.model_path()), gm.demo.splits()
    sparse = sparsity.sparsify(m, 0.3, "global")
    runs = [
        gm.train.retrained(sparse, data, "layer3", optimizer=name, keep_zeros=True, epochs=1, learning_rate=3e-3)
        for _ in range(2)
    ]
    assert runs[0].history[-1].score > runs[0].history[0].score
    assert runs[0].model.digest == runs[1].model.digest
    zeros = {one: sparse.initializer(one) == 0 for one in sparse.initializers if "layer3" in one}
    assert sum(mask.sum() for mask in zeros.values()) > 1000
    for one, mask in zeros.items():
        now = runs[0].model.initializer(one)[mask]
        assert not now.any()
        assert not np.signbit(now).any()


def test_the_rates_of_all_parts_fall_to_zero(monkeypatch):
    made = []

    def kept(parameters, learning_rate):
        made.extend(OPTIMIZERS["muon"](parameters, learning_rate))
        return made

    monkeypatch.setitem(OPTIMIZERS, "kept", kept)
    gm.retrain(gm.load(gm.demo.model_path()), gm.demo.splits(), "layer3.6", optimizer="kept", epochs=1)
    assert [part.param_groups[0]["lr"] for part in made] == pytest.approx([0, 0])


def test_what_has_no_gradient_or_no_values_stays():
    weights = [nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4, 0))]
    for one in weights[1:]:
        one.grad = torch.ones_like(one)
    for part in OPTIMIZERS["muon"](weights, 0.1):
        part.step()
    assert (weights[0] == 1).all()
    assert (weights[1] < 1).all()


def test_parameters_that_are_not_dense_learn_as_dense_ones_do():
    torch.manual_seed(0)
    strided, dense = nn.Parameter(torch.zeros(4, 6)[:, ::2]), nn.Parameter(torch.zeros(4, 3))
    for one in (strided, dense):
        one.grad = torch.arange(12.0).reshape(4, 3) - 6
        OPTIMIZERS["adam"]([one], 0.1)[0].step()
    assert torch.allclose(strided, dense)


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(gm.RefusedError, match="no optimizer 'sgd'; there are adam, muon"):
        gm.retrain(gm.load(gm.demo.model_path()), gm.demo.splits(), optimizer="sgd")
