"""Target problems: labels by hand, the literature's baseline by hand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from planted import net

import graphmod as gm
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.methods.reuse import Task
from graphmod.methods.reuse.task import n_classes


def five() -> gm.Model:
    """Return a classifier whose logits are its five inputs."""
    return net("(float[n,5] x) => (float[n,5] y) { y = MatMul(x, w) }", {"w": np.eye(5, dtype=np.float32)})


def part(labels: list[int], says: list[int] | None = None) -> gm.Data:
    """Return samples with labels, and what the classifier says of them."""
    return gm.Data({"x": np.eye(5, dtype=np.float32)[labels if says is None else says]}, np.array(labels))


def same(labels: list[int]) -> gm.Splits:
    return gm.Splits(part(labels), part(labels), part(labels))


@pytest.mark.parametrize(
    ("classes", "groups", "columns"),
    [
        ([3, 1], ((3,), (1,)), [3, 1]),
        ([[0, 2], 4], ((0, 2), (4,)), [[0, 2], 4]),
        ([2], ((0, 1, 3, 4), (2,)), [[0, 1, 3, 4], 2]),
        ([[4, 0]], ((1, 2, 3), (4, 0)), [[1, 2, 3], [4, 0]]),
        ([[0, 1, 2, 3]], ((4,), (0, 1, 2, 3)), [4, [0, 1, 2, 3]]),
        (range(2), ((0,), (1,)), [0, 1]),
        (np.array([1, 4]), ((1,), (4,)), [1, 4]),
        (([1], (4,)), ((1,), (4,)), [1, 4]),
    ],
)
def test_labels_are_classes_lists_of_them_or_one_against_the_rest(classes, groups, columns):
    task = Task.of(five(), classes)
    assert (task.members, task.columns, len(task)) == (groups, columns, len(groups))
    assert task.is_plain == all(isinstance(one, int) for one in columns)
    assert all(type(one) is int for group in task.members for one in group)


@pytest.mark.parametrize(
    ("classes", "rows", "labels"),
    [
        ([3, 1], [1, 3, 5], [1, 0, 1]),
        ([[0, 2], 4], [0, 2, 4], [0, 0, 1]),
        ([2], [0, 1, 2, 3, 4, 5], [0, 0, 1, 0, 0, 0]),
    ],
)
def test_samples_are_relabelled_in_their_order(classes, rows, labels):
    whole = part([0, 1, 2, 3, 4, 1])
    found = Task.of(five(), classes).data(gm.Splits(whole, whole, whole))
    for one in (found.train, found.calibration, found.test):
        assert np.asarray(one.targets).tolist() == labels
        assert np.array_equal(one.inputs["x"], whole.inputs["x"][rows])


def test_the_baseline_counts_what_is_taken_for_another_class_as_wrong():
    labels, says = [1, 1, 3, 3, 3, 0], [1, 2, 3, 1, 3, 0]
    model = five()
    pair = Task.of(model, [3, 1])
    found = pair._part("test", part(labels, says))
    assert pair.accuracy_among_all(model, found) == pytest.approx(3 / 5)  # 1, 3 and 3 of five
    merged = Task.of(model, [[1, 2], 3])
    assert merged.accuracy_among_all(model, merged._part("test", part(labels, says))) == pytest.approx(4 / 5)
    alone = Task.of(model, [3])
    assert alone.accuracy_among_all(model, alone._part("test", part(labels, says))) == pytest.approx(5 / 6)


def test_the_baseline_is_of_logits_where_a_softmax_saturates():
    model = net(
        "(float[n,5] x) => (float[n,5] y) { z = MatMul(x, w)  y = Softmax(z) }",
        {"w": 1000 * np.eye(5, dtype=np.float32)},
    )
    task = Task.of(model, [1, 2])
    samples = gm.Data({"x": np.array([[0, 1, 2, 0, 0], [0, 2, 1, 0, 0]], np.float32)}, np.array([1, 0]))
    assert task.accuracy_among_all(model, samples) == 1.0


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        ([1, 5], "no class 5; its 5 classes are 0 to 4"),
        ([1, -1], "no class -1"),
        ([1, 2, 1], "class 1 is named twice"),
        ([[1, 2], 2], "class 2 is named twice"),
        ([], "classes is empty"),
        ([1, []], "a group of them is"),
        ([[0, 1, 2, 3, 4]], "all 5 classes would be one label"),
        (3, "classes=3 is no list of classes, such as"),
        ("35", "classes='35' is no list of classes"),
        ([1, "2"], "is no list of classes"),
        ([1.0, 2.0], "is no list of classes"),
        ([True, 2], "is no list of classes"),
        (None, "classes=None is no list"),
    ],
)
def test_what_is_no_target_problem_is_refused(classes, told):
    with pytest.raises(RefusedError, match=told.replace("[", r"\[")):
        Task.of(five(), classes)


def test_what_is_no_classifier_is_refused():
    model = net("(float[n,3,4,4] x) => (float[n,2,4,4] y) { y = Conv(x, w) }", {"w": (2, 3, 1, 1)})
    with pytest.raises(RefusedError, match="not the logits of a classifier"):
        n_classes(model)
    with pytest.raises(RefusedError, match="not the logits of a classifier"):
        Task.of(model, [0, 1])


@pytest.mark.parametrize(
    ("classes", "labels", "told"),
    [
        ([1, 2], [1, 1, 3], r"train data has no samples of classes \[2\]"),
        ([2], [2, 2], r"train data has no samples of classes \[0, 1, 3, 4\].*also of the rest where one class"),
        ([1, 2], [0, 3], "train data has no samples"),
    ],
)
def test_a_label_without_samples_is_refused(classes, labels, told):
    with pytest.raises(InvalidDataError, match=told):
        Task.of(five(), classes).data(same(labels))


def test_a_part_without_samples_of_the_problem_is_refused():
    both = part([1, 2])
    with pytest.raises(InvalidDataError, match=r"calibration data .* classes \[2\]"):
        Task.of(five(), [1, 2]).data(gm.Splits(both, part([1]), both))
    with pytest.raises(InvalidDataError, match=r"test data .* classes \[1\]"):
        Task.of(five(), [1, 2]).data(gm.Splits(both, both, part([0, 3])))


def test_one_column_is_no_classifier():
    with pytest.raises(RefusedError, match="'y' has one column, which is no classifier's"):
        Task.of(net("(float[n,3] x) => (float[n,1] y) { y = MatMul(x, w) }", {"w": (3, 1)}), [0])
