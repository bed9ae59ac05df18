"""Inserting, against the same operator written into the file by hand."""

import numpy as np
import onnx
import pytest
import torch
import zoo
from handmade import fan, model
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from random_graphs import random_graphs

import graphmod as gm

torch.set_num_threads(1)
RNG = np.random.default_rng(5)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def by_hand(proto, tensor, op_type):
    """Return a copy in which what makes a tensor makes another name, and one more operator makes the tensor of that."""
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    operators = []
    for operator in found.graph.node:
        operators.append(operator)
        if tensor in operator.output:
            operator.output[:] = ["raw" if name == tensor else name for name in operator.output]
            operators.append(helper.make_node(op_type, ["raw"], [tensor]))
    kept = [onnx.NodeProto.FromString(operator.SerializeToString()) for operator in operators]
    del found.graph.node[:]
    found.graph.node.extend(kept)
    return gm.load(found)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs(), st.data())
def test_on_any_tensor_of_random_graphs(graph, data):
    before = gm.load(graph.proto)
    content = before.proto().SerializeToString(deterministic=True)
    tensor = data.draw(st.sampled_from([name for name in before.producer if not name.startswith("shape")]))
    after = gm.insert(before, tensor, "Elu")
    onnx.checker.check_model(after.proto(), full_check=True)
    expected = by_hand(before.proto(), tensor, "Elu").run(graph.feeds())["out"]
    np.testing.assert_array_equal(after.run(graph.feeds())["out"], expected)
    assert len(after.operators) == len(before.operators) + (1 if before.readers.get(tensor) or tensor == "out" else 0)
    assert [op.name for op in before.operators] == [op.name for op in after.operators if op.op_type != "Elu"]
    assert before.proto().SerializeToString(deterministic=True) == content


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs(), st.sampled_from(["x", "side"]))
def test_on_an_input_of_random_graphs(graph, name):
    before, feeds = gm.load(graph.proto), graph.feeds()
    after = gm.insert(before, name, "Cast(to='float32') > Div(B=8) > Transpose(perm=[1,0])", takes="int32[4, batch]")
    onnx.checker.check_model(after.proto(), full_check=True)
    raw = np.round(feeds[name] * 8).astype(np.int32)
    expected = before.run({**feeds, name: raw.astype(np.float32) / 8})["out"]
    np.testing.assert_allclose(after.run({**feeds, name: raw.T})["out"], expected, atol=1e-6)
    assert str(after.inputs[name]) == "int32[4, batch]"
    assert list(after.inputs) == list(before.inputs)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_graphs(), st.data())
def test_before_one_operator_of_random_graphs(graph, data):
    before = gm.load(graph.proto)
    name = data.draw(st.sampled_from([op.name for op in before.operators if op.op_type not in ("If", "Shape")]))
    after = gm.insert(before, name, "Elu", before=True)
    expected = before.proto()
    (operator,) = (op for op in expected.graph.node if op.name == name)
    position = list(op.name for op in expected.graph.node).index(name)
    tensor = operator.input[0]
    operator.input[:] = ["elu" if read == tensor else read for read in operator.input]
    kept = [onnx.NodeProto.FromString(op.SerializeToString()) for op in expected.graph.node]
    kept.insert(position, helper.make_node("Elu", [tensor], ["elu"]))
    del expected.graph.node[:]
    expected.graph.node.extend(kept)
    np.testing.assert_array_equal(after.run(graph.feeds())["out"], gm.load(expected).run(graph.feeds())["out"])
    event(operator.op_type)


@pytest.mark.parametrize("name", ["two_outputs", pytest.param("bert", marks=pytest.mark.slow)])
def test_softmax_at_the_end_of_the_zoo(name):
    network = zoo.network(name)
    for output in network.model.outputs:
        after = gm.insert(network.model, output, "Softmax(axis=-1)")
        raw, found = network.model.run(network.feeds), after.run(network.feeds)
        expected = torch.from_numpy(raw[output]).softmax(-1).numpy()
        np.testing.assert_allclose(found[output], expected, atol=1e-6)
        assert list(after.outputs) == list(network.model.outputs)
        for other in raw.keys() - {output}:
            np.testing.assert_array_equal(found[other], raw[other])
        labels = gm.insert(network.model, output, "ArgMax(axis=-1, keepdims=0)")
        np.testing.assert_array_equal(labels.run(network.feeds)[output], raw[output].argmax(-1))
        assert labels.outputs[output].dtype == np.int64


def test_after_every_match_of_a_selector():
    network, x = fan([6, 6], RNG, (6,)), normal(3, 6)
    after = gm.insert(network, "MatMul", "Clip(min=-0.1, max=0.1)")
    values = x
    for layer in range(2):
        values = np.tanh(np.clip(values @ network.initializer(f"w{layer}"), -0.1, 0.1))
    np.testing.assert_allclose(after.run({"x": x})["t1"], values, atol=1e-6)


def test_only_some_readers():
    operators = [
        helper.make_node("Tanh", ["x"], ["a"], "make"),
        helper.make_node("Neg", ["a"], ["b"], "one"),
        helper.make_node("Exp", ["a"], ["c"], "two"),
    ]
    network = model(operators, {"x": ["n", 4]}, {name: ["n", 4] for name in "abc"})
    x = normal(3, 4)
    a = np.tanh(x)
    after = gm.insert(network, "a", "Abs", readers="Exp").run({"x": x})
    for name, value in {"a": a, "b": -a, "c": np.exp(np.abs(a))}.items():
        np.testing.assert_allclose(after[name], value, atol=1e-6)
    after = gm.insert(network, "a", "Abs").run({"x": x})
    for name, value in {"a": np.abs(a), "b": -np.abs(a), "c": np.exp(np.abs(a))}.items():
        np.testing.assert_allclose(after[name], value, atol=1e-6)
    on_input = gm.insert(network, "x", "Abs", readers="Tanh").run({"x": x})
    np.testing.assert_allclose(on_input["a"], np.tanh(np.abs(x)), atol=1e-6)


def preprocessing():
    """Return a model that takes images as cameras give them."""
    operators = [
        helper.make_node("Cast", ["pixels"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["f", "mean"], ["s"]),
        helper.make_node("Div", ["s", "std"], ["d"]),
        helper.make_node("Transpose", ["d"], ["image"], perm=[0, 3, 1, 2]),
    ]
    weights = {"mean": np.float32([120, 110, 100]), "std": np.float32([60, 61, 62])}
    proto = model(operators, {"pixels": ["N", "h", "w", 3]}, {"image": ["N", 3, "h", "w"]}, weights).proto()
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return gm.load(proto)


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
def test_a_preprocessing_model(exporter):
    network = zoo.network("two_outputs", exporter)
    (name,) = network.model.inputs
    pixels = RNG.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    steps = preprocessing()
    after = gm.insert(network.model, name, other=steps)
    batch = network.model.inputs[name].shape[0]
    assert str(after.inputs[name]) == f"uint8[{batch}, 16, 16, 3]"
    expected = network.model.run({name: steps.run({"pixels": pixels})["image"]})
    for one, other in zip(after.run({name: pixels}).values(), expected.values(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert {op.name for op in network.model.operators} < {op.name for op in after.operators}


def test_a_module_after_a_block():
    network = zoo.network("vgg")
    tree = gm.blocks(network.model)
    block = next(b for b in tree.walk() if b.path and len(network.model.tensors[b.exit].shape) == 4)
    width = network.model.tensors[block.exit].shape[1]
    module = torch.nn.Conv2d(width, width, 1)
    after = gm.insert(network.model, block.path, other=module)
    raw = network.model.run(network.feeds, [block.exit])[block.exit]
    name = next(t for t in after.producer if t.startswith(f"{block.exit}/") and after.readers.get(t))
    found = after.run(network.feeds, [name])[name]
    np.testing.assert_allclose(found, module(torch.from_numpy(raw)).detach().numpy(), atol=1e-5)


def test_capturing_subgraphs_read_the_result():
    body = helper.make_graph(
        [helper.make_node("Add", ["a", "sum"], ["next"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, None),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("next", 1, None)],
    )
    operators = [
        helper.make_node("Tanh", ["x"], ["a"]),
        helper.make_node("Loop", ["two", "", "x"], ["y"], body=body),
    ]
    network, x = model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, {"two": np.array(2)}), normal(3, 4)
    after = gm.insert(network, "a", "Abs")
    np.testing.assert_allclose(after.run({"x": x})["y"], x + 2 * np.abs(np.tanh(x)), atol=1e-6)
    after = gm.insert(network, "Loop", "Exp", before=True)
    np.testing.assert_allclose(after.run({"x": x})["y"], np.exp(x) + 2 * np.tanh(x), atol=1e-5)


@pytest.mark.parametrize(
    ("place", "told", "match"),
    [
        ("nowhere", {"by": "Relu"}, "there is no tensor, block or operator 'nowhere'"),
        ("t0", {"by": "ReduceMean(axes=[1])"}, "'t0' is .* and would become"),
        ("t0", {"by": "Cast(to='float16')"}, "would become float16"),
        ("x", {"by": "Transpose(perm=[1,0])"}, "'x' is .* and would become"),
        ("t0", {"by": "Relu", "takes": "uint8[3]"}, "graph input"),
        ("x", {"by": "Relu", "takes": "bytes"}, "is no type"),
        ("x", {"by": "Relu", "takes": "undefined[3]"}, "is no type"),
        ("t0", {"by": "Relu", "readers": "Tanh"}, "no operator that reads 't0' matches"),
        ("t0", {"by": "Relu", "readers": "MatMul", "before": True}, "leave out 'readers'"),
        ("t0", {}, "say either"),
    ],
)
def test_refusals(place, told, match):
    with pytest.raises(gm.RefusedError, match=match):
        gm.insert(fan([6, 6], RNG, (6,)), place, **told)


def test_a_block_alone_reads_the_result():
    network = zoo.network("resnet18").model
    block = gm.blocks(network)["layer1.1"]
    after = gm.insert(network, "layer1.1", "Neg", before=True)
    made = next(op.output[0] for op in after.operators if op.op_type == "Neg")
    readers = [after.operator_names[place] for place in after.readers[made]]
    assert set(readers) <= set(block.operators)
    assert not after.readers.get(block.entry, ())[1:]


def test_branches_in_branches():
    """Naming what is new takes time linear in how deep they are."""

    def body(operator):
        result = helper.make_tensor_value_info(operator.output[0], TensorProto.FLOAT, None)
        return helper.make_graph([operator], "body", [], [result])

    inner = helper.make_node("Neg", ["x"], ["r"])
    for depth in range(22):
        other = body(helper.make_node("Abs", ["x"], [f"o{depth}"]))
        inner = helper.make_node("If", ["c"], [f"r{depth}"], then_branch=body(inner), else_branch=other)
    operators = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["c"], to=TensorProto.BOOL),
        inner,
        helper.make_node("Neg", inner.output, ["y"]),
    ]
    after = gm.insert(model(operators, {"x": [3]}, {"y": [3]}), "y", "Relu")
    x = np.float32([1, 2, 3])
    np.testing.assert_array_equal(after.run({"x": x})["y"], x)


def test_the_record_replays():
    network = gm.load(gm.demo.model_path())
    after = gm.insert(gm.insert(network, "logits", "Softmax(axis=-1)"), "Relu", "Clip(max=6)")
    assert gm.apply(gm.Recipe.of(after), network).proto().SerializeToString() == after.proto().SerializeToString()
