"""Arithmetic on shapes becomes Python integers, and gives what ONNX Runtime gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from graphmod.model import load
from graphmod.pytorch import to_torch
from graphmod.pytorch.sizes import quotient


def graph_of(nodes, constants, shape=("n", 3, "m"), result="y"):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info(result, TensorProto.INT64, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


BINARY = ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min")
NUMBERS = st.integers(-4, 4)


@st.composite
def chains(draw):
    """Return operators that compute a vector from the shape of x, and their constants."""
    nodes, constants, current = [helper.make_node("Shape", ["x"], ["t0"])], {}, "t0"
    length = 3
    for step in range(1, draw(st.integers(1, 6)) + 1):
        kind = draw(st.sampled_from(("binary", "gather", "slice", "concat", "where", "reshape", "cast", "reduce")))
        made, name = f"t{step}", f"c{step}"
        if kind == "binary":
            op_type = draw(st.sampled_from(BINARY))
            numbers = draw(st.lists(NUMBERS, min_size=length, max_size=length))
            if op_type in ("Div", "Mod"):
                numbers = [number or 2 for number in numbers]
            constants[name] = np.array(numbers, np.int64)
            nodes.append(helper.make_node(op_type, [current, name], [made]))
        elif kind == "gather":
            picked = draw(st.lists(st.integers(-length, length - 1), min_size=1, max_size=4))
            constants[name], length = np.array(picked, np.int64), len(picked)
            nodes.append(helper.make_node("Gather", [current, name], [made]))
        elif kind == "slice":
            step_by = draw(st.sampled_from((1, 2, -1)))
            bounds = (0, length) if step_by > 0 else (length - 1, -length - 1)
            for index, value in enumerate((*bounds, 0, step_by)):
                constants[f"{name}_{index}"] = np.array([value], np.int64)
            nodes.append(helper.make_node("Slice", [current, *(f"{name}_{i}" for i in range(4))], [made]))
            length = len(range(length)[:: abs(step_by)])
        elif kind == "concat":
            constants[name] = np.array([draw(NUMBERS)], np.int64)
            nodes.append(helper.make_node("Concat", [current, name], [made], axis=0))
            length += 1
        elif kind == "where":
            constants[name] = np.array([draw(NUMBERS)], np.int64)
            nodes.append(helper.make_node("Less", [current, name], [f"{made}_less"]))
            nodes.append(helper.make_node("Where", [f"{made}_less", name, current], [made]))
        elif kind == "reshape":
            constants[name], constants[f"{name}_back"] = np.array([1, -1], np.int64), np.array([-1], np.int64)
            nodes.append(helper.make_node("Reshape", [current, name], [f"{made}_matrix"]))
            nodes.append(helper.make_node("Transpose", [f"{made}_matrix"], [f"{made}_turned"], perm=[1, 0]))
            nodes.append(helper.make_node("Reshape", [f"{made}_turned", f"{name}_back"], [made]))
        elif kind == "cast":
            nodes.append(helper.make_node("Cast", [current], [f"{made}_small"], to=TensorProto.INT32))
            nodes.append(helper.make_node("Cast", [f"{made}_small"], [made], to=TensorProto.INT64))
        else:
            nodes.append(helper.make_node("ReduceProd", [current], [made], axes=[0], keepdims=1))
            length = 1
        current = made
    nodes.append(helper.make_node("Identity", [current], ["y"]))
    return nodes, constants


@settings(max_examples=150, deadline=None)
@given(chains(), st.integers(1, 5), st.integers(1, 5))
def test_any_chain_gives_what_onnx_runtime_gives(chain, n, m):
    model = graph_of(*chain)
    net = to_torch(model)
    x = np.zeros((n, 3, m), np.float32)
    np.testing.assert_array_equal(net(torch.from_numpy(x)).numpy(), model.run({"x": x})["y"])


def test_a_reshape_by_sizes_is_written_as_one_would():
    net = to_torch(
        parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n, 3, m] x) => (float[n, k] y) <int64 zero = {0}, int64[1] axis = {0}, int64[1] rest = {-1}> {
            s = Shape(x)
            d = Gather(s, zero)
            u = Unsqueeze(d, axis)
            t = Concat<axis = 0>(u, rest)
            y = Reshape(x, t)
        }""")
    )
    assert [node.op for node in net.graph.nodes] == ["placeholder", "call_method", "call_function", "output"]
    assert "torch.reshape(x, [size, -1])" in net.code
    assert net(torch.zeros(2, 3, 5)).shape == (2, 15)


def test_what_static_sizes_decide_is_fixed():
    """Even through floats: half the width, rounded up."""
    net = to_torch(
        parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[n, 7] x) => (float[n, k] y)
        <int64 one = {1}, float two = {2.0}, int64[1] axis = {0}, int64[1] zero = {0}, int64[1] last = {1}> {
            s = Shape(x)
            d = Gather(s, one)
            f = Cast<to = 1>(d)
            h = Div(f, two)
            c = Ceil(h)
            i = Cast<to = 7>(c)
            e = Unsqueeze(i, axis)
            y = Slice(x, zero, e, last)
        }""")
    )
    assert "slice(None, 4, None)" in net.code
    assert net(torch.zeros(2, 7)).shape == (2, 4)


@pytest.mark.parametrize(("left", "right"), [(7, 2), (-7, 2), (7, -2), (-7, -2), (0, 3)])
def test_division_goes_towards_zero(left, right):
    assert quotient(left, right) == int(np.trunc(left / right))
