"""The commands ``attack`` and ``adapt``, one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from command_line import graphmod

import graphmod as gm


def test_a_model_is_attacked_and_adapted(tmp_path: Path) -> None:
    model, data = tmp_path / "external.onnx", gm.demo.data_path()
    external = {"save_as_external_data": True, "location": "external.data", "size_threshold": 1024}
    onnx.save_model(onnx.load(gm.demo.model_path()), model, **external)
    moved, adapted = tmp_path / "moved.npz", tmp_path / "adapted.onnx"
    ran = graphmod("attack", model, data, "--by", "fgsm", "--eps", 0.15, "--out", moved, "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)["accuracy"]["test"]
    assert told["attacked"] < told["clean"] - 0.3
    with np.load(moved) as content:
        assert set(content.files) == {f"{kind}_{part}" for kind in "xy" for part in ("train", "calibration", "test")}
    ran = graphmod("adapt", model, data, moved, "--epochs", 2, "--out", adapted, "--json")
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    written = [path for path in tmp_path.iterdir() if path.name.startswith("adapted")]
    assert sorted(report["files"]) == sorted(map(str, written))
    assert len(written) == 2
    assert report["after"]["shifted"] > report["before"]["shifted"]
    assert gm.accuracy(gm.load(adapted), gm.demo.splits().test) == report["after"]["clean"]


def test_some_parts_are_attacked_and_what_is_cut_off_is_counted(tmp_path: Path) -> None:
    model, splits, out = gm.demo.model_path(), gm.demo.splits(), tmp_path / "moved.npz"
    some = {"train": splits.train[:20], "calibration": splits.calibration[:20], "test": splits.test[:20]}
    arrays = {f"x_{name}": part.inputs["image"] for name, part in some.items()}
    np.savez(tmp_path / "few.npz", **arrays, **{f"y_{name}": part.targets for name, part in some.items()})
    command = ["attack", model, tmp_path / "few.npz", "--by", "deepfool", "--out", out, "--eps", 0.05, "--part", "test"]
    ran = graphmod(*command)
    assert ran.returncode == 0, ran.stderr
    with np.load(out) as content:
        assert set(content.files) == {"x_test", "y_test"}
        at_eps = np.isclose(np.abs(content["x_test"] - arrays["x_test"]).max((1, 2, 3)), 0.05, rtol=1e-4).sum()
    assert 10 < at_eps <= 20
    assert f"; {at_eps} of 20 samples cut off at eps" in ran.stdout
    assert "no part 'tset'; choose of train, calibration, test" in graphmod(*command, "--part", "tset").stderr


def mislabelled(folder: Path) -> Path:
    """Write some of the digits with labels of other classes."""
    some = gm.demo.splits().train[:150]
    np.savez(folder / "wrong.npz", x=some.inputs["image"], y=(np.asarray(some.targets) + 1) % 10)
    return folder / "wrong.npz"


def test_nothing_is_written_where_no_change_is_better(tmp_path: Path) -> None:
    wrong, out = mislabelled(tmp_path), tmp_path / "adapted.onnx"
    ran = graphmod("adapt", gm.demo.model_path(), wrong, wrong, "--epochs", 0, "--out", out)
    assert ran.returncode == 1, ran.stderr
    assert "no change was better than the model as it is (0.00% on clean test data, 0.00% on shifted" in ran.stdout
    assert "right on 0.0% of the clean test data, about as often as chance among 10 classes" in ran.stderr
    ran = graphmod("adapt", gm.demo.model_path(), wrong, wrong, "--epochs", 0, "--out", out, "--json")
    assert (ran.returncode, json.loads(ran.stdout)["files"]) == (1, [])
    assert not out.exists()


def test_bad_input_is_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    out = tmp_path / "moved.npz"
    for wrong, told in ((["--by", "magic"], "no attack 'magic'"), (["--eps", "-1"], "eps=-1.0 is out of range")):
        ran = graphmod("attack", gm.demo.model_path(), gm.demo.data_path(), "--out", out, *wrong)
        assert ran.returncode == 2
        assert told in ran.stderr
        assert not out.exists()
    ran = graphmod("attack", gm.demo.model_path(), gm.demo.data_path(), "--out", tmp_path / "moved.txt")
    assert "must end in .npz" in ran.stderr
