"""The sizes at which a network is analysed."""

import time

import numpy as np
import pytest
from planted import net

import graphmod as gm
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.pruning.registry import couples

TEXT = """(float[n, 1, height, width] x) => (float[n, 2] z) {
    y = Conv(x, w)
    f = Flatten(y)
    z = MatMul(f, v)
}"""


def flattened(size: int) -> gm.Model:
    """Return a network that takes images of one size alone, and does not say so."""
    return net(TEXT, {"w": (6, 1, 3, 3), "v": (6 * (size - 2) ** 2, 2)})


@pytest.mark.parametrize("size", [32, 64, 224])
def test_dynamic_dimensions_take_a_size_that_fits(size):
    model = flattened(size)
    assert [group.n_units for group in gm.groups(model)] == [6]
    half = gm.prune(model, 0.5)
    feeds = {"x": np.ones((3, 1, size, size), np.float32)}
    assert half.initializer("v").shape == (3 * (size - 2) ** 2, 2)
    assert half.run(feeds)["z"].shape == model.run(feeds)["z"].shape == (3, 2)


def test_sizes_that_are_given_are_taken():
    model = flattened(40)
    assert not len(gm.groups(model))
    assert len(gm.groups(model, {"x": (2, 1, 40, 40)})) == 1
    assert gm.prune(model, 0.5, data={"x": np.ones((8, 1, 40, 40), np.float32)}).n_weights < model.n_weights


@pytest.mark.parametrize(
    ("shapes", "why"),
    [({"x": (2, 1, 40)}, "input 'x' has 4 axes, not 3"), ({"z": (2, 1, 40, 40)}, "there is no input 'z'")],
)
def test_shapes_of_other_inputs_are_refused(shapes, why):
    with pytest.raises(InvalidDataError, match=why):
        gm.groups(flattened(40), shapes)


def test_blocks_that_share_their_samples_take_linear_time():
    """Every block merges the same samples with its tokens; asking each time about all the others took 15 seconds."""
    blocks = " ".join(
        f"r{i} = Reshape(x{i}, s)  m{i} = MatMul(r{i}, w)  q{i} = Reshape(m{i}, u)  x{i + 1} = Add(x{i}, q{i})"
        for i in range(400)
    )
    weights = {"w0": (4, 4), "w": (4, 4), "s": np.array([-1, 4]), "u": np.array([-1, 3, 4]), "v": (4, 2)}
    text = f"x0 = MatMul(x, w0)  {blocks}  y = MatMul(x400, v)"
    model = net(f"(float[n,3,4] x) => (float[n,3,2] y) {{ {text} }}", weights)
    start = time.perf_counter()
    assert gm.groups(model).n_units == 4
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda _: None, "coupling rule of .* returned None, not a list"),
        (lambda site: [site.labels(0)[1]], "labels of 6 axes for output 'a', which has 2; it returns a list"),
    ],
)
def test_a_rule_of_ones_own_that_returns_no_labels_is_refused(made, told, monkeypatch):
    monkeypatch.setitem(couples._rules, ("", "Tanh"), made)
    model = net("(float[2,4] x) => (float[2,3] z) { y = MatMul(x, w)  a = Tanh(y)  z = MatMul(a, v) }",
                {"w": (4, 6), "v": (6, 3)})  # fmt: skip
    with pytest.raises(RefusedError, match=told):
        gm.groups(model)
