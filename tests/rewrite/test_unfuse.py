"""BatchNormalizations put behind convolutions: against ONNX Runtime, moments in numpy, and what fusing gives back."""

from __future__ import annotations

from itertools import count

import numpy as np
import onnx
import pytest
import torch
import zoo
from handmade import model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from random_models import feeds, random_models

import graphmod as gm
from graphmod.pruning import cut, groups
from graphmod.rewrite.fuse import candidates

torch.set_num_threads(1)

IMAGE = ("n", 4, 7, 7)


def types(network: gm.Model) -> list[str]:
    return [operator.op_type for operator in network.operators]


def shapes(network: gm.Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.dims) for name, tensor in network.initializers.items()}


def samples(shape=(12, 4, 7, 7), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 2, shape).astype(np.float32)


def same(before: gm.Model, after: gm.Model, values: dict[str, np.ndarray], tolerance=1e-5) -> None:
    expected, found = before.run(values), after.run(values)
    assert list(expected) == list(found)
    for name, value in expected.items():
        assert np.isfinite(found[name]).all()
        scale = max(1e-6, float(np.abs(value).max()))
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance * scale, err_msg=name)


def convolution(x, y, weight, *, bias="", op_type="Conv", **attributes) -> onnx.NodeProto:
    return helper.make_node(op_type, [x, weight, *([bias] if bias else [])], [y], f"{y}_{op_type}", **attributes)


def weights(rng, **named) -> dict[str, np.ndarray]:
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in named.items()}


def single(opset=17, op_type="Conv", shape=(6, 4, 3, 3), x=IMAGE, dtype=np.float32, **attributes) -> gm.Model:
    """Return a network of one convolution with a bias, and a Relu."""
    n_out = shape[0] if op_type == "Conv" else shape[1] * attributes.get("group", 1)
    held = weights(np.random.default_rng(1), w=shape, b=(n_out,))
    operators = [convolution("x", "y", "w", bias="b", op_type=op_type, **attributes)]
    operators += [helper.make_node("Relu", ["y"], ["z"])]
    out = ["n", n_out, *[None] * (len(x) - 2)]
    proto = model(operators, {"x": x}, {"z": out}, held, opset).proto()
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = kind
    return gm.load(proto)


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2", "vgg", "branching", "two_inputs", "two_outputs"])
def test_networks(name, exporter):
    network = zoo.network(name, exporter)
    fused = gm.fuse(network.model)
    values = {name: np.concatenate([value, value[::-1] * 0.5]) for name, value in network.feeds.items()}
    unfused = gm.unfuse(fused, values)
    convolutions = [op.output[0] for op in fused.operators if op.op_type in ("Conv", "ConvTranspose")]
    made = {op.output[0] for op in unfused.operators if op.op_type == "BatchNormalization"}
    assert convolutions
    assert made.issuperset(convolutions)
    again = gm.fuse(unfused)
    assert types(again) == types(fused)
    assert again.operator_names == fused.operator_names
    assert shapes(again) == shapes(fused)
    for one in (unfused, again):  # ONNX Runtime's own optimiser moves what mobilenetv2 makes by 1.6e-5
        same(fused, one, network.feeds, 3e-5 if name == "mobilenetv2" else 1e-5)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_models(), st.integers(2, 5))
def test_random_networks(proto, n_samples):
    network = gm.load(proto)
    unfused = gm.unfuse(network, feeds(1, n_samples))
    lacking = [op for op in network.operators if op.op_type == "Conv" and not normalized(network, op.output[0])]
    assert types(unfused).count("BatchNormalization") == types(network).count("BatchNormalization") + len(lacking)
    assert all(normalized(unfused, op.output[0]) for op in unfused.operators if op.op_type == "Conv")
    same(network, unfused, feeds(2, 3))
    back = gm.fuse(unfused, kinds=["unfused"])
    assert types(back) == types(network)
    same(network, back, feeds(2, 3))
    assert [op.output for op in back.operators] == [op.output for op in network.operators]


def normalized(network: gm.Model, tensor: str) -> bool:
    places = network.readers.get(tensor, ())
    return tensor not in network.outputs and [network.operators[i].op_type for i in places] == ["BatchNormalization"]


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_moments_are_the_datas(batch):
    network = single(x=(batch, *IMAGE[1:]))
    x = samples((300, *IMAGE[1:])) if batch == "n" else samples()  # more than a batch
    unfused = gm.unfuse(network, x)
    conv, norm, _ = unfused.operators
    assert (conv.op_type, len(conv.input), norm.op_type) == ("Conv", 2, "BatchNormalization")
    assert (norm.name, norm.output[0]) == ("y_Conv/BatchNormalization", "y")
    scale, bias, mean, variance = (unfused.initializer(name) for name in norm.input[1:])
    free = single()
    raw = free.run({"x": x}, ["y"])["y"].astype(np.float64)
    columns = np.moveaxis(raw, 1, -1).reshape(-1, 6)
    np.testing.assert_allclose(bias, columns.mean(0), rtol=1e-5)
    np.testing.assert_allclose(mean, columns.mean(0) - network.initializer("b"), rtol=1e-5)
    np.testing.assert_allclose(variance, columns.var(0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(scale, np.sqrt(variance + 1e-5), rtol=1e-6)
    assert unfused.inputs == network.inputs


KINDS = {
    "plain": {},
    "grouped": {"shape": (6, 2, 3, 3), "group": 2, "pads": [1] * 4},
    "depthwise": {"shape": (4, 1, 3, 3), "group": 4},
    "transposed": {"op_type": "ConvTranspose", "shape": (4, 5, 2, 2), "strides": [2, 2]},
    "transposed, depthwise": {"op_type": "ConvTranspose", "shape": (4, 1, 3, 3), "group": 4},
    "one axis": {"shape": (6, 4, 3), "x": ("n", 4, 7)},
    "three axes": {"shape": (6, 4, 2, 2, 2), "x": ("n", 4, 4, 4, 4)},
}


@pytest.mark.parametrize("opset", [9, 13, 14, 15, 21])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_and_opsets(kind, opset):
    network = single(opset, **KINDS[kind])
    x = samples((12, *network.inputs["x"].shape[1:])).astype(network.inputs["x"].dtype)
    unfused = gm.unfuse(network, x)
    assert types(unfused)[1:] == ["BatchNormalization", "Relu"]
    same(network, unfused, {"x": x})
    again = gm.fuse(unfused)
    assert [op.SerializeToString() for op in again.operators] == [op.SerializeToString() for op in network.operators]
    assert shapes(again) == shapes(network)
    for name in network.initializers:
        np.testing.assert_allclose(again.initializer(name), network.initializer(name), rtol=1e-5, atol=1e-6)


def dense(opset: int, rows: tuple = ("n", 5)) -> gm.Model:
    """Return linear layers: Gemm, MatMul and Add, MatMul, Gemm."""
    held = weights(np.random.default_rng(0), a=(6, 5), b=6, c=(6, 4), d=4, e=(4, 4), f=(4, 3), g=3)
    operators = [
        helper.make_node("Gemm", ["x", "a", "b"], ["first"], "gemm", transB=1, beta=0.5),
        helper.make_node("Relu", ["first"], ["r"]),
        helper.make_node("MatMul", ["r", "c"], ["product"], "matmul"),
        helper.make_node("Add", ["product", "d"], ["second"], "add"),
        helper.make_node("MatMul", ["second", "e"], ["third"], "bare"),
        helper.make_node("Gemm", ["third", "f", "g"], ["y"], "last"),
    ]
    return model(operators, {"x": rows}, {"y": (rows[0], 3)}, held, opset)


@pytest.mark.parametrize("opset", [9, 10, 11, 13, 17, 21])
def test_linear_layers(opset):
    network, x = dense(opset), samples((40, 5))
    unfused = gm.unfuse(network, x)
    norm = "BatchNormalization"
    assert types(unfused) == ["Gemm", norm, "Relu", "MatMul", "Add", norm, "MatMul", "Gemm"]
    assert len(unfused.operators[0].input) == (3 if opset < 11 else 2)
    same(network, unfused, {"x": x})
    for made, place in (("first", 1), ("second", 5)):
        columns = network.run({"x": x}, [made])[made].astype(np.float64)
        bias, variance = (unfused.initializer(unfused.operators[place].input[i]) for i in (2, 4))
        np.testing.assert_allclose(bias, columns.mean(0), rtol=1e-5)
        np.testing.assert_allclose(variance, columns.var(0, ddof=1), rtol=1e-5)
    back = gm.fuse(unfused, kinds=["unfused"])
    assert types(back) == types(network)
    assert [list(op.input) for op in back.operators] == [list(op.input) for op in network.operators]
    same(network, back, {"x": x})


def test_linear_layers_whose_rows_are_no_samples_stay():
    held = weights(np.random.default_rng(0), a=(5, 6), b=6)
    held["flat"], held["square"] = np.array([-1, 5]), np.array([-1, 3, 6])
    operators = [
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        helper.make_node("Gemm", ["rows", "a", "b"], ["tokens"]),
        helper.make_node("Reshape", ["tokens", "square"], ["y"]),
    ]
    network = model(operators, {"x": ("n", 3, 5)}, {"y": ("n", 3, 6)}, held)
    assert gm.unfuse(network, samples((8, 3, 5))) is network


def test_channels_that_are_constant():
    network = single()
    proto = network.proto()
    held = {tensor.name: tensor for tensor in proto.graph.initializer}
    weight, bias = network.initializer("w").copy(), network.initializer("b").copy()
    weight[:3] = 0
    weight[3] *= 1e-6
    bias[:2] = 0, 1e4
    for name, value in (("w", weight), ("b", bias)):
        held[name].CopyFrom(numpy_helper.from_array(value, name))
    network = gm.load(proto)
    unfused = gm.unfuse(network, samples())
    variance = unfused.initializer(unfused.operators[1].input[4])
    assert (variance[:3] == 0).all()
    for one in (unfused, gm.fuse(unfused)):
        expected, found = (net.run({"x": samples(seed=1)}, ["y"])["y"] for net in (network, one))
        scale = np.maximum(np.abs(expected).max((0, 2, 3), keepdims=True), 1)
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-5)


def test_shared_weights_part():
    held = weights(np.random.default_rng(0), w=(4, 4, 3, 3), b=(4,))
    operators = [
        convolution("x", "a", "w", bias="b", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["r"]),
        convolution("r", "y", "w", bias="b", pads=[1] * 4),
    ]
    network = model(operators, {"x": IMAGE}, {"y": IMAGE}, held)
    unfused = gm.unfuse(network, samples())
    assert types(unfused) == ["Conv", "BatchNormalization", "Relu", "Conv", "BatchNormalization"]
    first, second = (op for op in unfused.operators if op.op_type == "BatchNormalization")
    assert not {*first.input} & {*second.input}
    assert unfused.operators[0].input[1] == unfused.operators[3].input[1] == "w"
    same(network, unfused, {"x": samples()})
    again = gm.fuse(unfused)
    assert types(again) == types(network)
    same(network, again, {"x": samples()})


def test_large_shared_weights_stay():
    """Fusing would have to copy them."""
    held = weights(np.random.default_rng(0), w=(256, 256, 3, 3))
    operators = [convolution("x", "a", "w", pads=[1] * 4), convolution("a", "y", "w", pads=[1] * 4)]
    network = model(operators, {"x": ("n", 256, 3, 3)}, {"y": ("n", 256, 3, 3)}, held)
    assert gm.unfuse(network, samples((4, 256, 3, 3))) is network


def test_outputs_and_tensors_that_many_read():
    held = weights(np.random.default_rng(0), w=(4, 4, 1, 1), v=(4, 4, 1, 1))
    operators = [
        convolution("x", "a", "w"),
        convolution("a", "y", "v"),
        helper.make_node("Add", ["a", "y"], ["z"]),
    ]
    network = model(operators, {"x": IMAGE}, {"y": IMAGE, "a": IMAGE, "z": IMAGE}, held)
    unfused = gm.unfuse(network, samples())
    assert types(unfused) == ["Conv", "BatchNormalization", "Conv", "BatchNormalization", "Add"]
    same(network, unfused, {"x": samples()})
    assert types(gm.fuse(unfused, kinds=["unfused"])) == types(network)


def own_normalization() -> gm.Model:
    """Return Conv, BatchNormalization, Relu, Conv, where a channel of the first Conv can go."""
    rng = np.random.default_rng(0)
    held = weights(rng, w=(6, 4, 3, 3), scale=6, bias=6, mean=6, v=(5, 6, 1, 1), c=5, u=(3, 5, 1, 1))
    held["var"] = rng.uniform(0.5, 2, 6).astype(np.float32)
    operators = [
        convolution("x", "a", "w"),
        helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["b"], "own"),
        helper.make_node("Relu", ["b"], ["r"]),
        convolution("r", "d", "v", bias="c"),
        helper.make_node("Relu", ["d"], ["e"]),
        convolution("e", "y", "u"),
    ]
    return model(operators, {"x": IMAGE}, {"y": ("n", 3, 5, 5)}, held)


def test_the_users_own_stay():
    network = own_normalization()
    unfused = gm.unfuse(network, samples())
    assert types(unfused).count("BatchNormalization") == 3
    back = gm.fuse(unfused, kinds=["unfused"])
    assert back.operator_names == network.operator_names
    assert {op.name for op in back.operators if op.op_type == "BatchNormalization"} == {"own"}
    assert list(back.operators[3].input) == ["r", "v", "c"]
    same(network, back, {"x": samples()})
    assert gm.fuse(network, kinds=["unfused"]) is network
    assert {one.operator for one in candidates(unfused, kinds=["unfused"])} == {
        "d_Conv/BatchNormalization", "y_Conv/BatchNormalization",
    }  # fmt: skip
    assert "BatchNormalization" not in types(gm.fuse(unfused))
    assert gm.apply(gm.Recipe.of(back), network, given=[samples()]).digest == back.digest


def test_folded_back_after_pruning_and_training():
    network = own_normalization()
    unfused = gm.unfuse(network, samples())
    found = groups(unfused)
    removed = np.zeros(found.n_units, bool)
    for group in found:
        removed[group.first] = True
    pruned = cut(found, removed)
    rng = np.random.default_rng(3)
    proto = pruned.proto()
    for tensor in proto.graph.initializer:  # as if trained
        value = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((value * rng.uniform(0.5, 1.5, value.shape)).astype("f4"), tensor.name))
    trained = gm.load(proto)
    back = gm.fuse(trained, kinds=["unfused"])
    assert types(back) == types(network)
    assert back.operator_names == network.operator_names
    assert shapes(back)["v"] == (4, 5, 1, 1)
    assert shapes(back)["c"] == (4,)
    same(trained, back, {"x": samples(seed=4)})


def test_training_learns_through_it():
    """Weights and statistics move, and what is folded back is what was trained."""
    splits, network, epoch = gm.demo.splits(), gm.load(gm.demo.model_path()), count()
    unfused = gm.unfuse(network, splits.train)
    trained = gm.retrain(unfused, splits, teacher=network, epochs=1, metric=lambda *_: float(next(epoch)))
    back = gm.fuse(trained, kinds=["unfused"])
    changed = {name for name in unfused.initializers if (unfused.initializer(name) != trained.initializer(name)).any()}
    assert changed >= {name for op in unfused.operators if op.op_type == "BatchNormalization" for name in op.input[1:]}
    assert types(back) == types(network)
    assert shapes(back) == shapes(network)
    same(trained, back, dict(splits.test[:64].inputs))


def test_where():
    network = own_normalization()
    unfused = gm.unfuse(network, samples(), where="Conv[name=y_Conv]")
    assert types(unfused) == [*types(network), "BatchNormalization"]
    assert gm.unfuse(network, samples(), where="Relu") is network
    with pytest.raises(gm.RefusedError):
        gm.unfuse(network, samples(), where="Konv")


def test_what_stays_as_it_is():
    half = single(dtype=np.float16)
    assert gm.unfuse(half, samples().astype(np.float16)) is half
    again = gm.unfuse(network := single(), samples())
    assert gm.unfuse(again, samples()) is again
    proto = network.proto()  # weights that are data
    proto.graph.node.insert(0, helper.make_node("Abs", ["w"], ["w2"]))
    proto.graph.node[1].input[1] = "w2"
    computed = gm.load(proto)
    assert gm.unfuse(computed, samples()) is computed
    dense = model([helper.make_node("Relu", ["x"], ["y"])], {"x": IMAGE}, {"y": IMAGE})
    assert gm.unfuse(dense, samples()) is dense


def test_quantized_weights_stay():
    network = gm.quantize(single())
    assert any(kind.startswith("Dequantize") or "Integer" in kind for kind in types(network))
    assert gm.unfuse(network, samples()) is network


def test_scopes_are_kept():
    network = zoo.network("resnet18", "torchscript").model
    fused = gm.fuse(network)
    unfused = gm.unfuse(fused, samples((2, 3, 64, 64)))
    before, after = ({block.path for block in gm.blocks(one).walk()} for one in (fused, unfused))
    assert {"layer1.0", "layer4.1"} <= {path for path in before if path.startswith("layer")} <= after


def test_refusals():
    network = single()
    with pytest.raises(gm.InvalidDataError, match="1 sample, too few"):
        gm.unfuse(network, samples((1, 4, 7, 7)))
    with pytest.raises(gm.InvalidDataError, match="input 'x'"):
        gm.unfuse(network, samples((2, 3, 7, 7)))
    with pytest.raises(gm.InvalidDataError, match="Conv 'y_Conv' makes values of the data that are not finite"):
        gm.unfuse(network, samples() * np.float32(3e37))
    with pytest.raises(gm.InvalidDataError, match="3 samples, too few"):
        gm.unfuse(single(x=(4, *IMAGE[1:])), samples((3, 4, 7, 7)))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, IMAGE)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "old", [value], [out])
    old = gm.load(helper.make_model(graph, ir_version=3, opset_imports=[helper.make_opsetid("", 6)]))
    with pytest.raises(gm.RefusedError, match="opset 6"):
        gm.unfuse(old, samples())
