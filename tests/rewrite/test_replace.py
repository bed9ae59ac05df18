"""Replacing: planted answers, the documented objective, and errors measured on activations."""

import numpy as np
import pytest
import zoo
from handmade import fan, model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from planted import net

import graphmod as gm
from graphmod.graph import channel_axis
from graphmod.probe import moments
from graphmod.probe.moments import strides_between
from graphmod.rewrite.propose import proposals
from graphmod.rewrite.region import Region
from graphmod.rewrite.replacements import fit

RNG = np.random.default_rng(17)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def around(operators, weights, channels, out_channels, spatial):
    """Return a network with a planted block between ``a`` and ``b``: image -> Conv, Tanh -> block -> Tanh, mean."""
    before = [
        helper.make_node("Conv", ["x", "stem"], ["s"], pads=[1] * 4),
        helper.make_node("Tanh", ["s"], ["a"]),
    ]
    after = [helper.make_node("Tanh", ["b"], ["c"]), helper.make_node("GlobalAveragePool", ["c"], ["y"])]
    weights = {"stem": normal(channels, 3, 3, 3) / 3, **weights}
    return model([*before, *operators, *after], {"x": ["n", 3, *spatial]}, {"y": ["n", out_channels, 1, 1]}, weights)


def identity():
    operators = [helper.make_node("Exp", ["a"], ["e"]), helper.make_node("Log", ["e"], ["b"])]
    return around(operators, {}, 5, 5, (6, 6))


def affine():
    operators = [
        helper.make_node("BatchNormalization", ["a", "g", "h", "m", "v"], ["d"]),
        helper.make_node("Neg", ["d"], ["b"]),
    ]
    weights = {"g": normal(5), "h": normal(5), "m": normal(5), "v": np.abs(normal(5)) + 0.5}
    return around(operators, weights, 5, 5, (6, 6))


def linear(channels=5, wide=7, out=5, stride=1):
    operators = [
        helper.make_node("Conv", ["a", "u", "ub"], ["d"], strides=[stride, stride]),
        helper.make_node("Conv", ["d", "w", "wb"], ["b"]),
    ]
    weights = {"u": normal(wide, channels, 1, 1), "ub": normal(wide), "w": normal(out, wide, 1, 1), "wb": normal(out)}
    return around(operators, weights, channels, out, (7, 7))


PLANTED = {
    "identity": (identity, "identity"),
    "affine": (affine, "affine"),
    "linear": (linear, "linear"),
    "linear, more channels": (lambda: linear(out=9), "linear"),
    "linear, fewer channels": (lambda: linear(out=3), "linear"),
    "linear, stride 2": (lambda: linear(out=9, stride=2), "linear"),
    "linear, stride 3": (lambda: linear(stride=3), "linear"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_planted_blocks_are_recovered(case):
    make, kind = PLANTED[case]
    network = make()
    x = normal(40, 3, *network.inputs["x"].shape[2:])
    small = gm.replace(network, ("a", "b"), x, max_error=1e-4, ridge=1e-10)
    types = [op.op_type for op in small.operators]
    assert types == [
        "Conv",
        "Tanh",
        *{"identity": [], "affine": ["Mul", "Add"], "linear": ["Conv"]}[kind],
        "Tanh",
        "GlobalAveragePool",
    ]
    found = gm.verify(network, small, normal(20, *x.shape[1:])).outputs["y"]
    assert found.relative < 1e-4
    assert found.rms < 1e-4
    best = min(gm.propose(network, ("a", "b"), gm.Data({"x": x}), ridge=1e-10), key=lambda one: one.error)
    assert best.error < 1e-4


@pytest.mark.parametrize("shape", [(6,), (4, 6)])
@pytest.mark.parametrize("out", [6, 3])
def test_planted_linear_layers_on_the_last_axis(shape, out):
    operators = [
        helper.make_node("Tanh", ["x"], ["a"]),
        helper.make_node("MatMul", ["a", "u"], ["p"]),
        helper.make_node("Add", ["p", "ub"], ["q"]),
        helper.make_node("MatMul", ["q", "w"], ["b"]),
        helper.make_node("Tanh", ["b"], ["y"]),
    ]
    weights = {"u": normal(6, 9), "ub": normal(9), "w": normal(9, out)}
    network = model(operators, {"x": ["n", *shape]}, {"y": ["n", *shape[:-1], out]}, weights)
    small = gm.replace(network, ("a", "b"), normal(100, *shape), "linear", ridge=1e-10)
    assert gm.verify(network, small, normal(50, *shape)).outputs["y"].relative < 1e-4
    np.testing.assert_allclose(small.initializer("b/linear.weight"), weights["u"] @ weights["w"], atol=1e-4)


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 0.1, 10.0])
@pytest.mark.parametrize("out", [6, 4])
def test_linear_minimises_the_documented_objective(ridge, out):
    x, noise = RNG.normal(size=(80, 6)) + 1, RNG.normal(size=(80, out))
    y = np.tanh(x @ RNG.normal(size=(6, out))) + 0.1 * noise
    seen = seen_of(x, y)
    prior = np.eye(6, out) if out == 6 else np.zeros((6, out))
    penalty = ridge * x.var(axis=0).mean() * len(x)
    left, right = x - x.mean(0), y - y.mean(0)
    stacked = np.vstack([left, np.sqrt(penalty) * np.eye(6)])
    shift = np.linalg.lstsq(stacked, np.vstack([right - left @ prior, np.zeros((6, out))]), rcond=None)[0]
    found = fit("linear", seen, ridge)
    np.testing.assert_allclose(found.weight, prior + shift, atol=1e-8)
    np.testing.assert_allclose(found.bias, y.mean(0) - x.mean(0) @ found.weight, atol=1e-8)

    def objective(weight, bias):
        return ((y - x @ weight - bias) ** 2).sum() + penalty * ((weight - prior) ** 2).sum()

    least = objective(found.weight, found.bias)
    for _ in range(20):
        assert objective(found.weight + 1e-3 * RNG.normal(size=(6, out)), found.bias) > least
        assert objective(found.weight, found.bias + 1e-3 * RNG.normal(size=out)) > least


def seen_of(x, y):
    """Return the moments of two arrays of rows, by hand."""
    return gm.probe.Moments(len(x), x.sum(0), y.sum(0), x.T @ x, x.T @ y, (y**2).sum(0), (), x.shape == y.shape)


def test_without_a_ridge_it_is_least_squares():
    x, y = RNG.normal(size=(80, 6)) + 1, RNG.normal(size=(80, 4))
    plain = np.linalg.lstsq(np.hstack([x, np.ones((80, 1))]), y, rcond=None)[0]
    found = fit("linear", seen_of(x, y), 0.0)
    np.testing.assert_allclose(np.vstack([found.weight, found.bias]), plain, atol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1.0])
def test_affine_is_a_ridge_regression_of_each_channel(ridge):
    x, y = RNG.normal(size=(50, 3)) * [1, 2, 3] + 1, RNG.normal(size=(50, 3))
    found = fit("affine", seen_of(x, y), ridge)
    penalty = ridge * x.var(axis=0).mean() * len(x)
    for channel in range(3):
        left, right = x[:, channel] - x[:, channel].mean(), y[:, channel] - y[:, channel].mean()
        slope = (left @ right + penalty) / (left @ left + penalty)  # zero of the derivative, shrunk towards 1
        assert found.weight[channel, channel] == pytest.approx(slope)
        assert found.bias[channel] == pytest.approx(y[:, channel].mean() - slope * x[:, channel].mean())
    assert np.count_nonzero(found.weight - np.diag(np.diag(found.weight))) == 0


def test_errors_are_those_of_the_activations():
    network = zoo.network("resnet18").model
    x = RNG.normal(size=(12, 3, 64, 64)).astype(np.float32)
    (source,) = network.inputs
    for path in ("layer1.1", "layer2.0", "layer3.1"):
        block = gm.blocks(network)[path]
        y = np.moveaxis(network.run({source: x}, [block.exit])[block.exit], 1, -1).astype(np.float64)
        y = y.reshape(-1, y.shape[-1])
        for one in gm.propose(network, block, gm.Data({source: x})):
            name = block.entry if one.kind == "identity" else block.exit
            mapped = np.moveaxis(one.apply(network).run({source: x}, [name])[name], 1, -1).reshape(y.shape)
            measured = np.sqrt(((mapped - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())
            assert one.error == pytest.approx(measured, rel=1e-3), (path, one.kind)


def test_errors_on_other_data():
    network, x, other = fan([6, 6], RNG, (6,)), normal(60, 6), normal(40, 6)
    seen, test = (moments(network, gm.Data({"x": v}), [("t0", "t1")])["t0", "t1"] for v in (x, other))
    values = network.run({"x": other}, ["t0", "t1"])
    for one in proposals(Region("t0", "t1"), seen):
        y = values["t1"].astype(np.float64)
        left = values["t0"] @ one.fit.weight + one.fit.bias
        assert one.fit.error(test) == pytest.approx(
            np.sqrt(((left - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()), rel=1e-6
        )


def test_auto_takes_the_cheapest_that_is_good_enough():
    network, x = zoo.network("resnet18").model, RNG.normal(size=(12, 3, 64, 64)).astype(np.float32)
    (source,) = network.inputs
    found = gm.propose(network, "layer1.1", gm.Data({source: x}))
    assert [one.kind for one in found] == ["identity", "affine", "linear"]
    errors = [one.error for one in found]
    assert errors == sorted(errors, reverse=True)
    for one in found:
        chosen = gm.replace(network, "layer1.1", x, max_error=one.error + 1e-9)
        assert chosen.digest == gm.replace(network, "layer1.1", x, one.kind).digest
    with pytest.raises(gm.RefusedError) as refused:
        gm.replace(network, "layer1.1", x, max_error=errors[-1] / 2)
    for one in found:
        assert f"{one.kind} {one.error:.3g}" in str(refused.value)


def test_refusals():
    network, x = zoo.network("resnet18").model, RNG.normal(size=(4, 3, 64, 64)).astype(np.float32)
    for place, kind, match in [
        ("layer1.1", "cubic", "there is no replacement 'cubic'"),
        ("layer2.0", "affine", "of kind 'affine' fits here; what fits, with its error: linear"),
        ("layer9", "auto", "layer9"),
        ("fc", "identity", "what fits, with its error: linear"),
    ]:
        with pytest.raises(gm.RefusedError, match=match):
            gm.replace(network, place, x, kind)
    block = gm.blocks(network)["layer4.1"]
    with pytest.raises(gm.RefusedError, match="no layer fits between"):
        gm.replace(network, (block.exit, next(iter(network.outputs))), x)
    with pytest.raises(gm.InvalidDataError):
        gm.replace(network, "layer1.1", x[:, :2])


@pytest.mark.parametrize("kind", ["identity", "affine", "linear"])
@pytest.mark.parametrize("place", [("x", "t0"), ("t1", "t2"), ("x", "t2")])
def test_right_after_the_input_and_at_the_output(kind, place):
    network, x = fan([6, 6, 6], RNG, (6,)), normal(50, 6)
    small = gm.replace(network, place, x, kind)
    assert (small.inputs, small.outputs) == (network.inputs, network.outputs)
    values = {"x": x, **network.run({"x": x}, ["t0", "t1", "t2"])}
    one = next(p for p in gm.propose(network, place, gm.Data({"x": x})) if p.kind == kind)
    expected = values[place[0]] @ one.fit.weight + one.fit.bias
    for layer in range(int(place[1][1]) + 1, 3):
        expected = np.tanh(expected @ network.initializer(f"w{layer}"))
    np.testing.assert_allclose(small.run({"x": x})["t2"], expected, atol=1e-5)


def test_the_region_and_nothing_else_goes():
    network, x = fan([6, 6, 6], RNG, (6,)), normal(50, 6)
    small = gm.replace(network, ("t0", "t1"), x, "linear")
    assert set(small.initializers) == {"w0", "w2", "t1/linear.weight", "t1/linear.bias"}
    for name in ("w0", "w2"):
        assert small.initializers[name].SerializeToString() == network.initializers[name].SerializeToString()


@pytest.mark.parametrize("kind", ["affine", "linear"])
def test_a_replacement_can_be_replaced_again(kind):
    network, x = fan([6, 6, 6], RNG, (6,)), normal(50, 6)
    again = gm.replace(gm.replace(network, ("t0", "t1"), x, kind, ridge=1e-9), ("t0", "t1"), x, kind, ridge=1e-9)
    once = gm.replace(network, ("t0", "t1"), x, kind, ridge=1e-9)
    assert gm.verify(once, again, x).outputs["t2"].relative < 1e-4
    assert list(again.initializers) == list(once.initializers)


def test_replacements_keep_the_scope():
    network = gm.load(gm.demo.model_path())
    small = gm.replace(network, "layer1.3", gm.demo.splits().calibration, "linear")
    paths = [block.path for block in gm.blocks(small)["layer1"].children]
    assert paths == [block.path for block in gm.blocks(network)["layer1"].children]


def test_a_model_in_half_precision():
    network = fan([6, 6], RNG, (6,))
    proto = network.proto()
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = 10
    small = gm.replace(gm.load(proto), ("t0", "t1"), normal(50, 6).astype(np.float16), "linear")
    assert small.initializer("t1/linear.weight").dtype == np.float16


def test_nothing_is_fitted_to_what_is_not_finite():
    operators = [helper.make_node("Sqrt", ["x"], ["a"]), helper.make_node("Tanh", ["a"], ["y"])]
    network = model(operators, {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(gm.RefusedError, match="not finite"):
        gm.replace(network, ("a", "y"), normal(50, 4))


def test_a_dynamic_last_axis_is_no_axis_of_channels():
    operators = [helper.make_node("Tanh", ["x"], ["a"]), helper.make_node("Tanh", ["a"], ["y"])]
    network = model(operators, {"x": ["n", 3, "l"]}, {"y": ["n", 3, "l"]})
    with pytest.raises(gm.RefusedError, match="last axis is dynamic"):
        gm.replace(network, ("a", "y"), normal(20, 3, 8), "linear")


def conv1d(widths, strides, length):
    """Return a chain of Conv and Tanh over a sequence; tensors are t0, t1, ..."""
    operators, weights, before, width = [], {}, "x", 3
    for i, (wide, stride) in enumerate(zip(widths, strides, strict=True)):
        weights[f"w{i}"], weights[f"b{i}"] = normal(wide, width, 3) / np.float32((3 * width) ** 0.5), normal(wide)
        operators += [
            helper.make_node("Conv", [before, f"w{i}", f"b{i}"], [f"c{i}"], pads=[1, 1], strides=[stride]),
            helper.make_node("Tanh", [f"c{i}"], [f"t{i}"]),
        ]
        before, width = f"t{i}", wide
    return model(operators, {"x": ["n", 3, length]}, {before: ["n", width, "m"]}, weights)


@pytest.mark.parametrize(
    ("widths", "strides"), [((8, 8, 8), (1, 1, 1)), ((8, 5, 8), (1, 1, 1)), ((5, 5, 9), (1, 2, 2))]
)
@pytest.mark.parametrize("length", [8, "l"])
def test_1d_convolutions_are_fitted_along_their_channels(widths, strides, length):
    network, x, other = conv1d(widths, strides, length), normal(60, 3, 8), normal(20, 3, 8)
    values = network.run({"x": x}, ["t0", "t2"])
    stride = strides[1] * strides[2]
    left, right = (np.moveaxis(v, 1, -1).reshape(-1, v.shape[1]) for v in (values["t0"][..., ::stride], values["t2"]))
    plain = np.linalg.lstsq(np.hstack([left, np.ones((len(left), 1))]).astype(np.float64), right, rcond=None)[0]
    small = gm.replace(network, ("t0", "t2"), x, "linear", ridge=0.0)
    assert [one.op_type for one in small.operators] == ["Conv", "Tanh", "Conv"]
    np.testing.assert_allclose(small.initializer("t2/linear.weight")[..., 0].T, plain[:-1], atol=1e-4)
    np.testing.assert_allclose(small.initializer("t2/linear.bias"), plain[-1], atol=1e-4)
    before = network.run({"x": other}, ["t0"])["t0"][..., ::stride]
    expected = np.einsum("ncl,co->nol", before, plain[:-1]) + plain[-1][:, None]
    np.testing.assert_allclose(small.run({"x": other})["t2"], expected, atol=1e-4)


@pytest.mark.parametrize("length", [8, "l"])
def test_an_affine_map_of_1d_convolutions_is_a_number_a_channel(length):
    network, x = conv1d((8, 8), (1, 1), length), normal(60, 3, 8)
    small = gm.replace(network, ("t0", "t1"), x, "affine")
    one = next(one for one in gm.propose(network, ("t0", "t1"), x) if one.kind == "affine")
    t0 = network.run({"x": x}, ["t0"])["t0"]
    expected = t0 * np.diag(one.fit.weight)[:, None] + one.fit.bias[:, None]
    np.testing.assert_allclose(small.run({"x": x})["t1"], expected, atol=1e-5)


def test_channels_on_different_axes_are_not_fitted_to_each_other():
    operators = [
        helper.make_node("Conv", ["x", "u"], ["a"], pads=[1, 1]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["b", "w"], ["y"]),
    ]
    network = model(operators, {"x": ["n", 6, 6]}, {"y": ["n", 6, 6]}, {"u": normal(6, 6, 3), "w": normal(6, 6)})
    with pytest.raises(gm.RefusedError, match="axis 1 of one and axis -1 of the other"):
        gm.replace(network, ("a", "y"), normal(20, 6, 6), "linear")


def mixed_layouts(kinds):
    """Return a chain of operators on sequences and tokens, 6 channels and 6 positions at first, and its tensors."""
    operators, weights, sizes = [], {}, (6, 6)
    for i, kind in enumerate(kinds):
        needed = {"Conv": sizes[0], "BatchNormalization": sizes[0], "MatMul": sizes[1], "LayerNormalization": sizes[1]}
        kind = kind if needed.get(kind, 6) == 6 else "Tanh"
        weights |= {f"k{i}": normal(6, 6, 3) / 4, f"w{i}": normal(6, 6) / 2, f"v{i}": np.abs(normal(6)) + 0.5}
        constants = {"Conv": [f"k{i}"], "MatMul": [f"w{i}"], "BatchNormalization": [f"v{i}"] * 4}
        constants["LayerNormalization"] = [f"v{i}"]
        stride = 1 + i % 2
        more = {"Conv": {"pads": [1, 1], "strides": [stride]}, "Transpose": {"perm": [0, 2, 1]}}.get(kind, {})
        operators.append(helper.make_node(kind, [f"t{i}", *constants.get(kind, [])], [f"t{i + 1}"], **more))
        sizes = sizes[::-1] if kind == "Transpose" else (sizes[0], -(-sizes[1] // stride)) if kind == "Conv" else sizes
    used = {name for operator in operators for name in operator.input}
    weights = {name: value for name, value in weights.items() if name in used}
    return model(operators, {"t0": ["n", 6, 6]}, {f"t{len(kinds)}": ["n", *sizes]}, weights)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whatever_the_layout_errors_are_those_of_the_activations(data):
    possible = ["Conv", "MatMul", "Tanh", "BatchNormalization", "LayerNormalization", "Transpose"]
    network = mixed_layouts(data.draw(st.lists(st.sampled_from(possible), min_size=2, max_size=8)))
    entry, exit_ = sorted(data.draw(st.sets(st.integers(0, len(network.operators)), min_size=2, max_size=2)))
    place, x = (f"t{entry}", f"t{exit_}"), normal(30, 6, 6) * 2
    y = {"t0": x, **network.run({"t0": x}, [place[1]])}[place[1]].astype(np.float64)
    axis = channel_axis(network, place[1])
    before, after = ((30, *network.tensors[name].shape[1:]) for name in place)
    differ = channel_axis(network, place[0]) != axis
    if differ or strides_between(before, after, axis) is None:
        with pytest.raises(gm.RefusedError, match="channels are axis" if differ else "no layer fits"):
            gm.propose(network, place, gm.Data({"t0": x}))
        return
    found = gm.propose(network, place, gm.Data({"t0": x}))
    centred = y - y.mean((0, 2 if axis == 1 else 1), keepdims=True)
    for one in found:
        small, name = one.apply(network), place[1]
        if one.kind == "identity":
            name = name if name in small.producer else place[0]
        made = {"t0": x, **small.run({"t0": x}, [name] if name != "t0" else None)}[name]
        assert one.error == pytest.approx(np.sqrt(((made - y) ** 2).sum() / (centred**2).sum()), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("ridge", [-1e-3, float("nan")])
def test_a_ridge_below_0_is_refused(ridge):
    with pytest.raises(gm.RefusedError, match=r"at least 0, not"):
        gm.replace(gm.load(gm.demo.model_path()), "layer3.5", gm.demo.splits().train[:64], "linear", ridge=ridge)


@pytest.mark.parametrize("kind", ["affine", "linear"])
def test_where_shape_inference_does_not_know_the_exit(kind):
    text = """(float[n,4] x) => (float[n,4] y) {
        a = MatMul (x, w)  q = com.microsoft.QuickGelu (a)  b = Mul (q, two)  y = MatMul (b, w)
    }"""
    rng = np.random.default_rng(0)
    network = net(text, {"w": (4, 4), "two": np.full(4, 2, np.float32)})
    assert network.tensors.get("b") is None
    x = rng.normal(size=(64, 4)).astype(np.float32)
    after = gm.replace(network, ("a", "b"), x, kind)
    seen = gm.propose(network, ("a", "b"), x)
    wanted, found = (one.run({"x": x}, ["b"])["b"] for one in (network, after))
    error = np.sqrt(np.square(found - wanted).sum() / np.square(wanted - wanted.mean(0)).sum())
    assert error == pytest.approx(next(one.error for one in seen if one.kind == kind), rel=1e-4)
