"""Re-adaption as published: which blocks it chooses, that these alone change, and that it wants pairs."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.numpy_helper import to_array

import graphmod as gm
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.methods.deeparc import attack, readapt, residual_blocks
from graphmod.methods.deeparc.readapt import top_blocks, vulnerability


@pytest.fixture(scope="module")
def case() -> tuple[gm.Model, gm.Splits, gm.Splits]:
    model, data = gm.load(gm.demo.model_path()), gm.demo.splits()
    small = gm.Splits(data.train[:256], data.calibration[:100], data.test[:100])
    parts = (small.train, small.calibration, small.test)
    return model, small, gm.Splits(*(attack(model, part, "fgsm", eps=0.15) for part in parts))


def test_nothing_is_vulnerable_to_the_samples_themselves(case: tuple[gm.Model, gm.Splits, gm.Splits]) -> None:
    model, clean, _ = case
    assert np.abs(vulnerability(model, clean.train, {"none": clean.train})).max() < 1e-4


def test_scores_sum_over_attacks(case: tuple[gm.Model, gm.Splits, gm.Splits]) -> None:
    model, clean, moved = case
    once = vulnerability(model, clean.train, {"a": moved.train})
    twice = vulnerability(model, clean.train, {"a": moved.train, "b": moved.train})
    np.testing.assert_allclose(twice, 2 * once)
    assert once.sum() > 0.05


def test_the_best_blocks_within_the_share_are_chosen_in_order(case: tuple[gm.Model, gm.Splits, gm.Splits]) -> None:
    model = case[0]
    blocks = residual_blocks(model)
    scores = np.zeros(len(blocks))
    scores[[3, 1]] = 2, 1
    weights = [gm.graph.cost(model, blocks[place].operators).weights for place in (1, 3)]
    share = (sum(weights) + 1) / model.n_weights
    assert [block.path for block in top_blocks(model, scores, share)] == [blocks[1].path, blocks[3].path]
    with pytest.raises(RefusedError, match="larger share"):
        top_blocks(model, scores, 1e-6)


def test_only_the_chosen_blocks_change(case: tuple[gm.Model, gm.Splits, gm.Splits]) -> None:
    model, clean, moved = case
    run = readapt(model, clean, {"fgsm": moved}, epochs=2)
    assert gm.accuracy(run.model, moved.test) > gm.accuracy(model, moved.test)
    assert 0 < n_changed(model, run.model) <= 0.2 * model.n_weights


def n_changed(before: gm.Model, after: gm.Model) -> int:
    """Return how many scalars lie in initializers of which a value differs."""
    pairs = zip(before.proto().graph.initializer, after.proto().graph.initializer, strict=True)
    arrays = [(to_array(old), to_array(new)) for old, new in pairs]
    return sum(old.size for old, new in arrays if not np.array_equal(old, new))


def test_rows_that_are_no_pairs_are_refused(case: tuple[gm.Model, gm.Splits, gm.Splits]) -> None:
    model, clean, moved = case
    short = gm.Splits(moved.train[:200], moved.calibration, moved.test)
    with pytest.raises(InvalidDataError, match="train part of 'fgsm' does not belong to the clean one"):
        readapt(model, clean, {"fgsm": short}, epochs=1)
    with pytest.raises(RefusedError, match="no adversarial samples"):
        readapt(model, clean, {})
    with pytest.raises(RefusedError, match="share=2 is out of range"):
        readapt(model, clean, {"fgsm": moved}, share=2)
