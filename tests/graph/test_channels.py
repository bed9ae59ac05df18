"""The axis of channels: networks in either layout, written so that shapes alone cannot tell."""

import time

import numpy as np
import pytest
import zoo
from handmade import model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import graphmod as gm
from graphmod.graph import channel_axis
from graphmod.graph import channels as module

RNG = np.random.default_rng(5)
N = 6
"""Channels, and positions too: all axes but the batch have this size."""


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


WEIGHTS = {
    "conv": normal(N, N, 1), "square": normal(N, N), "vector": normal(N), "column": normal(N, 1),
    "grid": normal(1, N, N), "one": normal(1), "table": normal(10, N), "one_axis": np.array([1]),
}  # fmt: skip


def axes_of(operators, rank=3, outputs=("y",), opset=17):
    network = model(operators, {"x": ["n", *[N] * (rank - 1)]}, {name: None for name in outputs}, WEIGHTS, opset)
    return {name: channel_axis(network, name) for name in ("x", *network.producer)}


def op(op_type, inputs, output, **attributes):
    return helper.make_node(op_type, inputs.split(), output.split(), **attributes)


def test_each_side_of_a_transpose_is_judged_by_its_own_operators():
    found = axes_of(
        [
            op("Conv", "x conv", "a"),
            op("Relu", "a", "b"),
            op("Transpose", "b", "c", perm=[0, 2, 1]),
            op("Add", "c grid", "d"),
            op("MatMul", "d square", "y"),
        ]
    )
    assert found == {"x": 1, "a": 1, "b": 1, "c": -1, "d": -1, "y": -1}


def test_tokens_are_mixed_along_what_was_the_axis_of_positions():
    found = axes_of(
        [
            op("LayerNormalization", "x vector vector", "a"),
            op("Transpose", "a", "b", perm=[0, 2, 1]),
            op("MatMul", "b square", "c"),
            op("Gelu", "c", "d"),
            op("MatMul", "d square", "e"),
            op("Transpose", "e", "f", perm=[0, 2, 1]),
            op("Add", "f x", "y"),
        ],
        opset=20,
    )
    assert set(found.values()) == {-1}


@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        (op("BatchNormalization", "a vector vector vector vector", "b"), 1),
        (op("InstanceNormalization", "a vector vector", "b"), 1),
        (op("LRN", "a", "b", size=3), 1),
        (op("GlobalAveragePool", "a", "b"), 1),
        (op("GlobalMaxPool", "a", "b"), 1),
        (op("MatMul", "a square", "b"), -1),
        (op("MatMul", "a vector", "b"), -1),
        (op("LayerNormalization", "a vector", "b"), -1),
        (op("LayerNormalization", "a vector", "b", axis=-1), -1),
        (op("Add", "a vector", "b"), -1),
        (op("Mul", "vector a", "b"), -1),
    ],
)
def test_what_an_operator_tells_of_what_it_reads(operator, expected, rank):
    found = axes_of([op("Tanh", "x", "a"), operator, op("Neg", "b", "y")], rank)
    assert (found["x"], found["a"]) == (expected, expected)
    if "vector" not in operator.input[1:] or operator.op_type != "MatMul":
        assert (found["b"], found["y"]) == (expected, expected)


@pytest.mark.parametrize(
    ("operator", "by_rank"),
    [
        (op("Neg", "a", "b"), {3: -1, 4: 1, 5: 1}),
        (op("MatMul", "a a", "b"), {3: -1, 4: 1, 5: 1}),
        (op("Add", "a one", "b"), {3: -1, 4: 1, 5: 1}),
        (op("Add", "a square", "b"), {3: -1, 4: 1, 5: 1}),
        (op("Softmax", "a", "b"), {3: -1, 4: 1, 5: 1}),
        (op("ReduceMean", "a", "b", axes=[-1]), {3: -1, 4: 1, 5: 1}),
        (op("LayerNormalization", "a grid", "b", axis=1), {3: -1, 4: 1, 5: 1}),
        (op("MatMul", "square a", "b"), {3: 1, 4: 1, 5: 1}),
        (op("Mul", "a column", "b"), {3: 1, 4: 1, 5: 1}),
        (op("Transpose", "a", "b"), {3: -1, 4: 1, 5: 1}),
    ],
)
def test_where_no_operator_tells_the_number_of_axes_does(operator, by_rank):
    for rank, expected in by_rank.items():
        if operator.op_type == "LayerNormalization" and rank > 3:
            continue
        found = axes_of([op("Tanh", "x", "a"), operator, op("Neg", "b", "y")], rank)
        assert (found["x"], found["a"]) == (expected, expected), rank


def test_of_two_axes_it_is_always_the_last():
    for operator in (op("BatchNormalization", "x vector vector vector vector", "y"), op("Gemm", "x square", "y")):
        assert set(axes_of([operator], 2).values()) == {-1}


def test_an_embedding_makes_channels_on_the_last_axis():
    operators = [op("ArgMax", "x", "i", axis=-1, keepdims=0), op("Gather", "table i", "e"), op("Neg", "e", "y")]
    found = axes_of(operators, 4)
    assert (found["e"], found["y"]) == (-1, -1)


def test_a_recurrent_operator_makes_channels_on_the_last_of_four_axes():
    weights = {"w": normal(1, 4 * N, N), "r": normal(1, 4 * N, N)}
    operators = [op("LSTM", "x w r", "h", hidden_size=N), op("Tanh", "h", "y")]
    network = model(operators, {"x": [N, "n", N]}, {"y": None}, weights)
    assert [channel_axis(network, name) for name in ("x", "h", "y")] == [-1, -1, -1]


def test_the_nearest_operator_tells_and_of_two_as_near_the_one_that_data_come_from():
    middle = [op("Neg", f"t{i}", f"t{i + 1}") for i in range(4)]
    found = axes_of([op("Conv", "x conv", "t0"), *middle, op("MatMul", "t4 square", "y")])
    assert [found[f"t{i}"] for i in range(5)] == [1, 1, 1, -1, -1]
    found = axes_of([op("MatMul", "x square", "t0"), *middle, op("Conv", "t4 conv", "y")])
    assert [found[f"t{i}"] for i in range(5)] == [-1, -1, -1, 1, 1]


def test_readers_that_disagree_tell_nothing():
    both = [op("Conv", "b conv", "c"), op("MatMul", "b square", "d"), op("Add", "c d", "y")]
    assert axes_of([op("Abs", "x", "b"), *both])["b"] == -1
    found = axes_of([op("MaxPool", "x", "a", kernel_shape=[1]), op("Abs", "a", "b"), *both])
    assert (found["b"], found["c"], found["d"]) == (1, 1, -1)
    assert found["y"] == 1  # either is as near; the first stands


def test_a_normalization_written_out_is_told_by_its_scale():
    found = axes_of(
        [
            op("ReduceMean", "x", "m", axes=[-1]),
            op("Sub", "x m", "d"),
            op("Mul", "d d", "q"),
            op("ReduceMean", "q", "v", axes=[-1]),
            op("Sqrt", "v", "s"),
            op("Div", "d s", "n"),
            op("Mul", "n vector", "w"),
            op("Add", "w vector", "y"),
        ],
        4,
    )
    assert set(found.values()) == {-1}


def test_axes_are_followed_through_moves_where_nothing_else_tells():
    nhwc = [
        op("Relu", "x", "a"),
        op("Transpose", "a", "b", perm=[0, 3, 1, 2]),
        op("GlobalAveragePool", "b", "c"),
        op("Transpose", "c", "d", perm=[0, 2, 3, 1]),
        op("Squeeze", "d one_axis", "e"),
        op("Unsqueeze", "e one_axis", "f"),
        op("Neg", "f", "y"),
    ]
    found = axes_of(nhwc, 4)
    assert found == {"x": -1, "a": -1, "b": 1, "c": 1, "d": -1, "e": -1, "f": -1, "y": -1}
    across = axes_of([op("MatMul", "x square", "a"), op("Transpose", "a", "y", perm=[1, 3, 0, 2])], 4)
    assert across["y"] == 1  # the last axis came to be the second
    lost = axes_of([op("MatMul", "x square", "a"), op("Transpose", "a", "y", perm=[0, 1, 3, 2])], 4)
    assert lost["y"] == 1  # it is neither the second nor the last now, so the number of axes decides


def reshaped(before, after, operator, weights):
    shape = {"shape": np.array([size if isinstance(size, int) else -1 for size in after])}
    operators = [operator, op("Reshape", "a shape", "b"), op("Neg", "b", "y")]
    return model(operators, {"x": list(before)}, {"y": None}, {**weights, **shape})


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (("n", 16, 6), ("n", 4, 4, 6), -1),  # tokens become an image
        (("n", 4, 4, 6), ("n", 16, 6), -1),
        (("n", 16, 6), ("n", 4, 24), -1),
        (("n", 16, 6), ("n", 4, 4, 2, 3), 1),  # channels were split
    ],
)
def test_the_last_axis_outlives_a_reshape_that_keeps_its_size(before, after, expected):
    network = reshaped(before, after, op("MatMul", "x w", "a"), {"w": normal(6, 6)})
    assert [channel_axis(network, name) for name in ("a", "b", "y")] == [-1, expected, expected]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((2, 6, 4, 5), (2, 6, 20), 1),
        ((2, 6, 20), (2, 6, 4, 5), 1),
        (("n", 6, 4, 5), ("n", 6, 20), 1),
        ((2, 6, 4, 5), (2, 24, 5), -1),  # channels were joined with something else
        ((4, 6, 4, 5), (2, 6, 40), -1),  # the second axis is 6 by chance
    ],
)
def test_the_second_axis_outlives_a_reshape_that_keeps_it_whole(before, after, expected):
    kernel = {"k": normal(6, 6, *[1] * (len(before) - 2))}
    network = reshaped(before, after, op("Conv", "x k", "a"), kernel)
    assert [channel_axis(network, name) for name in ("a", "b", "y")] == [1, expected, expected]
    marks = np.arange(int(np.prod(before)) if "n" not in before else 0)
    if marks.size:  # what NumPy says of it
        second = np.moveaxis(marks.reshape(before), 1, 0).reshape(6, -1)
        same = after[1] == 6 and np.array_equal(np.moveaxis(marks.reshape(after), 1, 0).reshape(6, -1), second)
        assert same == (expected == 1)


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("written", ["initializer", "Constant"])
def test_axes_of_a_squeeze_wherever_they_are_written(opset, written):
    if opset == 11:
        operators = [op("Unsqueeze", "x", "a", axes=[1])]
    elif written == "initializer":
        operators = [op("Unsqueeze", "x one_axis", "a")]
    else:
        operators = [helper.make_node("Constant", [], ["k"], value_ints=[1]), op("Unsqueeze", "x k", "a")]
    weights = {"kernel": normal(4, N, 1, 1)}
    operators += [op("Transpose", "a", "b", perm=[0, 3, 1, 2]), op("Conv", "b kernel", "y")]
    network = model(operators, {"x": ["n", N, N]}, {"y": None}, {**WEIGHTS, **weights}, opset)
    assert [channel_axis(network, name) for name in ("x", "a", "b", "y")] == [-1, -1, 1, 1]


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
def test_a_vision_transformer_as_torch_exports_it(zoo_network, exporter):
    vit = zoo_network("vit12", exporter).model
    found = {len(vit.tensors[b].shape): channel_axis(vit, b) for b in gm.boundaries(vit)[1:]}
    assert found == {3: -1, 2: -1}


@pytest.mark.parametrize(
    "name", ["vit12", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "bert", "gpt2"))]
)
def test_on_the_trunk_it_is_the_axis_that_pruning_removes_units_of(zoo_network, name):
    """Coupling rules find by other means, from the weights, along which axis of each tensor channels go."""
    network = zoo_network(name).model
    found = gm.groups(network)
    n_compared = 0
    for tensor in gm.boundaries(network):
        rank = len(network.tensors[tensor].shape)
        axes = [i for i, a in enumerate(found.analysis.axes[tensor]) if (np.asarray(found.unit_of[a]) >= 0).any()]
        if rank > 2 and len(axes) == 1:
            n_compared += 1
            assert axes[0] == channel_axis(network, tensor) % rank, tensor
    assert n_compared > 5


@pytest.mark.parametrize("layout", [1, -1])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_networks_of_one_layout(layout, data):
    """Whatever is chained, added and concatenated, one operator that tells is enough for all that hang together."""
    tensors, operators = ["x"], []
    for i in range(data.draw(st.integers(1, 12))):
        kind = data.draw(st.sampled_from(["Relu", "Add", "Concat", "Clip", "Split"]))
        one, other = (data.draw(st.sampled_from(tensors)) for _ in range(2))
        if kind == "Concat":
            operators += [op(kind, f"{one} {other}", f"c{i}", axis=2), op("Slice", f"c{i} s e a", f"t{i}")]
        elif kind == "Split":
            operators += [op(kind, one, f"h{i} g{i}", axis=2), op("Concat", f"h{i} g{i}", f"t{i}", axis=2)]
        else:
            operators.append(op(kind, f"{one} {other}" if kind == "Add" else one, f"t{i}"))
        tensors.append(f"t{i}")
    end = data.draw(st.sampled_from(tensors))
    operators.append(op("Conv", f"{end} conv", "y") if layout == 1 else op("MatMul", f"{end} square", "y"))
    bounds = {"s": np.array([0]), "e": np.array([N]), "a": np.array([2])}
    network = model(operators, {"x": ["n", N, N]}, {"y": None}, {**WEIGHTS, **bounds}, 17)
    assert {channel_axis(network, name) for name in ("x", *network.producer)} == {layout}


def test_inputs_and_outputs_that_are_left_out():
    weights = {"w": normal(1, 4 * N, N), "r": normal(1, 4 * N, N), "high": np.float32(1)}
    operators = [
        helper.make_node("LSTM", ["x", "w", "r"], ["", "h", ""], hidden_size=N),
        helper.make_node("Clip", ["h", "", "high"], ["y"]),
        helper.make_node("Conv", ["z", "k", ""], ["v"]),
    ]
    network = model(
        operators, {"x": [5, "n", N], "z": ["n", N, 4]}, {"y": None, "v": None}, {**weights, "k": WEIGHTS["conv"]}
    )
    assert {name: channel_axis(network, name) for name in "xhyzv"} == {"x": -1, "h": -1, "y": -1, "z": 1, "v": 1}


def test_tensors_without_axes():
    operators = [
        op("Conv", "x conv", "a"),
        op("ReduceSum", "a", "s", keepdims=0),
        op("Transpose", "s", "t"),
        op("Unsqueeze", "t zero", "u"),
        op("Squeeze", "u zero", "v"),
        op("Add", "a v", "y"),
    ]
    network = model(operators, {"x": ["n", N, N]}, {"y": None}, {**WEIGHTS, "zero": np.array([0])})
    assert [channel_axis(network, name) for name in "xastuvy"] == [1, 1, -1, -1, -1, -1, 1]


def test_bodies_tell_nothing_of_what_is_outside():
    """What an If makes is judged by what reads it; inside, a tensor of the same name can be another one."""
    inner = [
        helper.make_graph([op("MatMul", "a square", "b")], name, [], [helper.make_tensor_value_info("b", 1, None)])
        for name in ("then", "else")
    ]
    operators = [
        op("Relu", "x", "a"),
        op("ReduceMax", "x", "m", keepdims=0),
        op("Cast", "m", "c", to=9),
        helper.make_node("If", ["c"], ["d"], then_branch=inner[0], else_branch=inner[1]),
        op("Conv", "d conv", "y"),
    ]
    network = model(operators, {"x": ["n", N, N]}, {"y": None}, WEIGHTS)
    assert (channel_axis(network, "d"), channel_axis(network, "y"), channel_axis(network, "a")) == (1, 1, -1)


def test_a_tensor_that_is_not_there():
    with pytest.raises(gm.InvalidModelError, match="no tensor named 'nothing'"):
        channel_axis(gm.load(gm.demo.model_path()), "nothing")


@pytest.mark.parametrize("n", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_operators(monkeypatch, n):
    operators = [op("Conv", "x conv", "t0")]
    for i in range(0, n, 2):
        operators += [op("Relu", f"t{i}", f"t{i + 1}"), op("Add", f"t{i + 1} t0", f"t{i + 2}")]
    network = model(operators, {"x": ["n", N, N]}, {f"t{n}": None}, WEIGHTS)
    _ = network.tensors, network.reads
    start = time.process_time()
    assert channel_axis(network, f"t{n}") == 1
    assert time.process_time() - start < n / 10_000
    monkeypatch.setattr(module, "_Evidence", None)
    assert channel_axis(network, f"t{n // 2}") == 1  # all were decided at once
