"""Constants whose entries are all alike: sharing one ties nothing; sharing any other constant does."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from planted import feeds, graph, net, spelled
from pruned import EXACT, error, some_units

import graphmod as gm
from graphmod.pruning import cut, groups

TWO_LSTMS = (
    "  h, l, c = LSTM <hidden_size=3> (t, w, r, , , z1, z1)  s = Squeeze(h, one)"
    "  h2, l2, c2 = LSTM <hidden_size=3> (s, w2, r2, , , z2, z2)  s2 = Squeeze(h2, one)"
    "  k = Transpose <perm=[1,0,2]> (s2)  y = MatMul(k, v)"
)
TOKENS = "(float[n,3,5] x) => (float[n,3,2] y)"
LSTMS = {"w": (1, 12, 5), "r": (1, 12, 3), "w2": (1, 12, 3), "r2": (1, 12, 3), "one": np.array([1]), "v": (3, 2)}
SIZES = {"two": np.array([2]), "three": np.array([3]), "nil": np.array([0])}
STATES = {
    "stored": ("(float[2,3,5] x) => (float[2,3,2] y)", "", "z z", {"z": np.zeros((1, 2, 3), np.float32)}),
    "made by a Constant": (
        "(float[1,3,5] x) => (float[1,3,2] y)", "f = Constant <value_floats=[0.5,0.5,0.5]> ()  z = Reshape(f, e)",
        "z z", {"e": np.array([1, 1, 3])}),
    "expanded to the batch, and sliced by layer": (
        TOKENS, "n = Shape <start=1, end=2> (t)  g = Concat <axis=0> (two, n, three)  z = Expand(o, g)"
        "  a = Slice(z, nil, one, nil)  b = Slice(z, one, two, nil)", "a b",
        {**SIZES, "o": np.zeros((1, 1, 1), np.float32)}),
    "filled in": (
        TOKENS, "n = Shape <start=1, end=2> (t)  g = Concat <axis=0> (one, n, three)  z = ConstantOfShape(g)", "z z",
        SIZES),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
def test_layers_that_start_from_the_same_zeros_are_not_tied(name):
    signature, made, states, weights = STATES[name]
    z1, z2 = states.split()
    layers = TWO_LSTMS.replace("z1", z1).replace("z2", z2)
    model = net(f"{signature} {{ t = Transpose <perm=[1,0,2]> (x)  {made} {layers} }}", {**LSTMS, **weights})
    found = groups(model)
    assert spelled(found, ["r.2", "w2.2", "r2.2", "v.0"]) == ["abc", "abc", "def", "def"]
    assert {operator for group in found for operator in group.operators} <= {*model.operator_names}
    assert gm.prune(model, 0.4, where="LSTM").initializer("r2").shape == (1, 8, 2)
    given = feeds(model)
    assert np.array_equal(found.model.run(given)["y"], model.run(given)["y"])
    for seed in range(4):
        assert error(found, some_units(found, seed), given) <= EXACT


def test_layers_that_start_from_the_same_other_state_are_tied():
    state = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    layers = TWO_LSTMS.replace("z1", "z").replace("z2", "z")
    model = net(f"(float[2,3,5] x) => (float[2,3,2] y) {{ t = Transpose <perm=[1,0,2]> (x) {layers} }}",
                {**LSTMS, "z": state})  # fmt: skip
    found = groups(model)
    assert found.model is model
    assert spelled(found, ["r.2", "r2.2", "v.0"]) == ["abc", "abc", "abc"]


NORMS = (
    "a = Conv(x, w)  b = BatchNormalization(a, g, h, h, g)  c = Conv(b, u)  d = BatchNormalization(c, g, h, h, g)"
    "  e = Mul(d, k)  y = Conv(e, v)"
)
IMAGE = "(float[n,3,4,4] x) => (float[n,2,h,w] y)"
WEIGHTS = {
    "w": (4, 3, 1, 1), "u": (4, 4, 1, 1), "v": (2, 4, 1, 1), "g": np.ones(4, np.float32), "h": np.zeros(4, np.float32),
    "k": np.ones((4, 1, 1), np.float32),
}  # fmt: skip


def test_normalisations_as_they_start_are_not_tied():
    model = net(f"{IMAGE} {{ {NORMS} }}", WEIGHTS)
    found = groups(model)
    assert spelled(found, ["w.0", "u.0", "v.1"]) == ["abcd", "efgh", "efgh"]
    for seed in range(3):
        assert error(found, some_units(found, seed), feeds(model)) <= EXACT


def test_copies_that_stay_alike_become_one_again():
    model = net(f"{IMAGE} {{ {NORMS} }}", WEIGHTS)
    found = groups(model)
    removed = np.zeros(found.n_units, bool)
    assert list(cut(found, removed).initializers) == list(model.initializers)
    removed[[0, 5]] = True  # one of each group
    assert list(cut(found, removed, leftovers=False).initializers) == list(model.initializers)
    removed[1] = True
    assert {*cut(found, removed, leftovers=False).initializers} > {*model.initializers}


def test_where_nothing_goes_nothing_is_copied():
    model = net(f"{IMAGE} {{ {NORMS} }}", WEIGHTS)
    assert groups(model).model is not model
    assert gm.prune(model, 0.01) is model
    assert gm.prune(model, weights=1.0, steps=2) is model


@pytest.mark.parametrize("name", STATES)
def test_what_makes_copies_that_stay_alike_becomes_one_again(name):
    signature, made, states, weights = STATES[name]
    z1, z2 = states.split()
    layers = TWO_LSTMS.replace("z1", z1).replace("z2", z2)
    model = net(f"{signature} {{ t = Transpose <perm=[1,0,2]> (x)  {made} {layers} }}", {**LSTMS, **weights})
    found = groups(model)
    removed = np.zeros(found.n_units, bool)
    assert len(cut(found, removed).operators) == len(model.operators)
    removed[[0, 4]] = True  # one of each group
    sizes = {"Mul", "Div"}  # of what is computed from the batch
    alike, apart = (
        [operator for operator in cut(found, gone).operators if operator.op_type not in sizes]
        for gone in (removed, removed & (found.group_of == 0))
    )
    assert len(alike) == len(model.operators)
    assert len(apart) > len(alike) or not made
    assert error(found, removed, feeds(model)) <= EXACT


def test_copies_need_no_runtime_that_knows_all_operators():
    proto = net(f"{IMAGE} {{ {NORMS} }}", WEIGHTS).editable()
    proto.graph.node[-1].output[0] = "z"
    proto.graph.node.append(helper.make_node("Odd", ["z"], ["y"], domain="elsewhere"))
    proto.opset_import.append(helper.make_opsetid("elsewhere", 1))
    assert spelled(groups(gm.load(proto)), ["w.0", "u.0", "v.1"]) == ["abcd", "efgh", "efgh"]


def test_outputs_and_bodies_keep_the_original():
    then = graph("() => (float[n,4,4,4] p) { p = Mul(a, k) }", {})
    other = graph("() => (float[n,4,4,4] q) { q = Tanh(a) }", {})
    made = graph("(float[n,3,4,4] x) => (float[n,2,4,4] y, float[4,1,1] k) { a = Conv(x, w)  b = Conv(i, u)"
                 "  c = Mul(b, k)  y = Conv(c, v) }", WEIGHTS)  # fmt: skip
    made.node.insert(1, helper.make_node("If", ["o"], ["i"], "choice", then_branch=then, else_branch=other))
    made.initializer.append(helper.make_tensor("o", 9, [], [True]))
    model = gm.load(helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]))
    found = groups(model)
    assert spelled(found, ["w.0", "u.0", "v.1", "k.0"]) == ["....", "abcd", "abcd", "...."]
    assert error(found, some_units(found, 0), feeds(model)) <= EXACT
    assert cut(found, some_units(found, 0)).initializer("k").shape == (4, 1, 1)


def test_constants_that_can_be_overridden_stay_shared():
    model = net("(float[n,3,4,4] x, float[4,1,1] k) => (float[n,2,h,w] y) {"
                " a = Conv(x, w)  b = Mul(a, k)  c = Conv(b, u)  d = Mul(c, k)  y = Conv(d, v) }",
                WEIGHTS)  # fmt: skip
    found = groups(model)
    assert found.model is model
    assert not len(found)
