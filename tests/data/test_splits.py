"""Splits: three parts that share no sample, the same ones for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

import graphmod as gm
from graphmod.data import as_splits

PARTS = ("train", "calibration", "test")
MODEL = zoo.network("branching", "torchscript").model


def samples(n, first=0):
    """Samples of which each one tells its number."""
    return np.broadcast_to(np.arange(first, first + n, dtype=np.float32)[:, None, None, None], (n, 3, 16, 16)).copy()


def numbers(data):
    return data.inputs["input"][:, 0, 0, 0].astype(int).tolist()


@settings(max_examples=30, deadline=None)
@given(labels=st.lists(st.integers(0, 3), min_size=10, max_size=80), seed=st.integers(0, 5))
def test_parts_are_disjoint_whole_stratified_and_repeatable(labels, seed):
    targets = np.array(labels)
    splits = as_splits(MODEL, (samples(len(targets)), targets), seed)
    found = [numbers(getattr(splits, name)) for name in PARTS]
    assert sorted(i for part in found for i in part) == list(range(len(targets)))
    assert [len(part) for part in found[1:]] == [round(0.2 * len(targets))] * 2
    for name, part in zip(PARTS, found, strict=True):
        np.testing.assert_array_equal(getattr(splits, name).targets, targets[part])
        for label in np.unique(targets):
            expected = (targets == label).mean() * len(part)
            assert abs((targets[part] == label).sum() - expected) <= 2.5
    again = as_splits(MODEL, (samples(len(targets)), targets), seed)
    assert [numbers(getattr(again, name)) for name in PARTS] == found


def test_balanced_labels_are_split_exactly():
    targets = np.arange(100) % 10
    splits = as_splits(MODEL, (samples(100), targets))
    for name, each in zip(PARTS, (6, 2, 2), strict=True):
        assert np.bincount(getattr(splits, name).targets).tolist() == [each] * 10


def test_another_seed_gives_another_split():
    data = samples(50), np.arange(50) % 5
    assert numbers(as_splits(MODEL, data, 0).test) != numbers(as_splits(MODEL, data, 1).test)


def given_parts():
    return {name: (samples(10, 10 * i), np.arange(10)) for i, name in enumerate(PARTS)}


@pytest.mark.parametrize("form", ["parts", "archive", "mapping", "splits", "validation", "named"])
def test_parts_by_name_stay_as_they_are(tmp_path, form):
    parts = given_parts()
    flat = {f"{key}_{name}": array for name, pair in parts.items() for key, array in zip("xy", pair, strict=True)}
    np.savez(tmp_path / "parts.npz", **flat)
    forms = {
        "parts": parts,
        "archive": tmp_path / "parts.npz",
        "mapping": flat,
        "splits": gm.Splits(**{name: gm.Data({"input": x}, y) for name, (x, y) in parts.items()}),
        "validation": {"train": parts["train"], "validation": parts["calibration"], "test": parts["test"]},
        "named": {
            key.replace("x_", "input_").replace("calibration", "val"): array for key, array in flat.items()
        },
    }  # fmt: skip
    splits = as_splits(MODEL, forms[form])
    for i, name in enumerate(PARTS):
        assert numbers(getattr(splits, name)) == list(range(10 * i, 10 * i + 10))
        assert getattr(splits, name).targets.tolist() == list(range(10))


def test_calibration_data_is_split_off_a_keras_archive(tmp_path):
    path = tmp_path / "digits.npz"
    np.savez(path, x_train=samples(40), y_train=np.arange(40) % 4, x_test=samples(8, 100), y_test=np.arange(8))
    splits = as_splits(MODEL, str(path))
    assert numbers(splits.test) == list(range(100, 108))
    assert len(splits.calibration) == 8
    assert sorted(numbers(splits.train) + numbers(splits.calibration)) == list(range(40))
    assert np.bincount(splits.calibration.targets).tolist() == [2] * 4


def test_test_data_alone_is_refused():
    with pytest.raises(gm.InvalidDataError, match=r"test.*no training part"):
        as_splits(MODEL, {"test": given_parts()["test"]})


def test_a_part_that_does_not_fit_is_refused():
    parts = given_parts()
    parts["test"] = (samples(10)[:, :1], np.arange(10))
    with pytest.raises(gm.InvalidDataError, match=r"\[10, 1, 16, 16\]"):
        as_splits(MODEL, parts)


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_samples_to_split(n):
    with pytest.raises(gm.InvalidDataError, match="too few"):
        as_splits(MODEL, (samples(n), np.zeros(n, int)))


def test_data_without_targets_is_refused():
    with pytest.raises(gm.InvalidDataError, match="no targets"):
        as_splits(MODEL, samples(20))


def test_errors_name_the_part():
    x, y = samples(8), np.zeros(8, np.int64)
    whole = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
    for changes, told in (
        ({"x_test": x[:, :2]}, r"\[8, 2, 16, 16\]"),
        ({"y_test": y[:5]}, "differ in their number"),
        ({"y_test": y - 1}, "label -1"),
    ):
        with pytest.raises(gm.InvalidDataError, match=f"the test part: .*{told}"):
            as_splits(MODEL, whole | changes, labels=True)


def test_arrays_of_no_part_are_told():
    x, y = samples(8), np.zeros(8, np.int64)
    with pytest.warns(UserWarning, match="'y_tets' belongs to no part of the data and is not used"):
        as_splits(MODEL, {"x_train": x, "y_train": y, "y_tets": y})
