"""Closed gates are as if what they close were gone: against ONNX Runtime on networks without it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import random_networks
import torch
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from network_families import FAMILIES
from planted import feeds, net
from torch import nn

import graphmod as gm
from graphmod.graph import raw_logits
from graphmod.methods.deeparc.residual_sums import is_skippable
from graphmod.methods.gates import Gated, skippable_blocks, whole_groups
from graphmod.methods.gates.left_norm import LeftNorm
from graphmod.methods.skipping import skip
from graphmod.pruning import cut, groups
from graphmod.pruning.selection import Selection
from graphmod.pruning.widths import Widths

EXACT = 1e-5
SMOOTH = sorted(set(FAMILIES) - random_networks.STEPPED - {"quantized_linear"})  # levels flip by rounding


def gated_of(model: gm.Model) -> Gated:
    found = groups(model)
    return Gated(found, skippable_blocks(found))


def scores_of(model: gm.Model, given: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the main output as ONNX Runtime computes it, before a softmax that it ends in."""
    tensor = raw_logits(model)
    return (model if tensor == model.main_output else gm.expose(model, [tensor])).run(dict(given))[tensor]


def masked(gated: Gated, gates: np.ndarray, given: Mapping[str, np.ndarray]) -> np.ndarray:
    gated.net.eval()
    with torch.no_grad():
        inputs = [torch.from_numpy(given[name]) for name in gated.model.inputs]
        return gated(inputs, torch.from_numpy(gates.astype(np.float32))).numpy()


def some_gates(gated: Gated, seed: int, stay: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Draw which units and blocks are left: one of each group at least, and what is fixed."""
    rng, found = np.random.default_rng(seed), gated.found
    selection = Selection(found, Widths(found), rng.random(found.n_units))
    for group in found:
        selection.take(group, group.n_units, rng.uniform(0.2, 0.9))
    return selection.alive | (gated.fixed if stay is None else stay), rng.random(len(gated.blocks)) < 0.5


def error(gated: Gated, given: Mapping[str, np.ndarray], seed: int = 0, stay: np.ndarray | None = None) -> float:
    """Return how far the gated network is from the one without what is closed, over its scale."""
    alive, stays = some_gates(gated, seed, stay)
    small = gated.model if alive.all() else cut(groups(gated.model), ~alive, leftovers=False)
    stays |= np.array([not is_skippable(small, block) for block in gated.blocks], bool)
    small = skip(small, [block for block, one in zip(gated.blocks, stays, strict=True) if not one])
    expected = scores_of(small, given)
    made = masked(gated, np.append(alive, stays), given)
    assert made.shape == expected.shape
    return float(np.abs(made - expected).max() / (np.abs(expected).max() or 1.0))


CNN = """(float[n,3,6,6] x) => (float[n,5] y)
    { a = Conv<pads=[1,1,1,1]>(x, w1, c1)  b = BatchNormalization(a, s1, t1, m1, v1)  r = Relu(b)
      d = Conv(r, w2)  e = BatchNormalization(d, s2, t2, m2, v2)  f = Relu(e)
      p = GlobalAveragePool(f)  q = Flatten(p)  y = Gemm<transB=1>(q, h, g) }"""


def positive(n: int) -> np.ndarray:
    return np.random.default_rng(n).uniform(0.5, 2, n).astype(np.float32)


def cnn() -> gm.Model:
    return net(CNN, {
        "w1": (8, 3, 3, 3), "c1": (8,), "s1": positive(8), "t1": (8,), "m1": (8,), "v1": positive(8),
        "w2": (6, 8, 3, 3), "s2": positive(6), "t2": (6,), "m2": (6,), "v2": positive(6), "h": (5, 6), "g": (5,),
    })  # fmt: skip


def unfused() -> gm.Model:
    model = gm.fuse(cnn())
    x = np.random.default_rng(1).normal(size=(32, 3, 6, 6)).astype(np.float32)
    found = gm.unfuse(model, {"x": x})
    assert any(operator.op_type == "BatchNormalization" for operator in found.operators)
    return found


def shared_scales() -> gm.Model:
    """Return two layers whose normalisations share a scale of ones, as exporters store it."""
    return net(
        "(float[n,5] x) => (float[n,3] y) { a = MatMul(x, w)  b = LayerNormalization(a, one, nil)  c = Relu(b)"
        "  d = MatMul(c, u)  e = LayerNormalization(d, one, nil)  f = Tanh(e)  y = MatMul(f, v) }",
        {"w": (5, 8), "u": (8, 8), "v": (8, 3), "one": np.ones(8, np.float32), "nil": np.zeros(8, np.float32)},
    )


NETWORKS = {
    "batch normalisation": cnn,
    "unfused batch normalisation": unfused,
    "depthwise": lambda: net(
        "(float[n,3,6,6] x) => (float[n,4] y) { a = Conv(x, w)  r = Relu(a)  b = Conv<group=8>(r, d, c)  s = Relu(b)"
        "  e = Conv(s, u)  p = GlobalAveragePool(e)  y = Flatten(p) }",
        {"w": (8, 3, 1, 1), "d": (8, 1, 3, 3), "c": (8,), "u": (4, 8, 1, 1)},
    ),
    "grouped": lambda: net(
        "(float[n,3,6,6] x) => (float[n,4] y) { a = Conv(x, w)  r = Relu(a)  b = Conv<group=4>(r, d, c)  s = Relu(b)"
        "  e = Conv(s, u)  p = GlobalAveragePool(e)  y = Flatten(p) }",
        {"w": (8, 3, 1, 1), "d": (16, 2, 3, 3), "c": (16,), "u": (4, 16, 1, 1)},
    ),
    "concatenation": lambda: net(
        "(float[n,3,6,6] x) => (float[n,4] y) { a = Conv(x, w, c)  b = Conv(x, v)  k = Concat<axis=1>(a, x, b)"
        "  r = Sigmoid(k)  e = Conv(r, u)  p = GlobalAveragePool(e)  y = Flatten(p) }",
        {"w": (6, 3, 1, 1), "c": (6,), "v": (5, 3, 1, 1), "u": (4, 14, 1, 1)},
    ),
    "one matrix of two products": lambda: net(
        "(float[n,4] x, float[n,4] z) => (float[n,3] y) { a = MatMul(x, w)  b = MatMul(z, w)  c = Relu(a)  d = Relu(b)"
        "  e = Mul(c, d)  y = MatMul(e, v) }",
        {"w": (4, 8), "v": (8, 3)},
    ),
    "tied weights": lambda: net(
        "(float[n,4] x) => (float[n,4] y) { a = MatMul(x, w)  r = Tanh(a)  t = Transpose<perm=[1,0]>(w)"
        "  y = MatMul(r, t) }",
        {"w": (4, 8)},
    ),
    "softmax": lambda: net(
        "(float[n,4] x) => (float[n,3] y) { a = Gemm(x, w, c)  r = Relu(a)  b = Gemm(r, v)  y = Softmax(b) }",
        {"w": (4, 8), "c": (8,), "v": (8, 3)},
    ),
    "product of activations": lambda: net(
        "(float[n,3,4] x) => (float[n,2] y) { a = MatMul(x, q)  b = Sigmoid(a)  c = MatMul(x, k)  d = Sigmoid(c)"
        "  e = Transpose<perm=[0,2,1]>(d)  f = MatMul(b, e)  g = MatMul(f, x)  m = MatMul(g, u)  r = Relu(m)"
        "  p = ReduceMean<axes=[1], keepdims=0>(r)  y = MatMul(p, v) }",
        {"q": (4, 6), "k": (4, 6), "u": (4, 8), "v": (8, 2)},
    ),
    "group normalisation": lambda: net(
        "(float[n,3,4,4] x) => (float[n,4] y) { a = Conv(x, w)  i = Reshape(a, split)"
        "  j = InstanceNormalization(i, o, z)"
        "  k = Reshape(j, whole)  l = Mul(k, s)  r = Relu(l)  e = Conv(r, u)  f = Relu(e)  g = Conv(f, h)"
        "  p = GlobalAveragePool(g)  y = Flatten(p) }",
        {"w": (8, 3, 1, 1), "split": np.array([0, 2, -1]), "whole": np.array([0, 8, 4, 4]),
         "o": np.ones(2, np.float32), "z": np.zeros(2, np.float32), "s": (8, 1, 1),
         "u": (6, 8, 1, 1), "h": (4, 6, 1, 1)},
    ),
    "written-out normalisation": lambda: net(
        "(float[n,3,4,4] x) => (float[n,4] y) { a = Conv(x, w)  m = ReduceMean<axes=[1]>(a)  d = Sub(a, m)"
        "  q = Pow(d, two)  v = ReduceMean<axes=[1]>(q)  ve = Add(v, eps)  sd = Sqrt(ve)  l = Div(d, sd)"
        "  e = Conv(l, u)  f = Relu(e)  g = Conv(f, h)  p = GlobalAveragePool(g)  y = Flatten(p) }",
        {"w": (8, 3, 1, 1), "two": np.float32(2), "eps": np.float32(1e-5), "u": (6, 8, 1, 1), "h": (4, 6, 1, 1)},
    ),
    "shared scales": shared_scales,
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_closed_units_are_as_if_they_were_gone(name):
    model = NETWORKS[name]()
    gated = gated_of(model)
    given = feeds(model, batch=3)
    untrue = whole_groups(gated, gm.Data(given))
    assert bool(untrue) == (name == "product of activations")  # sigmoid(0) is 1/2
    stay = gated.fixed.copy()
    for group in gated.found:
        stay[group.own] |= group.name in untrue
    for seed in range(4):
        alive, _ = some_gates(gated, seed, stay)
        assert untrue or not alive.all()
        assert error(gated, given, seed, stay) <= EXACT


@pytest.mark.parametrize("name", ["group normalisation", "written-out normalisation"])
def test_what_is_compared_is_fixed_and_nothing_else(name):
    gated = gated_of(NETWORKS[name]())
    fixed = {name: gated.fixed[gated.found.unit_of[gated.found.analysis.axes[name][0]]].tolist() for name in ("w", "u")}
    assert fixed == {"w": [True] * 8, "u": [False] * 6}


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("resnet18", 6), ("resnet50", 10), ("mobilenetv2", 5), ("bert", 2), ("vgg", 0), ("branching", 0),
     ("two_inputs", 0), ("two_outputs", 0), ("vit12", 12)],
)  # fmt: skip
def test_closed_units_and_blocks_of_real_networks_are_as_if_they_were_gone(name, blocks):
    network = zoo.network(name, "torchscript")
    gated = gated_of(network.model)
    assert len(gated.blocks) >= blocks
    assert not gated.fixed.any()
    has_norms = any(isinstance(module, LeftNorm) for module in gated.net.modules())
    assert has_norms == (name in ("bert", "vit12"))
    for seed in range(2):
        assert error(gated, network.feeds, seed) <= EXACT


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(random_networks.networks(families=SMOOTH), st.integers(0, 9))
@pytest.mark.filterwarnings("ignore:PyTorch cannot compute")
def test_random_networks_without_groups_that_are_told_to_stay(network, seed):
    given = network.feeds(seed, 3)
    gated = gated_of(gm.load(network.proto))
    untrue, stay = whole_groups(gated, gm.Data(given)), gated.fixed.copy()
    for group in gated.found:
        stay[group.own] |= group.name in untrue
    assert error(gated, given, seed, stay) <= 5e-3  # some of them make rounding errors a thousand times as large


def test_blocks_of_other_units_at_their_ends_are_left_alone():
    """Channels at both ends are as many, but not the same: once some are gone, one end no longer fits the other."""
    plain = net(
        "(float[n,4,4,4] x) => (float[n,4] y) { a = Conv(x, w)  r = Relu(a)  b = Conv(r, u)  s = Relu(b)"
        "  c = Conv(s, v)  p = GlobalAveragePool(c)  y = Flatten(p) }",
        {"w": (4, 4, 1, 1), "u": (4, 4, 1, 1), "v": (4, 4, 1, 1)},
    )
    projected = net(
        "(float[n,4] x) => (float[n,4] y) { a = MatMul(x, w)  r = Relu(a)  b = MatMul(r, u)  c = Relu(b)"
        "  d = MatMul(c, v)  e = MatMul(r, p)  s = Add(d, e)  f = Relu(s)  y = MatMul(f, h) }",
        {"w": (4, 8), "u": (8, 6), "v": (6, 8), "p": (8, 8), "h": (8, 4)},
    )
    assert not gated_of(plain).blocks
    assert not gated_of(projected).blocks


def test_a_network_without_a_trunk_has_no_blocks():
    model = NETWORKS["one matrix of two products"]()
    assert skippable_blocks(groups(model)) == []


@pytest.mark.parametrize("name", [*NETWORKS, "resnet18", "bert"])
def test_open_gates_change_nothing(name):
    network = zoo.network(name, "torchscript") if name not in NETWORKS else None
    model = NETWORKS[name]() if network is None else network.model
    given = feeds(model, batch=3) if network is None else network.feeds
    gated = gated_of(model)
    expected = scores_of(model, given)
    made = masked(gated, np.ones(gated.n_gates), given)
    assert np.abs(made - expected).max() <= EXACT * np.abs(expected).max()


@pytest.mark.parametrize("name", ["batch normalisation", "shared scales", "tied weights"])
def test_unchanged_weights_are_written_as_they_were(name):
    gated = gated_of(NETWORKS[name]())
    written = gated.written()
    assert written.digest == gated.model.digest


def test_written_weights_are_those_that_were_trained():
    model = cnn()
    gated = gated_of(model)
    with torch.no_grad():
        for parameter in gated.net.parameters():
            parameter.mul_(1.5)
    given = feeds(model, batch=3)
    expected = masked(gated, np.ones(gated.n_gates), given)
    assert gated.written().run(given)["y"] == pytest.approx(expected, abs=1e-5)


def test_scales_that_readers_share_are_trained_apart():
    """They couple nothing while they are alike, so that widths differ; each reader has its own from then on."""
    model = shared_scales()
    gated = gated_of(model)
    assert len(gated.found) == 2
    with torch.no_grad():
        for parameter in gated.net.parameters():
            parameter.add_(0.1 * torch.arange(parameter.numel()).reshape(parameter.shape))
    gated.model = gated.written()
    assert groups(gated.model).n_units == gated.found.n_units
    for seed in range(4):
        assert error(gated, feeds(model, batch=3), seed) <= EXACT


@pytest.mark.parametrize("name", ["smooth", "normalised"])
def test_gradients_of_gates_are_finite_differences(name):
    if name == "smooth":
        model = net(
            "(float[n,4] x) => (float[n,3] y) { a = Gemm(x, w, c)  r = Tanh(a)  b = MatMul(r, u)  t = Tanh(b)"
            "  d = MatMul(t, v)  s = Add(r, d)  y = MatMul(s, h) }",
            {"w": (4, 6), "c": (6,), "u": (6, 5), "v": (5, 6), "h": (6, 3)},
        )
    else:
        model = shared_scales()
    gated = gated_of(model)
    assert len(gated.blocks) == (name == "smooth")
    gated.net.double().eval()
    x = torch.from_numpy(feeds(model, batch=4)["x"]).double()
    rng = np.random.default_rng(0)
    start = torch.from_numpy(np.where(rng.random(gated.n_gates) < 0.7, 1.0, 0.6)).requires_grad_()

    def loss(gates: torch.Tensor) -> torch.Tensor:
        return gated([x], gates).square().sum()

    loss(start).backward()
    for place in range(gated.n_gates):
        step = torch.zeros(gated.n_gates, dtype=torch.float64)
        step[place] = 1e-6
        with torch.no_grad():
            slope = (loss(start + step) - loss(start - step)) / 2e-6
        assert float(start.grad[place]) == pytest.approx(float(slope), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_the_normalisation_of_what_is_left(bias, affine):
    generator = torch.Generator().manual_seed(0)
    layer = nn.LayerNorm(6, elementwise_affine=affine, bias=bias, eps=1e-3)
    if affine:
        layer.weight.data = torch.randn(6, generator=generator)
        if bias:
            layer.bias.data = torch.randn(6, generator=generator)
    units = np.array([0, 1, 2, 4, 2, 3])  # 4 is the last: of no unit
    gates = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0])
    left = gates[torch.from_numpy(units)] > 0
    small = nn.LayerNorm(int(left.sum()), elementwise_affine=affine, bias=bias, eps=1e-3)
    if affine:
        small.weight.data = layer.weight.data[left]
        if bias:
            small.bias.data = layer.bias.data[left]
    x = torch.randn(5, 3, 6, generator=generator)  # not zero where it is closed
    made = LeftNorm(layer, units)(x, gates)
    assert torch.allclose(made[..., left], small(x[..., left]), atol=1e-6)
    assert torch.allclose(LeftNorm(layer, units)(x, torch.ones(5)), layer(x), atol=1e-6)


def test_weights_that_two_layers_share_are_masked_in_both():
    model = net(
        "(float[n,4] x) => (float[n,4] y) { a = MatMul(x, w)  r = Relu(a)  b = MatMul(r, v)  s = Add(b, x)"
        "  c = MatMul(s, w)  t = Relu(c)  d = MatMul(t, v)  u = Add(d, s)  y = MatMul(u, h) }",
        {"w": (4, 8), "v": (8, 4), "h": (4, 4)},
    )
    gated = gated_of(model)
    given = feeds(model, batch=3)
    for seed in range(3):
        assert error(gated, given, seed) <= EXACT
