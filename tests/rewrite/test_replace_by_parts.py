"""Replacing by operators, models and modules, against the same change written into the file by hand."""

import subprocess
import sys

import numpy as np
import onnx
import onnx.backend.test.loader
import pytest
import torch
import zoo
from handmade import fan, model
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from random_graphs import random_graphs

import graphmod as gm
from graphmod.rewrite.expression import as_type

torch.set_num_threads(1)
RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs(), st.sampled_from(["Tanh", "Sigmoid", "Neg"]), st.sampled_from(["Softsign", "Elu", "Abs"]))
def test_an_operator_swapped_everywhere_in_random_graphs(graph, old, new):
    before = gm.load(graph.proto)
    assume(any(op.op_type == old for op in before.operators))
    expected = before.proto()
    for operator in expected.graph.node:
        operator.op_type = new if operator.op_type == old else operator.op_type
    after = gm.replace(before, old, by=new)
    onnx.checker.check_model(after.proto(), full_check=True)
    np.testing.assert_array_equal(after.run(graph.feeds())["out"], gm.load(expected).run(graph.feeds())["out"])
    assert [op.op_type for op in after.operators] == [op.op_type for op in expected.graph.node]
    assert [op.output for op in after.operators] == [op.output for op in expected.graph.node]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs(), st.data())
def test_a_part_taken_out_and_put_back_in_random_graphs(graph, data):
    before = gm.load(graph.proto)
    cuts = ["x", *graph.cuts]
    start = data.draw(st.integers(0, len(cuts) - 2))
    entry, exit_ = cuts[start], cuts[data.draw(st.integers(start + 1, len(cuts) - 1))]
    part = gm.extract(before, entry, exit_)
    try:
        after = gm.replace(before, (entry, exit_), other=part)
    except gm.RefusedError as refused:
        if "also makes" not in str(refused):
            raise
        event("refused")
        return
    onnx.checker.check_model(after.proto(), full_check=True)
    np.testing.assert_array_equal(after.run(graph.feeds())["out"], before.run(graph.feeds())["out"])
    assert after.inputs == before.inputs
    made = {op.op_type for op in after.operators}
    assert made == {op.op_type for op in before.operators}


@pytest.mark.parametrize(
    "name", ["vgg", "branching", "two_outputs", pytest.param("mobilenetv2", marks=pytest.mark.slow)]
)
def test_every_activation_of_the_zoo(name):
    network = zoo.network(name)
    for old in {op.op_type for op in network.model.operators} & {"Relu", "Clip"}:
        after = gm.replace(network.model, old, by="LeakyRelu(alpha=0.1)")
        expected = network.model.proto()
        for operator in expected.graph.node:
            if operator.op_type == old:
                operator.op_type = "LeakyRelu"
                del operator.input[1:]
                operator.attribute.append(helper.make_attribute("alpha", 0.1))
        x = network.feeds
        for one, other in zip(after.run(x).values(), gm.load(expected).run(x).values(), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)
        paths = [[block.path for block in gm.blocks(m).walk()] for m in (network.model, after)]
        assert paths[0] == [path.replace("leakyrelu", old.lower()) for path in paths[1]]


def test_what_an_expression_says():
    network = fan([6, 6], RNG, (6,))
    x = normal(5, 6)
    raw = network.run({"x": x}, ["m1"])["m1"]
    for text, expected in [
        ("Clip(min=-0.1, max=0.2)", np.clip(raw, -0.1, 0.2)),
        ("Clip(max=0.2)", np.minimum(raw, np.float32(0.2))),
        ("Sub(A=1)", 1 - raw),
        ("Mul(B=[1,2,3,4,5,6])", raw * np.arange(1, 7)),
        ("LeakyRelu(alpha=1)", raw),
        ("Sigmoid > Neg", -1 / (1 + np.exp(-raw))),
        ("Cast(to='float64') > Abs > Cast(to='FLOAT')", np.abs(raw)),
        ("Pad(pads=[0,1,0,1]) > Slice(starts=[1], ends=[7], axes=[1])", raw),
        ("com.microsoft::QuickGelu(alpha=1.702)", raw / (1 + np.exp(-1.702 * raw))),
        ("Identity", raw),
        ("Clip(min=-1e999)", raw),
        ("Cast(to='int64') > Mul(B=2.0) > Cast(to='float32')", 2 * np.trunc(raw)),
    ]:
        after = gm.replace(network, ("m1", "t1"), by=text)
        np.testing.assert_allclose(after.run({"x": x})["t1"], expected, atol=1e-6, err_msg=text)
    assert str(as_type("uint8[batch, 3, ?]")) == "uint8[batch, 3, ?]"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("HardSwosh", "no operator 'HardSwosh'"),
        ("Gelu", "Gelu came with operator set 20, and the model has 17"),
        ("LeakyRelu(beta=1)", "no parameter 'beta'.*it has alpha, X"),
        ("LeakyRelu(alpha='a')", "'alpha' is of type FLOAT"),
        ("Conv", "Conv also needs 'W'"),
        ("Add(A=1, B=2)", "none for the tensor"),
        ("Relu(1)", "cannot be read"),
        ("Relu + Relu", "cannot be read"),
        ("__import__('os').system('x')", "cannot be read"),
        ("ReduceMean(axes=[1])", "would make it"),
        ("Cast(to='float16')", "would make it"),
        ("QuantizeLinear(y_scale=1, y_zero_point=3)", "is one of"),
        ("com.microsoft::Gelu(x=None)", "'x' cannot be None"),
        ("Add(B='a')", "'B' of Add is a tensor of float32, and 'a' is none"),
        ("Add(B=[[1], [1, 2]])", "and .* is none"),
        ("Gather(indices=[[1], [1, 2]])", "'indices' of Gather is a tensor"),
        ("Add(B=None)", "which cannot hold None"),
        ("Add(B=1e300)", r"float32, which cannot hold 1e\+300"),
        ("Cast(to='uint8') > Add(B=256) > Cast(to='float32')", "uint8, which cannot hold 256"),
        ("Cast(to='uint8') > Mul(B=0.5) > Cast(to='float32')", "uint8, which cannot hold 0.5"),
        ("Cast(to='string') > Equal(B=1)", "cannot hold 1"),
    ],
)
def test_expressions_that_are_refused(text, match):
    network = fan([6, 6], RNG, (6,))
    with pytest.raises(gm.RefusedError, match=match):
        gm.replace(network, ("m1", "t1"), by=text)


def test_exactly_one_replacement():
    network = fan([6, 6], RNG, (6,))
    for told, match in [
        ({}, "say by what"),
        ({"by": "Relu", "other": network}, "either"),
        ({"data": normal(9, 6), "by": "Relu"}, "leave it out"),
    ]:
        with pytest.raises(gm.RefusedError, match=match):
            gm.replace(network, "Tanh", **told)


def test_shared_tensors_and_outputs_in_the_middle():
    operators = [
        helper.make_node("Relu", ["x"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "second"),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Relu", ["c"], ["y"], "third"),
    ]
    shapes = {name: ["n", 4] for name in ("a", "b", "y")}
    network = model(operators, {"x": ["n", 4]}, shapes)
    after = gm.replace(network, "Relu", by="Tanh")
    x = normal(3, 4)
    a = np.tanh(x)
    b = np.tanh(a)
    for name, value in {"a": a, "b": b, "y": np.tanh(a + b)}.items():
        np.testing.assert_allclose(after.run({"x": x})[name], value, atol=1e-6)
    assert [op.name for op in after.operators if op.op_type == "Tanh"] == ["a/Tanh", "b/Tanh", "y/Tanh"]


def looping():
    """Return a model that adds its input to a sum three times, with a weight that the loop's body captures."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["sum", "w"], ["product"]),
            helper.make_node("Add", ["product", "x"], ["next"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    loop = helper.make_node("Loop", ["three", "", "x"], ["y"], "loop", body=body)
    weights = {"three": np.array(3), "w": normal(4, 4)}
    return model([loop], {"x": ["n", 4]}, {"y": ["n", 4]}, weights)


def test_a_part_with_a_loop_whose_names_clash_with_those_of_the_model():
    part, x = looping(), normal(2, 4)
    operators = [
        helper.make_node("Tanh", ["x"], ["sum"]),
        helper.make_node("Neg", ["sum"], ["next"]),
        helper.make_node("Relu", ["next"], ["w"]),
        helper.make_node("Neg", ["w"], ["product"], "loop"),
    ]
    network = model(operators, {"x": ["n", 4]}, {"product": ["n", 4]})
    after = gm.replace(network, "Relu", other=part)
    expected = -part.run({"x": -np.tanh(x)})["y"]
    np.testing.assert_allclose(after.run({"x": x})["product"], expected, atol=1e-5)
    onnx.checker.check_model(after.proto(), full_check=True)


def calling(slope, opset=17):
    """Return a model whose only operator is a function ``own.Act`` that calls another."""
    leaky = helper.make_function(
        "own", "Leaky", ["v"], ["w"], [helper.make_node("LeakyRelu", ["v"], ["w"], alpha=slope)],
        [helper.make_opsetid("", opset)],
    )  # fmt: skip
    act = helper.make_function(
        "own", "Act", ["v"], ["w"], [helper.make_node("Leaky", ["v"], ["w"], domain="own")],
        [helper.make_opsetid("own", 1)],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Act", ["x"], ["y"], domain="own"), helper.make_node("Relu", ["x"], ["z"])],
        "calls",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("y", "z")],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return gm.load(helper.make_model(graph, ir_version=8, opset_imports=opsets, functions=[leaky, act]))


def test_functions_of_one_name_stay_apart():
    first, x = calling(0.1), normal(3, 4)
    after = gm.replace(first, "Relu", other=gm.extract(calling(0.5), "x", "y"))
    found = after.run({"x": x})
    np.testing.assert_allclose(found["y"], np.where(x < 0, x * np.float32(0.1), x), atol=1e-6)
    np.testing.assert_allclose(found["z"], np.where(x < 0, x * np.float32(0.5), x), atol=1e-6)
    assert len(after.functions) == 4
    same = gm.replace(first, "Relu", other=gm.extract(first, "x", "y"))
    assert len(same.functions) == 2
    np.testing.assert_array_equal(same.run({"x": x})["z"], found["y"])
    by_name = gm.replace(first, "Relu", by="own.Act")
    np.testing.assert_array_equal(by_name.run({"x": x})["z"], found["y"])


@pytest.mark.parametrize("opset", [9, 11, 13, 19])
def test_a_part_of_another_operator_set(opset):
    nodes = [helper.make_node("Softmax", ["a"], ["b"], axis=1), helper.make_node("Relu", ["b"], ["c"])]
    part = model(nodes, {"a": ["n", 2, 3]}, {"c": ["n", 2, 3]}, opset=opset)
    network = model([helper.make_node("Tanh", ["x"], ["y"])], {"x": ["n", 2, 3]}, {"y": ["n", 2, 3]})
    x = normal(4, 2, 3)
    after = gm.replace(network, "Tanh", other=part)
    np.testing.assert_allclose(after.run({"x": x})["y"], part.run({"a": x})["c"], atol=1e-6)
    assert after.opset == 17


def test_weights_in_files_stay_there(tmp_path):
    def saved(folder, width):
        network = fan([width, width], RNG, (width,))
        proto = network.proto()
        (tmp_path / folder).mkdir()
        onnx.save(proto, tmp_path / folder / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
        return gm.load(tmp_path / folder / "m.onnx")

    host, part, x = saved("a", 6), saved("b", 6), normal(3, 6)
    after = gm.replace(host, ("m0", "t0"), other=part)
    values = host.run({"x": x}, ["m0"])["m0"]
    expected = np.tanh(part.run({"x": values})["t1"] @ host.initializer("w1"))
    np.testing.assert_allclose(after.run({"x": x})["t1"], expected, atol=1e-5)
    outside = [t.name for t in after._proto.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert outside == ["w0", "w1"]
    again = gm.load(after.save(tmp_path / "c.onnx"))
    np.testing.assert_allclose(again.run({"x": x})["t1"], expected, atol=1e-5)
    within = gm.replace(host, ("m0", "t0"), other=gm.extract(host, "t0", "t1"))
    assert all(t.data_location == TensorProto.EXTERNAL for t in within._proto.graph.initializer)


def test_types_of_models_have_to_fit():
    network = fan([6, 6], RNG, (6,))
    two = gm.extract(network, "x", ["t0", "m1"])
    joined = model([helper.make_node("Add", ["a", "b"], ["c"])], {"a": ["n", 6], "b": ["n", 6]}, {"c": ["n", 6]})
    for part, match in [
        (fan([6], RNG, (5,)), "axis 1 is 5 in one and 6 in the other"),
        (fan([7], RNG, (6,)), "would make it float32"),
        (fan([6], RNG, (4, 6)), "the ranks differ"),
        (fan([6], RNG, (6,), batch=1), "graphmod.rebatch"),
        (two, "has 2 outputs"),
        (joined, "has the inputs a, b"),
    ]:
        with pytest.raises(gm.RefusedError, match=match):
            gm.replace(network, "t0..t1", other=part)


def test_a_block_changed_elsewhere_with_its_context():
    network = zoo.network("bert")
    tree = gm.blocks(network.model)
    block = max((b for b in tree.walk() if "layer.1" in b.path), key=lambda b: len(b.operators))
    part = gm.extract(network.model, block.entry, block.exit)
    assert len(part.inputs) > 1
    after = gm.replace(network.model, block, other=part)
    for one, other in zip(after.run(network.feeds).values(), network.model.run(network.feeds).values(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_module_is_exported_in_place():
    network = zoo.network("resnet18")
    module = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.nn.Hardswish())
    block = gm.blocks(network.model)["layer1.1"]
    after = gm.replace(network.model, "layer1.1", other=module)
    x = network.feeds
    values = network.model.run(x, [block.entry])[block.entry]
    expected = module(torch.from_numpy(values)).detach().numpy()
    np.testing.assert_allclose(after.run(x, [block.exit])[block.exit], expected, atol=1e-5)
    assert after.opset == network.model.opset
    assert after.inputs == network.model.inputs
    paths = [block.path for block in gm.blocks(after)["layer1"].children]
    assert "layer1.1" in paths
    again = gm.apply(gm.Recipe.of(after), network.model, given=[module])
    assert again.proto().SerializeToString(deterministic=True) == after.proto().SerializeToString(deterministic=True)


def test_modules_of_several_types():
    network, x = fan([6, 5], RNG, (6,)), normal(4, 6)
    after = gm.replace(network, "Tanh", other=torch.nn.PReLU(init=0.3))
    expected = gm.replace(network, "Tanh", by="LeakyRelu(alpha=0.3)")
    np.testing.assert_allclose(after.run({"x": x})["t1"], expected.run({"x": x})["t1"], atol=1e-6)


def test_without_onnxscript_there_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(gm.GraphmodError, match="graphmod\\[pytorch\\]"):
        gm.replace(fan([6], RNG, (6,)), "Tanh", other=torch.nn.ReLU())


def test_swapping_operators_needs_no_torch():
    code = "import sys, graphmod as gm; m = gm.load(gm.demo.model_path()); gm.replace(m, 'Relu', by='HardSwish'); "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)


@pytest.mark.parametrize("old_format", [3, 8])
def test_old_files_list_new_weights_among_their_inputs(old_format):
    proto = fan([6], RNG, (6,)).proto()
    proto.ir_version = old_format
    if old_format == 3:
        proto.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer
        )
    after = gm.replace(gm.load(proto), "Tanh", by="Clip(min=0, max=6)")
    assert list(after.inputs) == ["x"]
    onnx.checker.check_model(after.proto())


def test_records_replay_to_the_same_bytes(tmp_path):
    network = gm.load(gm.demo.model_path())
    whole = network.save(tmp_path / "part.onnx")
    for place, told in (("layer1.3", {"by": "Clip(min=0, max=6)"}), (("image", "logits"), {"other": whole})):
        after = gm.replace(network, place, **told)
        again = gm.apply(gm.Recipe.of(after), network)
        assert again.proto().SerializeToString() == after.proto().SerializeToString()


def test_quantised_weights_and_annotations_come_along():
    weight = RNG.integers(-9, 9, (4, 4)).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
    ]
    part = model(nodes, {"a": ["n", 4]}, {"b": ["n", 4]}, {"q": weight, "scale": np.float32(0.1)})
    proto = part.proto()
    annotation = proto.graph.quantization_annotation.add(tensor_name="b")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    network = model([helper.make_node("Tanh", ["x"], ["scale"])], {"x": ["n", 4]}, {"scale": ["n", 4]})
    after = gm.replace(network, "Tanh", other=gm.load(proto))
    x = normal(3, 4)
    np.testing.assert_allclose(after.run({"x": x})["scale"], part.run({"a": x})["b"], atol=1e-6)
    (kept,) = after.proto().graph.quantization_annotation
    assert kept.tensor_name == "scale"
    assert numpy_helper.to_array(after.initializers[kept.quant_parameter_tensor_names[0].value]) == np.float32(0.1)


def test_light_models_of_old_formats():
    """The tiny stand-ins of onnx's model zoo list their weights among the inputs."""
    root = onnx.backend.test.loader.DATA_DIR
    network = gm.load(f"{root}/light/light_squeezenet.onnx")
    after = gm.replace(network, "Relu", by="LeakyRelu(alpha=0.1)")
    assert list(after.inputs) == list(network.inputs)
    deeper = gm.duplicate(after, next(name for name in after.operator_names if name.endswith("LeakyRelu")))
    assert list(deeper.inputs) == list(network.inputs)
    clipped = gm.replace(network, "Relu", by="Clip(min=0)")
    found = gm.verify(network, clipped, {name: normal(1, *kind.shape[1:]) for name, kind in network.inputs.items()})
    assert found.exact
