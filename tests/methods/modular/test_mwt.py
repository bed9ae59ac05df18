"""MwT as published: losses against a plain reference, gates and composition against torch and ONNX Runtime."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from onnx import helper
from planted import net
from planted_answers import images, trained
from torch import nn

import graphmod as gm
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.methods.modular import mwt
from graphmod.methods.modular.mwt.gates import Gate, layers_of, with_gates
from graphmod.methods.modular.mwt.losses import cohesion, coupling
from graphmod.pruning.recovery import trainable


def reference(gates: list[torch.Tensor], labels: list[int], same: bool) -> float:
    """Return the mean over layers of the mean over pairs of the cosine, one pair after the other."""
    layers = []
    for layer in gates:
        found = []
        for i, j in combinations(range(len(labels)), 2):
            if (labels[i] == labels[j]) == same:
                a, b = layer[i].tolist(), layer[j].tolist()
                dot = sum(x * y for x, y in zip(a, b, strict=True))
                found.append(dot / (sum(x * x for x in a) ** 0.5 * sum(x * x for x in b) ** 0.5))
        layers.append(sum(found) / len(found))
    return sum(layers) / len(layers)


@pytest.mark.parametrize(("loss", "same"), [(cohesion, True), (coupling, False)])
@pytest.mark.parametrize("seed", range(5))
def test_losses_are_those_of_a_plain_reference(loss, same, seed):
    torch.manual_seed(seed)
    labels = [0, 1, 2, 0, 1, 0]
    gates = [torch.rand(6, width, dtype=torch.float64) for width in (3, 8)]
    assert float(loss(gates, torch.tensor(labels))) == pytest.approx(reference(gates, labels, same), rel=1e-9)


@pytest.mark.parametrize("loss", [cohesion, coupling])
def test_gradients_of_losses_are_those_of_finite_differences(loss):
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 0, 1, 2])
    gates = tuple(torch.rand(5, width, dtype=torch.float64, requires_grad=True) for width in (3, 4))
    assert torch.autograd.gradcheck(lambda *some: loss(some, labels), gates)


@pytest.mark.parametrize(("labels", "expected"), [([0, 1, 2], (1.0, None)), ([1, 1, 1], (None, 0.0))])
def test_a_batch_without_a_pair_of_a_kind_gives_a_number(labels, expected):
    gates = [torch.rand(3, 4, requires_grad=True)]
    found = cohesion(gates, torch.tensor(labels)), coupling(gates, torch.tensor(labels))
    assert all(torch.isfinite(one) for one in found)
    assert all(want is None or float(one) == want for one, want in zip(found, expected, strict=True))


def test_closed_gates_give_a_number_and_a_gradient():
    gates = [torch.zeros(3, 4, requires_grad=True)]
    loss = cohesion(gates, torch.tensor([0, 0, 1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(gates[0].grad).all()


def test_gates_are_behind_normalisation_of_all_convolutions_but_the_first():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3)
            self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 3)

        def forward(self, x, gate=None):
            before = self.one(x).relu()
            y = self.norm(self.two(before))
            if gate is not None:
                opened = gate.second(gate.first(before.mean((2, 3))).relu()).tanh().relu()
                y = y * opened[:, :, None, None]
            return self.head(y.relu().mean((2, 3)))

    torch_net = Net().eval()
    nn.init.normal_(torch_net.norm.running_mean)
    x = torch.randn(5, 1, 8, 8)
    from graphmod.converters.pytorch import to_onnx

    model = trainable(to_onnx(torch_net, x, input_names=["x"], output_names=["y"]), gm.Data({"x": x.numpy()}))
    layers = layers_of(model)
    assert [layer.n_kernels for layer in layers] == [6]
    gated, gates = with_gates(model, layers)
    gated.eval()
    with torch.no_grad():
        torch.testing.assert_close(gated(x), torch_net(x, gates[0]), rtol=1e-4, atol=1e-5)
        gates[0].second.weight.zero_()
        gates[0].second.bias.fill_(20.0)  # tanh is 1
        torch.testing.assert_close(gated(x), torch_net(x), rtol=1e-4, atol=1e-5)
    assert isinstance(gates[0], Gate)
    assert gates[0].opened.shape == (5, 6)


@pytest.fixture(scope="module")
def run():
    return mwt.train(trained(), images(), epochs=30, batch_size=32)


def test_training_makes_gates_alike_within_classes_and_apart_between_them(run):
    cross_entropy, within, between = zip(*run.history, strict=True)
    assert run.accuracy > 0.9
    assert cross_entropy[-1] < cross_entropy[0]
    assert within[-1] > 0.8
    assert between[-1] < between[0] - 0.3
    assert run.rate([0]) < run.rate([0, 1, 2]) <= run.rate(range(5))


def test_what_is_composed_has_zeros_for_kernels_of_no_class(run):
    small = run.compose([0, 2])
    (layer,), (kernels,) = run.layers, run.kernels
    kept = kernels[[0, 2]].any(0)
    weight = small.initializer(layer.weight)
    assert (np.abs(weight).sum((1, 2, 3)) > 0).tolist() == kept.tolist()
    assert run.rate([0, 2]) == pytest.approx(kept.mean())
    assert not kept.all(), "else nothing is looked at"
    gated, (gate,) = with_gates(run.model, run.layers)
    gated.eval()
    x = images().test.inputs["x"][:8]
    with torch.no_grad():
        gate.second.weight.zero_()
        gate.second.bias.copy_(torch.from_numpy(np.where(kept, 20.0, -20.0)))  # 1 and 0 behind tanh and ReLU
        expected = gated(torch.from_numpy(x))[:, [0, 2]]
    np.testing.assert_allclose(small.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-4)
    detector = run.compose([2]).run({"x": x})["y"]
    assert detector.shape == (8, 1)
    assert run.compose([0, 1, 2, 3, 4]).outputs == run.model.outputs


def test_every_class_has_a_kernel_in_every_layer(run):
    assert all(own.any(1).all() for own in run.kernels)


def test_the_same_seed_gives_the_same_run(run):
    again = mwt.train(trained(), images(), epochs=30, batch_size=32)
    assert again.model.digest == run.model.digest
    assert again.history == run.history


CONVOLUTIONAL = {"w": (8, 1, 3, 3), "u": (12, 8, 3, 3), "h": (5, 12, 1, 1)}


def convolutional(text: str = "", shape: str = "n,1,6,6") -> gm.Model:
    """Return a network whose last convolution makes the logits."""
    body = "a = Conv(x, w)  r = Relu(a)  d = Conv(r, u)  s = Relu(d)  e = Conv(s, h)  p = GlobalAveragePool(e)"
    return net(f"(float[{shape}] x) => (float[{shape[0]},5] y) {{ {text} {body}  y = Flatten(p) }}", CONVOLUTIONAL)


def test_a_convolution_may_make_the_logits_and_weights_be_made_by_constants():
    made = mwt.train(convolutional(), images(), epochs=1, batch_size=64)
    assert [layer.n_kernels for layer in made.layers] == [12, 5]
    assert made.compose([3, 1]).outputs["y"].shape == ("n", 2)
    proto = convolutional().editable()
    weight = next(one for one in proto.graph.initializer if one.name == "u")
    proto.graph.initializer.remove(weight)
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["u"], value=weight))
    again = mwt.train(gm.load(proto), images(), epochs=1, batch_size=64)
    x = images().test.inputs["x"][:8]
    for classes in ([3, 1], [2]):
        np.testing.assert_allclose(
            again.compose(classes).run({"x": x})["y"], made.compose(classes).run({"x": x})["y"], rtol=1e-4, atol=1e-5
        )


def test_a_fixed_number_of_samples_stays():
    made = mwt.train(convolutional(shape="4,1,6,6"), images(), epochs=1, batch_size=64)
    assert made.compose([0, 1]).inputs["x"].shape == (4, 1, 6, 6)


@pytest.mark.parametrize("classes", [[9], [-1], [], [1, 1]])
def test_classes_that_have_no_module_are_refused(run, classes):
    for ask in (run.rate, run.compose):
        with pytest.raises(RefusedError, match=r"modules? of|named twice"):
            ask(classes)


def test_refusals_tell_what_is_missing():
    plain = net("(float[n,4] x) => (float[n,3] y) { y = MatMul(x, w) }", {"w": (4, 3)})
    x = np.zeros((30, 4), np.float32)
    with pytest.raises(RefusedError, match="has no second"):
        mwt.train(plain, (x, np.arange(30) % 3))
    with pytest.raises(RefusedError, match="epochs=0 is out of range"):
        mwt.train(trained(), images(), epochs=0)
    some = images().train
    with pytest.raises(InvalidDataError, match="all training samples are of one class"):
        mwt.train(trained(), gm.Splits(*(gm.Data(some.inputs, np.zeros(len(some), int)),) * 3))
    few = gm.Splits(*(part[np.flatnonzero(part.targets < 3)] for part in (some, some, some)))
    with pytest.raises(InvalidDataError, match="the classes 0 to 2 and the model 0 to 4"):
        mwt.train(trained(), few)
    with pytest.raises(RefusedError, match="which would ruin the others"):
        mwt.train(gm.expose(trained(), ["s"]), images())
    with pytest.raises(InvalidDataError, match="without gaps"):
        mwt.train(trained(), gm.Splits(*(gm.Data(some.inputs, np.where(some.targets == 1, 2, some.targets)),) * 3))
