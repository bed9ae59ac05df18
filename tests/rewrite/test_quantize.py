"""Quantizing through ONNX Runtime's tools: accuracy holds, nothing is lost, the rest is refused."""

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import zoo
from handmade import model
from hypothesis import HealthCheck, given, settings
from onnx import TensorProto, helper
from random_graphs import random_graphs

import graphmod as gm

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
RNG = np.random.default_rng(5)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def demo():
    return gm.load(gm.demo.model_path()), gm.demo.splits()


def error(a, b, feeds):
    found = a.run(feeds), b.run(feeds)
    return max(float(np.abs(found[0][k] - found[1][k]).max() / np.abs(found[0][k]).max()) for k in found[0])


@pytest.mark.parametrize(
    "options",
    [
        {"data": True},
        {"data": True, "weight_type": "uint8", "per_channel": False},
        {"data": True, "calibrate": "percentile", "exclude": "Gemm"},
        {"mode": "dynamic"},
    ],
    ids=str,
)
def test_accuracy_of_the_demo_network(demo, options):
    network, splits = demo
    if options.get("data"):
        options = {**options, "data": splits.calibration[:200]}
    small = gm.quantize(network, **options)
    assert network.n_bytes / small.n_bytes > 2.5
    assert abs(gm.accuracy(network, splits.test) - gm.accuracy(small, splits.test)) <= 0.01
    kept = [op for op in small.operators if op.op_type == "Gemm"] if "exclude" in options else []
    assert all(name in small.initializers for op in kept for name in op.input[1:])


def test_names_metadata_and_scopes_stay(demo):
    network, splits = demo
    small = gm.quantize(network, splits.calibration[:64])
    by_name = {op.name: op for op in small.operators}
    for operator in network.operators:
        if operator.op_type != "Relu":  # ranges from 0 stand for most of them
            assert by_name[operator.name].metadata_props == operator.metadata_props
    assert (small.inputs, small.outputs, small.opset) == (network.inputs, network.outputs, network.opset)
    assert {key: small.metadata[key] for key in network.metadata} == network.metadata
    assert all(gm.graph.scope(op) for op in small.operators if gm.graph.scope(network.operators[3]))
    assert {"layer1", "layer2", "layer3"} <= {block.path for block in gm.blocks(small).children}


@pytest.mark.parametrize(("weight_type", "bound"), [("int4", 0.3), ("int8", 0.02)])
def test_weights_in_blocks(weight_type, bound):
    network = zoo.network("vit12", "torchscript")
    small = gm.quantize(network.model, mode="weights", weight_type=weight_type)
    assert error(network.model, small, network.feeds) < bound
    assert sum(op.op_type == "MatMulNBits" for op in small.operators) == 48


@pytest.mark.parametrize("name", ["bert", "two_inputs"])
def test_dynamically_and_with_several_inputs(name):
    network = zoo.network(name, "torchscript")
    assert error(network.model, gm.quantize(network.model), network.feeds) < 0.1
    assert error(network.model, gm.quantize(network.model, network.feeds), network.feeds) < 0.3


def test_a_fixed_batch_and_weights_beside_the_file(tmp_path):
    operators = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    proto = model(operators, {"x": [2, 3, 8, 8]}, {"y": [2, 40, 6, 6]}, {"w": normal(40, 3, 3, 3)}).proto()
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    network = gm.load(tmp_path / "m.onnx")
    x = normal(9, 3, 8, 8)
    small = gm.quantize(network, x)
    assert error(network, small, {"x": x[:2]}) < 0.05
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.data", "m.onnx"]
    with pytest.raises(gm.RefusedError, match="2 samples at a time"):
        gm.quantize(network, x[:1])


# Always the same networks: the bound is what they need; eight bits can cost a few others more than that.
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(graph=random_graphs())
def test_random_graphs(graph):
    network = gm.load(graph.proto)
    feeds = {name: np.concatenate([value] * 8) for name, value in graph.feeds().items()}
    for options in ({"data": feeds}, {"mode": "dynamic"}):
        try:
            small = gm.quantize(network, **options)
        except gm.RefusedError as refusal:
            assert "nothing in the model" in str(refusal)  # noqa: PT017  # both ends are right
            continue
        assert (small.inputs, small.outputs) == (network.inputs, network.outputs)
        if network.outputs["out"].shape[1] > 1:  # ONNX Runtime's quantized Softmax of a single number is 0
            assert error(network, small, feeds) < 0.25


def test_a_file_that_lists_weights_among_inputs():
    network = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], *({n: ["n", 16]} for n in "xy"), {"w": normal(16, 16)}, 13
    )
    proto = network.proto()
    proto.ir_version = 3
    proto.graph.input.append(helper.make_tensor_value_info("w", 1, [16, 16]))
    early = gm.load(proto)
    for mode in ("dynamic", "weights"):
        found = gm.quantize(early, mode=mode)
        assert list(found.inputs) == ["x"]
        assert {value.name for value in found.proto().graph.input} == {"x", *found.initializers}
        assert error(early, found, {"x": normal(5, 16)}) < 0.3


def test_refusals_leave_nothing_behind(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    network, splits = demo
    early = gm.load(LIGHT / "light_squeezenet.onnx")
    for arguments, message in [
        ({"mode": "static"}, "data that show the range"),
        ({"mode": "weights"}, "nothing in the model can be quantized"),
        ({"mode": "weights", "weight_type": "uint8"}, "int4 and int8"),
        ({"mode": "dynamic", "weight_type": "int4"}, "knows no int4"),
        ({"weight_type": "int5"}, "knows no int5"),
        ({"mode": "dynamic", "calibrate": "guess"}, "no way to calibrate"),
        ({"mode": "fast"}, "no mode"),
        ({"exclude": "LSTM"}, "no operator matches"),
        ({"data": splits.test, "calibrate": "guess"}, "no way to calibrate"),
    ]:
        with pytest.raises(gm.RefusedError, match=message):
            gm.quantize(network, **arguments)
    with pytest.raises(gm.RefusedError, match="of operator set 9"):
        gm.quantize(early)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("first", ["static", "dynamic", "weights"])
@pytest.mark.parametrize("second", ["static", "dynamic", "weights"])
def test_a_second_time_is_refused(first, second):
    weights = {"w": normal(64, 64), "v": normal(64, 64)}
    operators = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "one"),
        helper.make_node("MatMul", ["a", "v"], ["y"], "two"),
    ]
    data = {"x": normal(64, 64)}
    built = model(operators, {"x": ["n", 64]}, {"y": ["n", 64]}, weights)
    once = gm.quantize(built, data if first == "static" else None, mode=first)
    with pytest.raises(gm.RefusedError, match=r"the model is already quantized \(\w+ '.+'\); quantize the one"):
        gm.quantize(once, data if second == "static" else None, mode=second)


def test_a_failing_tool_is_a_refusal(monkeypatch, demo, capfd):
    from onnxruntime import quantization

    def fail(*_, **__):
        print("noise")
        logging.warning("noise")
        raise ValueError("no such thing\nsecond line")

    monkeypatch.setattr(quantization, "quantize_dynamic", fail)
    with pytest.raises(gm.RefusedError, match=r"cannot quantize the model: no such thing$"):
        gm.quantize(demo[0])
    assert "noise" not in "".join(capfd.readouterr())


def test_unnamed_operators_get_no_name():
    operators = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    network = model(operators, {"x": ["n", 40]}, {"y": ["n", 40]}, {"w": normal(40, 40)})
    small = gm.quantize(network)
    assert next(op.name for op in small.operators if op.op_type == "Relu") == ""
    assert small.initializers["w_quantized"].data_type == TensorProto.INT8
