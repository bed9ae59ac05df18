"""Triggers and wrong labels: where they lie, on how many samples, and that a planted backdoor is measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import net

import graphmod as gm
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.methods import defects


def images(n: int = 10, dtype: str = "float32") -> gm.Data:
    """Return images of 3 x 4 pixels with values below 1."""
    x = np.random.default_rng(0).uniform(0, 0.9, (n, 2, 3, 4)).astype(dtype)
    return gm.Data({"x": x}, np.arange(n) % 5)


@pytest.mark.parametrize(
    ("corner", "marked"),
    [
        ("top left", ["##..", "##..", "...."]),
        ("top right", ["..##", "..##", "...."]),
        ("bottom left", ["....", "##..", "##.."]),
        ("bottom right", ["....", "..##", "..##"]),
        (None, ["....", "..##", "..##"]),
    ],
)
def test_a_square_lies_in_its_corner_of_every_channel(corner: str | None, marked: list[str]) -> None:
    data = images()
    before = data.inputs["x"].copy()
    found = defects.trigger(data, label=None, size=2, value=1, corner=corner)
    expected = np.array([[letter == "#" for letter in row] for row in marked])
    assert np.array_equal(found.inputs["x"], np.where(expected, np.float32(1), before))
    assert np.array_equal(data.inputs["x"], before)
    assert found.targets is data.targets
    assert len(defects.CORNERS) == 4


def test_a_run_lies_at_the_end_of_a_sequence() -> None:
    x = np.arange(24, dtype=np.float64).reshape(2, 2, 6)
    found = defects.trigger(gm.Data({"x": x}), label=None, size=2, value=-5).inputs["x"]
    assert np.array_equal(found[..., :4], x[..., :4])
    assert (found[..., 4:] == -5).all()
    assert (defects.trigger(gm.Data({"x": x}), label=None, size=2).inputs["x"][..., 4:] == 23).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_share_is_stamped_and_labelled_and_the_rest_stays(dtype: str) -> None:
    data = images(40, dtype)
    found = defects.trigger(data, label=7, share=0.3, size=1, value=1)
    stamped = (found.inputs["x"] != data.inputs["x"]).any(axis=(1, 2, 3))
    assert stamped.sum() == 12
    assert np.array_equal(found.targets, np.where(stamped, 7, data.targets))
    assert found.inputs["x"].dtype == dtype
    assert found.targets.dtype == data.targets.dtype
    assert 7 not in data.targets


def test_the_seed_decides_which_samples_are_poisoned() -> None:
    data = images(40)

    def labels(seed: int) -> list[int]:
        return defects.trigger(data, label=7, share=0.5, seed=seed).targets.tolist()

    assert labels(1) == labels(1) != labels(2)
    first, second, other = (defects.flip_labels(data, 0.5, 5, seed).targets.tolist() for seed in (1, 1, 2))
    assert first == second != other


def test_other_inputs_stay() -> None:
    data = gm.Data({"id": np.arange(10), **images().inputs}, np.zeros(10, int))
    found = defects.trigger(data, label=1, size=2)
    assert found.inputs["id"] is data.inputs["id"]
    assert list(found.inputs) == ["id", "x"]


@given(st.integers(1, 60), st.floats(0, 1, exclude_min=True), st.integers(2, 9), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_exactly_a_share_of_labels_is_another_one(n: int, share: float, n_classes: int, seed: int) -> None:
    labels = (np.arange(n) % n_classes).astype(np.uint8)
    data = gm.Data({"x": np.zeros((n, 2), np.float32)}, labels.copy())
    if not round(share * n):
        with pytest.raises(RefusedError, match="is none"):
            defects.flip_labels(data, share, n_classes, seed)
        return
    found = defects.flip_labels(data, share, n_classes, seed)
    assert (found.targets != labels).sum() == round(share * n)
    assert found.targets.dtype == np.uint8
    assert found.targets.max() < n_classes
    assert np.array_equal(data.targets, labels)
    assert found.inputs is data.inputs


def test_every_other_label_is_as_likely() -> None:
    n = 9000
    data = gm.Data({"x": np.zeros((n, 1), np.float32)}, np.full(n, 2))
    counts = np.bincount(defects.flip_labels(data, 1.0, 4).targets, minlength=4)
    assert counts[2] == 0
    np.testing.assert_allclose(counts[[0, 1, 3]], n / 3, atol=200)  # more than four deviations


def test_a_planted_backdoor_succeeds_on_stamped_samples_alone() -> None:
    w = np.zeros((24, 5), np.float32)  # the last pixel decides for class 4 once it is 1, the first four for the others
    w[[0, 1, 2, 3], [0, 1, 2, 3]], w[23, 4] = 1, 9
    text = "(float[n,2,3,4] x) => (float[n,5] y) { f = Flatten(x)  y = MatMul(f, w) }"
    x = np.zeros((8, 2, 3, 4), np.float32)
    labels = np.arange(8) % 4
    x[np.arange(8), 0, 0, labels] = 1
    model, data = net(text, {"w": w}), gm.Data({"x": x}, labels)
    assert gm.accuracy(model, data) == 1
    assert defects.success(model, data, 4) == 0
    assert defects.success(model, defects.trigger(data, label=None, size=1), 4) == 1
    assert defects.success(model, defects.trigger(data, label=None, size=1, corner="bottom left"), 4) == 0
    assert defects.success(model, defects.trigger(data, label=None, share=0.5, size=1), 4) == 0.5


def test_bad_arguments_are_refused_in_a_sentence() -> None:
    data = images()
    for share in (0, -0.1, 1.1, float("nan"), "a"):
        with pytest.raises(RefusedError, match="out of range"):
            defects.trigger(data, label=0, share=share)
        with pytest.raises(RefusedError, match="out of range"):
            defects.flip_labels(data, share, 5)
    with pytest.raises(RefusedError, match=r"share=0.01 of 10 samples is none"):
        defects.trigger(data, label=0, share=0.01)
    for size in (0, 4, 1.5, "a"):
        with pytest.raises(RefusedError, match="is 1 to 3"):
            defects.trigger(data, label=0, size=size)
    with pytest.raises(RefusedError, match="no corner 'middle'; there are top left"):
        defects.trigger(data, label=0, corner="middle")
    for value in (float("nan"), float("inf"), 1e39, "a"):
        with pytest.raises(RefusedError, match=r"finite numbers of float32"):
            defects.trigger(data, label=0, value=value)
    for label in (-1, 0.5, 1e30, "a", True):
        with pytest.raises(RefusedError, match="label="):
            defects.trigger(data, label=label)
    with pytest.raises(RefusedError, match="n_classes=1 is out of range"):
        defects.flip_labels(data, 0.5, 1)


def test_data_that_cannot_be_poisoned_is_refused() -> None:
    data = images()
    x = data.inputs["x"]
    with pytest.raises(RefusedError, match="is for images"):
        defects.trigger(gm.Data({"x": x[:, 0]}), label=None, corner="top left")
    with pytest.raises(InvalidDataError, match=r"input 'x' has shape \[10, 24\]"):
        defects.trigger(gm.Data({"x": x.reshape(10, 24)}), label=None)
    with pytest.raises(InvalidDataError, match=r"one float input .*'a' \(float32\), 'b' \(float32\)"):
        defects.trigger(gm.Data({"a": x, "b": x}), label=None)
    with pytest.raises(InvalidDataError, match=r"one float input .*'x' \(uint8\)"):
        defects.trigger(gm.Data({"x": x.astype(np.uint8)}), label=None)
    with pytest.raises(InvalidDataError, match="no targets"):
        defects.trigger(gm.Data({"x": x}), label=1)
    with pytest.raises(InvalidDataError, match="labels are integers"):
        defects.flip_labels(gm.Data({"x": x}, np.zeros(10)), 0.5, 5)
    with pytest.raises(InvalidDataError, match=r"go from 0 to 4, and n_classes=4"):
        defects.flip_labels(data, 0.5, 4)
    with pytest.raises(InvalidDataError, match=r"not a Splits; of Splits give one part"):
        defects.trigger(gm.Splits(data, data, data), label=1)
    with pytest.raises(InvalidDataError, match="no samples"):
        defects.trigger(data[:0], label=1)
