"""Gates by sample against gates for all samples, and against ONNX Runtime on what is composed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from planted import net

import graphmod as gm
from graphmod.methods.gates import Gated, skippable_blocks
from graphmod.methods.modular import Library, by_sample
from graphmod.methods.modular.assignment import assigned
from graphmod.methods.modular.by_sample import BySample
from graphmod.methods.modular.conditions import conditions
from graphmod.methods.modular.training import Sets, among
from graphmod.pruning import groups
from graphmod.pruning.recovery import trainable

NETWORKS = ("resnet18", "mobilenetv2", "vgg", "vit12")


def networks(name: str) -> tuple[Gated, BySample, list[torch.Tensor], dict[str, np.ndarray]]:
    network = zoo.network(name, "torchscript")
    feeds = {key: np.concatenate([value] * 3) for key, value in network.feeds.items()}
    rng = np.random.default_rng(0)
    feeds = {key: (value + 0.1 * rng.normal(size=value.shape)).astype(np.float32) for key, value in feeds.items()}
    found = groups(trainable(network.model, gm.Data(feeds)))
    gated = Gated(found, skippable_blocks(found, with_weights=True))
    inputs = [torch.from_numpy(one) for one in feeds.values()]
    return gated, BySample(gated, network.model.n_classes, inputs), inputs, feeds


@pytest.mark.parametrize("name", NETWORKS)
def test_every_sample_has_gates_of_its_own(name, monkeypatch):
    monkeypatch.setattr(by_sample, "ROWS", 1)
    gated, net, inputs, _ = networks(name)
    assert net.agreed(gated, inputs).all()
    n, n_classes = len(inputs[0]), net.n_classes
    told = np.random.default_rng(0).random((n_classes, gated.n_gates))
    modules = assigned(gated.found, told, np.zeros(gated.n_gates, bool), 0.3, len(gated.blocks) // 2)
    sets = [[0], [0, 1], list(range(n_classes))]
    gates = np.stack([modules.opened(sets[i % 3]) for i in range(n)]).astype(np.float32)
    whole = torch.from_numpy(conditions(np.ones((n, n_classes), bool)))
    with torch.no_grad():
        made = net(inputs, torch.from_numpy(gates), whole)
        for i in range(n):
            expected = gated([one[i : i + 1] for one in inputs], torch.from_numpy(gates[i]))
            torch.testing.assert_close(made[i : i + 1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_composed_is_what_was_trained(name):
    """Scales and shifts by conditions are random here: those of what is composed are the ones of its set."""
    gated, net, inputs, feeds = networks(name)
    n_classes, n = net.n_classes, len(inputs[0])
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in net.net.named_parameters():
            if key.endswith((".scales", ".shifts")):
                parameter += 0.1 * torch.randn_like(parameter)
    told = np.random.default_rng(0).random((n_classes, gated.n_gates))
    modules = assigned(gated.found, told, np.zeros(gated.n_gates, bool), 0.3, len(gated.blocks) // 2)
    gated.net.load_state_dict(net.state())
    blocks = tuple((block.entry, block.exit) for block in gated.blocks)
    library = Library(gated.written(), blocks, modules, net.tables(), {})
    assert library.tables, "all of these networks normalise"
    for classes in ([1, 0], [0], list(range(n_classes))):
        among_these = np.tile(np.isin(np.arange(n_classes), classes), (n, 1))
        gates = np.tile(modules.opened(classes), (n, 1)).astype(np.float32)
        with torch.no_grad():
            expected = net(inputs, torch.from_numpy(gates), torch.from_numpy(conditions(among_these))).numpy()
        made = next(iter(library.compose(classes).run(feeds).values()))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(made, expected[:, classes], rtol=1e-3, atol=1e-4 * scale)


FOLDED = (
    "r = Reshape(x, flat)  a = Gemm(r, w, c)  t = Relu(a)  b = Gemm(t, v, e)  u = Relu(b)"
    "  q = Reshape(u, back)  m = ReduceMean<axes=[1],keepdims=0>(q)"
)
SEQUENCE_FIRST = (
    "r = Transpose<perm=[1,0,2]>(x)  a = MatMul(r, w)  t = Relu(a)  b = MatMul(t, v)  u = Relu(b)"
    "  m = ReduceMean<axes=[0],keepdims=0>(u)"
)


def tokens(body: str) -> tuple[Gated, BySample, list[torch.Tensor]]:
    """Return a network of samples of four tokens each, which it holds in a way of its own."""
    model = net(
        f"(float[n,4,6] x) => (float[n,3] y) {{ {body}  y = Gemm(m, h) }}",
        {"flat": np.array([-1, 6]), "back": np.array([-1, 4, 16]), "w": (6, 16), "c": (16,), "v": (16, 16), "e": (16,),
         "h": (16, 3)},
    )  # fmt: skip
    gated = Gated(groups(model), [])
    inputs = [torch.randn(8, 4, 6, generator=torch.Generator().manual_seed(0))]
    return gated, BySample(gated, 3, inputs), inputs


def test_samples_of_several_rows_have_one_gate():
    gated, network, inputs = tokens(FOLDED)
    assert network.agreed(gated, inputs).all()
    gates = torch.randint(0, 2, (8, gated.n_gates), generator=torch.Generator().manual_seed(1)).float()
    gates[:, gated.fixed] = 1
    made = network(inputs, gates, torch.from_numpy(conditions(np.ones((8, 3), bool))))
    for i in range(8):
        torch.testing.assert_close(made[i : i + 1], gated([inputs[0][i : i + 1]], gates[i]), rtol=1e-4, atol=1e-5)


def test_gates_do_not_agree_where_samples_are_not_along_the_first_axis():
    gated, network, inputs = tokens(SEQUENCE_FIRST)
    first, second = gated.found
    agreed = network.agreed(gated, inputs)
    assert not agreed[first.own].any()
    assert agreed[second.own].all(), "what is averaged has samples first again"
    ones = torch.ones(8, gated.n_gates)
    made = network(inputs, ones, torch.from_numpy(conditions(np.ones((8, 3), bool))))
    torch.testing.assert_close(made, gated(inputs, ones[0]), rtol=1e-4, atol=1e-5)


def test_a_set_is_its_classes_its_size_or_all():
    found = conditions(np.array([[True, True, False, False], [False, True, True, True], [True] * 4]))
    np.testing.assert_allclose(found[0], [1 / 3, 1 / 3, 0, 0, 0, 1, 0, 1 / 3])
    np.testing.assert_allclose(found[1], [0, 1 / 9, 1 / 9, 1 / 9, 0, 0, 1, 2 / 3])
    assert found[2].tolist() == [0] * 7 + [1]


def test_losses_are_those_of_each_sample_alone():
    rng = np.random.default_rng(0)
    scores, taught = (torch.from_numpy(rng.normal(size=(6, 5)) * 3) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    classes = torch.zeros(6, 5, dtype=torch.bool)
    for i, own in enumerate([[0, 1], [1, 2, 4], [2], [1], [0, 1, 2, 3, 4], [0, 4]]):
        classes[i, own] = True
    terms = []
    for i in range(6):
        own = torch.nonzero(classes[i]).ravel()
        z, t = scores[i, own], taught[i, own]
        if len(own) == 1:
            known = 0.9 * taught[i].softmax(0)[own[0]] + 0.1 * (labels[i] == own[0])
            p = torch.sigmoid(z[0])
            terms.append(-(known * p.log() + (1 - known) * (1 - p).log()))
            continue
        p, q = (z / 2).softmax(0), (t / 2).softmax(0)
        soft = 4 * (q * (q.log() - p.log())).sum()
        hard = -z.log_softmax(0)[own == labels[i]][0]
        terms.append(0.9 * soft + 0.1 * hard)
    assert float(among(scores, taught, labels, classes, 0.9)) == pytest.approx(
        float(torch.stack(terms).mean()), rel=1e-9
    )


def test_the_loss_has_the_gradient_of_finite_differences():
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(4, 3))).requires_grad_()
    taught = torch.from_numpy(rng.normal(size=(4, 3)))
    classes = torch.tensor([[True, False, True], [False, True, False], [True, True, True], [True, True, False]])
    assert torch.autograd.gradcheck(lambda z: among(z, taught, torch.tensor([0, 0, 2, 1]), classes, 0.3), scores)


def test_sets_have_a_samples_class_and_those_of_one_only_every_second_time():
    from planted_answers import pairs

    found = groups(pairs())
    modules = assigned(found, np.random.default_rng(0).random((4, 8)), np.zeros(8, bool), 0.2, 0)
    sets = Sets(modules, np.random.default_rng(0))
    labels = np.arange(4000) % 4
    classes, gates = (one.numpy() for one in sets.draw(labels))
    sizes, own = classes.sum(1), classes[np.arange(4000), labels]
    assert set(sizes) == {1, 2, 3, 4}
    assert own[sizes > 1].all()
    assert own[sizes == 1].mean() == pytest.approx(0.5, abs=0.1)
    for i in range(0, 4000, 97):
        np.testing.assert_array_equal(gates[i], modules.opened(np.flatnonzero(classes[i])))
