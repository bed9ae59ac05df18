"""The search against a plain loop with gradients and Adam written out, and on problems whose answer is planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from planted import net
from planted_problems import layered, some_channels, some_inputs, split
from torch.nn import functional as F

import graphmod as gm
from graphmod.methods import seam
from graphmod.methods.seam.masks import masked_tensors

LAYERED = ("cw", "cb", "mw", "mb", "gw", "gb")


def zeros(model, names):
    return {name: model.initializer(name) == 0 for name in names}


def n_kept(found, run):
    """Return how many values a run or an epoch of it keeps, which is a whole number."""
    number = found.kept * run.n_masked
    assert number == pytest.approx(round(number))
    return round(number)


def n_left(run, names):
    return sum(int((~zero).sum()) for zero in zeros(run.model, names).values())


# -- planted answers


def test_weights_of_what_the_problem_needs_stay():
    model, data = some_inputs()
    run = seam.search(model, data, accuracy=0.97, epochs=60, mask_rate=0.03, head_rate=0.03)
    assert run.reached
    expected = np.zeros((8, 4))
    expected[[0, 1], [0, 1]] = 2
    np.testing.assert_array_equal(run.model.initializer("w"), expected)
    np.testing.assert_array_equal(run.model.initializer("b"), [5, 5, 0, 0])  # behind 0 the ReLU lets half through
    assert run.kept == pytest.approx(4 / 36)
    assert gm.accuracy(run.model, data.test) > 0.97


def test_channels_of_noise_go():
    model, data = some_channels()
    run = seam.search(model, data, accuracy=0.97, epochs=60, mask_rate=0.03, head_rate=0.03)
    assert run.reached
    first, last = run.model.initializer("first") != 0, run.model.initializer("last") != 0
    through = first.any((1, 2)) & last.any(1)
    assert through[:4].any()
    assert not through[4:].any()
    assert gm.accuracy(run.model, data.test) > 0.97


def test_without_a_price_and_with_a_low_rate_all_stay():
    model, data = some_inputs()
    run = seam.search(model, data, accuracy=0.5, alpha=0, epochs=4, mask_rate=1e-4)
    assert run.kept == 1
    np.testing.assert_array_equal(run.model.initializer("w"), model.initializer("w"))


# -- a loop of its own


class Adam:
    """Adam as Kingma & Ba write it, in float64."""

    def __init__(self, rate):
        self.rate, self.steps, self.first, self.second = rate, 0, {}, {}

    def step(self, values, gradients):
        self.steps += 1
        for name, gradient in gradients.items():
            g = gradient.astype(np.float64)
            self.first[name] = 0.9 * self.first.get(name, 0) + 0.1 * g
            self.second[name] = 0.999 * self.second.get(name, 0) + 0.001 * g**2
            first = self.first[name] / (1 - 0.9**self.steps)
            second = self.second[name] / (1 - 0.999**self.steps)
            values[name] = values[name] - self.rate * first / (np.sqrt(second) + 1e-8)


def forward(weights, x):
    """Return the target problem's logits of the layered network with a head, by torch's functions."""
    c = F.conv1d(x, weights["cw"], weights["cb"])
    c = (c - weights["mean"][:, None]) / torch.sqrt(weights["var"] + 1e-5)[:, None]
    c = F.relu(c * weights["scale"][:, None] + weights["shift"][:, None])
    logits = torch.tanh(c.flatten(1) @ weights["mw"] + weights["mb"]) @ weights["gw"].T + weights["gb"]
    return F.relu(logits) @ weights["head.weight"].T + weights["head.bias"]


def by_hand(model, data, *, epochs, alpha, mask_rate, head_rate, batch_size, seed):
    """Search in a loop of its own; return, by epoch, the mean loss and all that the network computes with."""
    own = {name: np.array(model.initializer(name)) for name in model.initializers}
    masks = {name: np.ones(own[name].shape) for name in LAYERED}
    n_masked = sum(mask.size for mask in masks.values())
    torch.manual_seed(seed)
    linear = torch.nn.Linear(5, 3)
    head = {f"head.{name}": value.detach().numpy().astype(np.float64) for name, value in linear.named_parameters()}
    head_alone, head_too, mask_adam = Adam(head_rate), Adam(head_rate), Adam(mask_rate)
    x, y = torch.from_numpy(data.train.inputs["x"]), torch.from_numpy(np.asarray(data.train.targets, np.int64))
    order = np.random.default_rng(seed)
    found = []
    for epoch in range(epochs):
        losses = []
        rows = order.permutation(len(x))
        for start in range(0, len(x), batch_size):
            batch = rows[start : start + batch_size]
            now = own | {name: own[name] * (mask > 0) for name, mask in masks.items()} | head
            weights = {name: torch.tensor(np.asarray(value, np.float32)) for name, value in now.items()}
            learnt = [weights[name].requires_grad_() for name in (*masks, *head)]
            entropy = F.cross_entropy(forward(weights, x[batch]), y[batch])
            slopes = dict(zip((*masks, *head), torch.autograd.grad(entropy, learnt), strict=True))
            kept = sum((mask > 0).sum() for mask in masks.values()) / n_masked
            losses.append(entropy.item() + alpha * kept)
            head_slopes = {name: slopes[name].numpy() for name in head}
            if epoch % 5 == 0:
                head_alone.step(head, head_slopes)
                continue
            head_too.step(head, head_slopes)
            # the loss depends on a mask's sign as on a factor of the weight, and the penalty is the mean of these
            mask_adam.step(masks, {name: own[name] * slopes[name].numpy() + alpha / n_masked for name in masks})
        now = own | {name: own[name] * (mask > 0) for name, mask in masks.items()} | head
        found.append((np.mean(losses), {name: torch.tensor(np.asarray(v, np.float32)) for name, v in now.items()}))
    return found


SETTINGS = {"alpha": 0.3, "mask_rate": 0.12, "head_rate": 0.05, "batch_size": 32, "seed": 3}


@pytest.fixture(scope="module")
def searched():
    model, data = layered()
    run = seam.search(model, data, accuracy=1.0, epochs=12, **SETTINGS)
    return model, data, run, by_hand(model, data, epochs=12, **SETTINGS)


def test_every_epoch_is_that_of_a_loop_of_its_own(searched):
    _, data, run, own = searched
    assert [epoch.loss for epoch in run.history] == pytest.approx([loss for loss, _ in own], rel=1e-4)
    x = torch.from_numpy(data.calibration.inputs["x"])
    for epoch, (_, weights) in zip(run.history, own, strict=True):
        assert n_kept(epoch, run) == sum(int((weights[name] != 0).sum()) for name in LAYERED)
        right = forward(weights, x).argmax(1).numpy() == data.calibration.targets
        assert epoch.accuracy == right.mean()
    assert min(epoch.kept for epoch in run.history) < 0.8  # there is something to compare
    assert run.history[-1].accuracy > 0.6


def test_the_graph_computes_what_the_loop_s_network_does(searched):
    _, data, run, own = searched
    _, weights = own[run.epoch]
    assert run.epoch > 0
    assert 0 < run.kept < 1
    for name in LAYERED:
        np.testing.assert_array_equal(run.model.initializer(name), weights[name].numpy())
    for name in ("head.weight", "head.bias"):
        np.testing.assert_allclose(run.model.initializer(name), weights[name].numpy(), rtol=1e-3, atol=1e-5)
        weights[name] = torch.tensor(run.model.initializer(name))
    x = data.test.inputs["x"]
    expected = forward(weights, torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run.model.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-5)


def test_every_fifth_epoch_masks_stay(searched):
    _, _, run, own = searched
    for epoch in (0, 5, 10):
        assert run.history[epoch].kept == (1 if epoch == 0 else run.history[epoch - 1].kept)
    assert run.history[4].kept != run.history[3].kept
    for name in LAYERED:  # the loop's, which are the same
        assert torch.equal(own[4][1][name], own[5][1][name])


def test_normalizations_and_weights_that_stay_have_their_bits(searched):
    model, _, run, _ = searched
    for name in ("scale", "shift", "mean", "var"):
        np.testing.assert_array_equal(run.model.initializer(name), model.initializer(name))
    for name in LAYERED:
        old, new = model.initializer(name), run.model.initializer(name)
        np.testing.assert_array_equal(new[new != 0], old[new != 0])
        assert not np.signbit(new[new == 0]).any()


def test_zeros_are_what_is_not_kept(searched):
    model, _, run, _ = searched
    assert run.n_masked == sum(model.initializer(name).size for name in LAYERED)
    assert not any(zero.any() for zero in zeros(model, LAYERED).values())
    assert n_kept(run, run) == n_left(run, LAYERED)
    assert run.kept == run.history[run.epoch].kept


def test_the_same_seed_gives_the_same():
    model, data = layered()
    before = model.digest, torch.random.get_rng_state()
    one, two = (seam.search(model, data, accuracy=0.9, epochs=4, seed=1) for _ in range(2))
    other = seam.search(model, data, accuracy=0.9, epochs=4, seed=2)
    assert one.model.digest == two.model.digest != other.model.digest
    assert [replace(epoch, seconds=0) for epoch in one.history] == [replace(epoch, seconds=0) for epoch in two.history]
    assert model.digest == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert all(a.seconds <= b.seconds for a, b in zip(one.history, one.history[1:], strict=False))
    assert one.seconds >= one.history[-1].seconds


def test_the_search_ends_with_its_patience():
    model, data = layered()
    settings = {"epochs": 40, "mask_rate": 0.2, "alpha": 1.0}
    reached = max(epoch.accuracy for epoch in seam.search(model, data, accuracy=1.0, **settings).history)
    run = seam.search(model, data, accuracy=reached, patience=3, **settings)
    assert run.reached
    assert len(run.history) < 40
    assert [epoch.accuracy < reached for epoch in run.history[-3:]] == [True] * 3


# -- graphs of all kinds


def demo():
    digits = gm.demo.splits()

    def target(part):
        rows = np.flatnonzero(np.isin(part.targets, (3, 5, 8)))
        return gm.Data({"image": part.inputs["image"][rows]}, np.searchsorted((3, 5, 8), part.targets[rows]))

    return gm.load(gm.demo.model_path()), gm.Splits(*map(target, (digits.train, digits.calibration, digits.test)))


def test_the_demo_network():
    model, data = demo()
    run = seam.search(model, data, accuracy=0.9, epochs=5, mask_rate=0.05)
    assert run.reached
    assert run.kept < 0.95
    assert run.n_masked == model.n_weights
    assert run.model.inputs == model.inputs
    assert run.model.outputs["logits"].shape == ("batch", 3)
    run.model.check()
    sparse = model.proto()  # the original's graph with the weights that were found, and the head in NumPy
    for tensor in sparse.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(np.array(run.model.initializer(tensor.name)), tensor.name))
    logits = gm.load(sparse).run(data.test.inputs)["logits"]
    weight, bias = run.model.initializer("head.weight"), run.model.initializer("head.bias")
    expected = np.maximum(logits, 0) @ weight.T + bias
    np.testing.assert_allclose(run.model.run(data.test.inputs)["logits"], expected, rtol=1e-4, atol=1e-4)
    assert gm.accuracy(run.model, data.calibration) == run.history[run.epoch].accuracy


@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax"])
def test_a_softmax_at_the_end_is_none_of_the_search_s(end):
    plain, data = some_inputs()
    weights = {name: plain.initializer(name) for name in ("w", "b")}
    ended = net(f"(float[n,8] x) => (float[n,4] y) {{ z = Gemm(x, w, b) y = {end}(z) }}", weights)
    own, found = (seam.search(model, data, accuracy=0.9, epochs=3) for model in (plain, ended))
    assert [operator.op_type for operator in found.model.operators] == ["Gemm", "Relu", "Gemm"]
    x = data.test.inputs
    np.testing.assert_array_equal(found.model.run(x)["y"], own.model.run(x)["y"])


def test_what_else_reads_the_probabilities_still_does():
    plain, data = some_inputs()
    weights = {name: plain.initializer(name) for name in ("w", "b")}
    text = """(float[n,8] x) => (float[n,4] y, int64[n] best) {
        z = Gemm(x, w, b)
        y = Softmax(z)
        best = ArgMax <axis = 1, keepdims = 0> (y)
    }"""
    run = seam.search(net(text, weights), data, accuracy=0.9, epochs=3)
    found = run.model.run(data.test.inputs)
    x, w, b = data.test.inputs["x"], run.model.initializer("w"), run.model.initializer("b")
    np.testing.assert_array_equal(found["best"], (x @ w + b).argmax(1))
    assert found["y"].shape == (len(x), 2)


def test_a_fixed_batch_stays_so():
    free, data = layered()
    fixed = gm.rebatch(free, 4)
    runs = [seam.search(model, data, accuracy=0.9, epochs=3, seed=5) for model in (free, fixed)]
    assert runs[1].model.outputs["y"].shape == (4, 3)
    x = data.test.inputs["x"][:4]
    np.testing.assert_allclose(runs[1].model.run({"x": x})["y"], runs[0].model.run({"x": x})["y"], rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_types_stay(dtype):
    plain, data = some_inputs()
    proto = plain.proto()
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    parts = (data.train, data.calibration, data.test)
    cast = gm.Splits(*(gm.Data({"x": part.inputs["x"].astype(dtype)}, part.targets) for part in parts))
    model = gm.load(proto)
    run = seam.search(model, cast, accuracy=0.9, epochs=4)
    old, new = model.initializer("w"), run.model.initializer("w")
    assert new.dtype == run.model.initializer("head.weight").dtype == dtype
    np.testing.assert_array_equal(new[new != 0], old[new != 0])
    assert gm.accuracy(run.model, cast.calibration) == pytest.approx(run.history[run.epoch].accuracy, abs=0.01)


def test_a_shared_weight_has_one_mask():
    rng = np.random.default_rng(0)
    w, v = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 6), (6, 4)))
    text = "(float[n,6] x) => (float[n,4] y) { a = MatMul(x, w) r = Relu(a) b = MatMul(r, w) y = MatMul(b, v) }"
    x = rng.normal(size=(300, 6)).astype(np.float32)
    model = net(text, {"w": w, "v": v})
    run = seam.search(model, split(x, (x[:, 0] > 0).astype(int)), accuracy=0.8, epochs=8, alpha=5)
    assert run.n_masked == 36 + 24
    assert n_kept(run, run) == n_left(run, ("w", "v")) < 60
    assert {"w", "v"} <= set(run.model.initializers)


MASKED = {
    "y = MatMul(x, w)": {"w"},
    "p = MatMul(x, w) y = Add(p, b)": {"w", "b"},
    "p = MatMul(x, w) y = Add(row, p)": {"w", "row"},
    "p = MatMul(x, w) y = Add(p, grid)": {"w"},  # no bias: it differs by row
    "p = MatMul(x, w) y = Mul(p, b)": {"w"},
    "p = MatMul(x, w) q = Add(p, b) r = Relu(p) y = Add(q, r)": {"w"},  # others read the product as it is
    "y = Gemm(x, w, b)": {"w", "b"},
    "t = Transpose(w) y = MatMul(x, t)": {"w", "t"},
    "y = Add(x, b)": set(),
    "p = MatMul(w, x) y = Add(p, b)": {"w", "b"},
    "k = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> () y = Gemm(x, w, k)": {"w", "k"},
}


@pytest.mark.parametrize("text", MASKED)
def test_what_is_masked(text):
    weights = {"w": (4, 4), "b": (4,), "row": (1, 4), "grid": (4, 4)}
    shape = "4,4"
    assert masked_tensors(net(f"(float[{shape}] x) => (float[{shape}] y) {{ {text} }}", weights)) == MASKED[text]


def test_what_is_masked_in_convolutions():
    weights = {"w": (4, 4, 3), "b": (4,), "t": (4, 4, 3)}
    model = net("(float[n,4,9] x) => (float[n,4,9] y) { c = Conv(x, w, b) y = ConvTranspose(c, t, b) }", weights)
    assert masked_tensors(model) == {"w", "b"}
    assert masked_tensors(net("(float[n,4,9] x) => (float[n,4,m] y) { y = ConvTranspose(x, t) }", weights)) == set()


def test_a_weight_made_by_operators_becomes_zero_where_it_lies():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(4, 8)).astype(np.float32)
    text = "(float[n,8] x) => (float[n,4] y) { t = Transpose(w) y = MatMul(x, t) }"
    x = rng.normal(size=(300, 8)).astype(np.float32)
    run = seam.search(net(text, {"w": w}), split(x, (x[:, 0] > 0).astype(int)), accuracy=0.5, epochs=8)
    assert run.n_masked == 32
    assert n_kept(run, run) == n_left(run, ("w",)) < 32


# -- fine-tuning


def test_fine_tuning_keeps_zeros():
    model, data = layered()
    run = seam.search(model, data, accuracy=0.5, alpha=0.3, epochs=9)
    assert 0.1 < run.kept < 0.9
    tuned = seam.finetune(run, data, epochs=10, learning_rate=0.01, batch_statistics=False)
    for name, zero in zeros(run.model, LAYERED).items():
        assert (tuned.initializer(name)[zero] == 0).all()
        assert (tuned.initializer(name)[~zero] != run.model.initializer(name)[~zero]).any()
    assert gm.accuracy(tuned, data.calibration) > gm.accuracy(run.model, data.calibration)
    grown = seam.finetune(run.model, data, keep_zeros=False, epochs=10, batch_statistics=False)
    assert any((grown.initializer(name)[zero] != 0).any() for name, zero in zeros(run.model, LAYERED).items())


# -- refusals


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"accuracy": 97}, "accuracy=97 is out of range"),
        ({"accuracy": float("nan")}, "accuracy=nan"),
        ({"alpha": -1}, "alpha=-1"),
        ({"mask_rate": 0}, "mask_rate=0"),
        ({"head_rate": float("inf")}, "head_rate=inf"),
        ({"epochs": 0}, "epochs=0 is out of range"),
        ({"batch_size": 0}, "batch_size=0 is out of range"),
        ({"patience": 0}, "patience=0 is out of range"),
        ({"seed": -1}, "seed=-1 is out of range"),
    ],
)
def test_arguments_out_of_range(arguments, told):
    model, data = some_inputs()
    with pytest.raises(gm.RefusedError, match=told):
        seam.search(model, data, **{"accuracy": 0.9} | arguments)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.zeros(30, int), "all training samples are of one class"),
        (np.arange(30) % 2 * 2, "up to 2 and none that is 1"),
        (np.arange(30) % 3 + 1, "none that is 0"),
        (np.arange(30) % 3 - 1, "label -1 of the train part is out of range"),
        (np.arange(30) % 3 / 1, r"float64\[18\]; class labels are integers"),
    ],
)
def test_labels_that_are_none_of_a_target_problem_s(labels, told):
    model, _ = some_inputs()
    with pytest.raises(gm.InvalidDataError, match=told):
        seam.search(model, {"x": np.zeros((30, 8), np.float32), "y": labels}, accuracy=0.9)


def test_a_class_that_is_not_learnt():
    model, data = some_inputs()
    other = gm.Data(data.calibration.inputs, data.calibration.targets + 1)
    with pytest.raises(gm.InvalidDataError, match="label 2 of the calibration part is out of range"):
        seam.search(model, gm.Splits(data.train, other, data.test), accuracy=0.9)


def test_there_must_be_something_to_mask():
    model = net("(float[n,8] x) => (float[n,8] y) { y = Relu(x) }", {})
    with pytest.raises(gm.RefusedError, match="nothing to mask"):
        seam.search(model, some_inputs()[1], accuracy=0.9)


def test_the_output_must_be_a_classifier_s():
    model = net("(float[n,8] x) => (float[n,2,2] y) { z = Gemm(x, w) y = Reshape(z, s) }", {
        "w": (8, 4), "s": np.array([-1, 2, 2]),
    })  # fmt: skip
    with pytest.raises(gm.RefusedError, match=r"'y' has shape \[1, 2, 2\] for one sample"):
        seam.search(model, some_inputs()[1], accuracy=0.9)


def test_names_of_the_head_that_are_taken():
    rng = np.random.default_rng(0)
    weights = {"head.weight": rng.normal(size=(8, 4)).astype(np.float32), "head.bias": np.ones(4, np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "head.weight", "head.bias"], ["y"], name="head.linear")]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = gm.load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    run = seam.search(model, some_inputs()[1], accuracy=0.5, epochs=1)
    assert len(run.model.initializers) == 4
    assert len(set(run.model.operator_names)) == 3
