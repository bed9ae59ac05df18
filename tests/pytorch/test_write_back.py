"""Weights go back into the graph, and nothing else in it changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch import nn

from graphmod.errors import RefusedError
from graphmod.model import load
from graphmod.pytorch import to_torch, write_back

rng = np.random.default_rng(0)


def weight(name, *shape, dtype=np.float32):
    return numpy_helper.from_array(rng.normal(size=shape).astype(dtype), name)


def model_of(nodes, initializers, n_in=4, opset=17, ir_version=8, rank=2):
    shape = ["n", n_in, *[6] * (rank - 2)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *[None] * (rank - 1)])],
        initializers,
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version))


def perturb(net):
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in (*net.parameters(), *(b for b in net.buffers() if b.is_floating_point() and b.ndim)):
            tensor += torch.rand(tensor.shape).to(tensor.dtype)
    return net


def agree(model, net, *shape):
    x = rng.normal(size=shape or (3, 4)).astype(np.float32)
    with torch.no_grad():
        actual = net(torch.from_numpy(x)).numpy()
    expected = model.run({"x": x})["y"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def node(op_type, inputs, outputs, **attributes):
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


LINEAR = {
    "gemm": ([node("Gemm", "x w b", "y")], (4, 3)),
    "gemm turned": ([node("Gemm", "x w b", "y", transB=1)], (3, 4)),
    "matmul and add": ([node("MatMul", "x w", "h"), node("Add", "h b", "y")], (4, 3)),
    "add and matmul": ([node("MatMul", "x w", "h"), node("Add", "b h", "y")], (4, 3)),
    "behind identity": ([node("Identity", "w", "v"), node("Gemm", "x v b", "y")], (4, 3)),
    "behind transpose": ([node("Transpose", "w", "v"), node("Gemm", "x v b", "y")], (3, 4)),
}


@pytest.mark.parametrize("case", LINEAR)
def test_layouts_are_turned_back(case):
    nodes, shape = LINEAR[case]
    model = model_of(nodes, [weight("w", *shape), weight("b", 3)])
    net = to_torch(model)
    assert [type(m) for m in net.children()] == [nn.Linear]
    agree(model, net)
    assert write_back(model, net) is model
    changed = write_back(model, perturb(net))
    agree(changed, net)
    assert [t.name for t in changed.proto().graph.initializer] == ["w", "b"]
    assert changed.operators == model.operators


def test_only_what_was_trained_changes():
    nodes = [node("Gemm", "x w b", "h"), node("Gemm", "h v b", "y")]
    model = model_of(nodes, [weight("w", 4, 4), weight("v", 4, 4), weight("b", 4)])
    net = to_torch(model)
    with torch.no_grad():
        net.get_parameter("gemm_1.weight").add_(1)
    changed = write_back(model, net)
    before, after = model.proto(), changed.proto()
    assert before.graph.initializer[0] == after.graph.initializer[0]
    assert before.graph.initializer[2] == after.graph.initializer[2]
    assert after.graph.initializer[1].raw_data != before.graph.initializer[1].raw_data
    after.graph.initializer[1].raw_data = before.graph.initializer[1].raw_data
    assert before.SerializeToString() == after.SerializeToString()


@pytest.mark.parametrize("ir_version", [3, 8])
def test_weights_that_operators_make_become_initializers(ir_version):
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])
    shape = numpy_helper.from_array(np.array([4, 3]), "shape")
    nodes = [
        node("ConstantOfShape", "shape", "w", value=value),
        node("Constant", "", "b", value=numpy_helper.from_array(np.ones(3, np.float32))),
        node("Gemm", "x w b", "y"),
    ]
    model = model_of(nodes, [shape], opset=9, ir_version=8)
    if ir_version == 3:
        proto = model.proto()
        proto.ir_version = 3
        proto.graph.input.append(helper.make_tensor_value_info("shape", TensorProto.INT64, [2]))
        model = load(proto)
    net = to_torch(model)
    agree(model, net)
    assert write_back(model, net) is model
    changed = write_back(model, perturb(net))
    agree(changed, net)
    assert [op.op_type for op in changed.operators] == ["Constant", "Gemm"]  # which holds its values itself
    assert set(changed.initializers) == {"w"}


def test_operators_that_something_else_reads_stay():
    nodes = [
        node("Split", "p", "w v", axis=0),
        node("MatMul", "x w", "h"),
        node("MatMul", "h v", "y"),
    ]
    model = model_of(nodes, [weight("p", 8, 4)], opset=13)
    net = to_torch(model)
    with torch.no_grad():
        net.get_parameter("matmul_1.weight").add_(1)
    changed = write_back(model, net)
    agree(changed, net)
    assert set(changed.initializers) == {"p", "w"}


def test_shared_weights_are_one_parameter_and_have_to_stay_so():
    model = model_of([node("MatMul", "x w", "h"), node("MatMul", "h w", "y")], [weight("w", 4, 4)])
    net = to_torch(model)
    assert len(list(net.parameters())) == 1
    changed = write_back(model, perturb(net))
    agree(changed, net)
    net.get_submodule("matmul_1").weight = nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(RefusedError, match="'w' is one weight"):
        write_back(model, net)


def test_a_weight_in_two_layouts_is_one_parameter():
    nodes = [node("MatMul", "x w", "h"), node("Transpose", "w", "t"), node("MatMul", "h t", "y")]
    model = model_of(nodes, [weight("w", 4, 3)])
    net = to_torch(model)
    assert len(list(net.parameters())) == 1
    agree(model, net)
    agree(write_back(model, perturb(net)), net)


def test_statistics_go_back_even_where_equal_ones_were_merged():
    norm = node("BatchNormalization", "x s c m v", "h", epsilon=1e-3)
    nodes = [norm, node("Dropout", "h r", "d"), node("Gemm", "d w b", "y")]
    values = [weight(name, 4) for name in "scmv"] + [numpy_helper.from_array(np.float32(0.1), "r")]
    values[3].raw_data = np.ones(4, np.float32).tobytes()
    model = model_of(nodes, [*values, weight("w", 4, 3), weight("b", 3)])
    net = to_torch(model)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
        elif isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.01
    assert write_back(model, net) is model


def test_the_model_may_be_given_as_a_proto():
    model = model_of([node("Gemm", "x w b", "y")], [weight("w", 4, 3), weight("b", 3)])
    assert write_back(model.proto(), to_torch(model)).digest == model.digest


@pytest.mark.parametrize("bias", [[0, 0, 0, 0], [0.0, -10000.0, 0, 0], [0.5, 1, 0, 0]])
def test_a_constant_is_one_weight_however_it_is_read(bias):
    """A layer trains it, an Add reads it: both change, in torch as in the graph."""
    model = load(
        parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n, 4] x) => (float[n, 4] y)
        <float[4] w = {{1, 1, 1, 1}}, float[4] b = {{{", ".join(map(str, bias))}}}> {{
            h = LayerNormalization(x, w, b)
            r = Sigmoid(h)
            y = Add(r, b)
        }}""")
    )
    net = to_torch(model)
    agree(write_back(model, perturb(net)), net)


def test_a_number_that_a_layer_trains_is_no_number():
    model = load(
        parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n, 1, 4] x) => (float[n, 1, 4] y)
        <float[1, 1, 1] w = {2}, float[1] b = {3}> {
            h = Conv(x, w, b)
            y = Mul(h, b)
        }""")
    )
    net = to_torch(model)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    x = torch.randn(2, 1, 4)
    np.testing.assert_allclose(write_back(model, net).run({"x": x.numpy()})["y"], net(x).detach().numpy(), rtol=1e-5)


def test_half_precision_that_would_overflow_is_refused():
    value = numpy_helper.from_array(np.ones((4, 3), np.float16), "w")
    graph = helper.make_graph(
        [node("MatMul", "x w", "y")], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 3])], [value],
    )  # fmt: skip
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    net = to_torch(model, dtype=torch.float32)
    with torch.no_grad():
        next(net.parameters()).mul_(1e6)
    with pytest.raises(RefusedError, match=r"weight 'w' back: a value of 1e\+06 is more than float16"):
        write_back(model, net)


def test_vectors_are_weights_and_numbers_are_not():
    model = load(
        parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n, 4] x) => (float[n, 4] y)
        <float[4] scale = {1, 2, 3, 4}, float half = {0.5}> {
            h = Mul(x, scale)
            y = Mul(h, half)
        }""")
    )
    net = to_torch(model)
    assert [name for name, _ in net.named_parameters()] == ["scale"]
    assert "0.5" in net.code
    agree(write_back(model, perturb(net)), net)


def round_trip(model, x):
    """Train for a step of noise, write back, and compare."""
    net = to_torch(model)
    assert write_back(model, net) is model
    perturb(net)
    with torch.no_grad():
        made = net(torch.from_numpy(x))
    made = made if isinstance(made, tuple) else (made,)
    for actual, expected in zip(made, write_back(model, net).run({"x": x}).values(), strict=True):
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-3, atol=2e-3)
    return net


def graph_model(nodes, weights, shape, outputs):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in outputs.items()], weights,
    )  # fmt: skip
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_both_outputs_of_an_operator_that_makes_weights():
    nodes = [node("Split", "b", "p q", axis=0), node("Mul", "x p", "h"), node("Add", "h q", "y")]
    model = graph_model(nodes, [weight("b", 12)], ("n", 6), {"y": ["n", 6]})
    round_trip(model, rng.normal(size=(3, 6)).astype(np.float32))


def lstm(direction, before=()):
    lstm_node = node("LSTM", "x W R B", "Y", hidden_size=3, direction=direction)
    directions = 2 if direction == "bidirectional" else 1
    return [*before, lstm_node], {"Y": ["t", directions, "n", 3]}


def test_gates_that_operators_put_together():
    """What exporters leave without constant folding."""
    before = [
        node("Concat", "wb rb", "b", axis=0),
        helper.make_node("Unsqueeze", ["b", "zero"], ["B"]),
        node("Concat", "w1 w2", "W", axis=0),
        node("Concat", "r1 r2", "R", axis=0),
    ]
    nodes, outputs = lstm("forward", before[:2])
    axis = numpy_helper.from_array(np.array([0]), "zero")
    values = [weight("W", 1, 12, 4), weight("R", 1, 12, 3), weight("wb", 12), weight("rb", 12), axis]
    model = graph_model(nodes, values, ("t", "n", 4), outputs)
    net = round_trip(model, rng.normal(size=(5, 2, 4)).astype(np.float32))
    assert any(isinstance(module, nn.LSTM) for module in net.modules())

    nodes, outputs = lstm("bidirectional", before[2:4])
    values = [weight(name, 1, 12, 4) for name in ("w1", "w2")] + [weight(name, 1, 12, 3) for name in ("r1", "r2")]
    values.append(weight("B", 2, 24))
    round_trip(graph_model(nodes, values, ("t", "n", 4), outputs), rng.normal(size=(5, 2, 4)).astype(np.float32))


def test_gates_that_something_else_reads_whole():
    nodes, outputs = lstm("forward")
    nodes = [*nodes, node("ReduceSum", "x", "s", keepdims=0), node("Mul", "W s", "z")]
    values = [weight("W", 1, 12, 4), weight("R", 1, 12, 3), weight("B", 1, 24)]
    model = graph_model(nodes, values, ("t", "n", 4), outputs | {"z": [1, 12, 4]})
    round_trip(model, rng.normal(size=(5, 2, 4)).astype(np.float32))


def test_a_weight_read_in_two_precisions_is_one_parameter():
    nodes = [
        node("MatMul", "x w", "h"),
        node("Cast", "w", "narrow", to=TensorProto.FLOAT16),
        node("Cast", "h", "small", to=TensorProto.FLOAT16),
        node("MatMul", "small narrow", "s"),
        node("Cast", "s", "y", to=TensorProto.FLOAT),
    ]
    model = graph_model(nodes, [weight("w", 4, 4)], ("n", 4), {"y": ["n", 4]})
    net = round_trip(model, rng.normal(size=(3, 4)).astype(np.float32))
    assert len(list(net.parameters())) == 1


def test_quantized_weights_are_cut_off_on_request():
    levels = numpy_helper.from_array(np.array([[100, -100], [50, 7], [1, 0], [0, 3]], np.int8), "q")
    scale = numpy_helper.from_array(np.float32(0.01), "s")
    nodes = [node("DequantizeLinear", "q s", "w"), node("MatMul", "x w", "y")]
    model = graph_model(nodes, [levels, scale], ("n", 4), {"y": ["n", 2]})
    net = to_torch(model)
    with torch.no_grad():
        next(net.parameters()).mul_(2)
    with pytest.raises(RefusedError, match=r"cannot write weight 'w' back: .*saturate=True"):
        write_back(model, net)
    changed = write_back(model, net, saturate=True)
    assert changed.initializer("q").tolist() == [[127, -128], [100, 14], [2, 0], [0, 6]]
