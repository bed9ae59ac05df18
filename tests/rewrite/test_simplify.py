"""Simplifying: fewer operators, the same results, and nothing else lost."""

import numpy as np
import onnx
import pytest
from handmade import model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from random_graphs import random_graphs

import graphmod as gm
from graphmod.errors import RefusedError


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_equal(before, after, feeds):
    expected, found = before.run(feeds), after.run(feeds)
    assert list(expected) == list(found)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5 * np.abs(value).max(initial=0))


def types_of(built):
    return [operator.op_type for operator in built.operators]


NOISE = (
    "identity",
    "twin",
    "dropout",
    "cast",
    "dead",
    "constant",
    "weights",
    "shape",
    "twice",
    "real",
    "capture",
    "chunk",
)


@st.composite
def noisy(draw):
    """Draw graphs full of what can go; the operators that cannot are called ``real``."""
    operators, weights, current = [], {"one": np.array(1, np.int64)}, "x"
    tensors = ["x"]

    def add(op_type, reads, n_outputs=1, **attributes):
        made = [f"t{len(operators)}.{i}" for i in range(n_outputs)]
        node = helper.make_node(op_type, reads, made, f"op{len(operators)}", **attributes)
        node.doc_string, _ = "doc", node.metadata_props.add(key="origin", value=op_type)
        operators.append(node)
        return made[0]

    for number, kind in enumerate(draw(st.lists(st.sampled_from(NOISE), min_size=1, max_size=12))):
        other = draw(st.sampled_from(tensors))
        if kind == "identity":
            current = add("Identity", [current])
        elif kind == "twin":
            current = add("Add", [add("Tanh", [current]), add("Tanh", [current])])
        elif kind == "dropout":
            current = add("Dropout", [current], 2)
        elif kind == "cast":
            current = add("Cast", [current], to=TensorProto.FLOAT)
        elif kind == "dead":
            add("Exp", [current])
        elif kind == "constant":
            made = add("Mul", [add("Constant", [], value_float=0.5), add("Constant", [], value_floats=[2.0] * 4)])
            current = add("Add", [current, made])
        elif kind == "weights":
            weights[f"w{number}"], weights[f"v{number}"] = floats(4, 4), floats(4, 4)
            current = add("Add", [add("MatMul", [current, f"w{number}"]), add("MatMul", [other, f"v{number}"])])
        elif kind == "shape":
            shape = add("Shape", [other])
            weights["axis"] = np.array([0], np.int64)
            size = add("Unsqueeze", [add("Gather", [shape, "one"], axis=0), "axis"])
            first = add("Unsqueeze", [add("Gather", [shape, add("Constant", [], value_int=0)], axis=0), "axis"])
            current = add("Reshape", [current, add("Concat", [first, size], axis=0)])
        elif kind == "twice":
            current = add("Transpose", [add("Concat", [current], axis=1)], perm=[0, 1])
        elif kind == "capture":
            bodies = {
                f"{name}_branch": helper.make_graph(
                    [helper.make_node(op_type, [current], [f"b{number}{name}"])], name, [],
                    [helper.make_tensor_value_info(f"b{number}{name}", TensorProto.FLOAT, None)],
                )
                for name, op_type in (("then", "Tanh"), ("else", "Neg"))
            }  # fmt: skip
            weights["flag"] = np.array(True)
            current = add("If", ["flag"], **bodies)
        elif kind == "chunk":
            weights["halves"] = np.array([2, 2], np.int64)
            half = add("Split", [current, "halves"], 2, axis=1)
            current = add("Concat", [half, f"{half[:-1]}1"], axis=1)
        else:
            current = add("Sub", [current, other])
        tensors.append(current)
    outputs = draw(st.lists(st.sampled_from(tensors[1:]), max_size=3))
    shapes = {name: ["n", 4] for name in dict.fromkeys([*outputs, current])}
    proto = model(operators, {"x": ["n", 4]}, shapes, weights)._proto
    proto.doc_string = "a model"
    return gm.load(proto)


def check(built, feeds):
    found = gm.simplify(built)
    onnx.checker.check_model(found.proto())
    assert_equal(built, found, feeds)
    assert len(found.operators) <= len(built.operators)
    for field in ("input", "output"):
        assert list(getattr(found._proto.graph, field)) == list(getattr(built._proto.graph, field))
    before = {operator.name: operator for operator in built.operators}
    for operator in found.operators:  # those that stay are what they were, but for what they read
        old = before[operator.name]
        assert (operator.op_type, operator.doc_string) == (old.op_type, old.doc_string)
        assert list(operator.metadata_props) == list(old.metadata_props)
    assert gm.simplify(found) is found
    return found


@settings(max_examples=120, deadline=None)
@given(noisy())
def test_noise_goes_and_results_stay(built):
    found = check(built, {"x": floats(3, 4)})
    outputs = set(found.outputs)
    for operator in found.operators:
        at_the_end = outputs & {*operator.input, *operator.output} or operator.input[0] == "x"
        assert operator.op_type not in ("Identity", "Dropout", "Cast", "Shape", "Constant") or at_the_end
        assert operator.op_type != "Exp" or outputs & set(operator.output)


@settings(max_examples=60, deadline=None)
@given(random_graphs())
def test_any_graph_stays_equal(graph):
    check(gm.load(graph.proto), graph.feeds())


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(noisy())
def test_much_noise_goes_and_results_stay(built):
    check(built, {"x": floats(3, 4)})


FEWER = {
    ("gpt2", "torchscript"): 0.4,
    ("vit12", "torchscript"): 0.5,
    ("vit12", "current"): 0.9,
    ("two_outputs", "current"): 1,
}


@pytest.mark.parametrize(("name", "exporter"), FEWER)
def test_networks(zoo_network, name, exporter):
    network = zoo_network(name, exporter)
    found = gm.simplify(network.model)
    assert len(found.operators) <= FEWER[name, exporter] * len(network.model.operators)
    assert_equal(network.model, found, network.feeds)
    other = {key: np.concatenate([value] * 3)[:5] for key, value in network.feeds.items()}  # another batch size
    assert_equal(network.model, found, other)


def test_shape_arithmetic_of_a_dynamic_batch():
    operators = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Gather", ["s", "two"], ["w"]),
        helper.make_node("Div", ["w", "two"], ["half"]),
        *(helper.make_node("Unsqueeze", [name, "axis"], [f"{name}1"]) for name in ("n", "half")),
        helper.make_node("Concat", ["n1", "minus", "half1"], ["shape"], axis=0),
        helper.make_node("Concat", ["n1", "three", "two1", "half1"], ["full"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["a"]),
        helper.make_node("Reshape", ["a", "full"], ["b"]),
    ]
    weights = {"zero": 0, "two": 2, "axis": [0], "minus": [-1], "three": [3], "two1": [2]}
    weights = {name: np.array(value, np.int64) for name, value in weights.items()}
    built = model(operators, {"x": ["n", 3, 8]}, {"b": ["n", 3, 2, 4]}, weights)
    found = gm.simplify(built)
    assert types_of(found)[-1] == "Reshape"
    assert list(found.initializer(found.operators[-1].input[1])) == [-1, 3, 2, 4]
    for n in (1, 5):
        assert_equal(built, found, {"x": floats(n, 3, 8)})


def test_wrong_annotations_are_not_believed():
    operators = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Shape", ["h"], ["y"])]
    proto = model(operators, {"x": ["n", 4]}, {})._proto
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.INT64, [2]))
    proto.graph.node.append(helper.make_node("Add", ["y", "y"], ["z"]))
    proto.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [7, 4]))
    built = gm.load(proto)
    assert gm.simplify(built) is built


def test_no_constant_explodes():
    operators = [
        helper.make_node("Expand", ["small", "huge"], ["e"]),
        helper.make_node("ReduceMean", ["e"], ["m"], keepdims=0),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    weights = {"small": floats(1), "huge": np.array([10**4, 10**4], np.int64)}
    built = model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, weights)
    assert gm.simplify(built) is built
    smaller = model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, {**weights, "huge": np.array([10, 10], np.int64)})
    assert types_of(gm.simplify(smaller)) == ["Add"]
    assert types_of(gm.simplify(smaller, limit=20)) == ["Expand", "ReduceMean", "Add"]


def test_a_constant_does_not_grow():
    operators = [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
    for side, left in ((8, ["Add"]), (64, ["ConstantOfShape", "Add"])):
        sizes = {"s": np.array([side, side], np.int64)}
        built = model(operators, {"x": [side, side]}, {"y": [side, side]}, sizes)
        assert types_of(gm.simplify(built)) == left


def test_files_that_list_weights_among_inputs():
    operators = [helper.make_node("ConstantOfShape", ["s"], [name]) for name in "ab"]
    operators += [helper.make_node("Add", pair, [made]) for pair, made in (("xa", "h"), ("hb", "y"))]
    proto = model(operators, {"x": ["n", 4], "s": [1]}, {"y": ["n", 4]}, {"s": np.array([4], np.int64)})._proto
    proto.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    proto.ir_version = 3
    built = gm.load(onnx.ModelProto.FromString(proto.SerializeToString()))
    found = gm.simplify(built)
    assert types_of(found) == ["Add", "Add"]
    assert list(found.inputs) == ["x"]
    assert [value.name for value in found._proto.graph.input] == ["x", *found.initializers]
    assert_equal(built, found, {"x": floats(3, 4)})


def test_random_operators_and_quantised_weights_stay():
    operators = [
        *(helper.make_node("RandomNormal", [], [f"r{i}"], shape=[4]) for i in range(2)),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["d"]),
        *(helper.make_node("Add", [a, b], [c]) for a, b, c in (("x", "r0", "a"), ("a", "r1", "b"), ("b", "d", "y"))),
    ]
    weights = {"w": np.ones(4, np.int8), "scale": np.array(0.5, np.float32)}
    built = model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, weights)
    assert gm.simplify(built) is built


def test_defaults_that_a_caller_can_override_are_no_constants():
    operators = [helper.make_node("Neg", ["w"], ["v"]), helper.make_node("Add", ["x", "v"], ["y"])]
    proto = model(operators, {"x": ["n", 4], "w": [4]}, {"y": ["n", 4]}, {"w": np.ones(4, np.float32)})._proto
    built = gm.load(proto)
    assert gm.simplify(built) is built
    old = onnx.ModelProto.FromString(proto.SerializeToString())
    old.ir_version = 3
    assert types_of(gm.simplify(gm.load(old))) == ["Add"]


def test_equal_weights_become_one_wherever_they_lie(tmp_path):
    values = {"a": floats(64, 64), "b": floats(64, 64), "c": floats(64, 64, seed=1)}
    steps = [helper.make_node("MatMul", [read, w], [made]) for read, w, made in zip("xhi", "abc", "hiy", strict=True)]
    built = model(steps, {"x": ["n", 64]}, {"y": ["n", 64]}, values)
    path = tmp_path / "model.onnx"
    onnx.save(built.proto(), path, save_as_external_data=True, size_threshold=0, location="weights.bin")
    for one in (built, gm.load(path)):
        found = gm.simplify(one)
        assert list(found.initializers) == ["a", "c"]
        assert_equal(built, found, {"x": floats(2, 64)})
    assert found._proto.graph.initializer[0].data_location == TensorProto.EXTERNAL


def test_unread_weights_functions_unknown_operators_and_sparse_weights():
    proto = model(
        [helper.make_node("Relu", ["x"], ["h"])], {"x": ["n", 4]}, {"y": ["n", 4]}, {"idle": floats(3)}
    )._proto
    values, indices = numpy_helper.from_array(floats(1), "s"), numpy_helper.from_array(np.array([2]), "s_indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    proto.graph.node.extend([
        helper.make_node("Gelu", ["h"], ["g"], domain="com.microsoft"),
        helper.make_node("Own", ["g"], ["o"], domain="own"),
        helper.make_node("Add", ["o", "s"], ["y"]),
    ])  # fmt: skip
    body = [helper.make_node("Identity", ["a"], ["b"])]
    proto.functions.append(helper.make_function("own", "Own", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    proto.opset_import.extend([helper.make_opsetid("own", 1), helper.make_opsetid("com.microsoft", 1)])
    built = gm.load(proto)
    found = gm.simplify(built)
    assert types_of(found) == types_of(built)
    assert found.functions == built.functions
    assert not found.initializers
    assert found._proto.graph.sparse_initializer == proto.graph.sparse_initializer
    assert_equal(built, found, {"x": floats(2, 4)})


def test_constants_that_cannot_be_computed_are_a_refusal():
    operators = [helper.make_node("Gather", ["w", "far"], ["g"]), helper.make_node("Add", ["x", "g"], ["y"])]
    built = model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": floats(3, 4), "far": np.array(7)})
    with pytest.raises(RefusedError, match="cannot be computed"):
        gm.simplify(built)


def test_a_limit_below_0_is_refused_and_0_folds_nothing():
    built = model([helper.make_node("Neg", ["w"], ["v"]), helper.make_node("Add", ["x", "v"], ["y"])],
                  {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": floats(4)})  # fmt: skip
    with pytest.raises(RefusedError, match=r"at least 0, not -1$"):
        gm.simplify(built, limit=-1)
    assert types_of(gm.simplify(built, limit=0)) == ["Neg", "Add"]
    assert types_of(gm.simplify(built)) == ["Add"]
