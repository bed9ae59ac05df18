"""Taylor and Fisher against torch's own autograd on the network that was exported."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
import zoo
from handmade import model
from onnx.helper import make_node
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import graphmod as gm
from graphmod.data import Data
from graphmod.data.noise import noise
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.pruning import groups
from graphmod.pruning.importance import Evidence
from graphmod.pruning.importance.gradients import BATCH, gradients
from graphmod.pruning.importance.scores import scores

torch.set_num_threads(1)


def exported(module, x):
    """Return a module as a model whose weights have the module's names."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (x,), file, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}}, training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )  # fmt: skip
    return gm.load(file.getvalue())


def samples(n, *shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, *shape)).astype(np.float32), rng.integers(0, 10, n)


def expected(found, module, x, loss, linear):
    """Return mean over batches of what autograd gives for the weights that are members, by their names."""
    total, batches = np.zeros(found.n_units), list(Data({"x": x}).batches(BATCH))
    start = 0
    for batch in batches:
        rows = slice(start, start := start + len(batch))
        module.zero_grad()
        loss(module(torch.from_numpy(x[rows])), rows).backward()
        values = np.zeros(found.n_units)
        for group in found:
            for member in group.weights:
                parameter = dict(module.named_parameters()).get(member.tensor)
                if parameter is None:
                    continue
                product = np.moveaxis((parameter * parameter.grad).detach().double().numpy(), member.axis, 0)
                for unit, own in zip(member.units, product, strict=True):
                    if unit >= 0:
                        values[group.first + unit] += own.sum() if linear else (own**2).sum()
        total += np.abs(values)
    return total / len(batches)


@pytest.mark.parametrize("name", ["resnet18", "branching", "vgg"])
def test_gradients_are_those_of_autograd(name):
    module, (example,) = zoo.build(name)
    network, found = exported(module, example), None
    found = groups(network)
    x, y = samples(2 * BATCH + 3, *example.shape[1:])

    def loss(outputs, rows):
        return cross_entropy(outputs, torch.from_numpy(y[rows]))

    with torch.enable_grad():
        for how, linear in (("taylor", True), ("fisher", False)):
            values = scores(found, how, Evidence(found, Data({"x": x}, y)))
            wanted = expected(found, module, x, loss, linear)
            np.testing.assert_allclose(values, wanted, rtol=1e-3, atol=1e-4 * wanted.max())
            assert np.corrcoef(values, wanted)[0, 1] > 0.9999
    module.zero_grad()


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def test_float_targets_count_by_their_squared_error():
    module = perceptron()
    found = groups(exported(module, torch.zeros(2, 4)))
    x, _ = samples(5, 4)
    y = samples(5, 3, seed=1)[0]
    wanted = expected(found, module, x, lambda outputs, rows: mse_loss(outputs, torch.from_numpy(y[rows])), True)
    np.testing.assert_allclose(scores(found, "taylor", Evidence(found, Data({"x": x}, y))), wanted, rtol=1e-4)


def test_a_softmax_at_the_end_changes_nothing():
    module = perceptron()
    x, _ = samples(5, 4)
    y = np.array([0, 1, 2, 0, 1])
    plain, soft = (groups(exported(m, torch.zeros(2, 4))) for m in (module, nn.Sequential(*module, nn.Softmax(1))))
    values = [scores(found, "taylor", Evidence(found, Data({"x": x}, y))) for found in (plain, soft)]
    np.testing.assert_allclose(*values, rtol=1e-4)


def test_without_labels_squares_estimate_the_fisher_information():
    """One sample, and the expectation over its labels in closed form: sum of p(y) (weight * gradient) ** 2."""
    module = perceptron()
    found = groups(exported(module, torch.zeros(2, 4)))
    x, _ = samples(1, 4)
    p = torch.softmax(module(torch.from_numpy(x)), 1)[0].detach().numpy()
    wanted = sum(
        p[label]
        * expected(found, module, x, lambda out, _, label=label: cross_entropy(out, torch.tensor([label])), False)
        for label in range(3)
    )
    drawn = [scores(found, "fisher", Evidence(found, Data({"x": x}), seed=seed)) for seed in range(300)]
    np.testing.assert_allclose(np.mean(drawn, 0), wanted, rtol=0.2)


def test_same_seed_same_scores_without_labels():
    found = groups(zoo.network("branching", "torchscript").model)
    data = noise(found.model, 20)
    first, again, other = (gradients(Evidence(found, data, seed=seed)).first for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_gradients_of_quantised_weights():
    network = zoo.network("branching", "torchscript").model
    data = noise(network, 12)
    labelled = Data(data.inputs, np.arange(12) % 10)
    small = gm.quantize(network, data)
    before, after = (scores(f, "taylor", Evidence(f, labelled)) for f in map(groups, (network, small)))
    assert np.corrcoef(before, after)[0, 1] > 0.98


def test_a_recurrent_layer_whose_gates_torch_orders_otherwise():
    """The units' sums do not depend on where torch puts the gates: finite differences tell."""
    torch.manual_seed(0)
    lstm, head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = lstm, head

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    network = exported(Last(), torch.zeros(2, 5, 3))
    found = groups(network)
    x, y = samples(4, 5, 3)
    y = y % 3
    values = scores(found, "taylor", Evidence(found, Data({"x": x}, y)))

    def loss_with(factor, group, unit):
        proto = network.proto()
        for tensor in proto.graph.initializer:
            value = gm.model.load(proto).initializer(tensor.name).copy()
            for member in group.members:
                if member.tensor == tensor.name:
                    index = [slice(None)] * value.ndim
                    index[member.axis] = member.units == unit
                    value[tuple(index)] *= factor
            tensor.raw_data = value.tobytes()
        outputs = torch.from_numpy(gm.load(proto).run({"x": x})["y"]).double()
        return float(cross_entropy(outputs, torch.from_numpy(y)))

    for group in found:
        for unit in range(group.n_units):
            slope = (loss_with(1.01, group, unit) - loss_with(0.99, group, unit)) / 0.02
            assert abs(slope) == pytest.approx(values[group.first + unit], rel=0.05, abs=2e-4), (group, unit)


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (np.zeros((5, 2), np.float32), r"targets of shape \[5, 2\] do not fit output"),
        (np.full(5, 7), "label 7 is out of"),
    ],
)
def test_targets_that_do_not_fit(targets, told):
    found = groups(exported(perceptron(), torch.zeros(2, 4)))
    with pytest.raises(InvalidDataError, match=told):
        scores(found, "taylor", Evidence(found, Data({"x": samples(5, 4)[0]}, targets)))


def test_a_network_without_a_gradient_is_refused():
    w = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    operators = [
        make_node("MatMul", ["x", "w"], ["a"], "first"),
        make_node("Sign", ["a"], ["b"], "sign"),
        make_node("MatMul", ["b", "v"], ["c"], "second"),
        make_node("ArgMax", ["c"], ["d"], "choice", axis=1),
        make_node("Cast", ["d"], ["y"], "cast", to=1),
    ]
    found = groups(model(operators, {"x": ["n", 4]}, {"y": ["n", 1]}, {"w": w, "v": w}))
    with pytest.raises(RefusedError, match="no output of the network depends on its weights"):
        scores(found, "taylor", Evidence(found, Data({"x": samples(5, 4)[0]})))


def test_an_output_without_axes():
    operators = [
        make_node("Gemm", ["x", "w"], ["g"], name="make"),
        make_node("Relu", ["g"], ["r"], name="act"),
        make_node("MatMul", ["r", "v"], ["m"], name="read"),
        make_node("ReduceMean", ["m"], ["y"], name="mean", keepdims=0),
    ]
    rng = np.random.default_rng(0)
    drawn = {"w": rng.normal(size=(3, 6)).astype(np.float32), "v": rng.normal(size=(6, 2)).astype(np.float32)}
    found = groups(model(operators, {"x": ["n", 3]}, {"y": []}, drawn))
    assert (scores(found, "taylor", Evidence(found, Data({"x": samples(8, 3)[0]}))) > 0).any()
