"""The trunk with parts in some of its places, against the parts computed one after the other."""

import numpy as np
import pytest
from handmade import fan, model
from onnx import helper

import graphmod as gm
from graphmod.methods.compress.fits import fitted
from graphmod.methods.compress.line import Line, touched
from graphmod.methods.compress.part import Part
from graphmod.methods.compress.site import Site

LAYERS = 5


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(2)


@pytest.fixture(scope="module")
def network(rng):
    return fan([6] * LAYERS, rng, (6,))


@pytest.fixture(scope="module")
def line(network):
    full = Line.of(network)
    return full.at({name for name in full.tensors if name == "x" or name.startswith("t")})


@pytest.fixture(scope="module")
def samples(rng):
    return rng.normal(size=(30, 6)).astype(np.float32)


def part(network, line, samples, start, stop, kind):
    tensors = line.tensors[start : stop + 1]
    values = network.run({"x": samples}, [name for name in (tensors[0], tensors[-1]) if name != "x"])
    values["x"] = samples
    (found,) = fitted(Site(network, tensors, values[tensors[0]], values[tensors[-1]]), kind)
    return found


def constants(one):
    return [np.asarray(one.model.initializer(name)) for name in one.model.initializers]


def test_all_boundaries_are_on_it(network):
    assert Line.of(network).tensors == ("x", *gm.boundaries(network))


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [(1, 2, "linear")],
        [(1, 2, "identity"), (2, 3, "linear")],
        [(1, 2, "linear"), (2, 4, "identity")],
        [(0, 1, "identity"), (1, 2, "identity"), (2, 3, "affine")],
        [(1, 2, "identity"), (3, 5, "affine")],
        [(0, 1, "affine"), (4, 5, "identity")],
        [(0, 5, "identity")],
        [(0, 1, "linear"), (1, 2, "linear"), (2, 3, "affine"), (3, 4, "identity"), (4, 5, "linear")],
    ],
)
@pytest.mark.parametrize("backwards", [False, True])
def test_built_is_what_the_parts_say(network, line, samples, runs, backwards):
    parts = [part(network, line, samples, *run) for run in runs]
    made = {run[0]: (run[1], one) for run, one in zip(runs, parts, strict=True)}
    value, position = samples, 0
    while position < LAYERS:
        if position not in made:
            value = np.tanh(value @ network.initializer(f"w{position}"))
            position += 1
            continue
        position, one = made[position]
        if one.kind == "affine":
            scale, shift = constants(one)
            value = value * scale + shift
        elif one.kind == "linear":
            weight, bias = constants(one)
            value = value @ weight + bias
    built = line.build(parts[::-1] if backwards else parts)
    np.testing.assert_allclose(built.run({"x": samples})[f"t{LAYERS - 1}"], value, atol=1e-5)
    assert (built.inputs, built.outputs) == (network.inputs, network.outputs)


def test_what_is_touched(network, line, samples):
    weighty = range(LAYERS)

    def names(*runs):
        return touched(line, [part(network, line, samples, *run) for run in runs], weighty)

    assert names((1, 3, "linear")) == [("t0", "t2"), ("t2", "t3")]
    assert names((1, 3, "identity")) == [("t0", "t3")]  # what holds the value behind it is the tensor before it
    assert names((1, 2, "linear"), (2, 3, "affine")) == [("t0", "t1"), ("t1", "t2"), ("t2", "t3")]
    assert names((3, 5, "linear")) == [("t2", "t4")]
    assert names((0, 5, "identity")) == []


def test_no_step_behind_has_weights(network, line, samples):
    assert touched(line, [part(network, line, samples, 1, 3, "linear")], []) == [("t0", "t2")]


def test_a_part_keeps_the_scope_of_what_it_replaces():
    original = gm.load(gm.demo.model_path())
    line = Line.of(original)
    block = gm.blocks(original)["layer3.5"]
    start, stop = line.tensors.index(block.entry), line.tensors.index(block.exit)
    data = gm.demo.splits().train[:50]
    values = original.run(dict(data.inputs), [block.entry, block.exit])
    site = Site(original, line.tensors[start : stop + 1], values[block.entry], values[block.exit])
    built = line.build(fitted(site, "linear"))
    assert gm.blocks(built)["layer3.5"].operators
    assert [op.op_type for op in built.operators if "/linear" in op.name] == ["Conv"]


def test_an_exit_that_is_not_alone_is_refused():
    split = helper.make_node("Split", ["x"], ["a", "b"], num_outputs=2, axis=1)
    join = helper.make_node("Concat", ["r", "b"], ["y"], axis=1)
    both = model([split, helper.make_node("Relu", ["a"], ["r"]), join], {"x": ["n", 4]}, {"y": ["n", 4]}, {})
    line = Line(both, ("x", "a"), ("x", "a"))
    with pytest.raises(gm.RefusedError, match="also makes 'b'"):
        line.build([Part("identity", "x", "a", 0.0, lambda: both)])
