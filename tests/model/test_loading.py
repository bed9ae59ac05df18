"""Loading: from whatever holds a model, and a clear error from whatever does not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import zoo
from onnx.external_data_helper import convert_model_to_external_data

import graphmod as gm

PROTO = zoo.export("two_inputs", "torchscript")


def external_copy(folder, proto=PROTO, name="model.onnx"):
    """Save with onnx's own means, weights in ``weights.bin`` beside the model."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    convert_model_to_external_data(copy, location="weights.bin", size_threshold=0)
    onnx.save_model(copy, folder / name)
    return folder / name


@pytest.mark.parametrize("form", ["path", "str", "bytes", "proto", "model"])
def test_every_form_gives_the_same_model(tmp_path, form):
    path = tmp_path / "model.onnx"
    path.write_bytes(PROTO.SerializeToString())
    forms = {"path": path, "str": str(path), "bytes": path.read_bytes(), "proto": PROTO, "model": gm.load(PROTO)}
    model = gm.load(forms[form])
    assert model.digest == gm.load(PROTO).digest
    assert model.proto() == PROTO


def test_a_proto_changed_after_loading_does_not_change_the_model():
    proto = onnx.ModelProto.FromString(PROTO.SerializeToString())
    model = gm.load(proto)
    before = model.digest
    proto.graph.node[0].name = "changed"
    model.proto().graph.node[0].name = "changed"
    assert model.digest == before
    assert gm.load(proto).digest != before


def check_refused(source, told):
    with pytest.raises(gm.InvalidModelError) as caught:
        gm.load(source)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"this is no model", b"\x00" * 64, bytes(range(256)), b"PK\x03\x04rest"])
def test_what_is_no_model_is_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    check_refused(path, str(path))
    check_refused(content, "the byte string")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    content = PROTO.SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(share * len(content))])
    check_refused(path, str(path))


def test_no_prefix_of_a_file_is_taken_for_the_model_or_crashes():
    content = PROTO.SerializeToString()
    for length in range(0, len(content) - 1, 97):
        check_refused(content[:length], "the byte string")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    check_refused(tmp_path / "none.onnx", str(tmp_path / "none.onnx"))
    check_refused(tmp_path, str(tmp_path))


def test_a_model_without_operators_is_refused():
    proto = onnx.ModelProto.FromString(PROTO.SerializeToString())
    del proto.graph.node[:]
    check_refused(proto, "the proto")


def test_missing_external_data_names_the_file_and_the_initializer(tmp_path):
    path = external_copy(tmp_path)
    (tmp_path / "weights.bin").unlink()
    check_refused(path, str(tmp_path / "weights.bin"))


@pytest.mark.parametrize("left", [0, 1, 100])
def test_external_data_that_is_too_short_is_refused(tmp_path, left):
    path = external_copy(tmp_path)
    data = tmp_path / "weights.bin"
    data.write_bytes(data.read_bytes()[:left])
    check_refused(path, str(data))


def test_external_data_outside_the_folder_is_refused(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = external_copy(inner)
    (inner / "weights.bin").rename(tmp_path / "weights.bin")
    proto = onnx.load_model(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    path.write_bytes(proto.SerializeToString())
    check_refused(path, "../weights.bin")


def test_external_data_through_a_link_outside_the_folder_is_refused(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    path = external_copy(inner)
    (inner / "weights.bin").rename(tmp_path / "weights.bin")
    (inner / "weights.bin").symlink_to(tmp_path / "weights.bin")
    check_refused(path, "weights.bin")


def test_an_external_model_as_bytes_says_what_to_do(tmp_path):
    path = external_copy(tmp_path)
    check_refused(path.read_bytes(), "load it from its path")


def test_external_weights_are_memory_mapped_and_equal(tmp_path):
    inside, outside = gm.load(PROTO), gm.load(external_copy(tmp_path))
    assert outside.digest == inside.digest
    assert outside.proto() == PROTO
    for name in inside.initializers:
        value = outside.initializer(name)
        assert isinstance(value, np.memmap)
        assert not value.flags.writeable
        np.testing.assert_array_equal(value, onnx.numpy_helper.to_array(inside.initializers[name]))
    feeds = zoo.network("two_inputs", "torchscript").feeds
    np.testing.assert_array_equal(outside.run(feeds)["output"], inside.run(feeds)["output"])


def test_values_of_initializers_cannot_be_written():
    model = gm.load(PROTO)
    with pytest.raises(ValueError, match="read-only"):
        model.initializer(next(iter(model.initializers)))[...] = 0


def test_an_unknown_initializer_is_named():
    with pytest.raises(gm.InvalidModelError, match="'nothing'"):
        gm.load(PROTO).initializer("nothing")


def test_a_git_lfs_pointer_is_told_from_a_model(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(gm.GraphmodError, match="git lfs pull"):
        gm.load(path)


@pytest.mark.parametrize("thing", [None, 3, object()])
def test_what_holds_no_model_is_named(thing):
    with pytest.raises(gm.GraphmodError, match=f"a {type(thing).__name__} is no model"):
        gm.load(thing)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("length", "2", "takes"), ("length", "many", "has no place"), ("offset", "-8", "has no place")],
)
def test_a_place_that_is_none_is_refused(tmp_path, key, value, message):
    path = external_copy(tmp_path)
    proto = onnx.load_model(path, load_external_data=False)
    tensor = next(one for one in proto.graph.initializer if one.external_data)
    entry = next((entry for entry in tensor.external_data if entry.key == key), None) or tensor.external_data.add()
    entry.key, entry.value = key, value
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(gm.InvalidModelError, match=f"'{tensor.name}'") as told:
        gm.load(path)
    assert message in str(told.value)


def test_links_of_a_hubs_cache_are_followed(tmp_path):
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    proto = handmade(weight)
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    onnx.save(proto, blobs / "m", save_as_external_data=True, location="data", size_threshold=0)
    (blobs / "m").rename(blobs / "1234")
    (blobs / "data").rename(blobs / "5678")
    (snapshot / "model.onnx").symlink_to("../../blobs/1234")
    (snapshot / "data").symlink_to("../../blobs/5678")
    x = np.ones((2, 64), np.float32)
    linked = gm.load(snapshot / "model.onnx")
    np.testing.assert_allclose(linked.run({"x": x})["y"], x @ weight, rtol=1e-5)
    renamed = gm.load(gm.rename(linked, {"y": "z"}).save(tmp_path / "out.onnx"))
    np.testing.assert_allclose(renamed.run({"x": x})["z"], x @ weight, rtol=1e-5)


def handmade(weight):
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 64]) for name in "xy")
    graph = onnx.helper.make_graph([node], "g", [x], [y], [onnx.numpy_helper.from_array(weight, "w")])
    return onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])


def test_opsets_by_domain():
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    imports = [onnx.helper.make_opsetid("ai.onnx", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    m = gm.load(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8))
    assert m.opsets == {"": 17, "com.microsoft": 1}
    assert m.opset == 17
