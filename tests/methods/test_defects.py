"""Attacks on features, against closed forms, another toolbox and planted twins; rates of inheritance by hand."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import net

import graphmod as gm
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.methods import defects
from graphmod.methods.defects.feature_attack import _box

LAYER = "(float[n,4] x) => (float[n,k] y) { y = MatMul(x, w) }"
TEN = np.eye(10, dtype=np.float32)

DOUBLE = 4e-15
"""What differences of doubles of this size are wrong by, at most."""


@pytest.fixture(scope="module")
def demo() -> tuple[gm.Model, gm.Data]:
    return gm.load(gm.demo.model_path()), gm.demo.splits().test[:48]


def moved(model: gm.Model, data: gm.Data, other: gm.Data, tensor: str) -> np.ndarray:
    """Return the squared distances of features, by ONNX Runtime."""
    before, after = (model.run(part.inputs, [tensor])[tensor].astype(np.float64) for part in (data, other))
    return np.square(after - before).reshape(len(data), -1).sum(1)


def classes(n: int) -> gm.Model:
    """Return the network that gives back its input, as logits of n classes."""
    return net(f"(float[n,{n}] x) => (float[n,{n}] y) {{ y = Identity(x) }}", {})


# -- feature_attack


def test_samples_change_by_no_more_than_eps_and_stay_in_range(demo: tuple[gm.Model, gm.Data]) -> None:
    model, data = demo
    x = data.inputs["image"].copy()
    found = defects.feature_attack(model, data, eps=0.07)
    change = found.inputs["image"].astype(np.float64) - x
    assert 0.069 < np.abs(change).max() <= 0.07
    assert found.inputs["image"].min() >= 0
    assert found.inputs["image"].max() <= 1
    assert found.inputs["image"].dtype == np.float32
    assert found.targets is data.targets
    assert np.array_equal(data.inputs["image"], x)


def test_features_move_much_farther_than_by_noise_of_the_same_size(demo: tuple[gm.Model, gm.Data]) -> None:
    model, data = demo
    far = moved(model, data, defects.feature_attack(model, data, eps=0.1), "view")
    x, rng = data.inputs["image"], np.random.default_rng(0)
    for draw in (rng.uniform(-0.1, 0.1, x.shape), rng.choice([-0.1, 0.1], x.shape)):
        near = moved(model, data, gm.Data({"image": (x + draw).clip(0, 1).astype(np.float32)}), "view")
        assert far.mean() > 10 * near.mean()
        assert np.mean(far > near) > 0.9


def test_samples_are_those_of_the_toolbox_that_takes_features_for_logits(
    demo: tuple[gm.Model, gm.Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    art, estimators = import_module("art.attacks.evasion"), import_module("art.estimators.classification")
    model, data = demo
    x, clean = data.inputs["image"], model.run(data.inputs, ["view"])["view"]
    taken = estimators.PyTorchClassifier(
        gm.to_torch(gm.extract(model, "image", "view")), torch.nn.MSELoss(), x.shape[1:], clean.shape[1],
        clip_values=(0, 1), device_type="cpu",
    )  # fmt: skip
    inside = "art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch"
    start = np.random.default_rng(0).uniform(-0.1, 0.1, (len(x), 64))
    monkeypatch.setattr(import_module(inside), "random_sphere", lambda *_: start)
    attack = art.ProjectedGradientDescent(
        taken, eps=0.1, eps_step=0.05, max_iter=5, num_random_init=1, batch_size=len(x), verbose=False
    )
    theirs = attack.generate(x, clean)
    ours = defects.feature_attack(model, data, eps=0.1, steps=5, bounds=(0, 1), seed=0).inputs["image"]
    assert np.mean(np.abs(ours - theirs) < 1e-5) > 0.99  # signs of gradients that are almost zero differ


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_one_linear_feature_moves_by_eps_times_the_sum_of_its_weights(dtype: str) -> None:
    word = {"float16": "float16", "float32": "float", "float64": "double"}[dtype]
    w = np.array([[1], [-2], [0.5], [-0.25]], dtype)
    model = net(f"({word}[n,4] x) => ({word}[n,1] y) {{ y = MatMul(x, w) }}", {"w": w})
    x = np.random.default_rng(0).normal(size=(9, 4)).astype(dtype)
    found = defects.feature_attack(model, (x, np.zeros(9, int)), tensor="y", eps=0.3, bounds=(-9, 9)).inputs["x"]
    change = found.astype(np.float64) - x.astype(np.float64)
    assert found.dtype == dtype
    assert np.abs(change).max() <= 0.3 + DOUBLE
    side = np.sign(change[:, :1])  # either way is as far
    np.testing.assert_allclose(change, side * 0.3 * np.sign(w.T.astype(float)), atol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(np.abs(change @ w.astype(float)), 0.3 * 3.75, atol=32 * np.finfo(dtype).eps)


def test_features_of_their_own_move_each_by_eps_and_what_they_do_not_read_stays_where_it_began() -> None:
    w = np.diag([1, -2, 3, 0]).astype(np.float32)
    x = np.zeros((50, 4), np.float32)
    found = defects.feature_attack(net(LAYER, {"w": w}), x, tensor="y", eps=0.5, bounds=(-1, 0.25)).inputs["x"]
    assert set(np.unique(found[:, :3])) <= {np.float32(-0.5), np.float32(0.25)}
    assert len(np.unique(found[:, 3])) > 10


def test_other_inputs_are_fed_and_stay_as_they_are() -> None:
    text = "(int64[n] i, float[n,4] x) => (float[n,4] z) { r = Gather(e, i)  y = Mul(x, r)  z = MatMul(y, w) }"
    rows = np.array([[1, 0, 0, 0], [0, 0, 1, 1]], np.float32)
    model = net(text, {"e": rows, "w": np.eye(4, dtype=np.float32)})
    data = gm.Data({"i": np.array([0, 1, 1]), "x": np.zeros((3, 4), np.float32)}, np.arange(3))
    found = defects.feature_attack(model, data, tensor="y", eps=0.5, bounds=(-1, 1), batch_size=2)
    assert found.inputs["i"] is data.inputs["i"]
    assert np.array_equal(np.abs(found.inputs["x"]) == 0.5, rows[data.inputs["i"]] == 1)


def test_seeds_decide_and_batches_do_not(demo: tuple[gm.Model, gm.Data]) -> None:
    def found(**settings: int) -> np.ndarray:
        return defects.feature_attack(*demo, steps=2, **settings).inputs["image"]

    assert np.array_equal(found(seed=3), found(seed=3))
    assert not np.array_equal(found(seed=3), found(seed=4))
    assert np.mean(found(seed=3) != found(seed=3, batch_size=7)) < 0.01  # signs of gradients that are almost zero


def test_a_model_of_a_fixed_number_of_samples_is_attacked_as_any_other(demo: tuple[gm.Model, gm.Data]) -> None:
    model, data = demo
    found, free = (defects.feature_attack(one, data[:10], steps=2) for one in (gm.rebatch(model, 4), model))
    assert np.mean(found.inputs["image"] != free.inputs["image"]) < 0.01


def test_eps_is_a_tenth_of_the_range_where_nothing_is_said() -> None:
    model = net(LAYER, {"w": np.ones((4, 1), np.float32)})
    x = np.array([[-1, 0, 0.5, 3]], np.float32)
    change = defects.feature_attack(model, x, tensor="y", bounds=(-3, 5)).inputs["x"] - x
    np.testing.assert_allclose(np.abs(change), 0.8, atol=1e-6)


@given(st.floats(-4, 4, width=16), st.floats(0.01, 3), st.sampled_from(["float16", "float32", "float64"]))
@settings(max_examples=100, deadline=None)
def test_the_box_holds_its_sample_and_nothing_beyond_eps_or_the_range(value: float, eps: float, dtype: str) -> None:
    x = np.array([value], dtype)
    lower, upper = _box(x, eps, -4, 4)
    assert lower.dtype == upper.dtype == dtype
    assert -4 <= lower[0] <= x[0] <= upper[0] <= 4
    assert float(x[0]) - float(lower[0]) <= eps + DOUBLE
    assert float(upper[0]) - float(x[0]) <= eps + DOUBLE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r = Relu(x)  y = MatMul(r, w)", "r"),
        ("r = Relu(x)  h = MatMul(r, w)  b = Add(h, v)  y = Softmax(b)", "r"),
        ("r = Relu(x)  s = Tanh(r)  h = MatMul(s, w)  y = Add(h, s)", "s"),
        ("r = Relu(x)  s = Tanh(r)  t = Sigmoid(s)  h = MatMul(t, w)  y = Add(h, s)", "s"),  # a path around it
        ("r = Relu(x)  a = MatMul(r, w)  b = Tanh(a)  c = MatMul(b, u)  y = Mul(c, v)", "b"),
    ],
)
def test_final_features_are_the_last_boundary_before_the_last_matrix(text: str, expected: str) -> None:
    weights = {"w": (4, 4), "u": (4, 4), "v": (1, 4)}
    model = net(
        f"(float[n,4] x) => (float[n,4] y) {{ {text} }}", {k: v for k, v in weights.items() if f" {k})" in text}
    )
    assert gm.graph.final_features(model) == expected


def test_features_that_cannot_be_found_are_refused() -> None:
    with pytest.raises(RefusedError, match=r"no boundary before the final layer"):
        gm.graph.final_features(net(LAYER, {"w": (4, 2)}))
    with pytest.raises(RefusedError, match=r"no operator multiplies"):
        gm.graph.final_features(net("(float[n,4] x) => (float[n,4] y) { y = Relu(x) }", {}))


def test_bad_arguments_of_an_attack_are_refused_in_a_sentence(demo: tuple[gm.Model, gm.Data]) -> None:
    for eps in (0, -1, float("nan"), float("inf"), "a"):
        with pytest.raises(RefusedError, match="out of range"):
            defects.feature_attack(*demo, eps=eps)
    for settings_ in ({"steps": 0}, {"batch_size": 0}):
        with pytest.raises(RefusedError, match="a whole number from 1 on"):
            defects.feature_attack(*demo, **settings_)
    with pytest.raises(RefusedError, match="no tensor, block or operator 'nothing'"):
        defects.feature_attack(*demo, tensor="nothing")
    with pytest.raises(RefusedError, match="names 43 tensors"):
        defects.feature_attack(*demo, tensor="Relu")
    with pytest.raises(InvalidDataError, match=r"from 0 to 1, outside of bounds=\(0, 0.5\)"):
        defects.feature_attack(*demo, bounds=(0, 0.5))
    with pytest.raises(InvalidDataError, match="bounds="):
        defects.feature_attack(demo[0], np.ones((2, 1, 8, 8), np.float32))
    with pytest.raises(gm.InvalidModelError, match="feature_attack takes"):
        defects.feature_attack("source.onnx", demo[1])


def test_inputs_that_cannot_be_changed_are_refused() -> None:
    two = net("(float[n,4] a, float[n,4] b) => (float[n,4] y) { s = Add(a, b)  y = MatMul(s, w) }", {"w": (4, 4)})
    x = np.eye(4, dtype=np.float32)
    with pytest.raises(InvalidDataError, match=r"one float input .*'a' \(float32\), 'b' \(float32\)"):
        defects.feature_attack(two, {"a": x, "b": x})
    tokens = net(
        "(int64[n,3] i) => (float[n,3,4] y) { h = Gather(e, i)  y = MatMul(h, w) }", {"e": (9, 4), "w": (4, 4)}
    )
    with pytest.raises(InvalidDataError, match=r"one float input .*'i' \(int64\)"):
        defects.feature_attack(tokens, np.zeros((2, 3), np.int64))
    rounded = net(
        "(float[n,4] x) => (float[n,4] y) { h = Cast<to=7>(x)  f = Cast<to=1>(h)  y = MatMul(f, w) }", {"w": (4, 4)}
    )
    with pytest.raises(RefusedError, match="no gradient"):
        defects.feature_attack(rounded, x, tensor="f")


# -- inheritance


def planted(read: slice, head: np.ndarray) -> gm.Model:
    """Return a network whose one feature is the mean of some of 32 inputs; its head makes logits of it and of a one."""
    w = np.zeros((32, 1), np.float32)
    w[read] = 1 / len(range(32)[read])
    text = "(float[n,32] x) => (float[n,k] y) { f = MatMul(x, w)  r = Relu(f)  h = MatMul(r, a)  y = Add(h, b) }"
    return net(text, {"w": w, "a": head[:1].astype(np.float32), "b": head[1].astype(np.float32)})


def test_a_twin_inherits_fully_and_an_independent_network_does_not() -> None:
    labels = np.arange(40) % 2
    x = np.repeat(labels[:, None], 32, axis=1).astype(np.float32)  # all inputs tell the class
    source = planted(slice(16), np.array([[-2, 2], [1, -1]]))
    twin = planted(slice(16), np.array([[-3, 3, 0], [1.5, -1.5, -9]]))
    independent = planted(slice(16, 32), np.array([[-2, 2], [1, -1]]))
    data = gm.Data({"x": x}, labels)
    attacked = defects.feature_attack(source, data, eps=0.7)
    assert [gm.accuracy(one, data) for one in (source, twin, independent)] == [1, 1, 1]
    assert defects.inheritance(source, data, attacked) == 1
    assert defects.inheritance(twin, data, attacked) == 1
    assert defects.inheritance(independent, data, attacked) == 0


def test_inheritance_counts_what_was_right_and_is_wrong() -> None:
    clean = gm.Data({"x": TEN[[0, 1, 2, 3, 4, 9]]}, np.array([0, 1, 2, 3, 5, 5]))  # four are right
    attacked = gm.Data({"x": TEN[[0, 7, 2, 8, 5, 8]]}, clean.targets)  # two of them turn, one that was wrong is right
    assert defects.inheritance(classes(10), clean, attacked) == 0.5
    assert defects.inheritance(classes(10), clean, clean) == 0
    assert defects.inheritance(classes(10), clean[:4], gm.Data({"x": TEN[[9] * 4]}, clean.targets[:4])) == 1


def test_rows_that_are_no_pairs_are_refused() -> None:
    clean = gm.Data({"x": TEN[:4]}, np.arange(4))
    with pytest.raises(InvalidDataError, match="4 clean samples and 3 attacked"):
        defects.inheritance(classes(10), clean, clean[:3])
    with pytest.raises(InvalidDataError, match="2 attacked samples have another label"):
        defects.inheritance(classes(10), clean, gm.Data(clean.inputs, np.array([0, 2, 1, 3])))
    with pytest.raises(InvalidDataError, match="no targets"):
        defects.inheritance(classes(10), clean, gm.Data(clean.inputs))
    wrong = gm.Data(clean.inputs, np.arange(4) + 1)
    with pytest.raises(InvalidDataError, match="no clean sample right"):
        defects.inheritance(classes(10), wrong, wrong)


def test_success_counts_samples_of_other_classes_that_go_to_the_label() -> None:
    stamped = gm.Data({"x": TEN[[3, 3, 1, 2, 3]]}, np.array([3, 0, 1, 3, 4]))  # of three others two go to 3
    assert defects.success(classes(10), stamped, 3) == pytest.approx(2 / 3)
    assert defects.success(classes(10), stamped, 9) == 0
    for label in (10, -1, 0.5):
        with pytest.raises(RefusedError, match="classes are 0 to 9"):
            defects.success(classes(10), stamped, label)
    with pytest.raises(InvalidDataError, match="all samples have label 3"):
        defects.success(classes(10), stamped[:1], 3)
