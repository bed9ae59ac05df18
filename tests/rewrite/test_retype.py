"""Retyping: weights are rounded as numpy rounds them, Casts stand at the edges of islands and nowhere else."""

import copy
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
import zoo
from handmade import model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from random_graphs import random_graphs

import graphmod as gm

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
NARROW = {"float16": (np.float16, 2e-2), "bfloat16": (ml_dtypes.bfloat16, 5e-2)}
RNG = np.random.default_rng(11)
F = TensorProto.FLOAT
info = helper.make_tensor_value_info


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def error(a, b, feeds, other=None):
    """Return the largest difference of two models' outputs, of the scale of each."""
    found = (a.run(feeds), b.run(other or feeds))
    return max(
        float(np.abs(found[0][k].astype(np.float64) - found[1][k].astype(np.float64)).max() / np.abs(found[0][k]).max())
        for k in found[0]
    )


def casts(m):
    return [operator for operator in m.operators if operator.op_type == "Cast"]


def in_a_row(m):
    """Return the Casts of floats that read what a Cast of floats made."""
    floats = {name for name, kind in m.tensors.items() if kind.is_float}
    between = [op for op in casts(m) if {op.input[0], op.output[0]} <= floats]
    made = {op.output[0] for op in between}
    return [op.name for op in between if op.input[0] in made]


def wiring(m):
    return [(op.op_type, op.name, list(op.input), list(op.output)) for op in m.operators]


@pytest.mark.slow
@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_all_networks_in_half_precision_and_back(name, exporter):
    _check_network(zoo.network(name, exporter))


@pytest.mark.parametrize("name", ["resnet18", "vit12", "bert", "gpt2", "two_outputs"])
def test_networks_in_half_precision_and_back(name):
    _check_network(zoo.network(name, "torchscript"))


def _check_network(network):
    m = network.model
    half = gm.retype(m, "float16")
    assert (half.inputs, half.outputs) == (m.inputs, m.outputs)
    assert error(m, half, network.feeds) < 0.05
    assert not in_a_row(half)
    back = gm.retype(half, "float32")
    assert not in_a_row(back)
    assert all(kind.dtype != np.float16 for kind in back.tensors.values())
    no_casts = [entry for entry in wiring(m) if entry[0] != "Cast"]
    assert [entry[:2] for entry in no_casts] == [entry[:2] for entry in wiring(back) if entry[0] != "Cast"]
    for tensor, value in m.initializers.items():
        if value.data_type == F and half.initializers[tensor].data_type == TensorProto.FLOAT16:
            expected = np.clip(m.initializer(tensor), -65504, 65504).astype(np.float16)  # masks
            if value.dims or expected.any():
                np.testing.assert_array_equal(half.initializer(tensor), expected)
                np.testing.assert_array_equal(back.initializer(tensor), expected.astype(np.float32))


@pytest.mark.parametrize("name", ["resnet18", "vit12", "bert", "two_inputs"])
def test_as_torch_computes_in_half_precision(name):
    network = zoo.network(name, "torchscript")
    inputs = [value.half() if value.is_floating_point() else value for value in network.inputs]
    with torch.no_grad():
        expected = network.module(*network.inputs).numpy()
        halved = copy.deepcopy(network.module).half()(*inputs).float().numpy()
    found = gm.retype(network.model, "float16").run(network.feeds)[network.model.main_output]
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 4 * np.abs(halved - expected).max() + 2e-3 * scale


@pytest.mark.parametrize("name", ["resnet18", "bert", "vgg"])
def test_bfloat16_is_how_matrices_are_kept(name):
    network = zoo.network(name, "torchscript")
    m, kept = network.model, gm.retype(network.model, "bfloat16")
    for tensor, value in m.initializers.items():
        narrow = value.data_type == F and len(value.dims) > 1 and np.prod(value.dims) > 1
        assert (kept.initializers[tensor].data_type == TensorProto.BFLOAT16) == narrow, tensor
        if narrow:
            np.testing.assert_array_equal(kept.initializer(tensor), m.initializer(tensor).astype(ml_dtypes.bfloat16))
    assert error(m, kept, network.feeds) < 0.05
    back = gm.retype(kept, "float32")
    assert wiring(back) == wiring(m)
    rounded = m.proto()
    for tensor in rounded.graph.initializer:
        if kept.initializers[tensor.name].data_type == TensorProto.BFLOAT16:
            value = m.initializer(tensor.name).astype(ml_dtypes.bfloat16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    assert error(gm.load(rounded), back, network.feeds) == 0
    assert error(gm.load(rounded), kept, network.feeds) < 1e-5


@pytest.mark.parametrize("name", ["light_squeezenet", "light_shufflenet", "light_bvlc_alexnet"])
def test_files_of_an_early_format(name):
    """Initializers are graph inputs too; LRN, Dropout and Reshape are of operator set 9."""
    m = gm.load(LIGHT / f"{name}.onnx")
    feeds = {key: normal(*kind.shape) for key, kind in m.inputs.items()}
    assert error(m, gm.retype(m, "float16"), feeds) < 0.02


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=random_graphs(), to=st.sampled_from(sorted(NARROW)), keep_io=st.booleans(), data=st.data())
def test_random_graphs(graph, to, keep_io, data):
    _check_random(graph, to, keep_io, data)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=random_graphs(), to=st.sampled_from(sorted(NARROW)), keep_io=st.booleans(), data=st.data())
def test_many_random_graphs(graph, to, keep_io, data):
    _check_random(graph, to, keep_io, data)


def _check_random(graph, to, keep_io, data):
    m = gm.load(graph.proto)
    dtype, bound = NARROW[to]
    keep = data.draw(st.sampled_from([None, *{op.op_type for op in m.operators}]))
    narrow = gm.retype(m, to, keep=keep, keep_io=keep_io)
    feeds = graph.feeds()
    given_feeds = feeds if keep_io else {name: value.astype(dtype) for name, value in feeds.items()}
    if keep_io:
        assert (narrow.inputs, narrow.outputs) == (m.inputs, m.outputs)
        assert error(m, narrow, feeds) < bound
    elif to == "float16":  # numpy cannot hand bfloat16 to a session
        assert error(m, narrow, feeds, given_feeds) < bound
    assert not in_a_row(narrow)
    if keep is not None:
        for operator in narrow.operators:
            if operator.op_type == keep:
                kinds = {narrow.tensors[name].dtype for name in operator.input if name in narrow.tensors}
                assert np.dtype(dtype) not in kinds
    back = gm.retype(narrow, "float32")
    assert not casts(back) or not keep_io
    if keep_io:
        assert wiring(back) == wiring(m)
    assert np.dtype(dtype) not in {kind.dtype for name, kind in back.tensors.items()} or not keep_io


def test_keep_casts_at_the_edges_of_islands_only():
    operators = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "m1"),
        helper.make_node("Exp", ["a"], ["b"], "e"),
        helper.make_node("Log", ["b"], ["c"], "l"),
        helper.make_node("MatMul", ["c", "w"], ["d"], "m2"),
        helper.make_node("Add", ["d", "c"], ["y"], "s"),
    ]
    m = model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": normal(4, 4)})
    half = gm.retype(m, "float16", keep="Exp|Log", keep_io=False)
    assert [(op.input[0], op.output[0]) for op in casts(half)] == [("a", "a_float32"), ("c", "c_float16")]
    assert [half.tensors[name].dtype.name for name in ("a", "b", "c", "d")] == [
        "float16",
        "float32",
        "float32",
        "float16",
    ]
    assert (half.inputs["x"].dtype, half.outputs["y"].dtype) == (np.float16, np.float16)


def test_a_weight_that_an_island_shares_keeps_every_digit():
    operators = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "m1"),
        helper.make_node("MatMul", ["a", "w"], ["y"], "m2"),
    ]
    m = model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": normal(4, 4)})
    half = gm.retype(m, "float16", keep="MatMul[name=m2]")
    np.testing.assert_array_equal(half.initializer("w"), m.initializer("w"))
    assert [op.output[0] for op in casts(half)] == ["x_float16", "w_float16", "a_float32"]


def test_weights_too_large():
    w = np.array([[1, 7e4], [np.inf, 3]], np.float32)
    m = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 2]}, {"y": ["n", 2]}, {"w": w})
    with pytest.raises(gm.RefusedError, match="'w' holds"):
        gm.retype(m, "float16")
    found = gm.retype(m, "float16", saturate=True).initializer("w")
    np.testing.assert_array_equal(found, np.array([[1, 65504], [np.inf, 3]], np.float16))
    assert gm.retype(m, "bfloat16").initializer("w")[0, 1] == ml_dtypes.bfloat16(7e4)


def test_masks_and_epsilons():
    """The largest float32 stands for infinity, and one over the square root of no variance is no division by zero."""
    lowest = np.finfo(np.float32).min
    operators = [
        helper.make_node("Where", ["c", "x", "low"], ["a"]),
        helper.make_node("Softmax", ["a"], ["s"], axis=-1),
        helper.make_node("Add", ["zero", "eps"], ["v"]),
        helper.make_node("Mul", ["s", "zero"], ["z"]),
        helper.make_node("Div", ["z", "v"], ["d"]),
        helper.make_node("Add", ["s", "d"], ["y"]),
    ]
    weights = {
        "c": np.array([[True, False, True]]),
        "low": lowest,
        "eps": np.float32(1e-12),
        "zero": np.zeros(1, np.float32),
    }
    m = model(operators, {"x": ["n", 3]}, {"y": ["n", 3]}, weights)
    half = gm.retype(m, "float16")
    assert half.initializer("low") == np.float16(-65504)
    assert error(m, half, {"x": normal(5, 3)}) < 1e-3


def test_positions_keep_their_precision():
    """Rotary angles of positions past 2,048, which float16 cannot tell apart."""
    operators = [
        helper.make_node("Cast", ["p"], ["f"], to=F),
        helper.make_node("Mul", ["f", "rate"], ["angle"]),
        helper.make_node("Sin", ["angle"], ["s"]),
        helper.make_node("Floor", ["angle"], ["whole"]),
        helper.make_node("Cast", ["whole"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Mul", ["x", "s"], ["y"]),
    ]
    graph = helper.make_graph(
        operators, "g",
        [info("p", TensorProto.INT64, ["n", 1]), info("x", F, ["n", 3])],
        [info("y", F, ["n", 3]), info("turns", TensorProto.INT64, ["n", 3])],
        [numpy_helper.from_array(np.array([1, 0.3, 0.1], np.float32), "rate")],
    )  # fmt: skip
    m = gm.load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    feeds = {"p": np.arange(4000, 4020).reshape(-1, 1), "x": normal(20, 3)}
    half = gm.retype(m, "float16")
    np.testing.assert_array_equal(half.run(feeds)["turns"], m.run(feeds)["turns"])
    assert error(m, half, feeds) < 2e-3


@pytest.mark.parametrize("to", ["float16", "bfloat16"])
def test_what_a_schema_does_not_allow_stays(to):
    operators = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Resize", ["a", "", "scales"], ["b"], mode="linear"),
        helper.make_node("QuantizeLinear", ["b", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    weights = {
        "w": normal(2, 2, 1, 1),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "scale": np.float32(0.1),
        "zero": np.uint8(128),
    }
    m = model(operators, {"x": ["n", 2, 4, 4]}, {"y": ["n", 2, 8, 8]}, weights)
    narrow = gm.retype(m, to)
    assert narrow.initializers["scales"].data_type == F
    assert narrow.initializers["scale"].data_type == F
    x = normal(3, 2, 4, 4)
    assert np.abs(m.run({"x": x})["y"] - narrow.run({"x": x})["y"]).max() < 0.11  # one step of the quantization


def loop_and_scan():
    """Return a Loop that carries a float and collects floats, and a Scan, with constants and captures inside."""
    looped = helper.make_graph(
        [
            helper.make_node("Constant", [], ["half"], value_float=0.5),
            helper.make_node("Mul", ["carried", "half"], ["h"]),
            helper.make_node("Add", ["h", "a"], ["next"]),
            helper.make_node("RandomNormalLike", ["next"], ["noise"]),
            helper.make_node("Sub", ["noise", "noise"], ["nothing"]),
            helper.make_node("Add", ["next", "nothing"], ["row"]),
            helper.make_node("Identity", ["go"], ["going"]),
        ],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("carried", F, None)],
        [info("going", TensorProto.BOOL, []), info("next", F, None), info("row", F, None)],
    )
    scanned = helper.make_graph(
        [helper.make_node("Add", ["state", "item"], ["sum"]), helper.make_node("Tanh", ["sum"], ["out"])],
        "scan",
        [info("state", F, [2, 4]), info("item", F, [2, 4])],
        [info("sum", F, [2, 4]), info("out", F, [2, 4])],
    )
    operators = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "m"),
        helper.make_node("Loop", ["times", "", "x"], ["l", "rows"], "loop", body=looped),
        helper.make_node("Scan", ["l", "rows"], ["last", "all"], "scan", body=scanned, num_scan_inputs=1),
        helper.make_node("ReduceSum", ["all"], ["r"], keepdims=0, noop_with_empty_axes=0),
        helper.make_node("Add", ["last", "r"], ["y"], "end"),
    ]
    return model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": normal(4, 4), "times": np.array(3)})


@pytest.mark.parametrize("keep", [None, "Loop", "Scan", "Loop|Scan", "MatMul"])
def test_subgraphs(keep):
    m, x = loop_and_scan(), normal(2, 4)
    half = gm.retype(m, "float16", keep=keep)
    assert error(m, half, {"x": x}) < 5e-3
    for operator in half.operators:
        for attribute in operator.attribute:
            kinds = {v.type.tensor_type.elem_type for v in (*attribute.g.input, *attribute.g.output)} & {1, 10}
            assert not kinds or kinds == {1 if keep and operator.op_type in keep else 10}
    back = gm.retype(half, "float32")
    assert [op.op_type for op in back.operators] == [op.op_type for op in m.operators]
    np.testing.assert_allclose(back.run({"x": x})["y"], m.run({"x": x})["y"], rtol=2e-2, atol=1e-2)
    assert error(m, gm.retype(m, "bfloat16", keep=keep), {"x": x}) < 5e-2


def test_every_source_of_floats():
    operators = [
        helper.make_node("Constant", [], ["c1"], value_floats=[1.0, 2.0, 3.0]),
        helper.make_node("ConstantOfShape", ["s"], ["c2"]),
        helper.make_node("ConstantOfShape", ["s"], ["c3"], value=numpy_helper.from_array(np.array([0.25], np.float32))),
        helper.make_node("EyeLike", ["x"], ["eye"], dtype=F),
        helper.make_node("MatMul", ["x", "eye"], ["e"]),
        helper.make_node("Greater", ["x", "c2"], ["positive"]),
        helper.make_node("Cast", ["positive"], ["c4"], to=F),
        helper.make_node("OneHot", ["ids", "depth", "values"], ["hot"]),
        helper.make_node("CastLike", ["ids", "x"], ["c5"]),
        helper.make_node("Sum", ["e", "c1", "c2", "c3", "c4", "hot", "c5", "sparse"], ["y"]),
    ]
    weights = {
        "s": np.array([3, 3]),
        "ids": np.array([0, 2, 1]),
        "depth": np.array(3),
        "values": np.array([-1, 1], np.float32),
    }
    proto = model(operators, {"x": [3, 3]}, {"y": [3, 3]}, weights).proto()
    sparse = proto.graph.sparse_initializer.add(dims=[3, 3])
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([5, 7], np.float32), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1, 8]), "sparse_indices"))
    m, x = gm.load(proto), normal(3, 3)
    half = gm.retype(m, "float16")
    assert len(casts(half)) == 3  # at input and output, and the one that was there
    assert error(m, half, {"x": x}) < 1e-2


def test_functions_stay_as_they_are():
    body = helper.make_function(
        "own", "Twice", ["a"], ["b"],
        [helper.make_node("Constant", [], ["two"], value_float=2.0), helper.make_node("Mul", ["a", "two"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Twice", ["m"], ["y"], "call", domain="own")],
        "g", [helper.make_tensor_value_info("x", F, ["n", 2])], [helper.make_tensor_value_info("y", F, ["n", 2])],
        [numpy_helper.from_array(normal(2, 2), "w")],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    m = gm.load(helper.make_model(graph, ir_version=8, opset_imports=imports, functions=[body]))
    half = gm.retype(m, "float16")
    assert half.functions == m.functions
    assert [op.op_type for op in half.operators] == ["Cast", "MatMul", "Cast", "Twice"]
    assert error(m, half, {"x": normal(3, 2)}) < 1e-2


def test_operators_of_onnx_runtime_s_own():
    operators = [
        helper.make_node("FusedMatMul", ["x", "w"], ["a"], domain="com.microsoft", alpha=0.5),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    proto = model(operators[1:], {"a": ["n", 4]}, {"y": ["n", 4]}, {"w": normal(4, 4)}).proto()
    proto.graph.node.insert(0, operators[0])
    proto.graph.input[0].name = "x"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    m = gm.load(proto)
    half = gm.retype(m, "float16")
    assert [op.op_type for op in half.operators] == ["Cast", "FusedMatMul", "Relu", "Cast"]
    assert error(m, half, {"x": normal(3, 4)}) < 1e-2


def test_float64_becomes_float32():
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": normal(4, 4)}
    ).proto()
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(RNG.normal(size=(4, 4)), "w"))
    m = gm.load(proto)
    single = gm.retype(m, "float32", keep_io=False)
    assert single.initializers["w"].data_type == F
    x = RNG.normal(size=(3, 4))
    assert error(m, single, {"x": x}, {"x": x.astype(np.float32)}) < 1e-5


def test_external_weights_and_annotations(tmp_path):
    m = zoo.network("vgg", "torchscript").model
    onnx.save(m.proto(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    kept_beside = gm.load(tmp_path / "m.onnx")
    half = gm.retype(kept_beside, "float16")
    half.save(tmp_path / "half.onnx")
    feeds = zoo.network("vgg", "torchscript").feeds
    assert error(half, gm.load(tmp_path / "half.onnx"), feeds) == 0
    assert error(half, gm.retype(m, "float16"), feeds) == 0


def test_nothing_to_do_and_refusals():
    m = zoo.network("vgg", "torchscript").model
    assert gm.retype(m, "float32") is m
    with pytest.raises(gm.RefusedError, match="no operator matches"):
        gm.retype(m, "float16", keep="LSTM")
    with pytest.raises(gm.RefusedError, match="no type to compute in"):
        gm.retype(m, "float8")
