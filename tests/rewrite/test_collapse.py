"""Collapsing blocks: merged weights in closed form, planted blocks, the demo network, refusals."""

from functools import reduce

import numpy as np
import pytest
import zoo
from handmade import model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

import graphmod as gm

RNG = np.random.default_rng(15)
METHODS = ("residual", "differences", "average")


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32) / np.float32(shape[-1] ** 0.5)


def node(op_type, reads, made, **attributes):
    return helper.make_node(op_type, reads.split(), made.split(), name=f"{op_type}_{made}", **attributes)


def residual(n, width=6, hidden=8, scale=0.1, spread=0.01, activation="Tanh"):
    """Return n blocks ``x + W g(V x + a) + b`` of nearly equal weights; the blocks are t0..t1, t1..t2, ..."""
    base = {
        "v": normal(width, hidden),
        "a": normal(hidden),
        "w": scale * normal(hidden, width),
        "b": scale * normal(width),
    }
    operators, weights = [], {}
    for i in range(n):
        weights |= {f"{k}{i}": (v + spread * normal(*v.shape)).astype(np.float32) for k, v in base.items()}
        operators += [
            node("MatMul", f"t{i} v{i}", f"p{i}"),
            node("Add", f"p{i} a{i}", f"q{i}"),
            node(activation, f"q{i}", f"r{i}"),
            node("MatMul", f"r{i} w{i}", f"s{i}"),
            node("Add", f"b{i} s{i}", f"u{i}"),
            node("Add", f"t{i} u{i}", f"t{i + 1}"),
        ]
    operators.append(node("Tanh", f"t{n}", "y"))
    return model(operators, {"t0": ["n", 3, width]}, {"y": ["n", 3, width]}, weights)


def places(n):
    return [(f"t{i}", f"t{i + 1}") for i in range(n)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [2, 3])
def test_weights_in_closed_form(method, n):
    network = residual(n, spread=0.5)
    content = network.digest
    found = gm.collapse(network, places(n)[::-1], method=method)  # in whatever order they are named
    assert network.digest == content
    assert [op.name for op in found.operators] == [*(op.name for op in network.operators[:6]), "Tanh_y"]
    for key in "vawb":
        held = [network.initializer(f"{key}{i}").astype(np.float64) for i in range(n)]
        expected = {
            "differences": held[0] + sum(one - held[0] for one in held[1:]),
            "average": np.mean(held, axis=0),
            "residual": np.sum(held, axis=0) if key in "wb" else np.mean(held, axis=0),
        }[method]
        np.testing.assert_allclose(found.initializer(f"{key}0"), expected, atol=1e-6)


def test_the_error_of_summed_branches_is_of_second_order():
    """Halving how far weights are apart quarters the error, where blocks read one tensor and so do not interact."""
    v, w = normal(6, 8), normal(8, 6)
    dv, dw = normal(6, 8), normal(8, 6)
    x = normal(50, 6)
    errors = []
    for spread in (0.1, 0.05):
        pairs = [(v + sign * spread * dv, w + sign * spread * dw) for sign in (1, -1)]
        exact = sum(np.tanh(x @ a) @ b for a, b in pairs)
        errors.append(np.abs(np.tanh(x @ np.mean([a for a, _ in pairs], 0)) @ sum(b for _, b in pairs) - exact).max())
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.1)


def test_residual_blocks_add_up_what_they_do():
    network = residual(3, scale=0.02)
    x = {"t0": normal(20, 3, 6)}
    expected = network.run(x)["y"]
    errors = {
        method: np.abs(gm.collapse(network, places(3), method=method).run(x)["y"] - expected).max()
        for method in METHODS
    }
    removed = np.abs(gm.remove(network, ("t0", "t2")).run(x)["y"] - expected).max()
    assert errors["residual"] < removed / 5
    assert errors["residual"] < min(errors["differences"], errors["average"]) / 5


@pytest.mark.parametrize("method", METHODS)
def test_planted_equal_blocks_of_no_more_effect_the_second_time(method):
    basis = np.linalg.qr(RNG.normal(size=(6, 6)))[0][:, :3]
    projection = (basis @ basis.T).astype(np.float32)
    operators = [node("MatMul", f"t{i} w{i}", f"t{i + 1}") for i in range(3)]
    weights = {f"w{i}": projection for i in range(3)}
    network = model(operators, {"t0": ["n", 6]}, {"t3": ["n", 6]}, weights)
    found = gm.collapse(network, places(3), method=method)
    x = {"t0": normal(9, 6)}
    np.testing.assert_allclose(found.run(x)["t3"], network.run(x)["t3"], atol=1e-5)
    assert sum(op.op_type == "MatMul" for op in found.operators) == 1


def test_weights_that_blocks_share_are_summed_in_a_copy():
    network = residual(1, scale=0.02)
    proto = network.proto()
    again = [type(op).FromString(op.SerializeToString()) for op in proto.graph.node[:-1]]
    for op in again:
        op.name += "_again"
        for names in (op.input, op.output):
            for i, name in enumerate(names):
                if name not in network.initializers:
                    names[i] = "t1" if name == "t0" else "t2" if name == "t1" else f"{name}/2"
    proto.graph.node[-1].input[0] = "t2"
    proto.graph.node.extend([*again, proto.graph.node.pop()])
    twice = gm.load(proto)
    found = gm.collapse(twice, places(2))
    second = next(op for op in found.operators if op.name == "MatMul_s0")
    np.testing.assert_allclose(found.initializer(second.input[1]), 2 * network.initializer("w0"))
    x = {"t0": normal(9, 3, 6)}
    assert np.abs(found.run(x)["y"] - twice.run(x)["y"]).max() < 1e-3


def normed(n, width=4, sizes=(5, 5)):
    """Return n residual blocks of Conv and BatchNormalization, of variances that differ widely."""
    operators, weights, pads = [], {}, [1] * 2 * len(sizes)
    for i in range(n):
        weights |= {f"w{i}": normal(width, width, *[3] * len(sizes)) / 3}
        weights |= {f"g{i}": 1 + normal(width) / 9, f"b{i}": normal(width), f"m{i}": normal(width)}
        weights |= {f"v{i}": RNG.uniform(0.1, 3, width).astype(np.float32)}
        operators += [
            node("Conv", f"t{i} w{i}", f"c{i}", pads=pads),
            node("BatchNormalization", f"c{i} g{i} b{i} m{i} v{i}", f"d{i}"),
            node("Relu", f"d{i}", f"e{i}"),
            node("Conv", f"e{i} w{i}", f"f{i}", pads=pads),
            node("Add", f"f{i} t{i}", f"t{i + 1}"),
        ]
    shape = ["n", width, *sizes]
    return model([*operators, node("Relu", f"t{n}", "y")], {"t0": shape}, {"y": shape}, weights)


@pytest.mark.parametrize("method", METHODS)
def test_norms_are_merged_as_what_they_compute(method):
    network = normed(3)
    found = gm.collapse(network, places(3), method=method)
    (op,) = [op for op in found.operators if op.op_type == "BatchNormalization"]
    gamma, beta, mean, variance = (found.initializer(name).astype(np.float64) for name in op.input[1:])
    held = [[network.initializer(f"{k}{i}").astype(np.float64) for k in "gbmv"] for i in range(3)]
    scales = [g / np.sqrt(v + 1e-5) for g, _, _, v in held]
    shifts = [b - m * s for (_, b, m, _), s in zip(held, scales, strict=True)]
    rule = (lambda v: v[0] + sum(o - v[0] for o in v[1:])) if method == "differences" else (lambda v: sum(v) / 3)
    np.testing.assert_allclose(gamma / np.sqrt(variance + 1e-5), rule(scales), atol=1e-5)
    np.testing.assert_allclose(beta - mean * gamma / np.sqrt(variance + 1e-5), rule(shifts), atol=1e-5)
    assert (variance > 0).all()


@pytest.mark.parametrize("sizes", [(5, 5), (4,)])
def test_norms_are_calibrated_on_data(sizes):
    network, x = normed(2, sizes=sizes), RNG.normal(size=(40, 4, *sizes)).astype(np.float32)
    found = gm.collapse(network, places(2), {"t0": x}, correction="none")
    (op,) = [op for op in found.operators if op.op_type == "BatchNormalization"]
    read = found.run({"t0": x}, [op.input[0]])[op.input[0]].astype(np.float64)
    of_samples = (0, *range(2, x.ndim))
    np.testing.assert_allclose(found.initializer(op.input[3]), read.mean(of_samples), atol=1e-5)
    np.testing.assert_allclose(found.initializer(op.input[4]), read.var(of_samples), atol=1e-5)


def test_the_correction_of_1d_convolutions_is_along_their_channels():
    network, x = normed(2, sizes=(4,)), RNG.normal(size=(60, 4, 4)).astype(np.float32)
    plain = gm.collapse(network, places(2), {"t0": x}, correction="none")
    found = gm.collapse(network, places(2), {"t0": x}, ridge=0.0)
    entering, wanted = (
        np.moveaxis(one.run({"t0": x}, [name])[name], 1, -1).reshape(-1, 4).astype(np.float64)
        for one, name in ((plain, "t1"), (network, "t2"))
    )
    fitted = np.linalg.lstsq(np.hstack([entering, np.ones((len(entering), 1))]), wanted, rcond=None)[0]
    np.testing.assert_allclose(found.initializer("t2/linear.weight")[..., 0].T, fitted[:-1], atol=1e-4)


def test_a_norm_whose_mean_and_variance_are_one_constant_gets_two():
    proto = normed(2).proto()
    for op in proto.graph.node:
        if op.op_type == "BatchNormalization":
            op.input[3] = op.input[4]
    x = RNG.normal(size=(40, 4, 5, 5)).astype(np.float32)
    found = gm.collapse(gm.load(proto), places(2), {"t0": x}, correction="none")
    (op,) = [op for op in found.operators if op.op_type == "BatchNormalization"]
    read = found.run({"t0": x}, [op.input[0]])[op.input[0]]
    np.testing.assert_allclose(found.initializer(op.input[3]), read.mean((0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(found.initializer(op.input[4]), read.var((0, 2, 3)), atol=1e-5)


@pytest.mark.parametrize("correction", ["linear", "affine"])
def test_the_correction_is_the_least_squares_fit(correction):
    network, x = residual(3, spread=0.3, scale=0.5), RNG.normal(size=(200, 3, 6)).astype(np.float32)
    plain = gm.collapse(network, places(3), {"t0": x}, correction="none")
    found = gm.collapse(network, places(3), {"t0": x}, correction=correction, ridge=0.0)
    entering = plain.run({"t0": x}, ["t1"])["t1"].reshape(-1, 6).astype(np.float64)
    wanted = network.run({"t0": x}, ["t3"])["t3"].reshape(-1, 6).astype(np.float64)
    given_too = np.hstack([entering, np.ones((len(entering), 1))])
    if correction == "linear":
        expected = given_too @ np.linalg.lstsq(given_too, wanted, rcond=None)[0]
    else:
        columns = [np.polyfit(entering[:, k], wanted[:, k], 1) for k in range(6)]
        expected = np.stack([np.polyval(c, entering[:, k]) for k, c in enumerate(columns)], 1)
    corrected = found.run({"t0": x}, ["t3"])["t3"].reshape(-1, 6)
    np.testing.assert_allclose(corrected, expected, atol=1e-4)


@pytest.mark.parametrize("blocks", [["layer2.2", "layer2.3"], ["layer3.1", "layer3.2", "layer3.3"]])
def test_with_data_it_beats_plain_removal_on_the_demo_network(blocks):
    network, splits = gm.load(gm.demo.model_path()), gm.demo.splits()

    def error(found):
        return gm.verify(network, found, splits.calibration).outputs["logits"].rms

    found = gm.collapse(network, blocks, splits.train)
    removals = [reduce(gm.remove, [path for path in blocks if path != kept], network) for kept in blocks]
    assert error(found) < 0.7 * min(map(error, removals))
    paths = [block.path for block in gm.blocks(found).walk()]
    assert blocks[0] in paths
    assert not set(blocks[1:]) & {path for path in paths if path.count(".") == 1 and path != blocks[-1]}
    assert len(found.operators) == len(network.operators) - 5 * (len(blocks) - 1) + 1


VIT, RESNET = ("vit12", ["blocks.3", "blocks.4", "blocks.5"]), ("resnet50", ["layer3.2", "layer3.3"])


@pytest.mark.parametrize(
    ("name", "blocks", "exporter"),
    [
        (*VIT, "torchscript"),
        pytest.param(*VIT, "current", marks=pytest.mark.slow),
        pytest.param(*RESNET, "torchscript", marks=pytest.mark.slow),
        pytest.param(*RESNET, "current", marks=pytest.mark.slow),
    ],
)
def test_networks(name, blocks, exporter):
    network = zoo.network(name, exporter)
    samples = {key: RNG.normal(size=(16, *value.shape[1:])).astype(value.dtype) for key, value in network.feeds.items()}
    for data in (None, samples):
        found = gm.collapse(network.model, blocks, data)
        assert len(found.operators) < len(network.model.operators)
        assert found.n_weights < network.model.n_weights
        assert all(np.isfinite(value).all() for value in found.run(network.feeds).values())


def test_refusals():
    demo = gm.load(gm.demo.model_path())
    for blocks, match in (
        (["layer1.1"], "^1 block cannot be collapsed"),
        (["layer1.1", "layer1.3"], "do not follow each other"),
        (["layer1.6", "layer2.0"], "the region changes the type"),
        (["layer9.1", "layer1.3"], "there is no block"),
    ):
        with pytest.raises(gm.RefusedError, match=match):
            gm.collapse(demo, blocks)
    with pytest.raises(gm.RefusedError, match="there is no method 'sum'"):
        gm.collapse(demo, ["layer1.2", "layer1.3"], method="sum")
    with pytest.raises(gm.RefusedError, match="there is no correction 'more'"):
        gm.collapse(demo, ["layer1.2", "layer1.3"], correction="more")


def test_refusals_say_where_blocks_differ():
    def changed(edit):
        proto = residual(2).proto()
        edit(proto)
        return gm.load(proto)

    def other_activation(proto):
        proto.graph.node[8].op_type = "Sigmoid"

    def other_attribute(proto):
        for at, alpha in ((2, 0.1), (8, 0.2)):
            proto.graph.node[at].op_type = "LeakyRelu"
            proto.graph.node[at].attribute.append(helper.make_attribute("alpha", alpha))

    def other_wires(proto):
        proto.graph.node[11].input[0] = "u1"

    def read_inside(proto):
        proto.graph.output.append(helper.make_tensor_value_info("r1", 1, None))

    def read_between(proto):
        proto.graph.node[12].op_type = "Add"
        proto.graph.node[12].input.append("t1")

    for edit, match in (
        (other_activation, "the blocks differ: Tanh 'Tanh_r0' and Sigmoid 'Tanh_r1'"),
        (other_attribute, "LeakyRelu 'Tanh_r0' and LeakyRelu 'Tanh_r1' in 'alpha'"),
        (other_wires, "the blocks are wired differently"),
        (read_inside, "'r1' lies inside of the blocks, and it is an output of the model"),
        (read_between, "'t1' lies inside of the blocks, and Add 'Tanh_y' reads it"),
    ):
        with pytest.raises(gm.RefusedError, match=match):
            gm.collapse(changed(edit), places(2))
    wide = residual(1)
    proto, other = wide.proto(), residual(1, hidden=9).proto()
    for op in other.graph.node[:-1]:
        for names in (op.input, op.output):
            for i, name in enumerate(names):
                names[i] = {"t0": "t1", "t1": "t2"}.get(name, f"{name}/2")
        op.name += "/2"
    for tensor in other.graph.initializer:
        tensor.name += "/2"
    proto.graph.node[-1].input[0] = "t2"
    proto.graph.node.extend([*other.graph.node[:-1], proto.graph.node.pop()])
    proto.graph.initializer.extend(other.graph.initializer)
    with pytest.raises(gm.RefusedError, match=r"'a0' is float32\[8\] and 'a0/2' float32\[9\]|'v0'|'w0' is"):
        gm.collapse(gm.load(proto), places(2))


@given(st.integers(2, 4), st.integers(2, 6), st.sampled_from(METHODS), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_chains_of_equal_blocks_become_one_block(n, width, method, with_data, seed):
    """Any run of blocks of a chain: what is left are the other blocks, and one of the merged weights."""
    network = residual(n + 1, width=width, hidden=width + 1)
    first = seed % 2
    chosen = places(n + 1)[first : first + n]
    x = {"t0": np.random.default_rng(seed).normal(size=(30, 3, width)).astype(np.float32)}
    found = gm.collapse(network, chosen, x if with_data else None, method=method, correction="affine")
    assert len(found.operators) == len(network.operators) - 6 * (n - 1) + 2 * with_data
    assert found.inputs == network.inputs
    assert found.outputs == network.outputs
    assert np.isfinite(found.run(x)["y"]).all()
