"""Packing weights that are mostly zeros: the same network to the bit, in as many bytes as arithmetic says."""

from __future__ import annotations

from importlib import import_module

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from command_line import graphmod
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from planted import net
from random_models import feeds, random_models

import graphmod as gm
from graphmod.methods.deeparc.sparsity import sparsify

packing = import_module("graphmod.rewrite.pack")
LEVELS = [ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL]
FEW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


def sparse_array(shape, share=0.1, dtype=np.float32, seed=0):
    """Return an array of which about a share is not zero, and no zero is negative."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < share, rng.integers(1, 90, shape) * rng.choice([-1, 1], shape), 0).astype(dtype)


def network(operators, x, y, weights, ir_version=8, opset=19, inputs=()):
    """Return the proto of a graph from ``x`` to ``y``, both (dtype, shape)."""
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
        for name, (dtype, shape) in {"x": x, "y": y}.items()
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(operators, "graph", [declared[0], *inputs], [declared[1]], tensors)
    return helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])


def product(weight, **options):
    """Return the proto of one MatMul with a weight."""
    dtype, (n, m) = weight.dtype, weight.shape
    matmul = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    return network([matmul], (dtype, ["n", n]), (dtype, ["n", m]), {"w": weight}, **options)


def computed(model, x, level, **more):
    """Return the outputs of ONNX Runtime itself, as bytes."""
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 3
    content = model.proto().SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return [value.tobytes() for value in session.run(None, {"x": x, **more})]


def packed_names(model):
    return {tensor.values.name for tensor in model.proto().graph.sparse_initializer}


def bits(model):
    """Return name, type, shape and bytes of all dense initializers."""
    return {
        name: (tensor.data_type, tuple(tensor.dims), model.initializer(name).tobytes())
        for name, tensor in model.initializers.items()
    }


# -- the same network


CASES = {
    "conv": ("Conv", (8, 4, 3, 3), [2, 4, 6, 6], [2, 8, 4, 4], ["x", "w"]),
    "conv of groups": ("Conv", (8, 16, 3), [2, 16, 6], [2, 8, 4], ["x", "w"]),
    "gemm": ("Gemm", (16, 8), [3, 16], [3, 8], ["x", "w"]),
    "matmul": ("MatMul", (16, 8), [3, 16], [3, 8], ["x", "w"]),
    "add": ("Add", (16, 8), [3, 16, 8], [3, 16, 8], ["w", "x"]),
    "mul": ("Mul", (16, 8), [3, 16, 8], [3, 16, 8], ["x", "w"]),
}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (case, dtype)
        for case in CASES
        for dtype in (np.float32, np.float16, np.float64)
        if not (case.startswith("conv") and dtype == np.float64)  # which ONNX Runtime does not have
    ],
)
def test_outputs_are_the_same_to_the_bit(case, dtype):
    op_type, shape, x_shape, y_shape, reads = CASES[case]
    weights = {"w": sparse_array(shape, dtype=dtype)}
    dense = gm.load(network([helper.make_node(op_type, reads, ["y"])], (dtype, x_shape), (dtype, y_shape), weights))
    packed = gm.pack(dense)
    assert packed_names(packed) == {"w"}
    x = np.random.default_rng(1).normal(size=x_shape).astype(dtype)
    for level in LEVELS:
        assert computed(packed, x, level) == computed(dense, x, level)
    assert bits(gm.unpack(packed)) == bits(dense)


@pytest.mark.parametrize(
    "dtype",
    [
        np.int8, np.uint8, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz,
    ],
)  # fmt: skip
def test_small_types_are_packed(dtype):
    w = sparse_array((32, 16), dtype=np.float32)
    weights = {"w": (np.abs(w) if dtype == np.uint8 else w).astype(dtype)}
    operators = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    dense = gm.load(network(operators, (np.float32, ["n", 32]), (np.float32, ["n", 16]), weights))
    packed = gm.pack(dense)
    assert packed_names(packed) == {"w"}
    x = np.eye(32, dtype=np.float32)
    for level in LEVELS:
        assert computed(packed, x, level) == computed(dense, x, level)
    assert bits(gm.unpack(packed)) == bits(dense)
    assert packed.tensors == dense.tensors


def test_what_is_not_zero_to_the_bit_is_kept():
    special = [-0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3.5]
    w = np.zeros((40, 40), np.float32)
    w.reshape(-1)[::200] = special
    packed = gm.pack(gm.load(product(w)))
    (sparse,) = packed.proto().graph.sparse_initializer
    assert numpy_helper.to_array(sparse.values).tobytes() == np.float32(special).tobytes()
    assert gm.unpack(packed).initializer("w").tobytes() == w.tobytes()


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.floats(0, 1),
    st.sampled_from([np.float32, np.float16, np.float64, np.int8]),
    st.integers(0, 99),
)
@FEW
def test_random_tensors(shape, share, dtype, seed):
    w = sparse_array(shape, share, dtype, seed)
    proto = network([helper.make_node("Mul", ["x", "w"], ["y"])], (dtype, shape), (dtype, shape), {"w": w}, opset=14)
    dense = gm.load(proto)
    packed = gm.pack(dense)
    assert packed.n_bytes <= dense.n_bytes + len(str(packed.metadata))  # the record of the edit
    for sparse in packed.proto().graph.sparse_initializer:
        places = np.array(sparse.indices.int64_data)
        assert (places == np.flatnonzero(w)).all()
        assert (numpy_helper.to_array(sparse.values) == w.reshape(-1)[places]).all()
    assert bits(gm.unpack(packed)) == bits(dense)


@given(random_models(), st.integers(0, 99))
@FEW
def test_random_networks(proto, seed):
    rng = np.random.default_rng(seed)
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype == np.float32:
            zeros = rng.random(value.shape) < rng.random()
            tensor.CopyFrom(numpy_helper.from_array(np.where(zeros, np.float32(0), value), tensor.name))
    dense = gm.load(proto)
    packed = gm.pack(dense)
    onnx.checker.check_model(packed.proto())
    found, expected = packed.run(feeds(seed)), dense.run(feeds(seed))
    assert {name: value.tobytes() for name, value in found.items()} == {
        name: value.tobytes() for name, value in expected.items()
    }
    again = gm.unpack(packed)
    assert bits(again) == bits(dense)
    assert packed.tensors == dense.tensors == again.tensors
    assert packed.constants == dense.constants
    assert gm.diff(dense, packed).same
    if packed is not dense:
        assert gm.apply(gm.Recipe.of(again), dense).proto() == again.proto()


# -- its size


def varint_bytes(number):
    """Return how many bytes protobuf takes for an integer."""
    return max(1, -(-int(number).bit_length() // 7))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_the_file_has_the_bytes_that_arithmetic_says(share, dtype):
    w = sparse_array((200, 150), share, dtype)
    dense = gm.load(product(w))
    packed = gm.pack(dense)
    places = np.flatnonzero(w)
    saved = w.nbytes - places.size * w.itemsize - sum(map(varint_bytes, places))
    metadata = len(packed.metadata["graphmod.recipe"]) + len("graphmod.recipe")
    assert abs(dense.n_bytes - saved + metadata - packed.n_bytes) < 40


@pytest.mark.parametrize(("zeros", "is_packed"), [(0.41, False), (0.45, True)])
def test_packing_pays_from_43_percent_of_zeros(zeros, is_packed):
    w = np.ones(500 * 400, np.float32)
    w[np.random.default_rng(0).permutation(w.size)[: round(zeros * w.size)]] = 0
    dense = gm.load(product(w.reshape(500, 400)))
    assert (gm.pack(dense) is not dense) == is_packed


def test_a_network_with_a_tenth_of_its_weights(tmp_path):
    sparse = sparsify(gm.load(gm.demo.model_path()), 0.1)
    packed = gm.pack(sparse)
    before, after = (model.save(tmp_path / f"{i}.onnx") for i, model in enumerate((sparse, packed)))
    assert after.stat().st_size == packed.n_bytes
    assert after.stat().st_size < 0.45 * before.stat().st_size
    loaded, test = gm.load(after), gm.demo.splits().test
    assert gm.accuracy(loaded, test) == gm.accuracy(sparse, test)
    assert loaded.run(test.inputs)["logits"].tobytes() == sparse.run(test.inputs)["logits"].tobytes()
    assert loaded.digest == packed.digest
    assert (packed.n_weights, packed.constants) == (sparse.n_weights, dict(packed.constants.items()))
    assert set(packed.constants) == set(sparse.constants)
    assert gm.graph.cost(packed) == gm.graph.cost(sparse)
    assert gm.boundaries(packed) == gm.boundaries(sparse)


def test_what_has_nothing_to_pack_stays_the_same_object():
    model = gm.load(product(np.ones((8, 8), np.float32)))
    assert gm.pack(model) is model
    assert gm.unpack(model) is model
    packed = gm.pack(gm.load(product(sparse_array((32, 16)))))
    assert gm.pack(packed) is packed


def test_shapes_scalars_empty_tensors_and_outputs_stay_dense():
    weights = {
        "i": np.zeros(64, np.int64),
        "s": np.zeros((), np.float32),
        "e": np.zeros((0, 64), np.float32),
        "out": np.zeros((64, 64), np.float32),
    }
    proto = network([helper.make_node("Neg", ["x"], ["y"])], (np.float32, [1]), (np.float32, [1]), weights)
    proto.graph.output.append(helper.make_tensor_value_info("out", TensorProto.FLOAT, [64, 64]))
    model = gm.load(proto)
    assert gm.pack(model) is model


def test_what_does_not_fit_into_one_message_stays_dense(monkeypatch):
    a, b = sparse_array((64, 32), seed=1), sparse_array((32, 64), seed=2)
    operators = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    dense = gm.load(network(operators, (np.float32, ["n", 64]), (np.float32, ["n", 64]), {"a": a, "b": b}))
    monkeypatch.setattr(packing, "SAFE", 2000)
    assert packed_names(gm.pack(dense)) == {"a"}


# -- what is kept


def test_names_metadata_and_doc_strings_are_kept():
    proto = product(sparse_array((32, 16)))
    (tensor,) = proto.graph.initializer
    tensor.doc_string = "a weight"
    tensor.metadata_props.add(key="origin", value="layer 1")
    proto.metadata_props.add(key="licence", value="none")
    proto.graph.quantization_annotation.add(tensor_name="w")
    dense = gm.load(proto)
    packed = gm.pack(dense)
    (sparse,) = packed.proto().graph.sparse_initializer
    assert (sparse.values.name, sparse.values.doc_string) == ("w", "a weight")
    assert sparse.values.metadata_props == tensor.metadata_props
    assert packed.metadata["licence"] == "none"
    again = gm.unpack(packed).proto()
    assert again.graph == proto.graph
    assert [edit.verb for edit in gm.Recipe.of(gm.unpack(packed))] == ["pack", "unpack"]


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_that_are_inputs_too(ir_version):
    w = sparse_array((32, 16))
    declared = [helper.make_tensor_value_info("w", TensorProto.FLOAT, [32, 16])]
    dense = gm.load(product(w, ir_version=ir_version, opset=8, inputs=declared))
    packed = gm.pack(dense)
    assert packed_names(packed) == {"w"}
    assert packed.inputs == dense.inputs
    x = np.ones((2, 32), np.float32)
    more = {"w": w + 1} if ir_version > 3 else {}
    assert computed(packed, x, LEVELS[0], **more) == computed(dense, x, LEVELS[0], **more)


def test_a_body_captures_a_packed_weight():
    matmul, add = helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("Add", ["m", "m"], ["e"])
    bodies = {
        f"{name}_branch": helper.make_graph(
            [operator], name, [], [helper.make_tensor_value_info(operator.output[0], TensorProto.FLOAT, ["n", 16])]
        )
        for name, operator in {"then": matmul, "else": add}.items()
    }
    operators = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("If", ["c"], ["y"], **bodies)]
    weights = {"w": sparse_array((32, 16)), "c": np.array(True)}
    dense = gm.load(network(operators, (np.float32, ["n", 32]), (np.float32, ["n", 16]), weights))
    packed = gm.pack(dense)
    x = np.ones((2, 32), np.float32)
    assert packed_names(packed) == {"w"}
    assert computed(packed, x, LEVELS[0]) == computed(dense, x, LEVELS[0])


def test_types_behind_a_packed_weight_are_inferred():
    operators = [helper.make_node("Gather", ["w", "x"], ["rows"]), helper.make_node("Relu", ["rows"], ["y"])]
    weights = {"w": sparse_array((64, 8))}
    model = gm.load(network(operators, (np.int64, ["n"]), (np.float32, ["n", 8]), weights))
    assert str(gm.pack(model).tensors["rows"]) == "float32[n, 8]"
    assert str(gm.pack(model).tensors["w"]) == "float32[64, 8]"


# -- external files


def test_weights_in_files(tmp_path):
    a, b = sparse_array((64, 32), seed=1), np.ones((32, 64), np.float32)
    operators = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["y"])]
    proto = network(operators, (np.float32, ["n", 64]), (np.float32, ["n", 64]), {"a": a, "b": b})
    onnx.save_model(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    dense = gm.load(tmp_path / "m.onnx")
    packed = gm.pack(dense)
    kept = packed.initializers["b"]
    assert kept == dense.initializers["b"]  # still a reference to the file
    assert kept.data_location == TensorProto.EXTERNAL
    (tmp_path / "other").mkdir()
    loaded = gm.load(packed.save(tmp_path / "other" / "packed.onnx"))
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    assert loaded.run({"x": x})["y"].tobytes() == dense.run({"x": x})["y"].tobytes()
    assert loaded.n_bytes < 0.7 * dense.n_bytes
    assert bits(gm.unpack(loaded)) == bits(dense)


# -- files of others


def foreign(values, places, shape=(4, 6), external=None):
    """Return the proto of a product with a sparse weight that something else wrote."""
    proto = product(np.ones(shape, np.float32))
    del proto.graph.initializer[:]
    parts = numpy_helper.from_array(np.float32(values), "w"), numpy_helper.from_array(np.asarray(places), "places")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(*parts, list(shape)))
    if external is not None:
        path, tensor = external, proto.graph.sparse_initializer[0].values
        path.write_bytes(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=path.name)
    return proto


@pytest.mark.parametrize("kind", ["flat", "coordinates", "narrow", "external"])
def test_sparse_weights_that_others_wrote(kind, tmp_path):
    places = np.array([[0, 5], [2, 1], [3, 3]]) if kind == "coordinates" else np.array([5, 13, 21])
    proto = foreign([1, -2, 3], places, external=tmp_path / "v.data" if kind == "external" else None)
    onnx.save_model(proto, tmp_path / "m.onnx")
    expected = np.zeros((4, 6), np.float32)
    expected[[0, 2, 3], [5, 1, 3]] = [1, -2, 3]
    model = gm.load(tmp_path / "m.onnx")
    found = gm.unpack(model)
    assert found.initializer("w").tolist() == expected.tolist()
    x = np.eye(4, dtype=np.float32)
    assert found.run({"x": x})["y"].tolist() == model.run({"x": x})["y"].tolist() == expected.tolist()


@pytest.mark.parametrize(("values", "places"), [([1, 2], [3, 99]), ([1, 2], [3]), ([1, 2], [[0, 1], [9, 9]])])
def test_broken_sparse_weights_are_told(values, places):
    with pytest.raises(gm.InvalidModelError):
        gm.unpack(gm.load(foreign(values, places)))


# -- everything else


def test_differences_are_of_values_not_of_how_they_are_stored():
    w = sparse_array((32, 16))
    dense = gm.load(product(w))
    packed = gm.pack(dense)
    for one, other in ((dense, packed), (packed, dense), (dense, gm.unpack(packed))):
        assert gm.diff(one, other).same
    assert gm.diff(dense, packed).notes == ("1 constants are stored sparsely in one of the models",)
    first = np.flatnonzero(w)[0]
    for value in (5.0, -0.0):
        changed = w.copy()
        changed.reshape(-1)[first if value else 0] = value
        (change,) = gm.diff(gm.load(product(changed)), packed).weights
        assert change.largest == (abs(5 - w.reshape(-1)[first]) if value else 0)
    (change,) = gm.diff(gm.load(product(w.astype(np.float16))), packed).weights
    assert change.before == "float16[32, 16]"


@pytest.fixture(scope="module")
def packed_demo():
    return gm.pack(sparsify(gm.load(gm.demo.model_path()), 0.1))


def test_importing_and_training_point_to_unpack(packed_demo):
    with pytest.raises(gm.UnsupportedOperatorError, match=r"graphmod\.unpack makes it dense"):
        gm.to_torch(packed_demo)
    with pytest.raises(gm.UnsupportedOperatorError, match=r"graphmod\.unpack makes it dense"):
        gm.retrain(packed_demo, gm.demo.splits().train[:64], ["layer3.6"], epochs=1)
    assert len(list(gm.to_torch(gm.unpack(packed_demo)).parameters())) > 0


def test_verbs_that_need_values_point_to_unpack(packed_demo):
    for refused in (
        lambda: gm.prune(packed_demo, ratio=0.5),
        lambda: gm.quantize(packed_demo),
        lambda: gm.merge_weights(packed_demo, [gm.unpack(packed_demo)]),
    ):
        with pytest.raises(
            gm.RefusedError, match=r"45 initializers are stored sparsely; if that is why, graphmod\.unpack"
        ):
            refused()
    assert gm.quantize(gm.unpack(packed_demo)).n_bytes < gm.unpack(packed_demo).n_bytes


def test_a_packed_weight_is_no_unknown_one(packed_demo):
    name = min(packed_names(packed_demo))
    with pytest.raises(gm.InvalidModelError, match=f"'{name}' is stored sparsely; graphmod.unpack"):
        packed_demo.initializer(name)
    with pytest.raises(gm.InvalidModelError, match="no initializer named 'nothing'"):
        packed_demo.initializer("nothing")
    assert gm.groups(packed_demo).weight(name) is None


def test_verbs_that_need_no_values_carry_packed_weights_along(packed_demo):
    for made in (gm.remove(packed_demo, "layer1.3"), gm.outline(packed_demo), gm.rebatch(packed_demo, 4)):
        assert len(packed_names(made)) >= 43
    x = gm.demo.splits().test[:4].inputs
    shorter = gm.remove(packed_demo, "layer1.3").run(x)["logits"]
    assert shorter.tobytes() == gm.remove(gm.unpack(packed_demo), "layer1.3").run(x)["logits"].tobytes()


def test_the_commands(tmp_path):
    dense = gm.load(product(sparse_array((64, 32))))
    before, packed, after = (tmp_path / name for name in ("a.onnx", "b.onnx", "c.onnx"))
    dense.save(before)
    told = graphmod("pack", str(before), "--out", str(packed), "--verify", "random")
    assert told.returncode == 0, told.stderr
    assert packed.stat().st_size < before.stat().st_size
    assert graphmod("unpack", str(packed), "--out", str(after)).returncode == 0
    assert bits(gm.load(after)) == bits(dense)


def test_zeros_stay_without_a_sign_where_normalisation_is_fused():
    """A gain below zero would make negative zeros of them, which are values that have to be stored."""
    norm = {"s": np.float32([1, -1] * 16), "b": np.zeros(32), "m": np.zeros(32), "v": np.ones(32)}
    model = net("(float[n,16,4,4] x) => (float[n,32,4,4] y) { h = Conv(x, w)  y = BatchNormalization(h, s, b, m, v) }",
                {**{name: value.astype(np.float32) for name, value in norm.items()}, "w": (32, 16, 1, 1)})  # fmt: skip
    fused = gm.fuse(sparsify(model, 0.1))
    (weight,) = (value for value in map(fused.initializer, fused.initializers) if value.ndim == 4)
    assert np.count_nonzero(weight) == np.count_nonzero(weight.view(np.uint32)) == 51
