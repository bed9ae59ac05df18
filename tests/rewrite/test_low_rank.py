"""Splitting layers at a rank: the error is the tail of the singular values, and a planted rank is found exactly."""

import numpy as np
import pytest
import zoo
from handmade import model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper
from random_graphs import random_graphs

import graphmod as gm

RNG = np.random.default_rng(8)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def layer(op_type, weight, **attributes):
    """Return a model of one layer with a bias."""
    transposed = attributes.get("transB", 0)
    if op_type == "Conv":
        shapes = ["n", weight.shape[1], 8, 8], ["n", weight.shape[0], None, None]
        n_out = weight.shape[0]
    else:
        n_in, n_out = weight.shape[::-1] if transposed else weight.shape
        shapes = ["n", n_in], ["n", n_out]
    reads = ["x", "w", "b"] if op_type != "MatMul" else ["x", "w"]
    bias = {"b": normal(n_out)} if op_type != "MatMul" else {}
    node = helper.make_node(op_type, reads, ["y"], name="layer", **attributes)
    return model([node], {"x": shapes[0]}, {"y": shapes[1]}, {"w": weight, **bias})


def matrix(network):
    """Return the matrix that a model of two layers applies: out, in (times kernel)."""
    first, second = network.operators
    a, b = (network.initializer(op.input[1]).astype(np.float64) for op in (first, second))
    if first.op_type == "Conv":
        return b.reshape(len(b), -1) @ a.reshape(len(a), -1)
    return (a @ b).T * next((op.f for op in second.attribute if op.name == "alpha"), 1.0)


LAYERS = {
    "matmul": ("MatMul", (30, 20), {}),
    "gemm": ("Gemm", (30, 20), {}),
    "gemm transposed": ("Gemm", (20, 30), {"transB": 1, "alpha": 2.0, "beta": 0.5}),
    "conv": ("Conv", (20, 12, 3, 3), {"pads": [1, 0, 1, 2], "strides": [2, 1], "dilations": [1, 2]}),
    "pointwise": ("Conv", (20, 16, 1, 1), {"auto_pad": "SAME_UPPER"}),
}


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_the_error_is_the_tail_of_the_singular_values(name, rank):
    op_type, shape, attributes = LAYERS[name]
    weight = normal(*shape)
    network = layer(op_type, weight, **attributes)
    found = gm.low_rank(network, rank=rank)
    whole = weight.reshape(len(weight), -1).astype(np.float64) * attributes.get("alpha", 1.0)
    whole = whole if op_type == "Conv" or attributes.get("transB") else whole.T
    sigma = np.linalg.svd(whole, compute_uv=False)
    error = np.linalg.norm(whole - matrix(found))
    assert error == pytest.approx(np.sqrt((sigma[rank:] ** 2).sum()), rel=1e-5)
    assert found.operators[-1].name == "layer"
    assert found.n_weights < network.n_weights


@pytest.mark.parametrize("name", LAYERS)
def test_a_planted_rank_is_found_and_exact(name):
    op_type, shape, attributes = LAYERS[name]
    flat = (shape[0], int(np.prod(shape[1:])))
    weight = (normal(flat[0], 3) @ normal(3, flat[1])).reshape(shape)
    network = layer(op_type, weight, **attributes)
    for found in (gm.low_rank(network, rank=3), gm.low_rank(network, energy=1 - 1e-9)):
        x = normal(5, *[d for d in network.inputs["x"].shape[1:]])
        before, after = network.run({"x": x})["y"], found.run({"x": x})["y"]
        np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())
        assert (
            sorted(found.initializer(op.input[1]).shape[0 if op_type == "Conv" else 1] for op in found.operators)[0]
            == 3
        )


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (2, 30), (30, 3)])
def test_weights_of_a_lower_rank_than_asked_for(shape):
    """All of the energy of a weight of rank 1 is in one direction, a higher rank adds nothing, and zeros stay zeros."""
    for weight in (normal(shape[0], 1) @ normal(1, shape[1]), np.zeros(shape, np.float32)):
        network = layer("MatMul", weight)
        for found in (gm.low_rank(network, energy=1.0), gm.low_rank(network, rank=1 if min(shape) < 4 else 9)):
            np.testing.assert_allclose(matrix(found).T, weight, atol=1e-6)
        assert gm.low_rank(network, energy=1.0).n_weights == sum(shape)


@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_energy_gives_the_least_rank(energy):
    weight = (normal(40, 40) * 0.9 ** np.arange(40)[:, None] ** 1.5).astype(np.float32)
    found = gm.low_rank(layer("MatMul", weight), energy=energy)
    rank = found.initializer(found.operators[0].input[1]).shape[1]
    sigma = np.linalg.svd(weight.astype(np.float64), compute_uv=False) ** 2
    assert sigma[:rank].sum() >= energy * sigma.sum() > sigma[: rank - 1].sum()


def test_only_what_shrinks_is_split():
    small, large = normal(6, 6), normal(30, 30)
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], name="up"),
        helper.make_node("MatMul", ["a", "large"], ["b"], name="large"),
        helper.make_node("MatMul", ["x", "small"], ["c"], name="small"),
    ]
    weights = {"up": normal(6, 30), "large": large, "small": small}
    network = model(nodes, {"x": ["n", 3, 6]}, {"b": ["n", 3, 30], "c": ["n", 3, 6]}, weights)
    found = gm.low_rank(network, rank=5)
    assert [op.name for op in found.operators] == ["up", "large/low_rank", "large", "small"]
    assert found.operators[0].input[1] == "up"
    told = "at rank 5, MatMul 'small' would have 60 weights instead of 36"
    with pytest.raises(gm.RefusedError, match=told):
        gm.low_rank(network, "MatMul[name=small]", rank=5)
    with pytest.raises(gm.RefusedError, match="either a rank or an energy"):
        gm.low_rank(network)
    with pytest.raises(gm.RefusedError, match="either a rank or an energy"):
        gm.low_rank(network, rank=2, energy=0.5)
    for bad in ({"rank": 0}, {"energy": 0.0}, {"energy": 1.5}):
        with pytest.raises(gm.RefusedError):
            gm.low_rank(network, **bad)


def test_groups_computed_and_shared_weights():
    grouped = layer("Conv", normal(20, 12, 3, 3))
    proto = grouped.proto()
    proto.graph.node[0].attribute.append(helper.make_attribute("group", 2))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 24
    with pytest.raises(gm.RefusedError, match="Conv 'layer' has 2 groups"):
        gm.low_rank(gm.load(proto), rank=1)
    product = helper.make_node("MatMul", ["x", "z"], ["y"], name="product")
    dynamic = model([product], {"x": ["n", 20], "z": [20, 20]}, {"y": ["n", 20]})
    with pytest.raises(gm.RefusedError, match="the weight 'z' of MatMul 'product' is no constant"):
        gm.low_rank(dynamic, rank=1)
    twice = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="a"),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="b"),
    ]
    shared = model(twice, {"x": ["n", 20]}, {"b": ["n", 20]}, {"w": normal(20, 20)})
    found = gm.low_rank(shared, rank=2)
    assert len(found.operators) == 4
    assert found.n_weights == 2 * 2 * 20
    with pytest.raises(gm.RefusedError, match="the weight 'w' of MatMul 'a' would stay, as MatMul 'b' reads it"):
        gm.low_rank(shared, "MatMul[name=a]", rank=2)


def test_weights_that_would_stay():
    tied = [
        helper.make_node("Gather", ["w", "i"], ["e"], name="embedding"),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["e", "wt"], ["y"], name="head"),
    ]
    weights = {"w": normal(64, 32), "i": np.arange(5)}
    with pytest.raises(
        gm.RefusedError, match="the weight 'wt' of MatMul 'head' would stay, as Gather 'embedding' reads 'w'"
    ):
        gm.low_rank(model(tied, {}, {"y": [5, 64]}, weights), rank=2)
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    shown = model([product], {"x": ["n", 64]}, {"y": ["n", 32], "w": [64, 32]}, {"w": normal(64, 32)})
    with pytest.raises(gm.RefusedError, match="the weight 'w' of MatMul 'product' would stay, as it is an output"):
        gm.low_rank(shown, rank=2)


@pytest.mark.parametrize("exporter", zoo.EXPORTERS)
@pytest.mark.parametrize("name", ["vgg", "gpt2", "resnet18"])
def test_networks(name, exporter):
    """Outputs are those of the network whose weights numpy cut to the rank."""
    network = zoo.network(name, exporter)
    found = gm.low_rank(network.model, rank=3)
    assert found.n_weights < network.model.n_weights
    assert found.outputs == network.model.outputs
    expected = cut(network.model, 3)
    for before, after in zip(expected.run(network.feeds).values(), found.run(network.feeds).values(), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())
    assert gm.low_rank(network.model, energy=0.4).n_weights < network.model.n_weights


def cut(network, rank):
    """Return a network whose large enough weights are their best approximations of a rank."""
    proto = network.proto()
    layers = [op for op in proto.graph.node if op.op_type in ("Conv", "Gemm", "MatMul")]
    read = {op.input[1] for op in layers}
    for tensor in proto.graph.initializer:
        value = np.array(network.initializer(tensor.name))
        flat = value.reshape(len(value), -1) if value.ndim > 1 else np.zeros((1, 1))
        if tensor.name in read and rank * sum(flat.shape) < flat.size:
            u, s, vt = np.linalg.svd(flat.astype(np.float64), full_matrices=False)
            near = (u[:, :rank] * s[:rank]) @ vt[:rank]
            tensor.raw_data = near.astype(np.float32).tobytes()
    return gm.load(proto)


@given(random_graphs(), st.integers(1, 2))
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_graphs(graph, rank):
    """Every MatMul is what numpy's best approximation of its weight makes of it."""
    network = gm.load(graph.proto)
    try:
        found = gm.low_rank(network, rank=rank)
    except gm.RefusedError:
        assert all(min(t.dims) <= rank * 2 for t in graph.proto.graph.initializer if len(t.dims) == 2)
        return
    feeds = graph.feeds()
    for before, after in zip(cut(network, rank).run(feeds).values(), found.run(feeds).values(), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5)
