"""Adapting to shifted samples: few weights, the clean accuracy kept, paired or not, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import graphmod as gm
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.methods.adapt import _contenders, _cross_entropies, _Judge, _mixed, _partners
from graphmod.methods.tuning import Candidate
from graphmod.model import edits_of

torch.set_num_threads(1)


def shifted(data: gm.Splits, seed: int = 0) -> gm.Splits:
    """Return images with less contrast, brighter, and with noise."""
    rng = np.random.default_rng(seed)

    def moved(part: gm.Data) -> gm.Data:
        x = 0.5 + 0.3 * part.inputs["image"] + rng.normal(0, 0.05, part.inputs["image"].shape)
        return gm.Data({"image": x.astype(np.float32)}, part.targets)

    return gm.Splits(moved(data.train), moved(data.calibration), moved(data.test))


@pytest.fixture(scope="module")
def case() -> tuple[gm.Model, gm.Splits, gm.Splits]:
    data = gm.demo.splits()
    return gm.load(gm.demo.model_path()), data, shifted(data)


@pytest.fixture(scope="module")
def tuned(case: tuple[gm.Model, gm.Splits, gm.Splits]) -> gm.methods.tuning.Tuned:
    return gm.adapt(*case, epochs=4)


def test_a_small_part_learns_the_shift_and_forgets_nothing(
    case: tuple[gm.Model, gm.Splits, gm.Splits], tuned: gm.methods.tuning.Tuned
) -> None:
    model, data, moved = case
    report = tuned.report
    assert report.before["shifted"] < 0.6
    assert report.after["shifted"] > report.before["shifted"] + 0.3
    assert report.after["shifted"] == gm.accuracy(tuned.model, moved.test)
    assert gm.accuracy(tuned.model, data.calibration[:400]) >= gm.accuracy(model, data.calibration[:400]) - 0.005 - 1e-9
    assert report.trained_share <= 0.2
    pairs = zip(model.proto().graph.initializer, tuned.model.proto().graph.initializer, strict=True)
    changed = sum(int(np.prod(old.dims)) for old, new in pairs if old.raw_data != new.raw_data)
    assert 0 < changed <= report.weights_trained
    assert report.history[-1].seconds <= sum(report.seconds.values()) + 1
    assert report.as_dict()["ranking"][0]["entry"] == report.entry


@pytest.mark.slow
def test_unpaired_samples_of_another_number_do_as_well(case: tuple[gm.Model, gm.Splits, gm.Splits]) -> None:
    model, data, moved = case
    rows = np.random.default_rng(1).permutation(len(moved.train))[:500]
    other = gm.Splits(moved.train[rows], moved.calibration[::-1][:150], moved.test[:200])
    report = gm.adapt(model, data, other, epochs=4).report
    assert report.after["shifted"] > report.before["shifted"] + 0.2


def test_training_stops_at_the_target_and_trains_what_is_named(
    case: tuple[gm.Model, gm.Splits, gm.Splits], tuned: gm.methods.tuning.Tuned
) -> None:
    report = gm.adapt(*case, blocks=["layer1.0", "layer1.1"], target=0.5, epochs=4).report
    assert report.history[-1].score >= 0.5 > report.history[-2].score
    assert not report.ranking
    assert report.trained_share < tuned.report.trained_share


def test_a_model_of_a_fixed_batch_is_measured_on_all_samples(case: tuple[gm.Model, gm.Splits, gm.Splits]) -> None:
    model, data, moved = case
    some, shifted_ = (gm.Splits(one.train[:60], one.calibration[:60], one.test[:60]) for one in (data, moved))
    tuned = gm.adapt(gm.rebatch(model, 7), some, shifted_, blocks=["layer1.1", "layer1.0"], epochs=1)
    assert tuned.model.inputs["image"].shape == (7, 1, 8, 8)
    assert tuned.report.before["shifted"] == gm.accuracy(model, shifted_.test)
    assert tuned.report.blocks == ("layer1.0", "layer1.1")
    assert tuned.report.exit == gm.blocks(model)["layer1.1"].exit


def test_nothing_is_told_to_be_trained_where_nothing_was_better(case: tuple[gm.Model, gm.Splits, gm.Splits]) -> None:
    model, data, _ = case
    with pytest.warns(UserWarning, match="as often as chance"):
        report = gm.adapt(model, _mislabelled(data), _mislabelled(data), epochs=0).report
    assert (report.blocks, report.entry, report.weights_trained) == ((), "", 0)


def _mislabelled(data: gm.Splits) -> gm.Splits:
    parts = (data.train, data.calibration, data.test)
    return gm.Splits(*(gm.Data(part.inputs, (part.targets + 1) % 10) for part in parts))


def test_regions_apart_are_tried_if_they_promise_almost_as_much_or_come_first() -> None:
    trunk = ["x", "a", "b", "c", "d"]

    def one(entry: str, exit_: str, gain: float) -> Candidate:
        return Candidate((), entry, exit_, 1, gain, {"gain": gain})

    best, beside, early, weak = one("c", "d", 1.0), one("b", "d", 0.9), one("x", "a", 0.1), one("a", "b", 0.6)
    assert _contenders([best, beside, weak, early], trunk) == [best, early]
    strong = one("a", "b", 0.8)
    assert _contenders([best, beside, strong, early], trunk) == [best, early, strong]
    assert _contenders([early, one("c", "d", 0.05)], trunk) == [early]


def test_partners_are_the_rows_themselves_or_of_the_class() -> None:
    clean = np.array([0, 1, 2, 0, 1, 2])
    moved = np.array([0, 1, 0, 0, 2, 2, 1])
    found = _partners(clean, moved, np.random.default_rng(0))
    assert np.array_equal(clean[found], moved)
    assert list(found[[0, 1, 3, 5]]) == [0, 1, 3, 5]


def test_cross_entropies_are_those_of_torch() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.normal(0, 30, (20, 5)).astype(np.float32), rng.integers(0, 5, 20)
    wanted = torch.nn.functional.cross_entropy(torch.from_numpy(z), torch.from_numpy(y), reduction="none")
    np.testing.assert_allclose(_cross_entropies(z, y), wanted, atol=1e-5)


def test_weights_that_lose_too_much_are_mixed_with_the_original(
    case: tuple[gm.Model, gm.Splits, gm.Splits], tuned: gm.methods.tuning.Tuned
) -> None:
    model, data, moved = case
    far = gm.retrain(model, moved, "layer1", epochs=2, learning_rate=1e-2)
    judge = _Judge.of(model, data.calibration, moved.calibration, 0.005, 0)
    assert not judge.allows(far)
    found = _mixed(model, far, judge)
    assert judge.allows(found)
    assert edits_of(found) == edits_of(model)
    assert _mixed(model, tuned.model, judge) is tuned.model


def test_bad_input_is_refused_in_a_sentence(case: tuple[gm.Model, gm.Splits, gm.Splits]) -> None:
    model, data, moved = case
    with pytest.raises(RefusedError, match="epochs and seed must be at least 0"):
        gm.adapt(model, None, None, epochs=-1)  # before it looks at data
    with pytest.raises(RefusedError, match=r"learning_rate=0.0 is out of range"):
        gm.adapt(model, None, None, learning_rate=0.0)
    ranges = {"share": (0, 1.2), "max_drop": (-0.1,), "target": (0, 1.5), "batch_size": (0,), "seed": (-1,)}
    for wrong in ({name: value} for name, values in ranges.items() for value in values):
        with pytest.raises(RefusedError, match="out of range"):
            gm.adapt(model, data, moved, **wrong)
    with pytest.raises(RefusedError, match="more than share"):
        gm.adapt(model, data, moved, blocks="layer3", share=0.1)
    small = gm.Data({"image": moved.train.inputs["image"][:, :, :4]}, moved.train.targets)
    with pytest.raises(InvalidDataError, match="image"):
        gm.adapt(model, data, gm.Splits(small, moved.calibration, moved.test))
    few = gm.Splits(data.train[data.train.targets < 9], data.calibration, data.test)
    with pytest.raises(InvalidDataError, match="label 9"):
        gm.adapt(model, few, moved)
