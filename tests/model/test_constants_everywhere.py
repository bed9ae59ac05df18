"""Constants in attributes, bodies, functions and sparse initializers are reached like the main graph's."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

import graphmod as gm
from graphmod.model import initializers

N = 2000
X = np.ones(N, np.float32)


def tensor(name: str, value: float) -> TensorProto:
    return numpy_helper.from_array(np.full(N, value, np.float32), name)


def constant(output: str, value: float) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [output], value=tensor("", value))


def body(name: str, value: float) -> onnx.GraphProto:
    """Adds an initializer and a Constant of its own to what it captures."""
    nodes = [
        constant(f"{name}c", value),
        helper.make_node("Sum", ["b", f"{name}i", f"{name}c"], [f"{name}o"]),
    ]
    output = helper.make_tensor_value_info(f"{name}o", TensorProto.FLOAT, [N])
    return helper.make_graph(nodes, name, [], [output], [tensor(f"{name}i", 10 * value)])


def proto() -> onnx.ModelProto:
    """A model that has a constant of 2,000 scalars in every place that can hold one."""
    function = helper.make_function(
        "own",
        "Shift",
        ["p"],
        ["q"],
        [constant("k", 100), helper.make_node("Add", ["p", "k"], ["q"])],
        [helper.make_opsetid("", 18)],
    )
    inner = helper.make_node("If", ["yes"], ["e"], then_branch=body("t", 1), else_branch=body("f", 2))
    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"]),
        helper.make_node("Shift", ["a"], ["b"], domain="own"),
        constant("k0", 1000),
        inner,
        helper.make_node("Sum", ["e", "k0", "s"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [N]) for name in "xy"]
    yes = helper.make_tensor_value_info("yes", TensorProto.BOOL, [])
    graph = helper.make_graph(nodes, "everywhere", [values[0], yes], values[1:], [tensor("w", 10_000)])
    indices = numpy_helper.from_array(np.arange(N, dtype=np.int64), "indices")
    graph.sparse_initializer.append(helper.make_sparse_tensor(tensor("s", 100_000), indices, [N]))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=[function])


def moved_out(folder) -> gm.Model:
    """The same with all of them in one external file."""
    moved = proto()
    with (folder / "all.bin").open("wb") as stream:
        for one in initializers.tensors(moved):
            data = one.raw_data
            initializers.clear(one)
            one.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "all.bin"), ("offset", stream.tell()), ("length", len(data))):
                one.external_data.add(key=key, value=str(value))
            stream.write(data)
    (folder / "m.onnx").write_bytes(moved.SerializeToString())
    return gm.load(folder / "m.onnx")


def result(model: gm.Model, *, yes: bool) -> float:
    (value,) = set(model.run({"x": X, "yes": np.array(yes)})["y"].tolist())
    return value


@pytest.mark.parametrize("place", ["inside", "outside", "saved"])
def test_every_constant_is_computed_with(tmp_path, place):
    model = gm.load(proto()) if place == "inside" else moved_out(tmp_path)
    if place == "saved":
        (tmp_path / "there").mkdir()
        model = gm.load(model.save(tmp_path / "there" / "n.onnx"))
        (tmp_path / "all.bin").unlink()
    assert result(model, yes=True) == 111_112
    assert result(model, yes=False) == 111_123
    assert result(model.derive(model.editable()), yes=True) == 111_112


def test_the_walk_finds_what_a_recursive_one_finds():
    def walk(message):
        for field, value in message.ListFields():
            if field.message_type is None:
                continue
            for one in [value] if hasattr(value, "ListFields") else value:
                yield from [one] if isinstance(one, TensorProto) else walk(one)

    model = proto()
    expected = sorted(one.SerializeToString() for one in walk(model))
    assert len(expected) == 9
    assert sorted(one.SerializeToString() for one in initializers.tensors(model)) == expected


def test_places_make_no_difference(tmp_path):
    inside, outside = gm.load(proto()), moved_out(tmp_path)
    assert all(map(uses_external_data, initializers.tensors(outside._proto)))
    assert outside.digest == inside.digest
    assert outside.proto() == inside.proto()
    assert outside.n_bytes == pytest.approx(inside.n_bytes, rel=0.05)
    assert gm.model.external_files(tmp_path / "m.onnx") == [tmp_path / "all.bin"]
    saved = gm.load(outside.save(tmp_path / "n.onnx"))
    assert saved.digest == inside.digest
    assert saved.proto() == inside.proto()
    onnx.checker.check_model(str(tmp_path / "n.onnx"))
    assert gm.load(onnx.load_model(tmp_path / "n.onnx")).digest == inside.digest


@pytest.mark.parametrize("number", range(9))
def test_every_constant_counts_in_the_digest(number):
    changed = proto()
    one = list(initializers.tensors(changed))[number]
    data = bytearray(one.raw_data)
    data[-1] ^= 1
    one.raw_data = bytes(data)
    assert gm.load(changed).digest != gm.load(proto()).digest


def test_a_missing_file_is_noticed_wherever_it_is_needed(tmp_path):
    path = moved_out(tmp_path).folder / "m.onnx"
    only_inner = onnx.load_model(path, load_external_data=False)
    del only_inner.graph.initializer[:], only_inner.graph.sparse_initializer[:]
    (tmp_path / "inner.onnx").write_bytes(only_inner.SerializeToString())
    (tmp_path / "all.bin").rename(tmp_path / "gone.bin")
    for name in ("m", "inner"):
        with pytest.raises(gm.InvalidModelError, match="missing"):
            gm.load(tmp_path / f"{name}.onnx")


def test_shared_places_stay_shared(tmp_path):
    model = moved_out(tmp_path)
    shared = model.editable()
    first = shared.graph.initializer[0]
    again = shared.graph.initializer.add()
    again.CopyFrom(first)
    again.name = "w2"
    path = model.derive(shared).save(tmp_path / "shared.onnx")
    w, w2 = onnx.load_model(path, load_external_data=False).graph.initializer
    assert list(w.external_data) == list(w2.external_data)
    np.testing.assert_array_equal(gm.load(path).initializer("w2"), np.full(N, 10_000, np.float32))


def test_different_weights_beside_each_other(tmp_path):
    first = moved_out(tmp_path)
    second = first.proto()
    second.graph.initializer[0].CopyFrom(tensor("w", 20_000))
    (tmp_path / "b").mkdir()
    onnx.save_model(second, tmp_path / "b" / "m.onnx", save_as_external_data=True, location="all.bin")
    second = gm.load(tmp_path / "b" / "m.onnx")
    path = tmp_path / "same.onnx"
    assert result(gm.load(first.save(path)), yes=True) == 111_112
    kept = gm.load(path)
    assert result(gm.load(second.save(path)), yes=True) == 121_112
    assert result(kept, yes=True) == 111_112


def half_and_back(model: gm.Model) -> gm.Model:
    return gm.retype(gm.retype(model, "float16", saturate=True), "float32")


@pytest.mark.parametrize("edit", [gm.fuse, gm.outline, gm.inline, gm.simplify, half_and_back])
def test_verbs_read_constants_wherever_they_lie(tmp_path, edit):
    inside, outside = edit(gm.load(proto())), edit(moved_out(tmp_path))
    assert outside.digest == inside.digest
    assert result(outside, yes=True) == result(inside, yes=True)


def test_lint_reads_constants_wherever_they_lie(tmp_path):
    assert gm.lint(moved_out(tmp_path)) == gm.lint(gm.load(proto()))


def test_equal_constants_of_operators_in_one_file_are_repeats(tmp_path):
    held = tensor("", 3)
    (tmp_path / "c.bin").write_bytes(held.raw_data)
    onnx.external_data_helper.set_external_data(held, "c.bin")
    held.ClearField("raw_data")
    nodes = []
    for before, after in ("xa", "ab", "by"):
        nodes += [
            helper.make_node("Constant", [], [f"c{after}"], value=held),
            helper.make_node("Add", [before, f"c{after}"], [after]),
        ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [N]) for name in "xy"]
    graph = helper.make_graph(nodes, "repeats", values[:1], values[1:])
    whole = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    (tmp_path / "m.onnx").write_bytes(whole.SerializeToString())
    outlined = gm.outline(gm.load(tmp_path / "m.onnx"), size=2)
    assert [len(function.node) for function in outlined.functions] == [2]
    np.testing.assert_array_equal(outlined.run({"x": X})["y"], X + 9)


# -- more than one message holds


@pytest.fixture
def tiny_messages(monkeypatch):
    """Let every model count as too large for one message."""
    monkeypatch.setattr(initializers, "SAFE", 1000)


def narrow(data_type: int) -> onnx.ModelProto:
    """Weights of a narrow type, cast to float."""
    weight = helper.make_tensor("w", data_type, [N], [number % 7 for number in range(N)])
    nodes = [helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT), helper.make_node("Add", ["x", "c"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [N]) for name in "xy"]
    graph = helper.make_graph(nodes, "narrow", values[:1], values[1:], [weight])
    return helper.make_model(graph, ir_version=11, opset_imports=[helper.make_opsetid("", 21)])


@pytest.mark.usefixtures("tiny_messages")
def test_a_model_too_large_for_a_message(tmp_path):
    model = gm.load(proto())
    assert result(model, yes=True) == 111_112
    assert result(model.derive(model.editable()), yes=False) == 111_123
    path = model.save(tmp_path / "m.onnx")
    saved = onnx.load_model(path, load_external_data=False)
    assert all(map(uses_external_data, [*saved.graph.initializer, *initializers.inner_dense_tensors(saved)]))
    assert gm.load(path).digest == model.digest
    assert result(gm.load(path), yes=True) == 111_112
    assert model.n_bytes == pytest.approx(proto().ByteSize(), rel=0.01)


@pytest.mark.usefixtures("tiny_messages")
@pytest.mark.parametrize(
    "data_type",
    [
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.FLOAT8E4M3FN,
        TensorProto.FLOAT8E5M2,
        TensorProto.INT4,
        TensorProto.INT8,
        TensorProto.BOOL,
    ],
)
def test_narrow_types_too_large_for_a_message(tmp_path, data_type):
    model = gm.load(narrow(data_type))
    expected = X + (np.arange(N) % 7 if data_type != TensorProto.BOOL else np.arange(N) % 7 > 0)
    np.testing.assert_array_equal(model.run({"x": X})["y"], expected)
    again = gm.load(model.save(tmp_path / "m.onnx"))
    assert again.digest == model.digest
    np.testing.assert_array_equal(again.run({"x": X})["y"], expected)


@pytest.mark.slow
def test_over_two_gigabytes_in_one_message(tmp_path):
    rng = np.random.default_rng(0)
    row = rng.normal(size=2**14).astype(np.float32)
    names = [f"w{i}" for i in range(9)]
    nodes = [helper.make_node("Gather", [name, "row"], [f"g{name}"]) for name in names]
    nodes.append(helper.make_node("Sum", [f"g{name}" for name in names], ["y"]))
    row_in = helper.make_tensor_value_info("row", TensorProto.INT64, ["n"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2**14])
    large = helper.make_model(
        helper.make_graph(nodes, "large", [row_in], [out]), ir_version=9, opset_imports=[helper.make_opsetid("", 18)]
    )
    data = row.tobytes() * 2**12
    for name in names:
        large.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=[2**12, 2**14], raw_data=data)
    assert len(names) * len(data) > 2**31
    del data
    model = gm.load(large)
    del large
    feeds = {"row": np.array([5, 7])}
    expected = np.stack([row * np.float32(9)] * 2)
    np.testing.assert_allclose(model.run(feeds)["y"], expected, rtol=1e-5)
    assert model.tensors["y"].shape == ("n", 2**14)
    edited = model.derive(model.editable())
    assert edited.n_bytes > 2**31
    path = edited.save(tmp_path / "large.onnx")
    digest = model.digest
    del model, edited
    again = gm.load(path)
    assert again.digest == digest
    np.testing.assert_allclose(again.run(feeds)["y"], expected, rtol=1e-5)
