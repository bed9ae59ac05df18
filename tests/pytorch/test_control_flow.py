"""If, Loop, Scan, sequences and optionals; their bodies' weights train and go back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper, parser
from torch import nn

from graphmod.errors import RefusedError
from graphmod.model import load
from graphmod.pytorch import to_torch, write_back
from graphmod.pytorch.operators.control import If

rng = np.random.default_rng(0)


def values(*shape):
    return rng.normal(size=shape).astype(np.float32)


def agree(model, net, **feeds):
    with torch.no_grad():
        made = net(*(torch.from_numpy(np.asarray(x)) for x in feeds.values()))
    expected = model.run({key: np.asarray(x) for key, x in feeds.items()})
    for actual, wanted in zip(made if isinstance(made, tuple) else (made,), expected.values(), strict=True):
        np.testing.assert_allclose(actual.numpy(), wanted, rtol=1e-5, atol=1e-5)


def branch(name, weight):
    """Return a body of its own weights that reads a tensor of the graph around it."""
    product = helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_h"])
    result = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["n", 3])
    weights = [numpy_helper.from_array(weight, f"{name}_w")]
    return helper.make_graph(
        [product, helper.make_node("Relu", [f"{name}_h"], [f"{name}_y"])], name, [], [result], weights
    )


def model_with_if(condition="c", initializers=()):
    node = helper.make_node(
        "If", [condition], ["y"], then_branch=branch("a", values(4, 3)), else_branch=branch("b", values(4, 3))
    )
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    if not initializers:
        inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    graph = helper.make_graph(
        [node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])], list(initializers)
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_if_owns_its_branches_and_their_weights_train():
    model = model_with_if()
    net = to_torch(model)
    x = values(5, 4)
    for condition in (True, False):
        agree(model, net, x=x, c=np.array(condition))
    assert len(list(net.parameters())) == 2
    assert {type(m) for m in net.modules()} >= {If, nn.Linear, nn.ReLU}
    assert write_back(model, net) is model

    net(torch.from_numpy(x), torch.tensor(True)).sum().backward()
    grads = [p.grad is not None for p in net.parameters()]
    assert grads == [True, False]
    torch.optim.SGD(net.parameters(), 0.1).step()
    trained = write_back(model, net)
    for condition in (True, False):
        agree(trained, net, x=x, c=np.array(condition))
    before, after = ({a.name: a.g for a in m.operators[0].attribute} for m in (model, trained))
    assert before["else_branch"] == after["else_branch"]
    assert before["then_branch"] != after["then_branch"]


@pytest.mark.parametrize("condition", [True, False])
def test_an_if_of_a_constant_takes_its_branch(condition):
    model = model_with_if("k", [numpy_helper.from_array(np.array(condition), "k")])
    net = to_torch(model)
    agree(model, net, x=values(5, 4))
    assert If not in {type(m) for m in net.modules()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.5)
    agree(write_back(model, net), net, x=values(5, 4))


def test_an_if_of_a_static_size_takes_its_branch():
    """What the TorchScript exporter makes of squeeze."""
    model = load(
        parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n, 1, 4] x) => (float[n, 4] y)
        <int64 one = {1}, int64[1] axis = {1}> {
            s = Shape(x)
            d = Gather(s, one)
            c = Equal(d, one)
            y = If(c) <
                then_branch = t () => (float[n, 4] a) { a = Squeeze(x, axis) },
                else_branch = e () => (float[n, 1, 4] b) { b = Identity(x) }
            >
        }""")
    )
    net = to_torch(model)
    agree(model, net, x=values(3, 1, 4))
    assert "If" not in str(net)
    assert "size(" not in net.code


LOOP = """
    <ir_version: 8, opset_import: ["": 17]>
    g (int64 trips, bool go, float[2, 3] x) => (float[2, 3] last, float[k, 2, 3] all)
    <float[3, 3] w = {0.1, 0.2, -0.3, 0.4, -0.5, 0.6, 0.7, 0.1, 0.2}, float[1] most = {50.0}> {
        last, all = Loop(trips, go, x) <
            body = b (int64 i, bool c, float[2, 3] h) => (bool again, float[2, 3] next, float[2, 3] seen) {
            p = MatMul(h, w)
            next = Add(p, x)
            seen = Identity(next)
            size = ReduceMax<keepdims = 0>(next)
            again = Less(size, most)
        }>
    }"""


@pytest.mark.parametrize("trips", [0, 1, 4])
def test_loop(trips):
    model = load(parser.parse_model(LOOP))
    net = to_torch(model)
    agree(model, net, trips=np.array(trips), go=np.array(True), x=values(2, 3))
    agree(model, net, trips=np.array(trips), go=np.array(False), x=values(2, 3))


def test_gradients_through_a_loop_are_those_of_the_formula():
    net = to_torch(parser.parse_model(LOOP))
    x = torch.from_numpy(values(2, 3))
    last, _ = net(torch.tensor(3), torch.tensor(True), x)
    last.square().sum().backward()
    (found,) = [p.grad for p in net.parameters()]
    (held,) = net.parameters()
    w = held.detach().clone().requires_grad_()
    ((((x @ w.T + x) @ w.T) + x) @ w.T + x).square().sum().backward()
    assert torch.allclose(found, w.grad, rtol=1e-5) or torch.allclose(found.T, w.grad, rtol=1e-5)


def test_a_loop_that_never_ends_is_refused():
    proto = parser.parse_model(LOOP)
    proto.graph.node[0].input[0] = ""
    proto.graph.node[0].name = "forever"
    net = to_torch(proto, max_iterations=20)
    with pytest.raises(RefusedError, match="'forever' has run 20 times"):
        net(torch.tensor(0), torch.tensor(True), torch.zeros(2, 3))


def test_scan_both_ways():
    body = "b (float[3] h, float[3] row) => (float[3] next, float[3] seen) { next = Add(h, row) seen = Mul(next, w) }"
    for direction in (0, 1):
        model = load(
            parser.parse_model(f"""
            <ir_version: 8, opset_import: ["": 17]>
            g (float[3] h, float[n, 3] x) => (float[3] last, float[n, 3] all)
            <float[3] w = {{1.0, 2.0, 3.0}}> {{
                last, all = Scan(h, x) <num_scan_inputs = 1, scan_input_directions = [{direction}],
                    scan_output_directions = [{direction}], body = {body}>
            }}""")
        )
        agree(model, to_torch(model), h=values(3), x=values(5, 3))


def test_weights_shared_by_a_graph_and_a_body_are_one_parameter():
    model = load(
        parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n, 3] x, bool c) => (float[n, 3] y)
        <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}> {
            h = MatMul(x, w)
            y = If(c) <
                then_branch = t () => (float[n, 3] a) { a = MatMul(h, w) },
                else_branch = e () => (float[n, 3] b) { b = Identity(h) }
            >
        }""")
    )
    net = to_torch(model)
    assert len(list(net.parameters())) == 1
    with torch.no_grad():
        next(net.parameters()).mul_(0.1)
    trained = write_back(model, net)
    for condition in (True, False):
        agree(trained, net, x=values(2, 3), c=np.array(condition))


def test_sequences_are_lists_and_optionals_are_values():
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n, 4] x) => (float[n, 2] last, int64 length, seq(float[n, 2]) parts)
        <int64 two = {2}, int64 minus = {-1}> {
            parts = SplitToSequence<axis = 1>(x, two)
            last = SequenceAt(parts, minus)
            length = SequenceLength(parts)
        }""")
    x = torch.from_numpy(values(3, 4))
    last, length, parts = to_torch(model)(x)
    assert isinstance(parts, list)
    assert int(length) == 2
    assert torch.equal(torch.cat(parts, 1), x)
    assert torch.equal(last, x[:, 2:])


def test_many_branches_share_weights():
    nodes, current = [], "x"
    for i in range(20):
        body = [helper.make_node("Add", [current, f"w{i % 3}"], [f"t{i}"])]
        other = [helper.make_node("Mul", [current, f"w{(i + 1) % 3}"], [f"e{i}"])]
        branches = [
            helper.make_graph(
                inner, name, [], [helper.make_tensor_value_info(f"{name[0]}{i}", TensorProto.FLOAT, None)]
            )
            for name, inner in (("then", body), ("else", other))
        ]
        nodes.append(helper.make_node("If", ["c"], [f"y{i}"], then_branch=branches[0], else_branch=branches[1]))
        current = f"y{i}"
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    weights = [numpy_helper.from_array(values(4), f"w{i}") for i in range(3)]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info(current, TensorProto.FLOAT, ["n", 4])], weights
    )
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    net = to_torch(model)
    assert len(list(net.parameters())) == 3
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)
    trained = write_back(model, net)
    for condition in (True, False):
        agree(trained, net, x=values(2, 4), c=np.array(condition))
