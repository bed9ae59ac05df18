"""Statistics of BatchNormalization estimated anew, against PyTorch's own re-estimation and closed forms."""

from __future__ import annotations

import copy
import io

import numpy as np
import onnx
import pytest
import torch
import zoo
from handmade import model
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import graphmod as gm

torch.set_num_threads(1)


def normalization(x: str, y: str, **attributes: object) -> onnx.NodeProto:
    weights = [f"{y}_{what}" for what in ("scale", "bias", "mean", "var")]
    return helper.make_node("BatchNormalization", [x, *weights], [y], y, **attributes)


def weights(y: str, channels: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    values = {what: rng.uniform(0.5, 2, channels).astype(np.float32) for what in ("scale", "bias", "mean", "var")}
    return {f"{y}_{what}": value for what, value in values.items()}


def one(shape, opset=17, **attributes):
    """Return a network of one BatchNormalization."""
    names = weights("y", shape[1], np.random.default_rng(0))
    return model([normalization("x", "y", **attributes)], {"x": shape}, {"y": shape}, names, opset=opset)


def unfused(module: nn.Module, example: torch.Tensor) -> gm.Model:
    """Export a network with its BatchNormalizations as operators of their own."""
    file = io.BytesIO()
    torch.onnx.export(
        module, (example,), file, dynamo=False, opset_version=17, input_names=["x"], dynamic_axes={"x": {0: "n"}},
        training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
    )  # fmt: skip
    return gm.load(file.getvalue())


@pytest.fixture(scope="module")
def resnet():
    """Return the zoo's ResNet-18 with other weights than its statistics are of, in torch and as a model."""
    module = copy.deepcopy(zoo.build("resnet18")[0])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module, unfused(module, torch.randn(2, 3, 64, 64))


def re_estimated(module: nn.Module, batches: list[torch.Tensor]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Let PyTorch average the statistics of batches, then add to the variance within them that of their means."""
    module = copy.deepcopy(module)
    means: dict[str, list[torch.Tensor]] = {}
    counts: dict[str, int] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
            seen = means.setdefault(name, [])

            def see(_, x, seen=seen, name=name):
                seen.append(x[0].mean((0, 2, 3)))
                counts[name] = x[0].numel() // x[0].shape[1]

            layer.register_forward_pre_hook(see)
    module.train()
    with torch.no_grad():
        for batch in batches:
            module(batch)
    pooled = {}
    for name, found in means.items():
        layer, n = module.get_submodule(name), counts[name]
        within = layer.running_var * (n - 1) / n  # PyTorch's is unbiased, batch by batch
        variance = within + torch.stack(found).var(0, correction=0)
        total = n * len(batches)
        pooled[name] = layer.running_mean.numpy(), (variance * total / (total - 1)).numpy()
        if len(batches) == 1:
            np.testing.assert_allclose(pooled[name][1], layer.running_var, rtol=1e-4)
    return pooled


@pytest.mark.parametrize("n_batches", [1, 4])
def test_the_same_as_pytorch(resnet, n_batches):
    module, network = resnet
    x = torch.randn(48, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 1.5 + 0.3
    found = gm.recalibrate(network, x.numpy(), batch_size=48 // n_batches)
    expected = re_estimated(module, [x[start::n_batches] for start in range(n_batches)])
    assert len(expected) == 20
    for name, (mean, variance) in expected.items():
        scale = float(variance.max())
        np.testing.assert_allclose(
            found.initializer(f"{name}.running_mean"), mean, atol=1e-4 * scale**0.5, err_msg=name
        )
        np.testing.assert_allclose(found.initializer(f"{name}.running_var"), variance, atol=1e-4 * scale, err_msg=name)


def test_only_statistics_change(resnet):
    _, network = resnet
    found = gm.recalibrate(network, np.random.default_rng(0).normal(size=(8, 3, 64, 64)).astype(np.float32))
    before, after = network.proto().graph, found.proto().graph
    assert [op.SerializeToString() for op in before.node] == [op.SerializeToString() for op in after.node]
    changed = {a.name for a, b in zip(before.initializer, after.initializer, strict=True) if a.raw_data != b.raw_data}
    assert changed == {name for name in network.initializers if "running_" in name}


SHAPES = [("n", 5), ("n", 5, 3), ("n", 5, 3, 4), ("n", 5, 2, 3, 2)]


@pytest.mark.parametrize("batch_size", [None, 7, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_closed_form_of_one(shape, batch_size):
    """Whatever the batches and the order: the mean and the variance of all data."""
    rising = np.arange(1, 32).reshape(-1, *[1] * (len(shape) - 1))
    x = (rising * np.random.default_rng(1).gamma(2, size=(31, *shape[1:]))).astype(np.float32)
    for opset in (9, 15, 18, 21):
        found = gm.recalibrate(one(shape, opset), x, batch_size=batch_size)
        columns = np.moveaxis(x.astype(np.float64), 1, -1).reshape(-1, 5)
        np.testing.assert_allclose(found.initializer("y_mean"), columns.mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.initializer("y_var"), columns.var(0, ddof=1), rtol=1e-5)


def test_some_batches_are_spread_over_the_data():
    x = np.repeat(np.arange(10, dtype=np.float32), 10)[:, None] + np.zeros((1, 5), np.float32)  # sorted, as by class
    found = gm.recalibrate(one(("n", 5)), x, batch_size=10, batches=2)
    np.testing.assert_allclose(found.initializer("y_mean"), 4.5, rtol=1e-6)  # every tenth sample


def test_statistics_that_are_the_datas_stay():
    x = np.random.default_rng(0).normal(size=(64, 5, 3, 3)).astype(np.float32)
    found = gm.recalibrate(one(("n", 5, 3, 3)), x)
    again = gm.recalibrate(found, x)
    assert again is found
    same = found.run({"x": x})["y"]
    columns = np.moveaxis(same, 1, -1).reshape(-1, 5)
    scale, bias = (found.initializer(f"y_{what}") for what in ("scale", "bias"))
    np.testing.assert_allclose(columns.mean(0), bias, atol=1e-4)
    np.testing.assert_allclose(columns.std(0), scale, rtol=1e-2)


def test_every_layer_goes_by_those_before_it():
    """In inference, what each of a chain normalizes has the mean and the variance that it holds."""
    rng = np.random.default_rng(0)
    operators, names = [], {}
    for i in range(6):
        names |= {**weights(f"b{i}", 5, rng), f"w{i}": rng.normal(size=(5, 5)).astype(np.float32)}
        operators += [helper.make_node("MatMul", [f"r{i}" if i else "x", f"w{i}"], [f"m{i}"])]
        operators += [normalization(f"m{i}", f"b{i}"), helper.make_node("Relu", [f"b{i}"], [f"r{i + 1}"])]
    network = model(operators, {"x": ["n", 5]}, {"r6": ["n", 5]}, names)
    x = rng.normal(size=(20_000, 5)).astype(np.float32)
    found = gm.recalibrate(network, x, batch_size=len(x))
    seen = found.run({"x": x}, [f"m{i}" for i in range(6)])
    for i in range(6):
        np.testing.assert_allclose(found.initializer(f"b{i}_mean"), seen[f"m{i}"].mean(0), atol=1e-3)
        np.testing.assert_allclose(found.initializer(f"b{i}_var"), seen[f"m{i}"].var(0, ddof=1), rtol=1e-3)


def test_shared_statistics_part():
    rng = np.random.default_rng(0)
    first, second = normalization("x", "y"), normalization("z", "v")
    second.input[3:] = ["y_mean", "y_var"]
    operators = [first, helper.make_node("Mul", ["y", "y"], ["z"]), second]
    names = {**weights("y", 4, rng), **{k: v for k, v in weights("v", 4, rng).items() if k[2:] in ("scale", "bias")}}
    network = model(operators, {"x": ["n", 4]}, {"v": ["n", 4]}, names)
    x = rng.normal(size=(20_000, 4)).astype(np.float32)
    found = gm.recalibrate(network, x, batch_size=len(x))
    mean, var = (found.initializer(name) for name in found.operators[2].input[3:])
    z = found.run({"x": x}, ["z"])["z"]
    np.testing.assert_allclose(mean, z.mean(0), rtol=1e-3)
    np.testing.assert_allclose(var, z.var(0, ddof=1), rtol=1e-3)
    np.testing.assert_allclose(found.initializer(found.operators[0].input[3]), x.mean(0), atol=1e-4)
    assert gm.recalibrate(found, x, batch_size=len(x)) is found


@pytest.mark.parametrize("fixed", [1, 8])
def test_a_fixed_batch_is_freed_for_the_estimate(fixed):
    x = np.random.default_rng(0).normal(3, 2, (60, 5, 3, 3)).astype(np.float32)
    found = gm.recalibrate(one((fixed, 5, 3, 3)), x)
    np.testing.assert_allclose(found.initializer("y_mean"), x.mean((0, 2, 3)), rtol=1e-4)
    assert found.inputs["x"].shape == (fixed, 5, 3, 3)


def test_half_precision_is_summed_in_more():
    rng = np.random.default_rng(0)
    proto = one(("n", 5, 3, 3)).proto()
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    x = rng.normal(100, 30, (200, 5, 3, 3)).astype(np.float16)  # squares of which overflow
    found = gm.recalibrate(gm.load(proto), x)
    assert found.initializer("y_var").dtype == np.float16
    np.testing.assert_allclose(found.initializer("y_var"), x.astype(np.float64).var((0, 2, 3)), rtol=2e-3)


def test_nothing_to_do():
    shape = ("n", 5, 3)
    x = np.ones((4, 5, 3), np.float32)
    training = one(shape)
    operator = helper.make_node("Relu", ["x"], ["y"])
    assert gm.recalibrate(plain := model([operator], {"x": shape}, {"y": shape}), x) is plain
    proto = training.proto()  # statistics that are computed from the data are no running statistics
    proto.graph.node[0].input[3] = "m"
    proto.graph.node.insert(0, helper.make_node("ReduceMean", ["x"], ["m"], axes=[0, 2], keepdims=0))
    assert gm.recalibrate(computed := gm.load(proto), x) is computed


def test_refusals():
    network, x = one(("n", 5, 3, 3)), np.ones((9, 5, 3, 3), np.float32)
    for options in ({"batch_size": 1}, {"batches": 0}):
        with pytest.raises(gm.RefusedError, match="at least"):
            gm.recalibrate(network, x, **options)
    with pytest.raises(gm.InvalidDataError, match="single sample"):
        gm.recalibrate(network, x[:1])
    with pytest.raises(gm.InvalidDataError, match="input 'x'"):
        gm.recalibrate(network, x[:, :3])
    with pytest.raises(gm.InvalidDataError, match="'y' gets values from the data that are not finite"):
        gm.recalibrate(network, x * np.float32(1e30) * np.arange(9, dtype=np.float32)[:, None, None, None])
    names = weights("b", 5, np.random.default_rng(0))
    body = helper.make_graph(
        [normalization("x", "b")], "body", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["c"])], "other", [], [helper.make_tensor_value_info("c", 1, None)]
    )
    operators = [
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["yes"], ["y"], "choose", then_branch=body, else_branch=other),
    ]
    with pytest.raises(gm.RefusedError, match="subgraph of If 'choose'"):
        gm.recalibrate(model(operators, {"x": ("n", 5, 3, 3)}, {"y": ("n", 5, 3, 3)}, names), x)
