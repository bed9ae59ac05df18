"""Removal: what counts, names or indexes what is left follows it, and all else of the file stays as it was."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from planted import feeds, graph, net
from pruned import EXACT, error, some_units

import graphmod as gm
from graphmod.errors import RefusedError
from graphmod.pruning import Groups, cut, groups
from graphmod.pruning.widths import Widths

IMAGE, TOKENS = "(float[n,3,4,4] x) => (float[n,2,4,4] y)", "(float[n,3,5] x) => (float[n,3,2] y)"
HEADS = (
    "q = MatMul(x, w)  q4 = Reshape(q, {s})  qt = Transpose <perm=[0,2,1,3]> (q4)  k = Transpose <perm=[0,1,3,2]> (qt)"
    "  a = MatMul(qt, k)  p = Softmax(a)  o = MatMul(p, qt)  ot = Transpose <perm=[0,2,1,3]> (o)"
    "  of = Reshape(ot, {f})  y = MatMul(of, v)"
)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def gone(found: Groups, **units: list[int]) -> np.ndarray:
    """Say which units of which groups go."""
    removed = np.zeros(found.n_units, bool)
    for name, numbers in units.items():
        removed[found[name].first + np.array(numbers)] = True
    return removed


def agrees(model: gm.Model, batches: tuple[int, ...] = (1, 2, 5)) -> None:
    """Check random removals at several sizes of the batch."""
    found = groups(model)
    assert len(found)
    for seed in range(3):
        for batch in batches:
            assert error(found, some_units(found, seed), feeds(model, batch)) <= EXACT


@pytest.mark.parametrize(
    ("target", "back"),
    [
        ([0, 0, 2, 3], [0, 0, 6]), ([-1, 3, 2, 3], [-1, 3, 6]), ([0, 0, -1, 3], [0, 0, -1]),
        ([0, -1, 2, 3], [0, 3, -1]),
        ([0, 3, 2, -1], [0, -1, 6]),
    ],
)  # fmt: skip
def test_targets_of_reshape(target, back):
    text = HEADS.format(s="s", f="f")
    agrees(net(f"{TOKENS} {{ {text} }}", {"w": (5, 6), "s": ints(*target), "f": ints(*back), "v": (6, 2)}))


def test_a_target_computed_from_shapes():
    text = ("h = Shape(x)  n = Gather(h, i0)  t = Gather(h, i1)  n1 = Unsqueeze(n, u)  t1 = Unsqueeze(t, u)"
            "  s = Concat <axis=0> (n1, t1, two, three)  f = Concat <axis=0> (n1, t1, six) "
            + HEADS.format(s="s", f="f"))  # fmt: skip
    weights = {"i0": np.int64(0), "i1": np.int64(1), "u": ints(0), "two": ints(2), "three": ints(3), "six": ints(6)}
    agrees(net(f"{TOKENS} {{ {text} }}", {**weights, "w": (5, 6), "v": (6, 2)}))


def test_a_target_computed_from_the_width_itself():
    """The width of a head is the whole width over a number of heads, as in exports of transformers."""
    text = ("q = MatMul(x, w)  h = Shape(q)  n = Gather(h, i0)  c = Gather(h, i2)  d = Div(c, heads)"
            "  n1 = Unsqueeze(n, u)  d1 = Unsqueeze(d, u)  c1 = Unsqueeze(c, u)  s = Concat <axis=0> (n1, m, two, d1)"
            "  f = Concat <axis=0> (n1, m, c1)  q4 = Reshape(q, s)  qt = Transpose <perm=[0,2,1,3]> (q4)"
            "  k = Transpose <perm=[0,1,3,2]> (qt)  a = MatMul(qt, k)"
            "  df = Cast <to=1> (d)  r = Sqrt(df)  as = Div(a, r)"
            "  p = Softmax(as)  o = MatMul(p, qt)  ot = Transpose <perm=[0,2,1,3]> (o)  of = Reshape(ot, f)"
            "  y = MatMul(of, v)")  # fmt: skip
    weights = {"i0": np.int64(0), "i2": np.int64(2), "heads": np.int64(2), "u": ints(0), "m": ints(-1), "two": ints(2)}
    agrees(net(f"{TOKENS} {{ {text} }}", {**weights, "w": (5, 6), "v": (6, 2)}))
    weights |= {"heads": np.int64(4), "two": ints(4), "w": (5, 8), "v": (8, 2)}
    four = net(f"{TOKENS} {{ {text} }}", weights)
    one = cut(groups(four), gone(groups(four), MatMul_0=[0, 2, 3]))  # 2 over 4 heads is 0
    agrees(four)
    agrees(cut(groups(four), gone(groups(four), MatMul_0=[2])))  # again, of what has lost some
    assert one.run(feeds(one, 5))["y"].shape == (5, 3, 2)


def test_a_target_with_a_product_of_the_batch_and_heads():
    text = ("q = MatMul(x, w)  q4 = Reshape(q, s)  qt = Transpose <perm=[0,2,1,3]> (q4)"
            "  h = Shape(x)  n = Gather(h, i0)"
            "  nh = Mul(n, heads)  nh1 = Unsqueeze(nh, u)  n1 = Unsqueeze(n, u)"
            "  b = Concat <axis=0> (nh1, three, three)"
            "  q3 = Reshape(qt, b)  k3 = Transpose <perm=[0,2,1]> (q3)  a = MatMul(q3, k3)  p = Softmax(a)"
            "  o = MatMul(p, q3)  c = Concat <axis=0> (n1, two, three, three)  o4 = Reshape(o, c)"
            "  ot = Transpose <perm=[0,2,1,3]> (o4)  of = Reshape(ot, f)  y = MatMul(of, v)")  # fmt: skip
    weights = {"s": ints(0, 0, 2, 3), "i0": np.int64(0), "heads": np.int64(2), "u": ints(0), "three": ints(3),
               "two": ints(2), "f": ints(0, 0, 6), "w": (5, 6), "v": (6, 2)}  # fmt: skip
    model = net(f"{TOKENS} {{ {text} }}", weights)
    agrees(model, batches=(2,))  # the reference zeroes indices of the product at that size
    small, five = cut(groups(model), gone(groups(model), MatMul_0=[1])), feeds(model, 5)
    assert np.allclose(small.run(five)["y"][:2], small.run({"x": five["x"][:2]})["y"], atol=1e-5)


def test_one_target_with_two_needs_becomes_two():
    text = "a = Conv(x, w)  b = Conv(x, u)  c = Reshape(a, s)  d = Reshape(b, s)  e = Reshape(c, t)  f = Reshape(d, t)"
    text += "  g = Conv(e, w2)  h = Conv(f, u2)  y = Add(g, h)"
    weights = {"w": (4, 3, 1, 1), "u": (4, 3, 1, 1), "s": ints(0, 4, 16), "t": ints(0, 4, 4, 4), "w2": (2, 4, 1, 1),
               "u2": (2, 4, 1, 1)}  # fmt: skip
    model = net(f"{IMAGE} {{ {text} }}", weights)
    found = groups(model)
    small = cut(found, gone(found, Conv_0=[1], Conv_1=[0, 3]))
    targets = {
        op.output[0]: small.initializer(op.input[1]).tolist() for op in small.operators if op.op_type == "Reshape"
    }
    assert targets == {"c": [0, 3, 16], "d": [0, 2, 16], "e": [0, 3, 4, 4], "f": [0, 2, 4, 4]}
    agrees(model)


def test_sizes_that_are_computed_twice_or_halved():
    text = ("a = Conv(x, w)  h = Shape(a)  c = Gather(h, one)  d = Div(c, two)  d1 = Unsqueeze(d, zero)"
            "  c1 = Unsqueeze(c, zero)  p = Slice(a, zero, d1, ones)  q = Slice(a, d1, c1, ones)"
            "  e = Concat <axis=1> (q, p)  y = Conv(e, v)")  # fmt: skip
    weights = {
        "w": (6, 3, 1, 1),
        "one": np.int64(1),
        "two": np.int64(2),
        "zero": ints(0),
        "ones": ints(1),
        "v": (2, 6, 1, 1),
    }
    agrees(net(f"{IMAGE} {{ {text} }}", weights))


def test_sizes_of_expand_constant_of_shape_and_resize():
    text = ("a = Conv(x, w)  h = Shape(a)  z = ConstantOfShape(h)  b = Add(a, z)  p = GlobalAveragePool(b)"
            "  e = Expand(p, h)  l = Slice(h, zero, two)  k = Concat <axis=0> (l, eight)"
            "  r = Resize <mode=\"nearest\"> (e, , , k)  m = AveragePool <kernel_shape=[2,2], strides=[2,2]> (r)"
            "  y = Conv(m, v)")  # fmt: skip
    weights = {"w": (4, 3, 1, 1), "zero": ints(0), "two": ints(2), "eight": ints(8, 8), "v": (2, 4, 1, 1)}
    agrees(net(f"{IMAGE} {{ {text} }}", weights))


def test_a_squeeze_of_whatever_is_single_keeps_a_single_channel():
    model = net("(float[n,3,4,4] x) => (float[n,2] y) { p = GlobalAveragePool(x)  a = Conv(p, w)  s = Squeeze(a)"
                "  y = Gemm(s, v) }", {"w": (3, 3, 1, 1), "v": (3, 2)})  # fmt: skip
    found = groups(model)
    assert error(found, gone(found, Conv_1=[0, 2]), feeds(model, 4)) <= EXACT


def test_what_counts_channels_heads_and_groups():
    model = net("(float[n,4,4,4] x) => (float[n,2,4,4] y) { a = Conv(x, w)  b = Conv <group=3> (a, d)"
                "  y = Conv(b, v) }", {"w": (3, 4, 1, 1), "d": (6, 1, 3, 3), "v": (2, 6, 2, 2)})  # fmt: skip
    model = gm.load(model.proto())
    found = groups(model)
    small = cut(found, gone(found, Conv_0=[1]))
    assert {a.name: a.i for a in small.operators[1].attribute if a.name == "group"} == {"group": 2}
    assert small.tensors["b"].shape[1] == 4


def test_a_whole_axis_does_not_go():
    model = net(f"{IMAGE} {{ a = Conv(x, w)  p, q = Split <axis=1> (a)  r = Conv(p, u)  s = Conv(q, v)"
                "  y = Add(r, s) }",
                {"w": (4, 3, 1, 1), "u": (2, 2, 1, 1), "v": (2, 2, 1, 1)})  # fmt: skip
    found, digest = groups(model), model.digest
    with pytest.raises(
        RefusedError, match="all units along an axis of 'q', which Split 'Split_1' reads or makes, would go"
    ):
        cut(found, gone(found, Conv_0=[2, 3]))
    with pytest.raises(RefusedError, match="all units along an axis"):
        cut(found, np.ones(4, bool))
    assert model.digest == digest


def annotated() -> onnx.ModelProto:
    """Return a network with everything that a file can say beside its operators."""
    function = helper.make_function("local", "Own", ["i"], ["o"], [helper.make_node("Relu", ["i"], ["o"])],
                                    [helper.make_opsetid("", 17)])  # fmt: skip
    proto = net(f"{IMAGE} {{ a = Conv(x, w, b)  r = Relu(a)  c = Conv(r, u)  d = local.Own(c)  y = Conv(d, v) }}",
                {"w": (4, 3, 1, 1), "b": (4,), "u": (3, 4, 1, 1), "v": (2, 3, 1, 1), "idle": (7,)},
                functions=[function], producer_name="tests", doc_string="about").proto()  # fmt: skip
    helper.set_model_props(proto, {"author": "someone"})
    proto.graph.doc_string = "the graph"
    for number, operator in enumerate(proto.graph.node):
        operator.name, operator.doc_string = f"op{number}", f"the {number}th"
        entry = operator.metadata_props.add()
        entry.key, entry.value = "origin", f"line {number}"
    proto.graph.initializer[0].doc_string = "a weight"
    proto.graph.value_info.append(helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, ["n", 4, 4, 4]))
    return proto


def test_what_is_not_about_sizes_stays():
    proto = annotated()
    model = gm.load(proto)
    found = groups(model)
    small = cut(found, gone(found, op0=[1, 2])).proto()
    assert small.functions == proto.functions
    assert list(small.graph.input) == list(proto.graph.input)
    assert list(small.graph.output) == list(proto.graph.output)
    assert {entry.key: entry.value for entry in small.metadata_props} == {"author": "someone"}
    assert (small.producer_name, small.doc_string, small.graph.doc_string) == ("tests", "about", "the graph")
    assert list(small.graph.node) == list(proto.graph.node)
    assert [tensor.name for tensor in small.graph.initializer] == [tensor.name for tensor in proto.graph.initializer]
    assert small.graph.initializer[0].doc_string == "a weight"
    assert [dim.dim_value for dim in small.graph.value_info[0].type.tensor_type.shape.dim] == [0, 2, 4, 4]
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in small.graph.initializer}
    for name, kept in {
        "w": np.s_[[0, 3]],
        "b": np.s_[[0, 3]],
        "u": np.s_[:, [0, 3]],
        "v": np.s_[:],
        "idle": np.s_[:],
    }.items():
        assert np.array_equal(values[name], model.initializer(name)[kept])


def test_the_argument_is_untouched():
    model = gm.load(annotated())
    before = model.proto().SerializeToString(deterministic=True)
    cut(groups(model), gone(groups(model), op0=[0]))
    assert model.proto().SerializeToString(deterministic=True) == before


def test_nothing_removed_is_the_same_network():
    model = gm.load(annotated())
    assert gm.diff(model, cut(groups(model), np.zeros(groups(model).n_units, bool))).same


def test_old_files_list_weights_among_the_inputs():
    made = graph(f"{IMAGE} {{ a = Conv(x, w, b)  r = Relu(a)  y = Conv(r, v) }}",
                 {"w": (4, 3, 1, 1), "b": (4,), "v": (2, 4, 1, 1)})  # fmt: skip
    for tensor in made.initializer:
        made.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model = gm.load(helper.make_model(made, ir_version=3, opset_imports=[helper.make_opsetid("", 8)]))
    found = groups(model)
    small = cut(found, gone(found, Conv_0=[3])).proto()
    assert {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in small.graph.input} == {
        "x": [0, 3, 4, 4], "w": [3, 3, 1, 1], "b": [3], "v": [2, 3, 1, 1]
    }  # fmt: skip
    assert error(found, gone(found, Conv_0=[3]), feeds(model)) <= EXACT


def test_weights_in_other_files_stay_there_unless_they_change(tmp_path):
    onnx.save(annotated(), tmp_path / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    model = gm.load(tmp_path / "big.onnx")
    found = groups(model)
    small = cut(found, gone(found, op0=[0, 1]))
    outside = {
        tensor.name for tensor in small._proto.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    assert outside == {"v", "idle"}
    expected = cut(groups(gm.load(annotated())), gone(found, op0=[0, 1]))
    for name, value in expected.run(feeds(model)).items():
        assert np.array_equal(small.run(feeds(model))[name], value)
    small.save(tmp_path / "small.onnx")
    assert gm.load(tmp_path / "small.onnx").digest == small.digest


def test_weights_made_by_operators_are_cut():
    text = "w = Constant <value = float[3,3,1,1] {1,2,3,4,5,6,7,8,9}> ()  b = Constant <value_floats=[1.0,2.0,3.0]> ()"
    model = net(f"{IMAGE} {{ {text}  a = Conv(x, w, b)  y = Conv(a, v) }}", {"v": (2, 3, 1, 1)})
    found = groups(model)
    small = cut(found, gone(found, Conv_2=[1]), leftovers=False)
    (weight, bias) = (helper.get_attribute_value(operator.attribute[0]) for operator in small.operators[:2])
    assert numpy_helper.to_array(weight).ravel().tolist() == [1, 2, 3, 7, 8, 9]
    assert bias == [1, 3]
    agrees(model)


def test_widths_foretell_the_length_of_every_axis():
    model = net(f"{TOKENS} {{ {HEADS.format(s='s', f='f')} }}",
                {"w": (5, 12), "s": ints(0, 0, 4, 3), "f": ints(0, 0, 12), "v": (12, 2)})  # fmt: skip
    found = groups(model)
    removed = gone(found, MatMul_0=[0, 2])
    widths = Widths(found)
    counts, small = widths(~removed), cut(found, removed)
    for tensor, axes in found.analysis.axes.items():
        for axis, labels in enumerate(axes):
            if widths.number(labels):
                assert counts[widths.number(labels)] == small.tensors[tensor].shape[axis]


def test_attributes_that_follow_stay_where_they_are():
    proto = net("(float[n,4,4,4] x) => (float[n,2,4,4] y) { a = Conv <group=1, kernel_shape=[1,1]> (x, w)"
                "  b = Conv <group=3, kernel_shape=[3,3], pads=[1,1,1,1]> (a, d)  y = Conv(b, v) }",
                {"w": (3, 4, 1, 1), "d": (6, 1, 3, 3), "v": (2, 6, 1, 1)}).proto()  # fmt: skip
    for attribute in (a for operator in proto.graph.node for a in operator.attribute):
        attribute.doc_string = f"about {attribute.name}"
    model = gm.load(proto)
    small = cut(groups(model), gone(groups(model), Conv_0=[1])).proto()
    assert small.graph.node[0] == proto.graph.node[0]
    assert [a.doc_string for a in small.graph.node[1].attribute] == [
        f"about {n}" for n in ("group", "kernel_shape", "pads")
    ]
    assert small.graph.node[1].attribute[0].i == 2


def test_what_constants_say_of_themselves_stays():
    text = "w = Constant <value = float[3,3,1,1] {1,2,3,4,5,6,7,8,9}> ()  b = Constant <value_floats=[1.0,2.0,3.0]> ()"
    proto = net(f"{IMAGE} {{ {text}  a = Conv(x, w, b)  y = Conv(a, v) }}", {"v": (2, 3, 1, 1)}).proto()
    weight, bias = (operator.attribute[0] for operator in proto.graph.node[:2])
    weight.doc_string, weight.t.doc_string, bias.doc_string = "held", "a kernel", "a bias"
    model = gm.load(proto)
    small = cut(groups(model), gone(groups(model), Conv_2=[1])).proto()
    weight, bias = (operator.attribute[0] for operator in small.graph.node[:2])
    assert (weight.doc_string, weight.t.doc_string, bias.doc_string) == ("held", "a kernel", "a bias")


def test_what_several_operators_need_alike_is_stored_once():
    text = "a = Conv(x, w)  b = Conv(x, u)  c = Reshape(a, s)  d = Reshape(b, s)  e = Add(c, d)  y = Reshape(e, t)"
    weights = {"w": (4, 3, 1, 1), "u": (4, 3, 1, 1), "s": ints(0, 4, 16), "t": ints(0, 4, 4, 4), "v": (2, 4, 1, 1)}
    model = net(f"{IMAGE} {{ {text.replace('y =', 'g =')}  y = Conv(g, v) }}", weights)
    small = cut(groups(model), gone(groups(model), Conv_0=[1]))
    assert len(small.initializers) == len(model.initializers)
    agrees(model)


def test_sizes_that_the_file_alone_tells():
    model = net("(float[2,3,4,4] x, float[4] r) => (float[2,2,8,8] y) { a = Conv(x, w)"
                "  b = Resize <mode=\"nearest\"> (a, , r)  c = Conv(b, u)  y = Conv(c, v) }",
                {"w": (4, 3, 1, 1), "u": (4, 4, 1, 1), "v": (2, 4, 1, 1)})  # fmt: skip
    proto = model.proto()
    proto.graph.value_info.append(helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, [2, 4, 8, 8]))
    found = groups(gm.load(proto))
    samples = {"x": feeds(model, 2)["x"], "r": np.array([1, 1, 2, 2], np.float32)}
    assert error(found, gone(found, Conv_2=[0, 3]), samples) <= EXACT
