"""Differences of real networks, of bodies, functions and all that a file can hold besides operators."""

from __future__ import annotations

import io
import json

import numpy as np
import onnx
import pytest
import zoo
from disguise import disguise
from handmade import fan, model
from onnx import ModelProto, TensorProto, helper, numpy_helper
from rich.console import Console

import graphmod as gm
from graphmod.report.diff_tree import diff_tree

RNG = np.random.default_rng(0)
COUNTED = ("added", "removed", "changed", "rewired", "weights", "signature", "opsets", "functions")


def kinds(found: gm.Difference) -> set[str]:
    return {kind for kind in COUNTED if getattr(found, kind)}


@pytest.fixture
def demo() -> gm.Model:
    return gm.load(gm.demo.model_path())


def edited(a: gm.Model, edit) -> gm.Difference:
    """Return the difference that an edit of the proto makes."""
    proto = a.proto()
    edit(proto)
    return gm.diff(a, gm.load(proto))


def test_a_changed_operator_beside_an_unread_twin():
    make = helper.make_node
    operators = [
        make("Tanh", ["x"], ["a"], "first"), make("Exp", ["a"], ["b"], "read"), make("Exp", ["a"], ["c"], "unread"),
        make("Add", ["a", "b"], ["y"], "last"),
    ]  # fmt: skip
    before = model(operators, {"x": [2]}, {"y": [2]})
    after = before.proto()
    after.graph.node[1].attribute.append(helper.make_attribute("planted", 0.5))
    found = gm.diff(before, gm.load(disguise(after)))
    assert kinds(found) == {"changed"}
    assert [change.name for change in found.changed] == ["read"]


# -- networks


def test_a_network_in_disguise_is_the_same(any_export: zoo.Network):
    proto = any_export.model.proto()
    assert not gm.diff(any_export.model, any_export.model).notes
    assert gm.diff(any_export.model, gm.load(disguise(proto))).same


@pytest.mark.parametrize("name", ["resnet18", "vit12", "gpt2"])
@pytest.mark.parametrize("hidden", [False, True])
def test_planted_in_a_network(name: str, hidden: bool, zoo_network):
    before = zoo_network(name).model
    proto = before.proto()
    weighty = [op for op in proto.graph.node if op.op_type in ("Conv", "MatMul", "Gemm")]
    chosen = weighty[len(weighty) // 2]
    chosen.attribute.append(helper.make_attribute("planted", [1, 2]))
    name_of_chosen = chosen.name
    weights = [t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) > 1]
    tensor = weights[len(weights) // 3]
    old = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(old * np.float32(1.5), tensor.name))
    name_of_tensor = tensor.name
    found = gm.diff(before, gm.load(disguise(proto) if hidden else proto))
    assert kinds(found) == {"changed", "weights"}
    assert [(c.name, c.attributes) for c in found.changed] == [(name_of_chosen, {"planted": (None, [1, 2])})]
    assert [w.name for w in found.weights] == [name_of_tensor]
    assert found.weights[0].relative == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("number", [1, 3, 5, 6])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_removed_block_is_the_difference(demo, stage, number):
    path = f"layer{stage}.{number}"
    block = gm.blocks(demo)[path]
    found = gm.diff(demo, gm.remove(demo, path))
    assert kinds(found) == {"removed", "rewired"}
    assert {op.name for op in found.removed} == set(block.operators)
    assert {(r.before, r.after) for r in found.rewired} == {(block.exit, block.entry)}
    back = gm.diff(gm.remove(demo, path), demo)
    assert {op.name for op in back.added} == set(block.operators)


@pytest.mark.parametrize("path", ["layer1.3", "layer3.5"])
def test_a_removed_block_without_names(demo, path):
    block = gm.blocks(demo)[path]
    found = gm.diff(demo, gm.load(disguise(gm.remove(demo, path).proto())))
    assert kinds(found) == {"removed", "rewired"}
    kind = dict(zip(demo.operator_names, (op.op_type for op in demo.operators), strict=True))
    assert sorted(op.op_type for op in found.removed) == sorted(kind[name] for name in block.operators)
    convolutions = {name for name in block.operators if kind[name] == "Conv"}
    assert convolutions <= {op.name for op in found.removed}


def test_a_block_removed_and_every_weight_retrained(demo):
    proto = gm.remove(demo, "layer2.3").proto()
    for tensor in proto.graph.initializer:
        old = numpy_helper.to_array(tensor)
        if old.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(old + np.float32(0.01), tensor.name))
    found = gm.diff(demo, gm.load(proto))
    assert {op.name for op in found.removed} == set(gm.blocks(demo)["layer2.3"].operators)
    assert not found.added
    assert all(change.name == change.name_after for change in found.weights)
    assert len(found.weights) == sum(t.data_type == TensorProto.FLOAT for t in proto.graph.initializer)


def test_names_that_an_edit_shifts_do_not_mislead(demo):
    def number(proto: ModelProto) -> ModelProto:
        for position, operator in enumerate(proto.graph.node):
            operator.name = f"{operator.op_type}_{position}"
        return proto

    before = gm.load(number(demo.proto()))
    after = gm.load(number(gm.remove(demo, "layer1.2").proto()))
    found = gm.diff(before, after)
    assert (len(found.removed), kinds(found)) == (5, {"removed", "rewired"})
    assert len(found.rewired) <= 2


# -- weights


@pytest.mark.parametrize("place", ["inside", "beside"])
def test_norms_are_those_of_numpy(place, tmp_path):
    a = fan([700, 300], RNG, (400,))
    proto = a.proto()
    old = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    for tensor in proto.graph.initializer:
        new = numpy_helper.to_array(tensor).copy()
        new[-1, -1] += 1000  # the last scalar, which no sample is sure to see
        tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    new = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
    for path, one in zip(paths, (a.proto(), proto), strict=True):
        onnx.save(one, path, save_as_external_data=place == "beside", location=f"{path.name}.data", size_threshold=0)
    found = gm.diff(*map(gm.load, paths))
    assert kinds(found) == {"weights"}
    for change in found.weights:
        delta = new[change.name] - old[change.name]
        assert change.l2 == pytest.approx(np.linalg.norm(delta), rel=1e-12)
        assert change.relative == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(old[change.name]), rel=1e-12)
        assert change.largest == np.abs(delta).max()


def test_a_change_that_no_sample_sees():
    values = RNG.normal(size=(512, 512)).astype(np.float32)
    changed = values.copy()
    changed[100, 7] += 1
    operators = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    one, other = (model(operators, {"x": ["n", 512]}, {"y": ["n", 512]}, {"w": w}) for w in (values, changed))
    (change,) = gm.diff(one, other).weights
    assert (change.name, change.operators) == ("w", ("product",))
    assert change.l2 == pytest.approx(1, rel=1e-6)


def test_values_inside_beside_and_in_constant_operators_are_the_same(demo, tmp_path):
    proto = demo.proto()
    onnx.save(proto, tmp_path / "beside.onnx", save_as_external_data=True, size_threshold=0)
    typed = demo.proto()
    for tensor in typed.graph.initializer:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.ravel().tolist()))
    constant = demo.proto()
    made = [helper.make_node("Constant", [], [t.name], value=t) for t in constant.graph.initializer]
    operators = [*made, *demo.proto().graph.node]
    del constant.graph.initializer[:], constant.graph.node[:]
    constant.graph.node.extend(operators)
    for other in (gm.load(tmp_path / "beside.onnx"), gm.load(typed), gm.load(constant)):
        assert gm.diff(demo, other).same
        assert gm.diff(other, demo).same


def test_one_file_of_values_is_not_read(demo, tmp_path, monkeypatch):
    path = tmp_path / "beside.onnx"
    onnx.save(demo.proto(), path, save_as_external_data=True, size_threshold=0, location="values")
    a, b = gm.load(path), gm.load(path)
    from graphmod.model.stored import Stored

    def refuse(*_):
        raise AssertionError("read")

    monkeypatch.setattr(Stored, "chunks", refuse)
    assert gm.diff(a, b).same


def of_type(array: np.ndarray, kind: int) -> TensorProto:
    return helper.make_tensor("w", kind, array.shape, array.ravel().tolist())


@pytest.mark.parametrize(
    "kind", ["FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "INT4", "UINT4", "FLOAT8E4M3FN", "BOOL", "COMPLEX64"]
)
def test_every_type_has_norms(kind):
    old, new = np.array([0, 1, 1, 0, 1]), np.array([0, 1, 0, 1, 1])
    a, b = model([helper.make_node("Identity", ["w"], ["y"])], {}, {"y": None}), None
    for array in (old, new):
        proto = a.proto() if b is None else b.proto()
        del proto.graph.initializer[:]
        proto.graph.initializer.append(of_type(array, TensorProto.DataType.Value(kind)))
        a, b = (gm.load(proto), gm.load(proto)) if b is None else (a, gm.load(proto))
    assert gm.diff(a, a).same
    (change,) = gm.diff(a, b).weights
    assert (change.l2, change.largest) == (pytest.approx(2**0.5), 1)
    assert change.relative == pytest.approx((2 / 3) ** 0.5)


def test_other_dtypes_are_subtracted_other_shapes_are_not():
    operators = [helper.make_node("Mul", ["x", "w"], ["y"])]
    values = np.array([1, 2, 3], np.float32)
    one, *others = (
        model(operators, {"x": ["n", 3]}, {"y": ["n", 3]}, {"w": w})
        for w in (values, values.astype(np.float64) + 0.1, values[None], np.full(3, np.nan, np.float32))
    )
    wider, reshaped, nan = (gm.diff(one, other).weights[0] for other in others)
    assert (wider.before, wider.after) == ("float32[3]", "float64[3]")
    assert wider.largest == pytest.approx(0.1)
    assert (reshaped.after, reshaped.l2) == ("float32[1, 3]", None)
    assert np.isnan([nan.l2, nan.relative, nan.largest]).all()
    assert json.loads(json.dumps(gm.diff(one, others[2]).as_dict(), allow_nan=False))["weights"][0]["l2"] is None


@pytest.mark.filterwarnings("error")
def test_infinities_and_nan_that_stay_have_not_changed():
    operators = [helper.make_node("Mul", ["x", "w"], ["y"])]
    one, other, third = (
        model(operators, {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": np.array(w, np.float32)})
        for w in ([np.inf, np.nan, 3, 4], [np.inf, np.nan, 3, 6], [-np.inf, np.nan, 3, 4])
    )
    (change,) = gm.diff(one, other).weights
    assert (change.l2, change.largest) == (2, 2)
    (change,) = gm.diff(one, third).weights
    assert (change.l2, change.largest) == (np.inf, np.inf)


def test_sparse_constants():
    def sparse(values, indices):
        a = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": [2, 3]}, {"y": [2, 3]}).proto()
        entries = numpy_helper.from_array(np.array(values, np.float32), "w")
        a.graph.sparse_initializer.add(values=entries, indices=numpy_helper.from_array(np.array(indices)), dims=[2, 3])
        return gm.load(a)

    one = sparse([1, 2], [0, 4])
    assert gm.diff(one, sparse([1, 2], [0, 4])).same
    (change,) = gm.diff(one, sparse([1, 2, 5], [[0, 0], [1, 2], [0, 1]])).weights
    assert change.l2 == pytest.approx(np.sqrt(2**2 + 2**2 + 5**2))
    assert change.largest == 5


# -- bodies and functions


def choice(inner: float = 1.0, kind: str = "Add", captured: str = "x", name: str = "v") -> gm.Model:
    """Return a model with an If that adds a constant in one branch, from a Constant operator, and captures a tensor."""
    value = helper.make_tensor("value", TensorProto.FLOAT, [2], [inner, 2])
    then = [helper.make_node("Constant", [], [name], value=value), helper.make_node(kind, [captured, name], ["t"])]
    other = [helper.make_node("Mul", ["x", "w"], ["e"], "scaled")]
    bodies = {
        "then_branch": helper.make_graph(then, "then", [], [helper.make_tensor_value_info("t", 1, None)]),
        "else_branch": helper.make_graph(other, "else", [], [helper.make_tensor_value_info("e", 1, None)],
                                         [helper.make_tensor("w", 1, [2], [3, inner])]),
    }  # fmt: skip
    operators = [
        helper.make_node("Neg", ["x"], ["n"], "negate"),
        helper.make_node("If", ["c"], ["i"], "choice", **bodies),
        helper.make_node("Add", ["i", "n"], ["y"], "sum"),
    ]
    return model(operators, {"x": [2]}, {"y": [2]}, {"c": np.array(True)})


def test_bodies_are_compared_inside():
    a = choice()
    assert gm.diff(a, choice(name="another")).same
    weights = {(w.name, w.l2) for w in gm.diff(a, choice(inner=4)).weights}
    assert weights == {("choice/then_branch/v", 3), ("choice/else_branch/w", 3)}
    (rewired,) = gm.diff(a, choice(captured="n")).rewired
    assert (rewired.name, rewired.slot, rewired.before, rewired.after) == ("choice/then_branch/Add_1", "0", "x", "n")
    swapped = gm.diff(a, choice(kind="Sub"))
    assert [op.name for op in swapped.removed] == ["choice/then_branch/Add_1"]
    assert [(r.name, r.slot) for r in swapped.rewired] == [("choice", "then_branch 0")]


def with_function(scale: float = 2.0, name: str = "Scale", extra: bool = False) -> gm.Model:
    body = [
        helper.make_node("Constant", [], ["two"], value=helper.make_tensor("v", 1, [], [scale])),
        helper.make_node("Mul", ["a", "two"], ["b"]),
        *([helper.make_node("Neg", ["b"], ["d"])] if extra else []),
    ]
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function("mine", name, ["a"], ["d" if extra else "b"], body, opset)
    operators = [
        helper.make_node(name, ["x"], ["h"], domain="mine"),
        helper.make_node(name, ["h"], ["y"], domain="mine"),
    ]
    proto = model(operators, {"x": [2]}, {"y": [2]}).proto()
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    return gm.load(proto)


def test_functions_are_compared_inside():
    a = with_function()
    assert gm.diff(a, with_function()).same
    (weight,) = gm.diff(a, with_function(scale=5)).weights
    assert (weight.name, weight.l2) == ("function mine::Scale/two", 3)
    longer = gm.diff(a, with_function(extra=True))
    assert [op.op_type for op in longer.added] == ["Neg"]
    assert [(r.op_type, r.before, r.after) for r in longer.rewired] == [("output", "b", "d")]
    other = gm.diff(a, with_function(name="Other"))
    assert other.functions == {"mine::Other": "added", "mine::Scale": "removed"}
    assert [op.op_type for op in other.added] == ["Other", "Other"]


def test_a_long_chain_of_bodies_needs_no_recursion():
    proto = fan([4] * 3, RNG, (4,)).proto()
    operators = [helper.make_node("Tanh", ["x" if i == 0 else f"c{i - 1}"], [f"c{i}"]) for i in range(5000)]
    operators.append(helper.make_node("Identity", ["c4999"], ["t2"]))
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(operators)
    shorter = ModelProto()
    shorter.CopyFrom(proto)
    del shorter.graph.node[2500]
    shorter.graph.node[2500].input[0] = "c2499"
    found = gm.diff(gm.load(proto), gm.load(shorter))
    assert (len(found.removed), len(found.rewired), kinds(found)) == (1, 1, {"removed", "rewired"})


# -- the rest of a model


def test_the_signature():
    a = fan([4, 4], RNG, (4,))

    def rename(proto):
        proto.graph.input[0].name = proto.graph.node[0].input[0] = "picture"
        proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
        proto.graph.output.append(helper.make_tensor_value_info("m0", TensorProto.FLOAT, None))

    found = edited(a, rename)
    assert kinds(found) == {"signature"}
    assert {(s.kind, s.what, s.before, s.after) for s in found.signature} == {
        ("input", "renamed", "x", "picture"),
        ("output", "retyped", "t1: float32[n, 4]", "t1: float32[3, 4]"),
        ("output", "added", "", "m0: float32[...]"),
    }


def test_what_describes_a_model_does_not_count(demo):
    def describe(proto):
        proto.ir_version += 1
        proto.producer_name, proto.doc_string = "someone", "words"
        helper.set_model_props(proto, {"key": "value"})
        proto.graph.node[3].doc_string = "words"

    found = edited(demo, describe)
    assert found.same
    assert found.header["producer_name"][1] == "someone"
    assert found.header["ir_version"] == (demo.ir_version, demo.ir_version + 1)
    assert found.metadata["key"] == (None, "value")
    assert found.notes == ("1 operators have other metadata or doc strings",)


def test_shapes_follow_and_do_not_count_twice(demo):
    found = gm.diff(demo, gm.rebatch(demo, 2))
    assert kinds(found) == {"signature"}
    assert all(shape.after.startswith("float32[2, ") for shape in found.shapes)
    assert len(found.shapes) > 50


def test_missing_inputs_and_outputs():
    def build(reads, makes):
        step = helper.make_node("Clip", reads, ["c"], "clip")
        pool = helper.make_node("MaxPool", ["c"], makes, "pool", kernel_shape=[2])
        return model([step, pool], {"x": [1, 1, 4]}, {"y": [1, 1, 3]}, {"low": np.float32(0), "high": np.float32(1)})

    a = build(["x", "low", "high"], ["y"])
    found = gm.diff(a, build(["x", "", "high"], ["y", "i"]))
    assert [(r.name, r.slot, r.before, r.after) for r in found.rewired] == [("clip", "1", "low", "")]
    assert found.changed[0].attributes == {"outputs made": ([0], [0, 1])}


def test_a_tensor_that_nothing_makes_is_named(demo):
    proto = demo.proto()
    proto.graph.node[5].input[0] = "nowhere"
    with pytest.raises(gm.InvalidModelError, match="'nowhere'"):
        gm.diff(demo, gm.load(proto))


def test_arguments_stay_as_they_are(demo):
    digest, content = demo.digest, demo._proto.SerializeToString()
    gm.diff(demo, gm.remove(demo, "layer1.3"))
    assert (demo.digest, demo._proto.SerializeToString()) == (digest, content)


def test_a_tensor_of_one_name_that_another_operator_makes():
    def build(between, weights=None):
        ends = [helper.make_node("Neg", ["x"], ["a"], "first"), helper.make_node("Add", ["ra", "x"], ["y"], "last")]
        return model([ends[0], *between, ends[1]], {"x": [1, 4]}, {"y": [1, 4]}, weights or {})

    relu = build([helper.make_node("Relu", ["a"], ["ra"], "relu")])
    by_swish = build(
        [helper.make_node("Relu", ["a"], ["r"], "relu"), helper.make_node("HardSwish", ["r"], ["ra"], "[x]")]
    )
    found = gm.diff(relu, by_swish)
    assert [(r.before, r.after, r.made_by) for r in found.rewired] == [("ra", "ra", "HardSwish '[x]'")]
    assert "Add last input 0: ra → ra, now made by HardSwish '[x]'" in shown(found)
    constant = gm.diff(relu, build([], {"ra": np.zeros((1, 4), np.float32)}))
    assert "Add last input 0: ra → ra, now an input or a constant" in shown(constant)


def shown(difference):
    console = Console(file=io.StringIO(), width=160)
    console.print(diff_tree(difference, "models"))
    return console.file.getvalue()
