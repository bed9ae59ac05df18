"""What a file carries beside its graph survives loading, an edit and saving."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphmod as gm


def annotated() -> onnx.ModelProto:
    """A chain of four layers that carries all that a file can carry."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=(4, 4)).astype(np.float32), f"w{i}") for i in range(3)]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], "first", doc_string="the first layer"),
        helper.make_node("Twice", ["a"], ["b"], "second", domain="own"),
        helper.make_node("MatMul", ["b", "w1"], ["c"], "third"),
        helper.make_node("Relu", ["c"], ["d"], "fourth"),
        helper.make_node("MatMul", ["d", "w2"], ["out"], "fifth"),
    ]
    for node in nodes:
        helper.set_model_props(node, {"pkg.torch.onnx.name_scopes": f"['', '{node.name}', '{node.name}']", "own": "1"})
    twice = helper.make_function(
        "own", "Twice", ["p"], ["q"], [helper.make_node("Add", ["p", "p"], ["q"])], [helper.make_opsetid("", 17)]
    )
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4], f"doc of {n}") for n in ("x", "out")]
    inner = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "abcd"]
    graph = helper.make_graph(nodes, "annotated", values[:1], values[1:], weights, "doc of graph", inner)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1), helper.make_opsetid("unused.domain", 3)]
    proto = helper.make_model(
        graph, ir_version=10, opset_imports=opsets, functions=[twice], producer_name="someone", doc_string="doc"
    )
    helper.set_model_props(proto, {"licence": "none", "labels": "a,b"})
    return proto


def saved(model: gm.Model, folder) -> onnx.ModelProto:
    return onnx.load_model(model.save(folder / "model.onnx"))


@pytest.mark.parametrize("edit", ["none", "derive", "remove"])
def test_annotations_survive(tmp_path, edit):
    before = annotated()
    model = gm.load(before)
    if edit == "derive":
        model = model.derive(model.editable())
    if edit == "remove":
        model = gm.remove(model, ("c", "d"))
    after = saved(model, tmp_path)
    if edit == "remove":
        assert after.metadata_props.pop().key == "graphmod.recipe"
    for name in ("ir_version", "producer_name", "doc_string", "opset_import", "functions", "metadata_props"):
        assert getattr(after, name) == getattr(before, name), name
    for name in ("name", "doc_string", "input", "output", "initializer"):
        assert getattr(after.graph, name) == getattr(before.graph, name), name
    kept = {node.name: node for node in after.graph.node}
    assert len(kept) == (4 if edit == "remove" else 5)
    for node in before.graph.node:
        if node.name in kept:
            assert kept[node.name].metadata_props == node.metadata_props
            assert kept[node.name].doc_string == node.doc_string
            assert kept[node.name].domain == node.domain
    gone = {"d"} if edit == "remove" else set()
    assert {v.name for v in after.graph.value_info} == {"a", "b", "c", "d"} - gone
    onnx.checker.check_model(after, full_check=True)


def test_a_derived_model_leaves_the_first_as_it_was():
    model = gm.load(annotated())
    digest, content = model.digest, model.proto().SerializeToString()
    edited = gm.remove(model, ("c", "d"))
    gm.graph.subgraph(model, ["a"], ["out"])
    gm.blocks(model), gm.boundaries(model), gm.graph.cost(model), model.run({"x": np.zeros((1, 4), np.float32)})
    assert edited.digest != digest
    assert gm.load(model.proto()).digest == digest
    assert model.proto().SerializeToString() == content


def test_a_model_cannot_be_assigned_to():
    model = gm.load(annotated())
    with pytest.raises(AttributeError):
        model.folder = None


def test_an_invalid_edit_is_refused():
    model = gm.load(annotated())
    proto = model.editable()
    proto.graph.node[3].input[0] = "nothing"
    with pytest.raises(gm.InvalidModelError, match=r"invalid|cannot load"):
        model.derive(proto)


@pytest.mark.parametrize("dims", [["batch", 4], [None, 4], [2, 4]])
def test_dimensions_keep_their_names(tmp_path, dims):
    proto = annotated()
    for value in (*proto.graph.input, *proto.graph.output):
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, dims))
    model = gm.load(proto)
    assert model.inputs["x"].shape == tuple(dims)
    after = gm.load(saved(model.derive(model.editable()), tmp_path))
    assert after.inputs == model.inputs
    assert after.outputs == model.outputs


def test_sparse_initializers_are_kept(tmp_path):
    proto = annotated()
    values = numpy_helper.from_array(np.array([1, 2], np.float32), "w1")
    indices = numpy_helper.from_array(np.array([0, 5], np.int64), "indices")
    del proto.graph.initializer[1]
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 4]))
    model = gm.load(proto)
    after = saved(model, tmp_path)
    assert after.graph.sparse_initializer == proto.graph.sparse_initializer
    assert list(model.inputs) == ["x"]
    edited = gm.remove(model, ("c", "d"))
    assert edited.proto().graph.sparse_initializer == proto.graph.sparse_initializer
    x = np.ones((1, 4), np.float32)
    dense = np.zeros(16, np.float32)
    dense[[0, 5]] = 1, 2
    b = edited.run({"x": x}, outputs=["b"])["b"]
    assert np.allclose(edited.run({"x": x}, outputs=["c"])["c"], b @ dense.reshape(4, 4))


def test_a_part_takes_the_sparse_initializers_that_it_reads_and_no_others():
    proto = annotated()
    values = numpy_helper.from_array(np.array([1], np.float32), "w1")
    indices = numpy_helper.from_array(np.array([0], np.int64), "indices")
    del proto.graph.initializer[1]
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 4]))
    model = gm.load(proto)
    assert len(gm.graph.subgraph(model, ["a"], ["out"]).proto().graph.sparse_initializer) == 1
    assert len(gm.graph.subgraph(model, ["c"], ["out"]).proto().graph.sparse_initializer) == 0


def test_operators_of_unknown_domains_are_kept(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17, "com.acme" : 2]>
    agraph (float[batch, 4] x) => (float[batch, 4] out) {
        a = com.acme.Mystery <strength = 3> (x)
        out = Relu(a)
    }"""
    proto = onnx.parser.parse_model(text)
    model = gm.load(proto)
    assert saved(model, tmp_path) == proto
    assert gm.boundaries(model) == ["a", "out"]
    with pytest.raises(gm.InvalidModelError, match="ONNX Runtime"):
        model.run({"x": np.zeros((1, 4), np.float32)})


def test_initializers_among_the_inputs_are_no_inputs(tmp_path):
    text = """<ir_version: 3, opset_import: ["" : 8]>
    agraph (float[2, 4] x, float[4] w, float[4] v) => (float[2, 4] out)
    <float[4] w = {1, 2, 3, 4}, float[4] v = {5, 6, 7, 8}> { a = Mul(x, w) b = Add(a, v) out = Relu(b) }"""
    model = gm.load(onnx.parser.parse_model(text))
    assert list(model.inputs) == ["x"]
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(model.run({"x": x})["out"], [[6, 8, 10, 12]] * 2)
    after = saved(gm.remove(model, ("a", "b")), tmp_path)
    assert [value.name for value in after.graph.input] == ["x", "w"]
    assert [tensor.name for tensor in after.graph.initializer] == ["w"]
    np.testing.assert_array_equal(gm.load(after).run({"x": x})["out"], [[1, 2, 3, 4]] * 2)


def test_strings_have_a_digest():
    def model(text):
        proto = annotated()
        proto.graph.initializer.append(numpy_helper.from_array(np.array([text], object), "labels"))
        return gm.load(proto)

    assert model("cat").digest == model("cat").digest
    assert model("cat").digest != model("dog").digest


@pytest.mark.parametrize(
    "data_type", [TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.INT4, TensorProto.FLOAT8E4M3FN]
)
def test_narrow_types_keep_digest_and_value_outside(tmp_path, data_type):
    proto = annotated()
    proto.graph.initializer.append(helper.make_tensor("narrow", data_type, [5], [1, 2, 3, 4, 5]))
    inside = gm.load(proto)
    onnx.save_model(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    outside = gm.load(tmp_path / "m.onnx")
    assert outside.digest == inside.digest
    np.testing.assert_array_equal(outside.initializer("narrow"), inside.initializer("narrow"))
    again = gm.load(outside.save(tmp_path / "n.onnx"))
    assert again.digest == inside.digest
