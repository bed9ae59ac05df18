"""Attacks: within their bounds, on what the model gets right, and refused where they cannot be."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx import numpy_helper as values
from planted import net

import graphmod as gm
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.methods.deeparc import ATTACKS, attack


@pytest.fixture(scope="module")
def demo() -> tuple[gm.Model, gm.Data]:
    return gm.load(gm.demo.model_path()), gm.demo.splits().test[:48]


def linear(softmax: bool = False) -> gm.Model:
    """Return a classifier of two classes: the sign of x0 - x1."""
    weight = np.array([[1, -1], [-1, 1]], np.float32)
    operators = [helper.make_node("MatMul", ["x", "w"], ["z"], name="matmul")]
    output = "z"
    if softmax:
        operators.append(helper.make_node("Softmax", ["z"], ["p"], name="softmax"))
        output = "p"
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", output)]
    graph = helper.make_graph(operators, "linear", info[:1], info[1:], [values.from_array(weight, "w")])
    return gm.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


@pytest.mark.parametrize("method", sorted(set(ATTACKS) - {"cw"}))
def test_samples_change_by_no_more_than_eps_and_stay_in_range(demo: tuple[gm.Model, gm.Data], method: str) -> None:
    model, data = demo
    found = attack(model, data, method, eps=0.2, steps=4)
    x, moved = data.inputs["image"], found.inputs["image"]
    assert np.abs(moved - x).max() <= 0.2 + 1e-6
    assert moved.min() >= x.min()
    assert moved.max() <= x.max()
    assert moved.dtype == x.dtype
    assert np.array_equal(found.targets, data.targets)
    assert gm.accuracy(model, found) < gm.accuracy(model, data) - 0.2


@pytest.mark.parametrize("softmax", [False, True])
def test_fgsm_of_a_linear_classifier_moves_every_value_by_eps_towards_the_other_class(softmax: bool) -> None:
    x = np.array([[0.5, 0.2], [0.1, 0.9]], np.float32)
    found = attack(linear(softmax), (x, np.array([0, 1])), "fgsm", eps=0.1, bounds=(-5, 5))
    np.testing.assert_allclose(found.inputs["x"], x + 0.1 * np.array([[-1, 1], [1, -1]]), atol=1e-6)


def test_carlini_and_wagner_changes_a_linear_classifier_by_little_more_than_it_must() -> None:
    x = np.array([[0.5, 0.2], [0.1, 0.9]], np.float32)
    found = attack(linear(), (x, np.array([0, 1])), "cw", eps=5, bounds=(-5, 5), steps=50)
    assert gm.accuracy(linear(), found) == 0
    least = np.abs(x[:, 0] - x[:, 1]) / np.sqrt(2)
    assert (np.linalg.norm(found.inputs["x"] - x, axis=1) <= 1.5 * least + 0.1).all()


def test_a_least_change_beyond_eps_is_cut_off_and_counted() -> None:
    x = np.array([[0.5, 0.4], [0.1, 0.9]], np.float32)  # the least changes are 0.05 and 0.4
    found = attack(linear(), (x, np.array([0, 1])), "deepfool", eps=0.2, bounds=(0, 1), steps=20)
    assert found.n_cut == 1
    assert list(np.abs(found.inputs["x"] - x).max(1) >= 0.2 - 1e-6) == [False, True]
    assert attack(linear(), (x, np.array([0, 1])), "pgd", eps=0.2, bounds=(0, 1)).n_cut == 0


def test_batches_and_a_progress_bar_change_nothing(
    demo: tuple[gm.Model, gm.Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, str, bool]] = []

    def track(batches: Sequence[int], text: str, **options: bool) -> Sequence[int]:
        shown.append((len(batches), text, not options["disable"]))
        return batches

    monkeypatch.setattr(import_module("graphmod.methods.deeparc.attacks"), "track", track)
    whole = attack(*demo, "fgsm").inputs["image"]
    parts = attack(*demo, "fgsm", batch_size=20, progress=True).inputs["image"]
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert shown == [(1, "fgsm", False), (3, "fgsm", True)]


def test_the_same_seed_gives_the_same_samples(demo: tuple[gm.Model, gm.Data]) -> None:
    first, second = (attack(*demo, "pgd", steps=2, seed=3).inputs["image"] for _ in range(2))
    assert np.array_equal(first, second)


def test_bad_arguments_are_refused_in_a_sentence(demo: tuple[gm.Model, gm.Data]) -> None:
    with pytest.raises(RefusedError, match=r"no attack 'magic'; there are cw, deepfool, fgsm, pgd"):
        attack(*demo, "magic")
    for eps in (0, -1, float("nan")):
        with pytest.raises(RefusedError, match="out of range"):
            attack(*demo, eps=eps)
    with pytest.raises(RefusedError, match="at least 1"):
        attack(*demo, steps=0)
    with pytest.raises(InvalidDataError, match="bounds="):
        attack(linear(), (np.ones((2, 2), np.float32), np.array([0, 1])))


@pytest.mark.parametrize("name", ["art", "art.attacks.evasion"])  # there is another package of that name
def test_a_missing_package_is_named_with_what_installs_it(
    demo: tuple[gm.Model, gm.Data], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for loaded in [one for one in sys.modules if one.startswith(name)]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RefusedError, match=r'pip install "graphmod\[attacks\]"'):
        attack(*demo)


POOLED = "(float[n,3,4,4] x) => (float[n,2,1,1] y) { c = Conv(x, w)  y = GlobalAveragePool(c) }"
DOUBLE = "(double[n,3] x) => (double[n,2] y) { y = MatMul(x, w) }"
SYMBOLIC = "(float[n,3] x) => (float[n,classes] y) { y = MatMul(x, w) }"


@pytest.mark.parametrize("method", ["fgsm", "pgd", "deepfool"])
@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [(POOLED, (2, 3, 1, 1), np.float32), (DOUBLE, (3, 2), np.float64), (SYMBOLIC, (3, 2), np.float32)],
    ids=["pooled", "double", "symbolic"],
)
def test_whatever_the_logits_shape_and_the_type(
    method: str, text: str, shape: tuple[int, ...], dtype: type[np.floating]
) -> None:
    rng = np.random.default_rng(0)
    model = net(text, {"w": rng.normal(size=shape).astype(dtype)})
    x = rng.normal(size=(20, 3, 4, 4) if text is POOLED else (20, 3)).astype(dtype)
    y = model.run({"x": x})["y"].reshape(20, 2).argmax(1)
    found = attack(model, (x, y), method, eps=0.5)
    assert found.inputs["x"].dtype == dtype
    assert gm.accuracy(model, found) < 0.9


def test_labels_beyond_the_classes_are_refused_whatever_the_output_is_declared_as() -> None:
    model = net(SYMBOLIC, {"w": np.eye(3, 2, dtype=np.float32)})
    with pytest.raises(InvalidDataError, match="label 2 is out of range"):
        attack(model, (np.eye(3, dtype=np.float32), np.arange(3)))


def test_what_has_no_gradient_is_refused() -> None:
    text = "(float[n,3] x) => (float[n,3] y) { h = Round(x)  i = Cast<to=7>(h)  f = Cast<to=1>(i)  y = MatMul(f, w) }"
    model = net(text, {"w": np.eye(3, dtype=np.float32)})
    x = np.eye(3, dtype=np.float32)
    with pytest.raises(RefusedError, match="no gradient reaches input 'x'"):
        attack(model, (x, np.arange(3)))


def test_samples_outside_of_the_bounds_are_refused() -> None:
    x = np.array([[0.5, 0.2], [0.1, 0.9]], np.float32)
    with pytest.raises(InvalidDataError, match=r"from 0.1 to 0.9, outside of bounds=\(0.1, 0.8\)"):
        attack(linear(), (x, np.array([0, 1])), bounds=(0.1, 0.8))
