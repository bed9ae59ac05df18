"""Inlining functions of any make, against ONNX Runtime on the model with its functions."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphmod as gm
from graphmod.errors import RefusedError

OPSET = helper.make_opsetid("", 17)
OWN = helper.make_opsetid("own", 1)


def function(name, inputs, outputs, operators, attributes=(), opsets=(OPSET,)):
    return helper.make_function("own", name, inputs, outputs, operators, list(opsets), list(attributes))


def call(name, inputs, outputs, **attributes):
    return helper.make_node(name, inputs, outputs, name=f"{name}_{outputs[0]}", domain="own", **attributes)


def built(operators, functions, outputs=("out",), weights=None, shape=("n", 4)):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name in ("x", *outputs)]
    initializers = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(operators, "graph", values[:1], values[1:], initializers)
    return helper.make_model(graph, functions=functions, opset_imports=[OPSET, OWN], ir_version=10)


def assert_equal(proto, found):
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    for name, value in gm.load(proto).run({"x": x}).items():
        np.testing.assert_allclose(found.run({"x": x})[name], value, rtol=1e-5, atol=1e-6)


def leaky():
    body = function("Leaky", ["a"], ["b"], [helper.make_node("LeakyRelu", ["a"], ["b"], "leak")], ["alpha"])
    body.node[0].attribute.append(
        onnx.AttributeProto(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    )
    body.node[0].metadata_props.add(key="origin", value="line 3")
    return body


def twice():
    inner = [call("Leaky", ["a"], ["m"], alpha=0.5), call("Leaky", ["m"], ["b"], alpha=0.25)]
    return function("Twice", ["a"], ["b"], inner, opsets=[OPSET, OWN])


def test_attributes_nesting_and_names():
    proto = built([call("Twice", ["x"], ["m"]), call("Leaky", ["m"], ["out"], alpha=0.1)], [leaky(), twice()])
    found = gm.inline(gm.load(proto))
    assert [operator.op_type for operator in found.operators] == ["LeakyRelu"] * 3
    assert len(set(found.operator_names)) == 3
    assert [operator.metadata_props[0].value for operator in found.operators] == ["line 3"] * 3
    assert not found.functions
    assert [entry.domain for entry in found._proto.opset_import] == [""]
    assert_equal(proto, found)


def test_chosen_functions_alone():
    proto = built([call("Twice", ["x"], ["m"]), call("Leaky", ["m"], ["out"], alpha=0.1)], [leaky(), twice()])
    found = gm.inline(gm.load(proto), ["own::Leaky"])
    assert [operator.op_type for operator in found.operators] == ["Twice", "LeakyRelu"]
    assert [len(one.node) for one in found.functions] == [2]
    assert_equal(proto, found)
    with pytest.raises(RefusedError, match="no function 'own::Other'; it has own::Leaky, own::Twice"):
        gm.inline(gm.load(proto), ["own::Other"])


def test_a_call_in_a_branch_that_captures():
    inner = [call("Leaky", ["h"], ["r"], alpha=0.3)]
    result = [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    other = [helper.make_tensor_value_info("s", TensorProto.FLOAT, None)]
    branches = {
        "then_branch": helper.make_graph(inner, "yes", [], result),
        "else_branch": helper.make_graph([helper.make_node("Neg", ["h"], ["s"])], "no", [], other),
    }
    operators = [helper.make_node("Tanh", ["x"], ["h"]), helper.make_node("If", ["flag"], ["out"], **branches)]
    proto = built(operators, [leaky()], weights={"flag": np.array(True)})
    found = gm.inline(gm.load(proto))
    assert not found.functions
    assert_equal(proto, found)


def test_an_output_that_is_an_input_or_given_twice():
    body = function("Hand", ["a"], ["a", "b", "b"], [helper.make_node("Relu", ["a"], ["b"])])
    proto = built([call("Hand", ["x"], ["p", "q", "r"])], [body], outputs=("p", "q", "r"))
    found = gm.inline(gm.load(proto))
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    results = found.run({"x": x})
    np.testing.assert_array_equal(results["p"], x)
    for name in ("q", "r"):
        np.testing.assert_array_equal(results[name], np.maximum(x, 0))


def test_optional_inputs_and_outputs_left_out():
    clip = function("Clip6", ["a", "low"], ["b", "c"], [
        helper.make_node("Clip", ["a", "low"], ["b"]), helper.make_node("Neg", ["b"], ["c"]),
    ])  # fmt: skip
    proto = built([call("Clip6", ["x", ""], ["", "m"]), call("Clip6", ["m", "low"], ["out"])], [clip],
                  weights={"low": np.array(-0.5, np.float32)})  # fmt: skip
    found = gm.inline(gm.load(proto))
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(found.run({"x": x})["out"], np.maximum(-x, -0.5))


def test_scope_of_the_call_and_of_the_body():
    body = leaky()
    body.node[0].metadata_props.add(key="graphmod.scope", value="act")
    proto = built([call("Leaky", ["x"], ["out"], alpha=0.1)], [body])
    proto.graph.node[0].metadata_props.add(key="graphmod.scope", value="layer1.0")
    assert gm.graph.scope(gm.inline(gm.load(proto)).operators[0]) == "layer1.0.act"


def test_names_of_bodies_that_the_graph_has_too():
    body = function("Body", ["x"], ["out"], [
        helper.make_node("Relu", ["x"], ["h"], "same"), helper.make_node("Neg", ["h"], ["out"], "same2"),
    ])  # fmt: skip
    operators = [
        helper.make_node("Tanh", ["x"], ["h"], "same"),
        call("Body", ["h"], ["h__1"]),
        call("Body", ["h__1"], ["out"]),
    ]
    proto = built(operators, [body])
    found = gm.inline(gm.load(proto))
    made = [name for operator in found.operators for name in operator.output]
    assert len(made) == len(set(made)) == 5
    assert_equal(proto, found)


def test_functions_of_other_versions():
    older = helper.make_opsetid("", 16)
    same = function("Same", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets=[older])
    proto = built([call("Same", ["x"], ["out"])], [same])
    assert [operator.op_type for operator in gm.inline(gm.load(proto)).operators] == ["Relu"]
    much_older = helper.make_opsetid("", 11)
    changed = function("Changed", ["a"], ["b"], [helper.make_node("Softmax", ["a"], ["b"])], opsets=[much_older])
    with pytest.raises(RefusedError, match=r"'own::Changed' uses Softmax of version 11 .* the model imports 17"):
        gm.inline(gm.load(built([call("Changed", ["x"], ["out"])], [changed])))


def test_functions_in_a_circle_are_refused():
    body = function("Round", ["a"], ["b"], [call("Round", ["a"], ["b"])], opsets=[OPSET, OWN])
    with pytest.raises(RefusedError, match="recursive"):
        gm.inline(gm.load(built([call("Round", ["x"], ["out"])], [body])))


def test_external_weights_stay_where_they_are(tmp_path):
    body = function("Linear", ["a", "w"], ["b"], [helper.make_node("MatMul", ["a", "w"], ["b"])])
    weight = np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    proto = built([call("Linear", ["x", "w"], ["out"])], [body], weights={"w": weight})
    inside = gm.load(proto).proto()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, size_threshold=0, location="weights.bin")
    found = gm.inline(gm.load(path))
    assert found._proto.graph.initializer[0].data_location == TensorProto.EXTERNAL
    np.testing.assert_array_equal(found.initializer("w"), weight)
    assert_equal(inside, found)
