"""Losses against numpy."""

import numpy as np
import pytest
import torch

from graphmod.train.losses import corrected, cross_entropy, distillation


def log_softmax(values):
    values = values - values.max(axis=1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.5])
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1, 1)])
def test_distillation(temperature, shape):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, *shape)) * 3
    p, q = (log_softmax(v.reshape(5, -1) / temperature) for v in (teacher, student))
    expected = temperature**2 * np.mean((np.exp(p) * (p - q)).sum(axis=1))
    found = distillation(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert float(found) == pytest.approx(expected)
    assert float(distillation(torch.from_numpy(teacher), torch.from_numpy(teacher), temperature)) == pytest.approx(0)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.int16, np.uint8])
def test_cross_entropy_takes_labels_of_any_integer_type(dtype):
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(6, 3, 1, 1)), rng.integers(0, 3, 6).astype(dtype)
    expected = -log_softmax(logits.reshape(6, 3))[np.arange(6), labels].mean()
    assert float(cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels))) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(40, 5), (40, 5, 1, 1)])
def test_corrected_predictions_lead_to_the_label(shape):
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=shape), rng.integers(0, 5, 40)
    logits[0] = 0.0  # all alike: nothing to set right
    found = corrected(torch.from_numpy(logits), torch.from_numpy(labels)).numpy()
    assert found.shape == shape
    for before, after, label in zip(logits.reshape(40, 5), found.reshape(40, 5), labels, strict=True):
        expected = before.tolist()
        best = expected.index(max(expected))
        expected[label], expected[best] = expected[best], expected[label]
        assert after.tolist() == expected
        assert after[label] == after.max()
