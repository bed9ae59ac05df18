"""Saving: whole or not at all."""

from __future__ import annotations

import errno
import os

import numpy as np
import onnx
import pytest
import zoo
from onnx.external_data_helper import convert_model_to_external_data

import graphmod as gm


@pytest.fixture
def proto():
    return zoo.export("vgg", "torchscript")


@pytest.fixture
def external(tmp_path):
    """A model whose weights lie in a file of their own."""
    proto = zoo.export("vgg", "torchscript")
    folder = tmp_path / "external"
    folder.mkdir()
    convert_model_to_external_data(proto, location="weights.bin", size_threshold=0)
    onnx.save_model(proto, folder / "model.onnx")
    return gm.load(folder / "model.onnx")


def edited(model: gm.Model) -> gm.Model:
    proto = model.editable()
    proto.doc_string = "edited"
    return model.derive(proto)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("tail", [b"", b"\x9a\x06\x03abc"])
def test_an_unchanged_model_is_the_same_file(tmp_path, proto, tail):
    content = proto.SerializeToString() + tail  # a field that this version of ONNX does not know
    (tmp_path / "a.onnx").write_bytes(content)
    gm.load(tmp_path / "a.onnx").save(tmp_path / "b.onnx")
    gm.load(content).save(tmp_path / "c.onnx")
    assert (tmp_path / "b.onnx").read_bytes() == content
    assert (tmp_path / "c.onnx").read_bytes() == content


def test_saving_keeps_the_value_of_everything(tmp_path, proto):
    model = edited(gm.load(proto))
    path = model.save(tmp_path / "model.onnx")
    assert onnx.load_model(path) == model.proto()
    assert files(tmp_path) == ["model.onnx"]


def failing(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("kind", ["inside", "external"])
def test_a_write_that_fails_leaves_the_old_file_and_no_debris(tmp_path, monkeypatch, proto, external, function, kind):
    model = edited(gm.load(proto)) if kind == "inside" else external
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"old")
    monkeypatch.setattr(os, function, failing)
    with pytest.raises(gm.NotWritableError, match=r"model\.onnx.*No space left"):
        model.save(folder / "model.onnx")
    assert files(folder) == ["model.onnx"]
    assert (folder / "model.onnx").read_bytes() == b"old"


def test_a_failure_between_data_and_model_leaves_no_data(tmp_path, monkeypatch, external):
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: replace(a, b) if str(b).endswith(".data") else failing())
    with pytest.raises(gm.NotWritableError):
        external.save(tmp_path / "new.onnx")
    assert files(tmp_path) == ["external"]


def test_a_writer_that_fails_leaves_no_debris(tmp_path):
    def write(stream):
        stream.write(b"half")
        raise ValueError("broken writer")

    with pytest.raises(ValueError, match="broken writer"):
        gm.model.replace_file(tmp_path / "report.html", write)
    assert files(tmp_path) == []


@pytest.mark.parametrize("kind", ["inside", "external"])
def test_paths_that_cannot_be_written(tmp_path, proto, external, kind):
    model = gm.load(proto) if kind == "inside" else external
    folder = tmp_path / "folder.onnx"
    folder.mkdir()
    for path in (folder, tmp_path / "none" / "model.onnx", tmp_path / "external" / "model.onnx" / "below.onnx"):
        with pytest.raises(gm.NotWritableError) as caught:
            model.save(path)
        assert str(path) in str(caught.value)
    assert files(tmp_path) == ["external", "folder.onnx"]
    assert files(folder) == []


def test_external_weights_go_to_one_file_beside_the_model(tmp_path, external):
    path = external.save(tmp_path / "out.onnx")
    names = [name for name in files(tmp_path) if name != "external"]
    assert len(names) == 2
    onnx.checker.check_model(str(path))
    assert {t.name for t in onnx.load_model(path).graph.initializer} == set(external.initializers)
    again = gm.load(path)
    assert again.digest == external.digest
    feeds = zoo.network("vgg", "torchscript").feeds
    np.testing.assert_array_equal(again.run(feeds)["output"], external.run(feeds)["output"])


def test_data_file_is_as_readable_as_the_model(tmp_path, external):
    path = external.save(tmp_path / "out.onnx")
    modes = {file.stat().st_mode & 0o777 for file in tmp_path.iterdir() if file.is_file()}
    assert modes == {path.stat().st_mode & 0o777}


def test_permissions_of_an_older_file_stay(tmp_path, proto):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    path.chmod(0o640)
    gm.load(proto).save(path)
    assert path.stat().st_mode & 0o777 == 0o640


def test_saving_over_the_file_that_is_mapped(external):
    mapped = {name: external.initializer(name) for name in external.initializers}
    before = {name: value.copy() for name, value in mapped.items()}
    path = external.folder / "model.onnx"
    model = edited(external)
    for _ in range(2):
        model.save(path)
        assert gm.load(path).metadata == model.metadata
        assert onnx.load_model(path).doc_string == "edited"
        model = gm.load(path)
    for name, value in mapped.items():
        np.testing.assert_array_equal(value, before[name])
        np.testing.assert_array_equal(model.initializer(name), before[name])


def test_the_digest_is_of_values_not_of_places(proto, external):
    inside = gm.load(proto)
    assert external.digest == inside.digest
    changed = inside.proto()
    array = onnx.numpy_helper.to_array(changed.graph.initializer[0]).copy()
    array.flat[0] += 1
    changed.graph.initializer[0].raw_data = array.tobytes()
    assert gm.load(changed).digest != inside.digest


def test_a_link_is_written_through_and_a_device_is_refused(tmp_path):
    model = gm.load(gm.demo.model_path())
    target = tmp_path / "folder" / "target.onnx"
    target.parent.mkdir()
    target.write_bytes(b"old")
    link = tmp_path / "link.onnx"
    link.symlink_to(target)
    model.save(link)
    assert link.is_symlink()
    assert gm.load(target).digest == model.digest
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(gm.NotWritableError, match="it is a device, a pipe or a socket"):
        model.save(tmp_path / "pipe.onnx")
    assert (tmp_path / "pipe.onnx").is_fifo()


def test_data_that_differ_where_no_sample_is_taken_get_files_of_their_own(tmp_path):
    first = np.zeros(100_000, np.float32)
    second = first.copy()
    second[20_000] = 1  # neither at an end nor in the middle
    paths = [held_outside(tmp_path, name, value) for name, value in (("a", first), ("b", second))]
    for path in (*paths, *reversed(paths)):
        gm.load(path).save(tmp_path / "same" / "m.onnx")
        x = np.zeros(100_000, np.float32)
        saved = gm.load(tmp_path / "same" / "m.onnx").run({"x": x})["y"]
        np.testing.assert_array_equal(saved, gm.load(path).run({"x": x})["y"])
    assert len(list((tmp_path / "same").glob("*.data"))) == 2


def held_outside(folder, name, value):
    (folder / "same").mkdir(exist_ok=True)
    (folder / name).mkdir()
    helper = onnx.helper
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [100_000]) for n in "xy")
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y], [onnx.numpy_helper.from_array(value, "w")])
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path = folder / name / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path
