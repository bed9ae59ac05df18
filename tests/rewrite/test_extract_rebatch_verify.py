"""Extracting, changing the batch, and comparing two models."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import zoo
from handmade import fan, model
from onnx import helper, numpy_helper

import graphmod as gm
from graphmod.model import RECORD, edits_of

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"
RNG = np.random.default_rng(23)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", ["resnet18", "vit12", "bert", "branching"])
def test_parts_joined_are_the_whole(name, exporter):
    network = zoo.network(name, exporter)
    whole, feeds = network.model, network.feeds
    source = gm.graph.primary_input(whole)
    (output,) = whole.outputs
    middle = gm.boundaries(whole)[len(gm.boundaries(whole)) // 2]
    head, tail = gm.extract(whole, source, middle), gm.extract(whole, [middle], [output])
    activations = head.run({key: feeds[key] for key in head.inputs})[middle]
    found = tail.run({key: activations if key == middle else feeds[key] for key in tail.inputs})[output]
    np.testing.assert_allclose(found, whole.run(feeds)[output], atol=1e-5, rtol=1e-4)
    assert len(head.operators) < len(whole.operators) > len(tail.operators)
    assert {**head.metadata, RECORD: None} == {**whole.metadata, RECORD: None}
    onnx.checker.check_model(tail.proto(), full_check=True)


def test_several_outputs():
    network, x = fan([5, 4, 3], RNG), normal(6, 7)
    part = gm.extract(network, "t0", ["t2", "t1"])
    values = network.run({"x": x}, ["t0", "t1", "t2"])
    found = part.run({"t0": values["t0"]})
    assert list(found) == ["t2", "t1"]
    for name, value in found.items():
        np.testing.assert_allclose(value, values[name], atol=1e-6)


def test_extract_refuses():
    network = gm.load(gm.demo.model_path())
    inner = gm.blocks(network)["layer1.1.bn1"].exit
    with pytest.raises(gm.RefusedError, match=f"past {inner}"):
        gm.extract(network, inner, "logits")
    for inputs, outputs in (("nothing", "logits"), ("image", "nothing")):
        with pytest.raises(gm.RefusedError, match="'nothing'"):
            gm.extract(network, inputs, outputs)
    block = gm.blocks(network)["layer1.1"]
    joined = next(op for op in network.operators if op.op_type == "Add" and block.entry in op.input)
    other = next(name for name in joined.input if name != block.entry)
    both = gm.extract(network, [block.entry, other], "logits")  # all tensors that cross are named
    assert set(both.inputs) == {block.entry, other}


@pytest.mark.parametrize("name", ["light_resnet50", "light_squeezenet", "light_shufflenet"])
def test_rebatch_of_a_fixed_batch(name):
    network = gm.load(LIGHT / f"{name}.onnx")
    ((source, kind),) = network.inputs.items()
    x = normal(3, *kind.shape[1:])
    expected = np.concatenate([next(iter(network.run({source: x[i : i + 1]}).values())) for i in range(3)])
    for batch, named in (("batch", "batch"), (3, 3)):
        free = gm.rebatch(network, batch)
        assert free.inputs[source].shape[0] == named
        np.testing.assert_allclose(next(iter(free.run({source: x}).values())), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("allowzero", [0, 1])
@pytest.mark.parametrize("constant", ["initializer", "operator"])
@pytest.mark.parametrize("target", [[1, -1], [1, 6], [1, 3, 2]])
def test_rebatch_frees_every_kind_of_reshape(allowzero, constant, target):
    shape = numpy_helper.from_array(np.array(target, np.int64), "s")
    operators = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Reshape", ["a", "s"], ["y"], allowzero=allowzero),
    ]
    if constant == "operator":
        operators.insert(0, helper.make_node("Constant", [], ["s"], value=shape))
    weights = {"s": np.array(target, np.int64)} if constant == "initializer" else {}
    declared = [1, 6] if len(target) == 2 else target
    network = model(operators, {"x": [1, 2, 3]}, {"y": declared}, weights)
    x = normal(5, 2, 3)
    np.testing.assert_array_equal(gm.rebatch(network).run({"x": x})["y"], np.maximum(x, 0).reshape(5, *declared[1:]))


def test_rebatch_leaves_a_reshape_of_something_else_alone():
    operators = [
        helper.make_node("Reshape", ["w", "s"], ["v"]),
        helper.make_node("Mul", ["x", "v"], ["y"]),
    ]
    network = model(operators, {"x": [1, 4]}, {"y": [1, 4]}, {"s": np.array([1, 4]), "w": normal(2, 2)})
    x = normal(5, 4)
    found = gm.rebatch(network).run({"x": x})["y"]
    np.testing.assert_allclose(found, x * network.initializer("w").reshape(1, 4))


def test_rebatch_of_a_dynamic_batch():
    network, x = fan([5, 4], RNG), normal(3, 7)
    fixed = gm.rebatch(network, 3)
    assert (fixed.inputs["x"].shape, fixed.outputs["t1"].shape) == ((3, 7), (3, 4))
    np.testing.assert_allclose(fixed.run({"x": x})["t1"], network.run({"x": x})["t1"])
    assert gm.rebatch(network, "samples").inputs["x"].shape == ("samples", 7)
    again = gm.rebatch(gm.rebatch(fixed, "n"), 3)
    assert again.inputs == fixed.inputs


@pytest.mark.parametrize("batch", ["batch", 4])
def test_rebatch_refuses_where_there_is_no_batch_in_common(batch):
    add = [helper.make_node("Add", ["x", "b"], ["y"])]
    with pytest.raises(gm.RefusedError, match="no batch dimension"):
        gm.rebatch(model(add, {"x": ["n", 4], "b": [4]}, {"y": ["n", 4]}), batch)
    with pytest.raises(gm.RefusedError, match="no batch dimension"):
        gm.rebatch(model(add, {"x": [2, 4], "b": [4]}, {"y": [2, 4]}), batch)


def shifted(by, batch="n"):
    """Return a model that adds something."""
    return model(
        [helper.make_node("Add", ["x", "b"], ["y"])], {"x": [batch, 4]}, {"y": [batch, 4]}, {"b": np.float32(by)}
    )


@pytest.mark.parametrize("batch_size", [3, 64])
def test_verify_measures(batch_size):
    x = normal(50, 4)
    found = gm.verify(shifted(1), shifted(1.5), x, batch_size=batch_size).outputs["y"]
    first = (x + np.float32(1)).astype(np.float64)
    assert found.largest == pytest.approx(0.5, rel=1e-6)
    assert found.scale == pytest.approx(np.abs(first).max())
    assert found.rms == pytest.approx(0.5 / np.sqrt((first**2).mean()), rel=1e-6)
    assert found.relative == pytest.approx(0.5 / np.abs(first).max(), rel=1e-6)


def test_exact_to_a_part_in_100_000_of_the_scale():
    x = np.full((8, 4), 99, np.float32)
    assert gm.verify(shifted(1), shifted(1.0009), x).exact
    assert not gm.verify(shifted(1), shifted(1.0011), x).exact


def test_verify_sees_what_is_no_number():
    quotient = [helper.make_node("Div", ["x", "x"], ["y"])]
    divided = model(quotient, {"x": ["n", 4]}, {"y": ["n", 4]})
    other = model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]})
    x = np.ones((5, 4), np.float32)
    assert gm.verify(divided, other, x).exact
    x[2, 1] = 0  # 0 / 0 on one side only
    assert not gm.verify(other, divided, x, batch_size=2).exact
    assert not gm.verify(divided, other, x, batch_size=2).exact
    assert gm.verify(divided, divided, x).exact
    infinite = model([helper.make_node("Log", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]})
    found = gm.verify(infinite, infinite, x)
    assert found.exact
    assert found.outputs["y"].rms == 0


@pytest.mark.parametrize("batch", [1, 4, 20])
def test_verify_a_fixed_batch_with_a_dynamic_one(batch):
    for pair in ((shifted(1), shifted(1, batch)), (shifted(1, batch), shifted(1))):
        assert gm.verify(*pair, normal(100, 4)).exact


def test_verify_refuses():
    with pytest.raises(gm.RefusedError, match="signatures"):
        gm.verify(fan([4], RNG), fan([4, 4], RNG), normal(5, 7))
    with pytest.raises(gm.RefusedError, match="differs in shape"):
        gm.verify(fan([4], RNG), fan([5], RNG), normal(5, 7))


@pytest.mark.parametrize("kind", ["sequence", "bfloat16", "string"])
def test_verify_refuses_outputs_that_numpy_has_no_numbers_for(kind):
    made = {"bfloat16": onnx.TensorProto.BFLOAT16, "string": onnx.TensorProto.STRING}
    if kind in made:
        operator = helper.make_node("Cast", ["x"], ["y"], to=made[kind])
        output = helper.make_tensor_value_info("y", made[kind], ["n", 4])
    else:
        operator = helper.make_node("SequenceConstruct", ["x"], ["y"])
        output = helper.make_tensor_sequence_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])
    source = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph([operator], "graph", [source], [output])
    m = gm.load(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    with pytest.raises(gm.RefusedError, match=r"output 'y' is .*graphmod\.hide"):
        gm.verify(m, m, {"x": normal(3, 4)})


def test_extract_between_blocks_operators_and_selectors():
    demo = gm.load(gm.demo.model_path())
    block = gm.blocks(demo)["layer1.1"]
    part = gm.extract(demo, "layer1.1", "layer1.1")
    assert (list(part.inputs), list(part.outputs)) == ([block.entry], [block.exit])
    assert list(gm.extract(demo, [block], block).outputs) == [block.exit]
    last = demo.operator_names[demo.producer[block.exit]]
    assert list(gm.extract(demo, "image", [last]).outputs) == [block.exit]
    relus = gm.extract(demo, "image", ["Relu[scope=layer1*]", block])
    assert list(relus.outputs) == [match.exit for match in gm.find(demo, "Relu[scope=layer1*]")]
    x = normal(2, 1, 8, 8)
    expected = demo.run({"image": x}, list(relus.outputs))
    for name, value in relus.run({"image": x}).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5)
    assert edits_of(relus) == [
        {"extract": {"inputs": "image", "outputs": ["Relu[scope=layer1*]", [block.entry, block.exit]]}}
    ]
