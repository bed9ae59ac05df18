"""Localized retraining, against the whole network trained in torch with the rest frozen."""

import copy
import io
from itertools import count

import ml_dtypes
import numpy as np
import pytest
import torch
import zoo
from handmade import fan, model
from onnx import TensorProto, helper, numpy_helper
from planted import net
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

import graphmod as gm
from graphmod.graph import primary_input
from graphmod.rewrite import find_region
from graphmod.train import Cache, Prefix, retrain, trained_weights

torch.set_num_threads(1)


def splits(network, n, seed=0, classes=10, shape=(3, 64, 64)):
    """Return random images and labels, as many for calibration as for training."""
    rng = np.random.default_rng(seed)
    (name,) = network.inputs
    parts = [
        gm.Data({name: rng.normal(size=(n, *shape)).astype(np.float32)}, rng.integers(0, classes, n)) for _ in range(3)
    ]
    return gm.Splits(*parts)


def rising():
    """Return a metric by which every epoch is better than the one before: the last one is kept."""
    numbers = count()
    return lambda outputs, targets: next(numbers)  # noqa: ARG005  # the signature is that of a metric


def changed(before, after):
    """Return the names of initializers whose bytes differ; everything else must be the same."""
    old, new = before.proto(), after.proto()
    differ = set()
    for one, other in zip(old.graph.initializer, new.graph.initializer, strict=True):
        assert (one.name, one.dims, one.data_type) == (other.name, other.dims, other.data_type)
        if one.SerializeToString() != other.SerializeToString():
            differ.add(one.name)
    del old.graph.initializer[:], new.graph.initializer[:]
    assert old.SerializeToString(deterministic=True) == new.SerializeToString(deterministic=True)
    return differ


@pytest.fixture(scope="module")
def resnet():
    return zoo.network("resnet18").model


def folded():
    """Return the zoo's network in torch with BatchNorm folded into the convolutions, as the exporter does it."""
    net = copy.deepcopy(zoo.network("resnet18").module).eval()
    for module in net.modules():
        names = dict(module.named_children())
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("0", "1")):
            if isinstance(names.get(norm), nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(names[conv], names[norm]))
                setattr(module, norm, nn.Identity())
    return net


def exported_name(name):
    """Return the graph's name for a parameter: biases that folding made are named after their weights."""
    return name if name.startswith("fc") else name.replace("bias", "weight_bias")


def trained_in_torch(paths, data, *, epochs, lr, batch_size, seed, teacher=None, distill=0.0, temperature=2.0):
    """Train some parts of the zoo's network as a whole in torch, everything else frozen."""
    net = folded()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    trained = [p for path in paths for p in net.get_submodule(path).parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(trained, lr=lr)
    x, y = (torch.from_numpy(v) for v in (next(iter(data.inputs.values())), data.targets))
    steps = epochs * -(-len(x) // batch_size)
    rng, done = np.random.default_rng(seed), 0
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), batch_size):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 + np.cos(np.pi * done / steps)) / 2
            rows = order[start : start + batch_size]
            logits = net(x[rows])
            loss = (1 - distill) * functional.cross_entropy(logits, y[rows])
            if distill:
                p, q = ((v / temperature).log_softmax(1) for v in (teacher(x[rows]), logits))
                loss = loss + distill * temperature**2 * (p.exp() * (p - q)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
    return {exported_name(name): value for name, value in net.state_dict().items()}


@pytest.mark.parametrize("parts", [["layer4.1"], ["layer3.0", "layer4.1"], ["conv1"], ["fc"]], ids="+".join)
def test_the_same_as_the_whole_network_with_the_rest_frozen(resnet, parts):
    data = splits(resnet, 20)
    options = {"epochs": 2, "batch_size": 8, "seed": 3}
    blocks = ["bn1" if part == "conv1" else part for part in parts]
    after = retrain(resnet, data, blocks, learning_rate=1e-3, metric=rising(), **options)
    expected = trained_in_torch(parts, data.train, lr=1e-3, **options)
    names = changed(resnet, after)
    assert names == {name for name in expected if name.startswith(tuple(f"{part}." for part in parts))}
    for name in names:
        start, value = resnet.initializer(name), after.initializer(name)
        assert np.abs(value - start).max() > 1e-3
        np.testing.assert_allclose(value, expected[name], atol=2e-4, err_msg=name)
        assert np.abs(value - expected[name].numpy()).mean() < 1e-5


def test_distilling_is_the_same_too(resnet):
    data = splits(resnet, 20)
    teacher = gm.remove(resnet, "layer2.1")
    net = copy.deepcopy(zoo.network("resnet18").module).eval()
    net.layer2[1] = nn.Identity()
    options = {"epochs": 1, "batch_size": 8, "seed": 1, "distill": 0.7, "temperature": 3.0}
    after = retrain(resnet, data, ["layer4.1"], learning_rate=1e-3, metric=rising(), teacher=teacher, **options)
    expected = trained_in_torch(["layer4.1"], data.train, lr=1e-3, teacher=net, **options)
    for name in changed(resnet, after):
        np.testing.assert_allclose(after.initializer(name), expected[name], atol=2e-4, err_msg=name)
    alone = retrain(resnet, data, ["layer4.1"], metric=rising(), **options)  # no teacher: distill has no meaning
    plain = retrain(resnet, data, ["layer4.1"], metric=rising(), **{**options, "distill": 0.0})
    assert alone.digest == plain.digest != after.digest


@pytest.mark.parametrize(
    ("place", "cut"),
    [
        ("layer3.1", "entry"),
        ("layer4", "entry"),
        ("layer3.1.bn2", "residual block"),
        ("bn1", "input"),
        ("fc", "entry"),
    ],
)
def test_the_cache_holds_the_activations_at_the_cut(resnet, tmp_path, place, cut):
    data = splits(resnet, 10).train
    region = find_region(resnet, place)
    prefix = Prefix(resnet, [region], resnet.main_output)
    source = primary_input(resnet)
    block = gm.blocks(resnet)["layer3.1"]
    assert prefix.cut == {"entry": region.entry, "input": source, "residual block": block.entry}[cut]
    cached = prefix.cached(data, Cache(tmp_path))
    assert list(cached.inputs) == list(prefix.suffix.inputs) == [prefix.cut]
    assert cached.targets is data.targets
    direct = data.inputs[source] if cut == "input" else resnet.run(data.inputs, [prefix.cut])[prefix.cut]
    np.testing.assert_allclose(cached.inputs[prefix.cut], direct, atol=1e-5)
    found = next(iter(prefix.suffix.run({prefix.cut: direct}).values()))
    np.testing.assert_allclose(found, next(iter(resnet.run(data.inputs).values())), atol=1e-4)


def test_inside_a_branch_only_the_branch_learns(resnet):
    after = retrain(resnet, splits(resnet, 12), ["layer3.1.bn2"], epochs=1, metric=rising())
    assert changed(resnet, after) == {"layer3.1.conv2.weight", "layer3.1.conv2.weight_bias"}


@pytest.fixture(scope="module")
def digits():
    network = gm.load(gm.demo.model_path())
    parts = gm.demo.splits()
    return gm.replace(network, ("relu_6", "relu_12"), parts.train, "linear"), parts


def test_it_gets_better_and_never_worse(digits):
    start, parts = digits
    before = gm.accuracy(start, parts.calibration)
    after = retrain(start, parts, [("relu_6", "relu_12")], epochs=4)
    assert gm.accuracy(after, parts.calibration) > before
    assert changed(start, after) == {"relu_12/linear.weight", "relu_12/linear.bias"}
    ruined = retrain(start, parts, ["layer3.6"], epochs=1, learning_rate=30.0)
    assert gm.accuracy(ruined, parts.calibration) >= before
    assert retrain(start, parts, ["layer3.6"], epochs=0) is start


def test_the_best_epoch_is_kept(resnet):
    data, options = splits(resnet, 12), {"batch_size": 6, "seed": 2}
    scores = iter([0.0, 1.0, 3.0, 2.0, 2.5])  # before, then after each of four epochs
    seen = []

    def metric(outputs, targets):
        seen.append(outputs)
        assert targets.tolist() == data.calibration.targets.tolist()
        return next(scores)

    after = retrain(resnet, data, ["fc"], epochs=4, metric=metric, **options)
    found = next(iter(after.run(data.calibration.inputs).values()))
    np.testing.assert_allclose(found, seen[2], atol=1e-4)
    assert np.abs(found - seen[4]).max() > 1e-3


@pytest.mark.parametrize("patience", [1, 3])
def test_early_stop(resnet, patience):
    calls = []

    def metric(outputs, targets):  # noqa: ARG001  # the signature is that of a metric or a timer
        calls.append(0)
        return -len(calls) if len(calls) != 3 else 1.0  # the second epoch is the best one

    retrain(resnet, splits(resnet, 8), ["fc"], epochs=12, patience=patience, metric=metric)
    assert len(calls) == (1 + patience if patience == 1 else 3 + patience)


def test_the_seed_decides_everything(resnet):
    data = splits(resnet, 16)
    state = torch.random.get_rng_state()
    one, same, other = (
        retrain(resnet, data, ["layer4.1"], epochs=1, batch_size=8, metric=rising(), seed=s) for s in (0, 0, 1)
    )
    assert one.proto().SerializeToString() == same.proto().SerializeToString()
    assert one.digest != other.digest
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_test_part_is_not_used(resnet):
    data = splits(resnet, 12)
    wrong = gm.Splits(data.train, data.calibration, splits(resnet, 12, seed=9).test)
    one, other = (retrain(resnet, d, ["fc"], epochs=2) for d in (data, wrong))
    assert one.digest == other.digest


def test_a_loss_and_a_metric_of_ones_own(resnet):
    (name,) = resnet.inputs
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 3, 64, 64)).astype(np.float32)
    parts = [gm.Data({name: x[i : i + 8]}, rng.normal(size=(8, 10)).astype(np.float32)) for i in (0, 8, 16)]
    data = gm.Splits(parts[0], parts[0], parts[2])

    def error(network):
        return np.abs(next(iter(network.run(parts[0].inputs).values())) - parts[0].targets).mean()

    after = retrain(
        resnet, data, ["fc"], epochs=5, loss=functional.l1_loss, metric=lambda o, t: -float(np.abs(o - t).mean())
    )
    assert error(after) < error(resnet)


def test_a_transformer_with_a_mask():
    network = zoo.network("bert").model
    ids, mask = network.inputs
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 8, 48)
    inputs = {ids: rng.integers(1, 50, (48, 7)), mask: (np.arange(7) < lengths[:, None]).astype(np.int64)}
    data = gm.Data(inputs, rng.integers(0, 10, 48))
    parts = gm.Splits(data[:24], data[24:36], data[36:])
    layer = next(
        b for b in gm.blocks(network).walk() if b.path.endswith("layer.1") or b.path.endswith("encoder.layer.1")
    )
    prefix = Prefix(network, [find_region(network, layer)], network.main_output)
    assert mask in prefix.suffix.inputs
    assert ids not in prefix.suffix.inputs or prefix.cut != ids
    after = retrain(network, parts, [layer], epochs=1, batch_size=8, metric=rising())
    names = changed(network, after)
    assert names
    assert names <= {n for n in network.initializers if network.tensors[n].is_float}
    assert not any(".layer.0." in name or "embeddings" in name or "classifier" in name for name in names)
    inverted = gm.Splits(
        *(
            gm.Data({**p.inputs, mask: np.ones_like(p.inputs[mask])}, p.targets)
            for p in (data[:24], data[24:36], data[36:])
        )
    )
    assert retrain(network, inverted, [layer], epochs=1, batch_size=8, metric=rising()).digest != after.digest


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch(batch):
    rng = np.random.default_rng(0)
    network, free = (fan([8, 8, 3], np.random.default_rng(1), batch=b) for b in (batch, "n"))
    x, y = rng.normal(size=(60, 7)).astype(np.float32), rng.integers(0, 3, 60)
    parts = gm.Splits(*(gm.Data({"x": x[i : i + 20]}, y[i : i + 20]) for i in (0, 20, 40)))
    one, other = (retrain(m, parts, [("t0", "t1")], epochs=2, batch_size=8, metric=rising()) for m in (network, free))
    assert changed(network, one) == {"w1"}
    np.testing.assert_allclose(one.initializer("w1"), other.initializer("w1"), atol=1e-4)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64])
def test_labels_of_any_integer_type(resnet, dtype):
    data = splits(resnet, 8)
    cast = gm.Splits(*(gm.Data(p.inputs, p.targets.astype(dtype)) for p in (data.train, data.calibration, data.test)))
    assert retrain(resnet, cast, ["fc"], epochs=1).digest == retrain(resnet, data, ["fc"], epochs=1).digest


def test_a_weight_shared_with_a_frozen_block_counts_as_the_blocks():
    names = {"w": np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)}
    operators = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    network = model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, names)
    assert trained_weights(network, [find_region(network, ("b", "y"))]) == {"w"}
    assert changed(
        network, retrain(network, splits(network, 8, classes=4, shape=(4,)), [("b", "y")], epochs=1, metric=rising())
    ) == {"w"}


def test_refusals(resnet):
    data = splits(resnet, 8)
    relu = next(b.path for b in gm.blocks(resnet).walk() if b.path.endswith("relu"))
    for blocks, options, match in [
        ([relu], {}, "no weights to train"),
        ([], {}, "no weights to train"),
        (["layer9"], {}, "'layer9'"),
        ([("nothing", "output")], {}, "output"),
        (["fc"], {"distill": 1.5}, "distill=1.5"),
        (["fc"], {"distill": -0.1}, "distill=-0.1"),
        (["fc"], {"distill": float("nan")}, "distill=nan"),
    ]:
        with pytest.raises(gm.RefusedError, match=match):
            retrain(resnet, data, blocks, **options)
    wrong = gm.Splits(gm.Data(data.train.inputs, data.train.targets + 10), data.calibration, data.test)
    with pytest.raises(gm.InvalidDataError, match="out of range"):
        retrain(resnet, wrong, ["fc"])


def test_a_cut_whose_first_axis_is_not_the_batch():
    rng = np.random.default_rng(0)
    operators = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Reshape", ["a", "rows"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("Reshape", ["c", "back"], ["y"]),
    ]
    weights = {"w": rng.normal(size=(4, 4)).astype(np.float32), "rows": np.array([-1, 4]), "back": np.array([-1, 12])}
    network = model(operators, {"x": ["n", 3, 4]}, {"y": ["n", 12]}, weights)
    data = splits(network, 8, shape=(3, 4))
    with pytest.raises(gm.RefusedError, match="'b' is not the batch"):
        retrain(network, data, [("b", "c")], epochs=1)
    assert changed(network, retrain(network, data, [("a", "y")], epochs=1, metric=rising())) == {"w"}


def test_blocks_that_have_no_part_in_the_first_output():
    network = zoo.network("two_outputs").model
    decoder = [name for name in network.initializers if "decoder" in name]
    assert decoder
    last = list(network.outputs)[1]
    entry = next(op.input[0] for op in network.operators if last in op.output)
    with pytest.raises(gm.RefusedError, match="no weight of"):
        retrain(network, splits(network, 8, shape=(3, 16, 16)), [(entry, last)], epochs=1)


def test_running_statistics_stay_and_dropout_is_on():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)).eval()
    for value in (*net[1].parameters(), *net[1].buffers()):
        value.data = torch.rand(value.shape) + 0.5 if value.ndim else value
    file = io.BytesIO()
    torch.onnx.export(
        net, (torch.randn(2, 6),), file, dynamo=False, training=torch.onnx.TrainingMode.PRESERVE, opset_version=17,
        do_constant_folding=False, input_names=["x"], dynamic_axes={"x": {0: "n"}},
    )  # fmt: skip
    network = gm.load(file.getvalue())
    after = retrain(
        network,
        splits(network, 16, classes=4, shape=(6,)),
        [("x", next(iter(network.outputs)))],
        epochs=2,
        metric=rising(),
    )
    names = changed(network, after)
    assert not any("running" in name for name in names)
    assert {"0.weight", "1.weight", "4.weight"} <= names


def softmax_classifier(rng):
    weights = {"w": rng.normal(size=(5, 3)).astype(np.float32)}
    operators = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["p"], axis=1)]
    return model(operators, {"x": ["n", 5]}, {"p": ["n", 3]}, weights)


def test_a_softmax_at_the_end_is_trained_through_its_logits():
    rng = np.random.default_rng(0)
    network = softmax_classifier(rng)
    x = rng.normal(size=(300, 5)).astype(np.float32)
    data = gm.data.as_splits(network, (x, (x @ rng.normal(size=(5, 3))).argmax(1)))
    trained = gm.retrain(network, data, [("x", "z")], epochs=30, learning_rate=0.05)

    weight = torch.tensor(network.initializer("w").copy(), requires_grad=True)
    images, labels = torch.from_numpy(data.train.inputs["x"]), torch.from_numpy(data.train.targets)
    optimizer = torch.optim.Adam([weight], lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        functional.cross_entropy(images @ weight, labels).backward()
        optimizer.step()
    reference = float(functional.cross_entropy(images @ weight.detach(), labels))
    ours = float(functional.cross_entropy(images @ torch.from_numpy(trained.initializer("w").copy()), labels))
    assert ours < 1.5 * reference


def test_a_loss_alone_ranks_the_epochs():
    rng = np.random.default_rng(0)
    network = fan([6, 3], rng)
    x = rng.normal(size=(100, 7)).astype(np.float32)
    y = rng.normal(size=(100, 3)).astype(np.float32) / 2
    data = gm.data.as_splits(network, (x, y))
    trained = gm.retrain(network, data, [("t0", "t1")], loss=functional.mse_loss, epochs=5, learning_rate=0.01)

    def error(one):
        return float(((one.run(data.calibration.inputs)["t1"] - data.calibration.targets) ** 2).mean())

    assert error(trained) < error(network)


def test_one_place_need_not_be_a_sequence(resnet):
    data = splits(resnet, 8)
    assert retrain(resnet, data, "layer4.1", epochs=1).digest == retrain(resnet, data, ["layer4.1"], epochs=1).digest


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"batch_size": 0}, {"seed": -1}])
def test_arguments_out_of_range(resnet, wrong):
    with pytest.raises(gm.RefusedError, match="at least"):
        retrain(resnet, splits(resnet, 8), ["fc"], **wrong)


@pytest.mark.parametrize("rate", [0, -1e-3, float("nan"), float("inf")])
def test_a_learning_rate_out_of_range(resnet, rate):
    with pytest.raises(gm.RefusedError, match=r"learning_rate=.* is out of range"):
        retrain(resnet, splits(resnet, 8), ["fc"], learning_rate=rate)


def test_a_teacher_that_is_always_wrong_is_set_right_by_labels():
    rng = np.random.default_rng(0)
    start, weights = rng.normal(size=(2, 4, 2)).astype(np.float32)

    def linear(values):
        return model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 2]}, {"w": values})

    parts = [gm.Data({"x": x}, (x @ weights).argmin(1)) for x in rng.normal(size=(3, 32, 4)).astype(np.float32)]
    options = {"epochs": 3, "metric": rising()}
    right = retrain(linear(start), gm.Splits(*parts), teacher=linear(weights[:, ::-1].copy()), **options)
    found = retrain(linear(start), gm.Splits(*parts), teacher=linear(weights), correct_teacher=True, **options)
    wrong = retrain(linear(start), gm.Splits(*parts), teacher=linear(weights), **options)
    np.testing.assert_allclose(found.initializer("w"), right.initializer("w"), atol=1e-6)
    assert np.abs(wrong.initializer("w") - right.initializer("w")).max() > 1e-3


@pytest.mark.parametrize("loss", [None, functional.cross_entropy])
def test_only_a_teacher_is_set_right_and_only_by_labels(resnet, loss):
    teacher = None if loss is None else resnet
    with pytest.raises(gm.RefusedError, match="needs a teacher, and targets that are labels"):
        retrain(resnet, splits(resnet, 8), ["fc"], teacher=teacher, loss=loss, correct_teacher=True)


@pytest.mark.parametrize("own", [{}, {"loss": functional.cross_entropy}])
@pytest.mark.parametrize("classes", [1, 5])
def test_a_teacher_of_other_classes_is_refused(own, classes):
    def linear(n):
        weights = {"w": np.ones((4, n), np.float32)}
        return model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 4]}, {"y": ["n", n]}, weights)

    network = linear(3)
    data = splits(network, 8, classes=3, shape=(4,))
    with pytest.raises(gm.RefusedError, match=rf"the teacher's outputs have shape \[{classes}\] .* model's \[3\]"):
        retrain(network, data, teacher=linear(classes), epochs=1, **own)


def trained_whole(module, data, *, epochs, lr, batch_size, seed):
    """Fine-tune a whole network as PyTorch does it, batch statistics included; the last, short batch is left out."""
    net = copy.deepcopy(module).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    x, y = (torch.from_numpy(v) for v in (next(iter(data.inputs.values())), data.targets))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(x) // batch_size))
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - len(x) % batch_size, batch_size):
            rows = order[start : start + batch_size]
            optimizer.zero_grad()
            functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


@pytest.fixture(scope="module")
def unfused():
    """Return a network whose batch normalisations are operators of their own, in torch and as a model."""
    torch.manual_seed(0)
    # without biases: normalisation cancels them, so that their gradients are rounding errors, which Adam makes steps of
    first, second = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 8, 3, bias=False)
    layers = [first, nn.BatchNorm2d(6), nn.ReLU(), second, nn.BatchNorm2d(8), nn.ReLU()]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    with torch.no_grad():
        for norm in (module[1], module[4]):  # exporters merge equal constants
            for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                value.copy_(0.5 + torch.rand(value.shape))
    file = io.BytesIO()
    torch.onnx.export(
        module.eval(), (torch.zeros(2, 3, 8, 8),), file, dynamo=False, opset_version=17, input_names=["input"],
        dynamic_axes={"input": {0: "n"}}, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
    )  # fmt: skip
    return module, gm.load(file.getvalue())


def test_a_whole_network_learns_as_in_pytorch(unfused):
    module, network = unfused
    data, options = splits(network, 27, shape=(3, 8, 8)), {"epochs": 3, "batch_size": 8, "seed": 4}
    after = retrain(network, data, learning_rate=1e-2, metric=rising(), **options)
    expected = trained_whole(module, data.train, lr=1e-2, **options)
    names = {name for name in expected.state_dict() if not name.endswith("num_batches_tracked")}
    assert changed(network, after) == names
    x = data.test.inputs["input"]
    with torch.no_grad():
        wanted = expected(torch.from_numpy(x)).numpy()
    scale = np.abs(wanted - next(iter(network.run({"input": x}).values()))).max()
    np.testing.assert_allclose(next(iter(after.run({"input": x}).values())), wanted, atol=0.02 * scale)
    for name in names:
        if "running" in name:
            np.testing.assert_allclose(after.initializer(name), expected.state_dict()[name], atol=2e-3, err_msg=name)


@pytest.mark.parametrize(
    ("second_only", "option", "follow"),
    [(False, None, ("1", "4")), (False, False, ()), (True, None, ()), (True, True, ("4",))],
)
def test_whose_statistics_follow(unfused, second_only, option, follow):
    _, network = unfused
    second = [operator for operator in network.operators if operator.op_type == "BatchNormalization"][1]
    blocks = [(second.input[0], second.output[0])] if second_only else None
    data = splits(network, 16, shape=(3, 8, 8))
    after = retrain(network, data, blocks, epochs=1, batch_size=8, metric=rising(), batch_statistics=option)
    statistics = {name for name in network.initializers if "running" in name}
    learnt = {"4.weight", "4.bias"} if second_only else set(network.initializers) - statistics
    assert changed(network, after) == learnt | {name for name in statistics if name.split(".")[0] in follow}


@pytest.mark.parametrize("size", [(), (1, 2)])
def test_statistics_of_the_file_never_learn(size):
    """Of images torch has a module for; of data with six axes nothing but arithmetic."""
    rng = np.random.default_rng(0)
    sizes = ",".join(map(str, (2, 2, *size)))
    axes = list(range(2, 4 + len(size)))
    values = {name: rng.uniform(0.5, 1, 4).astype(np.float32) for name in "sbmv"}
    network = net(f"(float[n,4,{sizes}] x) => (float[n,3] y)"
                  f" {{ h = BatchNormalization(x, s, b, m, v)  r = Relu(h)  p = ReduceMean<keepdims=0, axes={axes}>(r)"
                  "  y = MatMul(p, w) }", {**values, "w": (4, 3)})  # fmt: skip
    data = splits(network, 24, shape=(4, 2, 2, *size), classes=3)
    after = retrain(network, data, epochs=2, learning_rate=0.1, metric=rising(), batch_statistics=False)
    assert changed(network, after) == {"s", "b", "w"}


def test_the_statistics_are_those_of_the_best_epoch(unfused):
    """With hardly a step they move towards those of the data, by a tenth of what is left with every batch."""
    _, network = unfused
    data = splits(network, 16, shape=(3, 8, 8))

    def moved(scores):
        rest = iter(scores)
        options = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-9}
        after = retrain(network, data, metric=lambda *_: next(rest), **options)
        return float((after.initializer("1.running_mean") - network.initializer("1.running_mean")).sum())

    first, last = moved([0, 1, 0, 0]), moved([0, 1, 2, 3])  # after two and after six batches
    assert abs(last / first - (1 - 0.9**6) / (1 - 0.9**2)) < 0.02


def test_a_whole_model_of_several_inputs_and_outputs():
    for name in ("two_inputs", "two_outputs"):
        network = zoo.network(name, "torchscript").model
        rng = np.random.default_rng(0)
        feeds = zoo.network(name, "torchscript").feeds
        inputs = {key: np.concatenate([value] * 6) for key, value in feeds.items()}
        part = gm.Data(inputs, rng.integers(0, 10, 12))
        after = retrain(network, gm.Splits(part, part, part), epochs=1, batch_size=6, metric=rising())
        learnt = changed(network, after)
        if name == "two_inputs":  # both branches
            assert {n for n in network.initializers if n.startswith(("conv1", "side", "fc2"))} <= learnt
        if name == "two_outputs":  # what only the second output needs has no part in the first
            assert not any(n.startswith("decoder") for n in learnt)


def test_a_batch_of_one_has_no_statistics(unfused):
    _, network = unfused
    with pytest.raises(gm.RefusedError, match="batch_size=2"):
        retrain(network, splits(network, 8, shape=(3, 8, 8)), batch_size=1)


def halves(keep_io):
    """Return a classifier in single precision, and data for it when it is of half precision."""
    start = fan([12, 8, 5], np.random.default_rng(4))
    x = np.random.default_rng(5).normal(size=(60, 7)).astype(np.float32)
    parts = [gm.Data({"x": x[rows]}, (x[rows, 0] > 0).astype(int)) for rows in np.split(np.arange(60), [30, 45])]
    if not keep_io:
        parts = [gm.Data({"x": part.inputs["x"].astype(np.float16)}, part.targets) for part in parts]
    return start, gm.Splits(*parts)


@pytest.mark.parametrize(("kind", "keep_io"), [("float16", True), ("float16", False), ("bfloat16", True)])
@pytest.mark.parametrize("taught", [False, True], ids=["alone", "taught"])
def test_half_precision_is_trained_in_single_and_rounded_at_the_end(kind, keep_io, taught):
    start, data = halves(keep_io)
    half = gm.retype(start, kind, keep_io=keep_io)
    wide = gm.retype(half, "float32")  # the same weights
    options = {"epochs": 3, "batch_size": 8, "teacher": half if taught else None}
    after = retrain(half, data, metric=rising(), **options)
    expected = retrain(wide, data, metric=rising(), **options)
    weights = [name for name in half.constants if half.tensors[name].dtype == ml_dtypes.finfo(kind).dtype]
    assert len(weights) == 3
    assert changed(half, after) == set(weights)
    for name, other in zip(sorted(weights), sorted(wide.constants), strict=True):
        rounded = expected.initializer(other).astype(half.tensors[name].dtype)
        np.testing.assert_array_equal(after.initializer(name), rounded)


def test_weights_of_double_precision_learn_in_it():
    start, data = halves(True)
    proto = start.proto()
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    double = gm.load(proto)
    parts = [
        gm.Data({"x": part.inputs["x"].astype(float)}, part.targets)
        for part in (data.train, data.calibration, data.test)
    ]
    after = retrain(double, gm.Splits(*parts), metric=rising(), epochs=2, batch_size=8, teacher=double)
    expected = retrain(start, data, metric=rising(), epochs=2, batch_size=8, teacher=start)
    for name in changed(double, after):
        np.testing.assert_allclose(after.initializer(name), expected.initializer(name), atol=1e-5)
        assert after.initializer(name).dtype == np.float64
    assert changed(double, after) == changed(start, expected)


def test_a_block_of_half_precision_learns_behind_what_is_computed_once():
    start, data = halves(True)
    half = gm.retype(start, "float16")
    after = retrain(half, data, [("t1", "t2")], metric=rising(), epochs=2, batch_size=8)
    expected = retrain(start, data, [("t1", "t2")], metric=rising(), epochs=2, batch_size=8)
    assert changed(half, after) == {"w2"}
    np.testing.assert_allclose(after.initializer("w2"), expected.initializer("w2"), atol=5e-3)


def test_inputs_that_no_array_can_be_given_for_are_refused():
    start, data = halves(True)
    half = gm.retype(start, "bfloat16", keep_io=False)
    x = data.train.inputs["x"].astype(ml_dtypes.bfloat16)
    with pytest.raises(gm.RefusedError, match=r"'x' is bfloat16\[n, 7\], .* graphmod.retype\(model, 'float32'"):
        gm.accuracy(half, (x, data.train.targets))
