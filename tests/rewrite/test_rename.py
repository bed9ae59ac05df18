"""Renaming: there and back gives the same graph, results are the same by other names, and clashes are refused."""

import re

import numpy as np
import onnx
import pytest
from command_line import graphmod
from handmade import model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from random_graphs import random_graphs

import graphmod as gm
from graphmod.errors import RefusedError
from graphmod.graph.scope import GRAPHMOD_SCOPE


def names_of(graph):
    """Return all names of tensors and operators, subgraphs included, by recursion."""
    found = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    for operator in graph.node:
        found |= {operator.name, *operator.output}
        for attribute in operator.attribute:
            found |= names_of(attribute.g) if attribute.HasField("g") else set()
    return found - {""}


def bare(built):
    proto = built.proto()
    proto.ClearField("metadata_props")
    return proto


@settings(max_examples=100, deadline=None)
@given(random_graphs(), st.randoms())
def test_there_and_back_by_any_mapping(graph, random):
    built = gm.load(graph.proto)
    old = sorted(names_of(graph.proto.graph))
    new = [random.choice([name, f"a/{name}", f"{name}.b"]) for name in old]
    if random.random() < 0.5:
        new = random.sample(old, len(old))  # names change places
    mapping = dict(zip(old, new, strict=True))
    found = gm.rename(built, mapping)
    assert names_of(found._proto.graph) == set(new)
    assert len(found.operators) == len(built.operators)
    feeds = graph.feeds()
    expected = built.run(feeds)["out"]
    result = found.run({mapping[name]: value for name, value in feeds.items()})
    np.testing.assert_array_equal(result[mapping["out"]], expected)
    back = gm.rename(found, {new: old for old, new in mapping.items()})
    assert bare(back) == bare(built)


def demo():
    return gm.load(gm.demo.model_path())


def test_a_regular_expression_replaces_all_that_it_matches():
    found = gm.rename(demo(), {r"/^layer(\d)\.(\d)/": r"stage\1/\2"})
    assert not [name for name in names_of(found._proto.graph) if name.startswith("layer")]
    weights = list(demo().initializers)
    assert list(found.initializers) == [
        n.replace("layer", "stage", 1).replace(".", "/", 1) if n.startswith("layer") else n for n in weights
    ]
    x = gm.demo.splits().test.inputs
    assert gm.verify(demo(), found, x).exact


def test_only_tensors_or_only_operators():
    operators = [helper.make_node("Relu", ["x"], ["a"], "a"), helper.make_node("Neg", ["a"], ["b"], "b")]
    built = model(operators, {"x": ["n", 4]}, {"b": ["n", 4]})
    for only, tensor, name in ((None, "c", "c"), ("tensors", "c", "a"), ("operators", "a", "c")):
        found = gm.rename(built, {"a": "c"}, only=only).operators
        assert (found[0].output[0], found[1].input[0], found[0].name) == (tensor, tensor, name)


def test_annotations_quantisation_and_sparse_weights_follow():
    built = demo().proto()
    inner = built.graph.node[0].output[0]
    built.graph.value_info.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, None))
    note = built.graph.quantization_annotation.add(tensor_name=inner)
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=built.graph.initializer[0].name)
    weight = built.graph.initializer[0].name
    found = gm.rename(gm.load(built), {inner: "first", weight: "scale"})._proto.graph
    assert "first" in [value.name for value in found.value_info]
    assert found.quantization_annotation[0].tensor_name == "first"
    assert found.quantization_annotation[0].quant_parameter_tensor_names[0].value == "scale"


def test_dimensions():
    found = gm.rename(demo(), dims={"batch": "n"})
    assert found.inputs["image"].shape == ("n", 1, 8, 8)
    assert "batch" not in str(found._proto.graph.value_info) + str(found._proto.graph.output)
    with pytest.raises(RefusedError, match="no dimension 'depth'; the model has batch"):
        gm.rename(demo(), dims={"depth": "n"})
    two = model([helper.make_node("Shape", ["x"], ["y"])], {"x": ["n", "m"]}, {})._proto
    two.graph.output.append(helper.make_tensor_value_info("y", TensorProto.INT64, [2]))
    with pytest.raises(RefusedError, match="'n' and 'm' would both be called 'm'"):
        gm.rename(gm.load(two), dims={"n": "m"})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"image": "logits"}, "'image' and 'logits' would both be called 'logits'"),
        ({"/./": "x"}, "would both be called"),
        ({"/.+/": ""}, "would have no name"),
        ({"nowhere": "x"}, "no tensor or operator 'nowhere'"),
        ({"/(/": "x"}, "is no regular expression"),
        ({"/image/": r"\2"}, "is no regular expression and replacement"),
        ({"/nowhere/": "x"}, "matches no name"),
    ],
)
def test_refusals(names, message):
    with pytest.raises(RefusedError, match=message.replace("(/", r"\(/") if "(/" in message else message):
        gm.rename(demo(), names)


def test_nothing_to_do_gives_the_model_itself():
    built = demo()
    assert gm.rename(built) is built
    assert gm.rename(built, {"image": "image"}) is built


@pytest.mark.parametrize("exporter", ["current", "torchscript"])
def test_names_from_scopes(zoo_network, exporter):
    network = zoo_network("resnet18", exporter)
    found = gm.rename(network.model, from_scopes=True)
    paths = [[block.path for block in gm.blocks(one).walk()] for one in (network.model, found)]
    assert paths[0] == paths[1]
    parameters = dict(network.module.named_parameters())
    named = [name for name in found.initializers if name in parameters]
    assert {"layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "fc.weight"} <= set(named)
    assert all(found.initializer(name).shape == tuple(parameters[name].shape) for name in named)
    assert not [name for name in found.initializers if name.startswith("onnx::")]
    assert {"layer1.1.Add", "fc"} <= set(found.operator_names)
    results = [one.run(network.feeds) for one in (network.model, found)]
    for name, value in results[0].items():
        np.testing.assert_array_equal(results[1][name], value)


def test_a_scope_that_the_name_told_stays(zoo_network):
    network = zoo_network("branching", "torchscript").model
    name = next(operator.name for operator in network.operators if gm.graph.scope(operator))
    before = {operator.output[0]: gm.graph.scope(operator) for operator in network.operators}
    found = gm.rename(network, {name: "first"})
    assert {operator.output[0]: gm.graph.scope(operator) for operator in found.operators} == before


def test_bodies_that_shadow_and_capture():
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "w"], ["s2"]), helper.make_node("Identity", ["s2"], ["o"])],
        "body",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in ("s", "e")],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in ("s2", "o")],
    )
    scan = helper.make_node("Scan", ["start", "x"], ["last", "all"], "scan", body=body, num_scan_inputs=1)
    values = {"start": np.zeros(4, np.float32), "w": np.ones(4, np.float32)}
    built = model([scan], {"x": [3, 4]}, {"last": [4], "all": [3, 4]}, values)
    found = gm.rename(built, {"w": "step", "s": "state", "all": "every"})
    onnx.checker.check_model(found.proto())
    x = np.zeros((3, 4), np.float32)
    np.testing.assert_array_equal(found.run({"x": x})["every"], built.run({"x": x})["all"])


def test_many_operators_of_one_scope():
    """Numbering them takes time linear in how many they are."""
    operators = [helper.make_node("Neg", [f"t{i}" if i else "x"], [f"t{i + 1}"], f"n{i}") for i in range(20_000)]
    for operator in operators:
        operator.metadata_props.add(key=GRAPHMOD_SCOPE, value="body")
    renamed = gm.rename(model(operators, {"x": [1]}, {"t20000": [1]}), from_scopes=True)
    assert renamed.operators[0].name == "body.Neg"
    assert renamed.operators[-1].name == "body.Neg_20000"


def test_the_expression_in_the_docstring_can_be_pasted_into_the_command_line(tmp_path):
    (example,) = re.findall(r"replaced,\s+``(.*?)``", gm.rename.__doc__)
    out = tmp_path / "renamed.onnx"
    told = graphmod("rename", gm.demo.model_path(), "--names", example, "--out", out)
    assert told.returncode == 0, told.stderr
    before, after = gm.load(gm.demo.model_path()), gm.load(out)
    assert list(after.initializers) == [name.replace("layer", "stage") for name in before.initializers]
    assert any(name.startswith("stage1.") for name in after.initializers)
