"""What takes a model says so where it is given something else, such as the path of one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import graphmod as gm
from graphmod.methods import deeparc

PATH, SPLITS = "cnn.onnx", gm.demo.splits()
TAKERS: dict[str, Callable[[], object]] = {
    "adapt": lambda: gm.adapt(PATH, SPLITS, SPLITS),
    "repair": lambda: gm.repair(PATH, SPLITS),
    "compress": lambda: gm.compress(PATH, SPLITS),
    "retrain": lambda: gm.retrain(PATH, SPLITS),
    "teacher": lambda: gm.retrain(gm.load(gm.demo.model_path()), SPLITS, teacher=PATH),
    "Imitation": lambda: gm.Imitation("a", PATH),
    "prune": lambda: gm.prune(PATH),
    "groups": lambda: gm.groups(PATH),
    "rank_blocks": lambda: gm.rank_blocks(PATH, SPLITS),
    "accuracy": lambda: gm.accuracy(PATH, SPLITS.test),
    "similarity": lambda: gm.similarity(PATH, SPLITS.test),
    "as_data": lambda: gm.data.as_data("digits.npz", PATH),
    "as_splits": lambda: gm.data.as_splits("digits.npz", PATH),
    "noise": lambda: gm.data.noise(PATH),
    "blocks": lambda: gm.blocks(PATH),
    "boundaries": lambda: gm.boundaries(PATH),
    "find": lambda: gm.find(PATH, "Conv"),
    "explain": lambda: gm.explain(PATH, "Conv"),
    "cost": lambda: gm.graph.cost(PATH),
    "diff": lambda: gm.diff(gm.load(gm.demo.model_path()), PATH),
    "lint": lambda: gm.lint(PATH),
    "attack": lambda: deeparc.attack(PATH, SPLITS.test),
    "residual_sums": lambda: deeparc.residual_sums(PATH),
    "readapt": lambda: deeparc.readapt(PATH, SPLITS, {"fgsm": SPLITS}),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_a_path_in_a_models_place_is_one_clear_error(taker: str) -> None:
    with pytest.raises(gm.InvalidModelError, match=r"takes a graphmod\.Model, not a str; graphmod\.load makes one"):
        TAKERS[taker]()
