"""Surgery with onnx-graphsurgeon: what was not touched is byte for byte what it was, what was touched is right."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import zoo
from handmade import fan, model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper
from random_graphs import random_graphs

import graphmod as gm

RNG = np.random.default_rng(11)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def rich():
    """Return a model with all that onnx-graphsurgeon drops or does not know."""
    inner = helper.make_node("Mul", ["a", "factor"], ["b_then"], "inner", doc_string="inside")
    inner.metadata_props.add(key="origin", value="then")
    then = helper.make_graph(
        [inner], "then", [], [helper.make_tensor_value_info("b_then", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.float32([2]), "factor")], doc_string="a body",
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Add", ["a", "only_captured"], ["b_else"])], "else", [],
        [helper.make_tensor_value_info("b_else", TensorProto.FLOAT, ["n", 4])],
    )  # fmt: skip
    act = helper.make_function(
        "own", "Act", ["v"], ["w"],
        [helper.make_node("LeakyRelu", ["v"], ["u"], doc_string="leaky"), helper.make_node("Neg", ["u"], ["w"])],
        [helper.make_opsetid("", 17)], attributes=["alpha"],
    )  # fmt: skip
    act.node[0].attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    operators = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "product", doc_string="a product"),
        helper.make_node("If", ["flag"], ["b"], "choice", then_branch=then, else_branch=other),
        helper.make_node("Act", ["b"], ["c"], "call", domain="own", alpha=0.3),
        helper.make_node("Clip", ["c", "", "six"], ["d"], "clip"),
        helper.make_node("MatMul", ["d", "sparse"], ["y"], "last"),
    ]
    for number, operator in enumerate(operators):
        operator.metadata_props.add(key="line", value=str(number))
    values = numpy_helper.from_array(np.float32([1, 2, 3]), "sparse")
    sparse = SparseTensorProto(
        values=values, indices=numpy_helper.from_array(np.array([0, 5, 10]), "sparse_indices"), dims=[4, 4]
    )
    weights = {
        "w": normal(4, 4), "only_captured": normal(4), "flag": np.array(True), "six": np.float32(6), "idle": normal(2),
    }  # fmt: skip
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    initializers[0].doc_string = "the weight"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4], doc_string="the input")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    y.metadata_props.add(key="meaning", value="logits")
    shown = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4], doc_string=name.upper()) for name in "dab"
    ]
    graph = helper.make_graph(
        operators, "rich", [x], [y], initializers, "a graph", shown, sparse_initializer=[sparse]
    )  # fmt: skip
    graph.quantization_annotation.add(tensor_name="a").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="idle"
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    proto = helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=[act], producer_name="tests")
    proto.doc_string = "a model"
    helper.set_model_props(proto, {"author": "someone"})
    return gm.load(proto)


def test_nothing_done_is_no_edit():
    before = rich()
    with before.surgery() as g:
        pass
    assert g.model is before
    with before.surgery() as g:
        for tensor in g.tensors().values():
            if isinstance(tensor, gs.Constant) and tensor.name != "sparse":
                assert tensor.values is not None
    assert g.model is before


@pytest.mark.parametrize("name", ["resnet18", "two_outputs"])
@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
def test_nothing_done_to_the_zoo(name, exporter):
    before = zoo.network(name, exporter).model
    with before.surgery() as g:
        pass
    assert g.model is before


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs(), st.data())
def test_operators_changed_in_random_graphs(graph, data):
    before = gm.load(graph.proto)
    with before.surgery() as g:
        pass
    assert g.model is before
    changeable = [op.name for op in before.operators if op.op_type in ("Tanh", "Sigmoid", "Neg")]
    chosen = data.draw(st.sets(st.sampled_from(changeable))) if changeable else set()
    expected = before.proto()
    for operator in expected.graph.node:
        if operator.name in chosen:
            operator.op_type = "Abs"
    with before.surgery() as g:
        for node in g.nodes:
            if node.name in chosen:
                node.op = "Abs"
    assert g.model._proto.graph == expected.graph
    assert (g.model is before) == (not chosen)


def test_what_is_touched_keeps_the_rest_of_itself():
    before, x = rich(), normal(3, 4)
    content = before.proto().SerializeToString(deterministic=True)
    with before.surgery() as g:
        (clip,) = (node for node in g.nodes if node.op == "Clip")
        clip.op, clip.inputs = "Tanh", clip.inputs[:1]
        (choice,) = (node for node in g.nodes if node.op == "If")
        choice.attrs["then_branch"].nodes[0].op = "Add"
    after = g.model
    expected = before.proto()
    expected.graph.node[3].op_type = "Tanh"
    del expected.graph.node[3].input[1:]
    (then,) = (a.g for a in expected.graph.node[1].attribute if a.name == "then_branch")
    then.node[0].op_type = "Add"
    kept = [tensor for tensor in expected.graph.initializer if tensor.name != "six"]
    copies = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del expected.graph.initializer[:]
    expected.graph.initializer.extend(copies)
    assert after._proto.graph == expected.graph
    assert after._proto.functions == expected.functions
    np.testing.assert_array_equal(after.run({"x": x})["y"], gm.load(expected).run({"x": x})["y"])
    assert before.proto().SerializeToString(deterministic=True) == content
    assert {"author": "someone"}.items() <= after.metadata.items()


def test_new_operators_constants_and_outputs():
    before, x = fan([6, 5], RNG, (6,)), normal(3, 6)
    with before.surgery() as g:
        tensors = g.tensors()
        bias = gs.Constant("bias", normal(5))
        shifted = gs.Variable("shifted", np.float32, ["n", 5])
        g.nodes.append(gs.Node("Add", "shift", inputs=[tensors["m1"], bias], outputs=[shifted]))
        g.nodes[3].inputs[0] = shifted
        g.outputs.append(tensors["t0"])
        tensors["t0"].dtype, tensors["t0"].shape = np.float32, ["n", 6]
    after = g.model
    t0 = np.tanh(x @ before.initializer("w0"))
    found = after.run({"x": x})
    np.testing.assert_allclose(found["t0"], t0, atol=1e-6)
    np.testing.assert_allclose(found["t1"], np.tanh(t0 @ before.initializer("w1") + bias.values), atol=1e-6)
    onnx.checker.check_model(after.proto(), full_check=True)


def test_renamed_tensors_are_renamed_everywhere():
    before, x = rich(), normal(3, 4)
    with before.surgery() as g:
        tensors = g.tensors()
        tensors["a"].name, tensors["w"].name, tensors["y"].name = "alpha", "weight", "logits"
    after = g.model
    np.testing.assert_array_equal(after.run({"x": x})["logits"], before.run({"x": x})["y"])
    assert after._proto.graph.quantization_annotation[0].tensor_name == "alpha"
    assert after.initializers["weight"].doc_string == "the weight"
    assert {value.name for value in after._proto.graph.value_info} == {"d", "alpha", "b"}
    assert after.proto_outputs[0].metadata_props[0].value == "logits"


def test_values_of_weights_changed():
    before, x = rich(), normal(3, 4)
    with before.surgery() as g:
        tensors = g.tensors()
        tensors["w"].values = tensors["w"].values * 2
    assert g.model.initializers["w"].doc_string == "the weight"
    np.testing.assert_array_equal(g.model.initializer("w"), before.initializer("w") * 2)
    np.testing.assert_array_equal(g.model.run({"x": x})["y"], before.run({"x": 2 * x})["y"])


def test_functions_and_their_bodies():
    before, x = rich(), normal(3, 4)
    with before.surgery() as g:
        g.functions[0].nodes[1].op = "Abs"
    after = g.model
    assert after.functions[0].node[0] == before.functions[0].node[0]
    assert [op.op_type for op in after.functions[0].node] == ["LeakyRelu", "Abs"]
    expected = before.proto()
    expected.functions[0].node[1].op_type = "Abs"
    np.testing.assert_array_equal(after.run({"x": x})["y"], gm.load(expected).run({"x": x})["y"])


def test_values_in_files_are_not_read(tmp_path, monkeypatch):
    onnx.save(
        fan([6, 6], RNG, (6,)).proto(), tmp_path / "m.onnx",
        save_as_external_data=True, size_threshold=0, location="m.data",
    )  # fmt: skip
    before, x = gm.load(tmp_path / "m.onnx"), {"x": normal(3, 6)}
    with monkeypatch.context() as no_reading:
        no_reading.setattr(gm.model.initializers, "values", lambda *_: pytest.fail("values were read"))
        with before.surgery() as g:
            g.nodes[1].op = "Sigmoid"
    outside = [t.data_location for t in g.model._proto.graph.initializer]
    assert outside == [TensorProto.EXTERNAL] * 2
    with before.surgery() as looked:
        weight = looked.tensors()["w1"]
        weight.values = weight.values + 1
    first, second = looked.model._proto.graph.initializer
    assert (first.data_location, second.data_location) == (TensorProto.EXTERNAL, TensorProto.DEFAULT)
    np.testing.assert_array_equal(looked.model.initializer("w1"), before.initializer("w1") + 1)
    again = gm.load(looked.model.save(tmp_path / "n.onnx"))
    np.testing.assert_array_equal(again.run(x)["t1"], looked.model.run(x)["t1"])


def test_an_error_in_the_block_leaves_nothing_behind():
    before = rich()
    context = before.surgery()
    graphs = []

    def cut():
        with context as g:
            graphs.append(g)
            g.nodes.clear()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cut()
    assert context.model is None
    assert "model" not in vars(graphs[0])
    assert len(before.operators) == 5


def test_broken_graphs_are_no_models():
    before = fan([6, 5], RNG, (6,))
    with pytest.raises(gm.InvalidModelError), before.surgery() as g:
        del g.nodes[0]
    with pytest.raises(gm.InvalidModelError), before.surgery() as g:
        g.nodes[1].op = "Tank"
    with pytest.raises(gm.RefusedError, match="cannot be written"), before.surgery() as g:
        g.nodes[1].attrs["strange"] = object()
    with pytest.raises(gm.RefusedError, match="cannot be written"), before.surgery() as g:
        g.outputs = [gs.Variable("untyped")]
    with pytest.raises(gm.RefusedError, match="cannot be written"), before.surgery() as g:
        g.nodes[1].inputs.append(gs.Constant("objects", np.ones(3, object)))


def test_operator_sets():
    before, x = fan([6], RNG, (6,)), normal(2, 6)
    with before.surgery() as g:
        g.opset = 20
        g.nodes[1].op = "Gelu"
        g.nodes[0].name = "first"
    assert g.model.opset == 20
    with before.surgery() as g:
        g.nodes[1].op, g.nodes[1].domain = "QuickGelu", "com.microsoft"
    assert {one.domain: one.version for one in g.model._proto.opset_import} == {"": 17, "com.microsoft": 1}
    assert g.model.run({"x": x})["t0"].shape == (2, 6)


def test_old_files_list_initializers_among_their_inputs():
    proto = fan([6], RNG, (6,)).proto()
    proto.ir_version = 3
    proto.graph.input.insert(0, helper.make_tensor_value_info("w0", TensorProto.FLOAT, [6, 6], doc_string="listed"))
    before = gm.load(proto)
    with before.surgery() as g:
        pass
    assert g.model is before
    with before.surgery() as g:
        shift = gs.Constant("shift", normal(6))
        g.nodes[1].op = "Add"
        g.nodes[1].inputs.append(shift)
    assert [value.name for value in g.model._proto.graph.input] == ["w0", "x", "shift"]
    assert g.model._proto.graph.input[0].doc_string == "listed"
    onnx.checker.check_model(g.model.proto())


def test_constants_of_every_type():
    kinds = ["float16", "double", "int8", "uint8", "int64", "bool", "bfloat16", "int4", "float8e4m3fn", "string"]
    weights = [
        helper.make_tensor(
            kind, TensorProto.DataType.Value(kind.upper()), [2], [b"a", b"b"] if kind == "string" else [1, 0]
        )
        for kind in kinds
    ]
    operators = [helper.make_node("Cast", [kind], [f"{kind}_out"], to=TensorProto.FLOAT) for kind in kinds[:-1]]
    operators.append(helper.make_node("Equal", ["string", "string"], ["string_out"]))
    outputs = [helper.make_tensor_value_info(f"{kind}_out", TensorProto.FLOAT, [2]) for kind in kinds[:-1]]
    outputs.append(helper.make_tensor_value_info("string_out", TensorProto.BOOL, [2]))
    operators.append(helper.make_node("Neg", ["x"], ["y"], "neg"))
    io = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph(operators, "kinds", io[:1], [*io[1:], *outputs], weights)
    before = gm.load(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]))
    with before.surgery() as g:
        pass
    assert g.model is before
    with before.surgery() as g:
        for tensor in g.tensors().values():
            assert not isinstance(tensor, gs.Constant) or len(tensor.values) == 2
        g.nodes[-1].op = "Abs"
    assert g.model._proto.graph.initializer == before._proto.graph.initializer


def test_a_recipe_says_that_it_cannot_replay_an_edit_by_hand():
    before = fan([6, 6], RNG, (6,))
    with gm.remove(before, ("t0", "t1")).surgery() as g:
        g.nodes[0].name = "first"
    recipe = gm.Recipe.of(g.model)
    assert [edit.verb for edit in recipe] == ["remove", "surgery"]
    with pytest.raises(gm.GraphmodError, match=r"step 2 \(surgery\): an edit by hand"):
        gm.apply(recipe, before)
    assert gm.apply(recipe[:1], before).operators


def test_a_part_taken_with_graphsurgeons_own_means():
    network = zoo.network("vgg")
    before = network.model
    relu = next(op.output[0] for op in before.operators if op.op_type == "Relu")
    with before.surgery() as g:
        tensor = g.tensors()[relu]
        tensor.dtype, tensor.shape = np.float32, list(before.tensors[relu].shape)
        g.outputs = [tensor]
        g.cleanup().toposort()
    np.testing.assert_allclose(g.model.run(network.feeds)[relu], before.run(network.feeds, [relu])[relu], atol=1e-6)
    kept = {op.name: op for op in before.operators}
    assert all(op == kept[op.name] for op in g.model.operators)


def test_model_in_fp16_bodies_and_loops():
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["sum", "w"], ["next"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", 1, None)],
    )
    loop = helper.make_node("Loop", ["two", "", "x"], ["y"], "loop", body=body)
    before = model([loop], {"x": ["n", 4]}, {"y": ["n", 4]}, {"two": np.array(2), "w": normal(4, 4)})
    with before.surgery() as g:
        pass
    assert g.model is before
    x = normal(3, 4)
    with before.surgery() as g:
        inner = g.nodes[0].attrs["body"]
        product = gs.Variable("product")
        weight = inner.nodes[0].inputs[1]
        inner.nodes[0].outputs[0].name = "kept"
        inner.nodes[0].outputs = [product]
        scale = gs.Constant("scale", np.float32([3]))
        inner.nodes.insert(1, gs.Node("Mul", "scaled", inputs=[product, scale], outputs=[inner.outputs[1]]))
    np.testing.assert_allclose(g.model.run({"x": x})["y"], 9 * x @ weight.values @ weight.values, atol=1e-4)
