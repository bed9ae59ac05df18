"""Latencies of operators: in proportion, with wide margins; signatures, the file, and models against themselves."""

import json
import multiprocessing

import numpy as np
import onnx.parser
import pytest
import zoo
from handmade import fan
from onnx import TensorProto, helper

import graphmod as gm
from graphmod.model import TensorType
from graphmod.probe import LatencyTable, clusters, latency, signature
from graphmod.probe.operator_latency import measuring
from graphmod.probe.operator_latency import table as tables

FLOAT = np.dtype(np.float32)
V17 = {"": 17}


def kind(*shape):
    return TensorType(FLOAT, shape)


def conv(n_in, n_out, size=16, kernel=3, **attributes):
    made = helper.make_node("Conv", ["x", "w"], ["y"], pads=[kernel // 2] * 4, **attributes)
    groups = attributes.get("group", 1)
    types = {"x": kind(1, n_in, size, size), "w": kind(n_out, n_in // groups, kernel, kernel)}
    return signature(made, types, {"w": None}, V17)


def time(table, one):
    return table.many([one])[0]


def network_latency(model, types=None, *, table):
    whole = clusters(model, types)
    return sum(table.many([whole.signature(cluster) for cluster in whole.clusters]))


@pytest.fixture
def table(tmp_path):
    return LatencyTable(tmp_path)


# -- signatures


def test_names_docs_and_the_order_of_attributes_do_not_count():
    types = {"x": kind(1, 8, 4, 4), "w": kind(8, 8, 3, 3)}
    one = helper.make_node("Conv", ["x", "w"], ["y"], "a", pads=[1] * 4, strides=[2, 2])
    other = helper.make_node("Conv", ["p", "q"], ["r"], "b", doc_string="told", domain="ai.onnx")
    other.attribute.extend(reversed(one.attribute))
    same = signature(one, types, {"w": None}, V17)
    assert same == signature(other, {"p": types["x"], "q": types["w"]}, {"q": None}, V17)
    assert hash(same) == hash(signature(one, types, {"w": np.ones((8, 8, 3, 3), np.float32)}, V17))
    assert str(same) == "Conv(float32[1, 8, 4, 4], const float32[8, 8, 3, 3])"


def test_what_counts():
    types = {"x": kind(1, 8, 4, 4), "w": kind(8, 8, 3, 3)}
    made = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    strided = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4, strides=[2, 2])
    found = [
        signature(made, types, {"w": None}, V17),
        signature(made, types, {}, V17),
        signature(made, types, {"w": None}, {"": 11}),
        signature(strided, types, {"w": None}, V17),
        signature(made, {**types, "x": kind(1, 8, 4, 5)}, {"w": None}, V17),
    ]
    assert len({one.key for one in found}) == len(set(found)) == len(found)


def test_values_of_shapes_count_and_those_of_weights_do_not():
    made = helper.make_node("Reshape", ["x", "s"], ["y"])
    one, other = (signature(made, {"x": kind(2, 6)}, {"s": np.array(s)}, V17) for s in ([3, 4], [4, 3]))
    assert one != other
    assert one.operands[1].values == (3, 4)
    added = helper.make_node("Add", ["x", "b"], ["y"])
    one, other = (signature(added, {"x": kind(2, 6)}, {"b": np.full(6, b, np.float32)}, V17) for b in (1, 2))
    assert one == other


def test_refusals():
    relu = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(gm.RefusedError, match=r"tensor 'x' is float32\[batch, 3\]; give"):
        signature(relu, {"x": kind("batch", 3)}, {}, V17)
    with pytest.raises(gm.RefusedError, match="tensor 'x' is of unknown type"):
        signature(relu, {}, {}, V17)
    with pytest.raises(gm.RefusedError, match="holds text"):
        signature(relu, {"x": TensorType(np.dtype(object), (3,))}, {}, V17)
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["z"])], "b", [], [])
    chosen = helper.make_node("If", ["c"], ["y"], "chosen", then_branch=body, else_branch=body)
    with pytest.raises(gm.RefusedError, match=r"operator 'chosen' \(If\)"):
        signature(chosen, {"c": TensorType(np.dtype(bool), ())}, {}, V17)


# -- measuring


def test_more_work_takes_longer(table):
    small, large = table.many([conv(16, 16), conv(128, 128)])
    assert 0 < small < large / 8  # 64 times the multiply-accumulates
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    narrow, wide = (signature(product, {"x": kind(64, n), "w": kind(n, n)}, {"w": None}, V17) for n in (32, 512))
    assert 10 * time(table, narrow) < time(table, wide)


@pytest.mark.parametrize(
    "one",
    [
        conv(3, 16),
        conv(7, 13),
        conv(20, 20),
        conv(32, 32, group=32),
        conv(24, 24, group=4),
        conv(16, 32, kernel=1, strides=[2, 2]),
    ],
    ids=str,
)
def test_convolutions_of_any_kind(table, one):
    assert time(table, one) > 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int64", "int8", "uint8", "bool"])
def test_element_types(table, dtype):
    made = helper.make_node("Reshape", ["x", "s"], ["y"])
    types = {"x": TensorType(np.dtype(dtype), (4, 6))}
    assert time(table, signature(made, types, {"s": np.array([6, 4])}, {"": 21})) >= 0


def test_absent_inputs_several_outputs_and_attributes_of_tensors(table):
    clip = helper.make_node("Clip", ["x", "", "hi"], ["y"])
    split = helper.make_node("Split", ["x", "n"], ["a", "b"], axis=1)
    filled = helper.make_node(
        "ConstantOfShape", ["n"], ["y"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [2])
    )
    n = np.array([2, 4])
    asked = [
        signature(clip, {"x": kind(4, 6)}, {"hi": np.array(3, np.float32)}, V17),
        signature(split, {"x": kind(4, 6)}, {"n": n}, V17),
        signature(filled, {"n": TensorType(n.dtype, (2,))}, {}, V17),
    ]
    assert min(table.many(asked[:2])) >= 0
    assert asked[0].steps[0].inputs == (0, -1, 1)
    assert asked[0].operands[1].values == (3.0,)
    assert time(table, asked[2]) >= 0


def test_what_cannot_run_is_named(table):
    added = helper.make_node("MatMul", ["x", "w"], ["y"])
    with pytest.raises(gm.InvalidModelError, match=r"the latency of MatMul\(float32\[2, 3\], .* cannot be measured"):
        time(table, signature(added, {"x": kind(2, 3), "w": kind(4, 5)}, {"w": None}, V17))
    assert len(table) == 0


def test_reordering_is_left_out():
    def operators(one):
        proto = measuring._in_network(measuring._proto(one, np.random.default_rng(0)), 1)
        return [value.type.tensor_type.shape.dim[1].dim_value for value in proto.graph.input]

    block = measuring._block_size()
    assert operators(conv(3, 16))[0] == 3  # read as it is
    assert operators(conv(20, 20))[0] == -(-20 // block) * block


# -- the file


def test_measured_once_and_kept(tmp_path, monkeypatch):
    asked = [conv(8, 8), conv(8, 16), conv(8, 8)]
    table = LatencyTable(tmp_path)
    times = table.many(asked)
    assert times[0] == times[2]
    assert len(table) == 2
    monkeypatch.setattr(tables, "timed", lambda *_: pytest.fail("measured again"))
    again = LatencyTable(tmp_path)
    assert again.many(asked) == times
    assert again.many(asked[1:2]) == times[1:2]
    assert [path.name for path in tmp_path.iterdir()] == [table.file.name]
    assert LatencyTable(tmp_path, threads=2).file != table.file


def test_of_several_passes_the_least_counts(tmp_path, monkeypatch):
    """What else the machine does only adds: the lesser of two times counts, and no time of what computes nothing."""
    asked = [conv(8, 8), conv(8, 16)]
    runs = iter([(100.0, 20.0), (50.0, 4.0), (90.0, 9.0), (60.0, 5.0)])  # two passes
    monkeypatch.setattr(tables, "launch", lambda _: 1.0)
    monkeypatch.setattr(tables, "timed", lambda *_: next(runs))
    assert LatencyTable(tmp_path).many(asked) == [87.0, 47.0]


def test_a_save_takes_in_what_others_saved(tmp_path):
    one, other = LatencyTable(tmp_path), LatencyTable(tmp_path)
    first, second = time(one, conv(8, 8)), time(other, conv(8, 16))
    fresh = LatencyTable(tmp_path)
    assert fresh.many([conv(8, 8), conv(8, 16)]) == [first, second]


def _measure(path, widths):
    LatencyTable(path).many([conv(4, n, 4) for n in widths])


def test_processes_side_by_side_leave_a_whole_file(tmp_path):
    context = multiprocessing.get_context("spawn")
    some = [context.Process(target=_measure, args=(tmp_path, range(n, n + 4))) for n in (4, 6)]
    for process in some:
        process.start()
    for process in some:
        process.join()
    assert [process.exitcode for process in some] == [0, 0]
    assert 4 <= len(LatencyTable(tmp_path)) <= 6


def test_damaged_and_unreadable_files(tmp_path):
    table = LatencyTable(tmp_path)
    time(table, conv(8, 8))
    whole = table.file.read_bytes()
    table.file.write_bytes(whole + whole[: len(whole) // 2])
    with pytest.raises(gm.InvalidDataError, match=r"line 2 of '.*jsonl' is no latency; delete the file"):
        LatencyTable(tmp_path)
    table.file.unlink()
    table.file.mkdir()
    with pytest.raises(gm.InvalidDataError, match="cannot read the latencies"):
        LatencyTable(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(gm.GraphmodError, match="file"):
        time(LatencyTable(tmp_path / "file" / "folder"), conv(8, 8))


def test_what_was_measured_before_an_error_is_kept(tmp_path):
    bad = signature(helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": kind(2, 3), "w": kind(4, 5)}, {}, V17)
    with pytest.raises(gm.InvalidModelError):
        LatencyTable(tmp_path).many([conv(8, 8), bad])
    assert len(LatencyTable(tmp_path)) == 1


def test_a_file_is_json_lines(table):
    time(table, conv(8, 8))
    [entry] = map(json.loads, table.file.read_text().splitlines())
    assert entry["microseconds"] > 0


def test_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("GRAPHMOD_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert LatencyTable().file.parent == tmp_path / "xdg" / "graphmod" / "latency"
    monkeypatch.setenv("GRAPHMOD_CACHE", str(tmp_path / "own"))
    assert LatencyTable().file.parent == tmp_path / "own" / "latency"
    assert LatencyTable(tmp_path).file.parent == tmp_path


# -- whole networks


@pytest.mark.parametrize(
    ("name", "exporter"), [("resnet18", "torchscript"), ("bert", "torchscript"), ("two_inputs", "current")]
)
def test_every_operator_is_in_one_cluster_at_most(name, exporter):
    whole = clusters(gm.load(zoo.export(name, exporter)))
    places = [place for cluster in whole.clusters for place in cluster.operators]
    assert len(places) == len(set(places))
    heavy = [i for i, op in enumerate(whole.model.operators) if op.op_type in ("Conv", "MatMul", "Gemm", "Softmax")]
    assert set(heavy) <= set(places)
    for cluster in whole.clusters:
        assert whole.signature(cluster).results


def test_activations_and_normalisations_join_convolutions():
    whole = clusters(gm.load(gm.demo.model_path()))
    kinds = {"+".join(step.op_type for step in whole.signature(cluster).steps) for cluster in whole.clusters}
    assert "Relu" not in kinds
    assert "Add" not in kinds
    assert "Conv+Relu" in kinds or "Conv+BatchNormalization+Relu" in kinds


@pytest.mark.parametrize("name", ["resnet18", "vit12"])
def test_the_sum_is_of_the_order_of_the_whole(table, name):
    m = gm.load(zoo.export(name, "torchscript"))
    feeds = {k: np.ones([d if isinstance(d, int) else 1 for d in t.shape], t.dtype) for k, t in m.inputs.items()}
    whole = latency({"m": m}, feeds, rounds=15)["m"].least
    assert whole / 3 < network_latency(m, table=table) < 3 * whole


def test_hypothetical_widths(table):
    whole = clusters(fan([256] * 2, np.random.default_rng(0), (256,)))
    narrow = {
        name: TensorType(type_.dtype, tuple(16 if d == 256 else d for d in type_.shape))
        for name, type_ in whole.types.items()
    }
    wide = {cluster: whole.signature(cluster) for cluster in whole.clusters}
    products = [c for c, one in wide.items() if any(o.constant and o.shape == (256, 256) for o in one.operands)]
    assert products
    for cluster in products:
        found = whole.signature(cluster, narrow)
        assert any(one.constant and one.shape == (16, 16) for one in found.operands)
        assert time(table, found) < time(table, wide[cluster])


def test_calls_and_operators_with_bodies_are_in_no_cluster():
    body = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Twice", ["x"], ["y"], "called", domain="own")], "g", [x], [y])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    m = gm.load(helper.make_model(graph, functions=[body], opset_imports=opsets, ir_version=9))
    assert not clusters(m).clusters
    chooses = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        agraph (float[2, 2] x, bool flag) => (float[2, 2] y) {
            a = MatMul(x, x)
            b = If (flag) <then_branch = yes () => (float[2, 2] t) { t = Exp(a) },
                           else_branch = no () => (float[2, 2] e) { e = Neg(a) }>
            y = MatMul(b, b)
        }""")
    whole = clusters(gm.load(chooses))
    assert [cluster.operators for cluster in whole.clusters] == [(0,), (2,)]


def test_types_of_inputs(table):
    network = fan([256] * 4, np.random.default_rng(0), (256,))
    few, many = (network_latency(network, {"x": kind(n, 256)}, table=table) for n in (1, 64))
    assert 4 * few < many
    with pytest.raises(gm.InvalidDataError, match="no input 'z'"):
        clusters(network, {"z": kind(1)})
    with pytest.raises(gm.InvalidDataError, match=r"input 'x' is float32\[n, 256\], which cannot be float32\[4\]"):
        clusters(network, {"x": kind(4)})
    with pytest.raises(gm.InvalidDataError, match="which cannot be"):
        clusters(network, {"x": kind(4, 128)})


def test_the_model_stays_as_it_is(table):
    m = gm.load(gm.demo.model_path())
    before = m.digest
    network_latency(m, table=table)
    assert m.digest == before
    assert m.inputs["image"].shape[0] == "batch"


def test_arithmetic_on_shapes_that_inference_leaves_open_is_no_work():
    """Where a removal has put factors into it, what reads the sizes must still be measured at other widths."""
    whole = clusters(gm.prune(zoo.network("vit12", "torchscript").model, 0.5))
    types = [{whole.model.operators[place].op_type for place in cluster.operators} for cluster in whole.clusters]
    assert not [some for some in types if {"Shape", "MatMul"} <= some]
