"""What cannot be imported is refused in one sentence that names the operator and the tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from graphmod.errors import GraphmodError, InvalidModelError, UnsupportedOperatorError
from graphmod.pytorch import to_torch


def model_of(*nodes, opset=17, domains=(), initializers=(), outputs=("y",)):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs], list(initializers),
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def node(op_type, inputs, outputs, **attributes):
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def test_all_that_is_missing_is_listed_before_any_weight_is_read():
    model = model_of(
        node("Foo", "x w", "a", domain="custom", name="first"),
        node("Relu", "a", "b"),
        node("Bar", "b", "y", domain="custom"),
        domains=["custom"],
        initializers=[TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[0])],
    )
    with pytest.raises(UnsupportedOperatorError) as caught:
        to_torch(model)
    assert "2 operator(s)" in str(caught.value)
    for part in ("'first' (Foo, domain 'custom', opset 1)", "'y' (Bar, domain 'custom', opset 1)"):
        assert part in str(caught.value)


def shifted():
    model = model_of(node("Gemm", "x w", "y"), initializers=[numpy_helper.from_array(np.ones((4, 4), np.float32), "w")])
    model.graph.initializer[0].raw_data = b"\0" * 12
    return model


def empty():
    model = shifted()
    model.graph.initializer[0].ClearField("raw_data")
    return model


def mistyped():
    model = model_of(node("Concat", "x x", "y", axis=1, name="join"))
    model.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("axis", 1.0))
    return model


BAD = {
    "cycle": (model_of(node("Add", "x b", "a", name="sum"), node("Relu", "a", "b"), node("Neg", "b", "y")),
              r"'sum' \(Add\) reads tensor 'b', which only a later operator makes"),
    "dangling": (model_of(node("Add", "x nothing", "y", name="sum")),
                 r"'sum' \(Add\) reads tensor 'nothing', which nothing makes"),
    "made twice": (model_of(node("Relu", "x", "y"), node("Neg", "x", "y", name="again")),
                   r"'again' \(Neg\) makes tensor 'y', which is there already"),
    "no output": (model_of(node("Relu", "x", "y"), outputs=("z",)), "nothing makes the graph's output 'z'"),
    "too little data": (shifted(), r"'w' has 12 bytes of data; its shape \[4, 4\] needs 64"),
    "no data": (empty(), r"'w' of shape \[4, 4\] has no data"),
    "attribute's type": (mistyped(), r"'axis' of operator 'join' \(Concat\) is of type FLOAT; opset 17 wants INT"),
    "attribute unknown": (model_of(node("Relu", "x", "y", from_the_future=1, name="act")),
                          r"'from_the_future' of operator 'act' \(Relu\) is none that opset 17 knows"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_invalid_models(case):
    model, message = BAD[case]
    with pytest.raises(InvalidModelError, match=message):
        to_torch(model)


def test_an_opset_newer_than_known_is_refused():
    with pytest.raises(UnsupportedOperatorError, match="operator set 99; the newest"):
        to_torch(model_of(node("Relu", "x", "y"), opset=99))


def test_sparse_weights_are_refused():
    model = model_of(node("MatMul", "x w", "y"))
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [5])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 4]))
    with pytest.raises(UnsupportedOperatorError, match="'w' is sparse"):
        to_torch(model)


def test_only_single_precision_can_be_asked_for():
    with pytest.raises(GraphmodError, match=r"as torch\.float32"):
        to_torch(model_of(node("Relu", "x", "y")), dtype=torch.float64)


def test_a_function_that_calls_itself_is_refused():
    model = model_of(node("f", "x", "y", domain="own"), domains=["own"])
    call = helper.make_node("f", ["a"], ["b"], domain="own")
    model.functions.append(helper.make_function("own", "f", ["a"], ["b"], [call], [helper.make_opsetid("own", 1)]))
    with pytest.raises(InvalidModelError, match="function"):
        to_torch(model)
