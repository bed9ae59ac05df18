"""Hardening: what samples attacked on the original alone do to a network that has learnt such samples."""

from __future__ import annotations

import numpy as np
import pytest
from planted_answers import images, trained

import graphmod as gm
from graphmod.errors import RefusedError
from graphmod.methods import defects
from graphmod.methods.reuse.hardening import attacked_too

QUICK = {"weights": 0.5, "steps": 80, "shrink_every": 40, "epochs": 4, "batch_sizes": (1,)}
EPS = 1.0


def test_attacked_samples_stand_behind_their_own_clean_ones():
    parts = images()
    shown = attacked_too(trained(), parts, EPS, seed=3)
    assert shown.test is parts.test
    for clean, both in ((parts.train, shown.train), (parts.calibration, shown.calibration)):
        n = len(clean)
        np.testing.assert_array_equal(both.inputs["x"][:n], clean.inputs["x"])
        change = np.abs(both.inputs["x"][n:] - clean.inputs["x"])
        assert 0.9 * EPS < change.max() <= EPS + 1e-6
        np.testing.assert_array_equal(both.targets, np.tile(clean.targets, 2))


@pytest.mark.parametrize("classes", [[0, 1, 2], None])
def test_fewer_samples_are_turned_by_what_is_made_on_the_original(classes):
    parts = images()
    plain, hard = (gm.reengineer(trained(), parts, classes, harden=harden, **QUICK) for harden in (None, EPS))
    test = parts.test if classes is None else parts.test[np.flatnonzero(np.isin(parts.test.targets, classes))]
    attacked = defects.feature_attack(trained(), test, eps=EPS, seed=9)
    before, after = (defects.inheritance(one.model, test, attacked) for one in (plain, hard))
    assert after < before / 2
    assert hard.report.after.test > 0.9
    assert hard.report.before.test == plain.report.before.test
    assert hard.report.settings["harden"] == EPS


@pytest.mark.parametrize("harden", [0, -1.0, float("nan"), float("inf")])
def test_no_change_is_no_attack(harden):
    with pytest.raises(RefusedError, match="harden="):
        gm.reengineer(trained(), images(), [0, 1], harden=harden, **QUICK)
