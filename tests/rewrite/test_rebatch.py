"""Freeing a dimension: what is computed of several samples is what was computed of each."""

import io

import numpy as np
import pytest
import torch
import zoo
from handmade import model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from random_graphs import random_graphs

import graphmod as gm
from graphmod.rewrite.sizing import Sizes

RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def fixed_export(name, batch):
    """Return a network of the zoo as it is exported for one number of samples."""
    module, inputs = zoo.build(name)
    file = io.BytesIO()
    sized = tuple(torch.cat([value] * batch)[:batch] for value in inputs)
    torch.onnx.export(module, sized, file, dynamo=False, verbose=False, opset_version=17)
    return gm.load(file.getvalue())


def check(fixed, batch):
    free = gm.rebatch(fixed)
    feeds = {name: normal(8 * batch, *kind.shape[1:]) for name, kind in fixed.inputs.items()}
    parts = [fixed.run({k: v[i : i + batch] for k, v in feeds.items()}) for i in range(0, 8 * batch, batch)]
    for size in (1, 3, 8):
        found = free.run({name: value[:size] for name, value in feeds.items()})
        for name, value in found.items():
            assert free.outputs[name].shape[0] == "batch"
            expected = np.concatenate([part[name] for part in parts])[:size]
            np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["resnet18", "vit12", "vgg", "branching", "two_inputs", "two_outputs"])
def test_networks_exported_for_a_fixed_batch(name, batch):
    check(fixed_export(name, batch), batch)


def test_a_mask_looked_up_by_sample_is_refused():
    with pytest.raises(gm.RefusedError, match="Gather"):
        gm.rebatch(fixed_export("bert", 1))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(graph=random_graphs(), batch=st.integers(1, 3))
def test_random_graphs(graph, batch):
    whole = gm.load(graph.proto)
    free = gm.rebatch(gm.rebatch(whole, batch), "batch")
    assert (free.inputs, free.outputs) == (whole.inputs, whole.outputs)
    np.testing.assert_allclose(free.run(graph.feeds())["out"], whole.run(graph.feeds())["out"], atol=1e-5)


HELD = {
    "expand": ([helper.make_node("Expand", ["w", "s"], ["v"]), helper.make_node("Concat", ["x", "v"], ["y"], axis=1)],
               {"s": np.array([2, 3]), "w": normal(1, 3)}, [2, 7]),
    "reshapes": ([helper.make_node("Reshape", ["x", "s"], ["m"]), helper.make_node("Reshape", ["m", "t"], ["y"])],
                 {"s": np.array([8]), "t": np.array([2, 4])}, [2, 4]),
    "slice": ([helper.make_node("Slice", ["x", "a", "b", "c"], ["y"])],
              {"a": np.array([0]), "b": np.array([2]), "c": np.array([0])}, [2, 4]),
    "slice by int32": ([helper.make_node("Slice", ["x", "a", "b", "c"], ["y"])],
                       {name: np.array([i], np.int32) for name, i in {"a": 0, "b": 2, "c": 0}.items()}, [2, 4]),
    "equal rows": ([helper.make_node("Add", ["x", "w"], ["y"])], {"w": np.repeat(normal(1, 4), 2, 0)}, [2, 4]),
    "state": ([helper.make_node("Unsqueeze", ["x", "zero"], ["u"]),
               helper.make_node("GRU", ["u", "w", "r", "", "", "h"], ["", "last"], hidden_size=3),
               helper.make_node("Squeeze", ["last", "zero"], ["y"])],
              {"zero": np.array([0]), "w": normal(1, 9, 4), "r": normal(1, 9, 3), "h": np.zeros((1, 2, 3), np.float32)},
              [2, 3]),
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
def test_what_holds_a_batch_of_two(name):
    operators, weights, shape = HELD[name]
    check(model(operators, {"x": [2, 4]}, {"y": shape}, weights), 2)


REFUSED = {
    "one sample": ([helper.make_node("Gather", ["x", "i"], ["y"], axis=0)], {"i": np.array([0, 0])}, "Gather 'y'"),
    "the mean": ([helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]), helper.make_node("Sub", ["x", "m"], ["y"])],
                 {}, "ReduceMean 'm'"),
    "a loss": ([helper.make_node("Relu", ["x"], ["y"]), helper.make_node("ReduceMean", ["x"], ["s"], keepdims=0)],
               {}, "output 's' of several samples", {"s": []}),
    "a count": ([helper.make_node("Relu", ["x"], ["y"]), helper.make_node("NonZero", ["y"], ["i"]),
                 helper.make_node("Cast", ["i"], ["s"], to=1)], {}, "output 's' ", {"s": [None, None]}),
    "unequal rows": ([helper.make_node("Add", ["x", "w"], ["y"])], {"w": normal(2, 4)}, "Add 'y' reads 'w'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_samples_is_refused(name):
    operators, weights, message, *more = REFUSED[name]
    with pytest.raises(gm.RefusedError, match=message):
        gm.rebatch(model(operators, {"x": [2, 4]}, {"y": [2, 4], **(more[0] if more else {})}, weights))


def test_outputs_without_samples():
    operators = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Identity", ["k"], ["scalar"]),
        helper.make_node("SplitToSequence", ["y"], ["columns"], axis=1),
    ]
    proto = model(operators, {"x": [2, 4]}, {"y": [2, 4], "scalar": []}, {"k": np.float32(3)}).proto()
    proto.graph.output.append(helper.make_tensor_sequence_value_info("columns", 1, None))
    free = gm.rebatch(gm.load(proto))
    assert [free.outputs[name].shape for name in ("y", "scalar")] == [("batch", 4), ()]
    assert len(free.run({"x": normal(5, 4)})["columns"]) == 4


def test_before_slices_read_their_bounds():
    operators, weights, shape = HELD["equal rows"]
    check(model(operators, {"x": [2, 4]}, {"y": shape}, weights, opset=9), 2)


def test_states_beside_a_tensor_of_unknown_shape():
    body = [helper.make_node("Neg", ["a"], ["b"])]
    function = helper.make_function("my", "Negative", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    operators = [
        helper.make_node("Negative", ["x"], ["n"], domain="my"),
        helper.make_node("GRU", ["n", "w", "r", "", "lengths", "h"], ["", "last"], hidden_size=3),
    ]
    tensor = helper.make_tensor_value_info
    weights = {"w": normal(1, 9, 4), "r": normal(1, 9, 3), "h": np.zeros((1, 2, 3), np.float32)}
    graph = helper.make_graph(
        operators,
        "graph",
        [tensor("x", 1, [5, 2, 4]), tensor("lengths", 6, [2])],
        [tensor("last", 1, [1, 2, 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    network = gm.load(helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8))
    with pytest.raises(gm.RefusedError, match="would not run at another size than 2"):
        gm.rebatch(network, inputs=["lengths"])


def test_a_large_range_is_not_written_out():
    operators = [
        helper.make_node("Range", ["zero", "many", "one"], ["r"]),
        helper.make_node("ReduceMax", ["r"], ["m"]),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    weights = {"zero": np.float32(0), "many": np.float32(1e6), "one": np.float32(1)}
    network = model(operators, {"x": [2, 4]}, {"y": [2, 4]}, weights)
    sizes = Sizes(network)
    sizes.follow(network.operators[0])
    assert "r" not in sizes.values
    check(network, 2)


def test_another_axis_of_one_input():
    operators = [helper.make_node("Reshape", ["x", "s"], ["r"]), helper.make_node("Mul", ["r", "k"], ["y"])]
    fixed = model(operators, {"x": ["n", 6, 4], "k": [1]}, {"y": ["n", 6, 2, 2]}, {"s": np.array([0, 6, 2, 2])})
    free = gm.rebatch(fixed, "length", axis=1, inputs=["x"])
    assert free.outputs["y"].shape == ("n", "length", 2, 2)
    x = normal(3, 9, 4)
    np.testing.assert_array_equal(free.run({"x": x, "k": np.ones(1, np.float32)})["y"], x.reshape(3, 9, 2, 2))


def test_names():
    network = model([helper.make_node("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]})
    assert gm.rebatch(network, "n") is network
    assert gm.rebatch(network, "m").outputs["y"].shape == ("m", 4)
    for size in (0, -1, "", "4", "two words"):
        with pytest.raises(gm.RefusedError, match=r"a size of|is no name"):
            gm.rebatch(network, size)
    with pytest.raises(gm.RefusedError, match="no input 'z'"):
        gm.rebatch(network, 3, inputs=["z"])
