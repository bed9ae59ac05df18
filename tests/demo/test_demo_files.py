"""The shipped demo: its files, its splits, its accuracy, and the example that makes it."""

import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import graphmod.demo
from graphmod.model import load

ROOT = Path(__file__).parents[2]
SIZES = {"train": 899, "calibration": 400, "test": 498}
datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def model():
    return load(graphmod.demo.model_path())


@pytest.fixture(scope="module")
def data():
    with np.load(graphmod.demo.data_path()) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def example():
    path = ROOT / "examples/train_digits_resnet/train.py"
    spec = importlib.util.spec_from_file_location("train_digits_resnet", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def accuracy(model, data, split):
    logits = model.run({"image": data[f"x_{split}"]})["logits"]
    return (logits.argmax(1) == data[f"y_{split}"]).mean()


def test_files_are_small():
    assert graphmod.demo.model_path().stat().st_size < 2_000_000
    assert graphmod.demo.data_path().stat().st_size < 200_000


def test_arrays_have_the_promised_types(data):
    assert set(data) == {f"{axis}_{split}" for axis in "xy" for split in SIZES}
    for split, size in SIZES.items():
        x, y = data[f"x_{split}"], data[f"y_{split}"]
        assert (x.shape, x.dtype) == ((size, 1, 8, 8), np.float32)
        assert (y.shape, y.dtype) == ((size,), np.int64)
        assert x.min() == 0
        assert x.max() == 1


def test_splits_divide_the_digits_of_scikit_learn(data):
    def rows(x, y):
        return Counter(
            image.tobytes() + bytes([digit]) for image, digit in zip(x.astype(np.float32), y.tolist(), strict=True)
        )

    digits = datasets.load_digits()
    shipped = sum((rows(data[f"x_{split}"].reshape(-1, 64), data[f"y_{split}"]) for split in SIZES), Counter())
    assert shipped == rows(digits.data / 16, digits.target)


def test_splits_are_stratified(data):
    for split, size in SIZES.items():
        share = np.bincount(data[f"y_{split}"], minlength=10) / size
        assert share == pytest.approx(0.1, abs=0.01)


def test_signature(model):
    assert {name: str(kind) for name, kind in model.inputs.items()} == {"image": "float32[batch, 1, 8, 8]"}
    assert {name: str(kind) for name, kind in model.outputs.items()} == {"logits": "float32[batch, 10]"}


def test_network_finds_the_digits(model, data):
    assert accuracy(model, data, "test") >= 0.98


def test_notice_states_the_measured_accuracies(model, data):
    notice = graphmod.demo.model_path().with_name("NOTICE.md").read_text(encoding="utf-8")
    for split in SIZES:
        assert f"| {split} | {accuracy(model, data, split):.2%} |" in notice


def test_every_residual_block_is_named(model):
    metadata = " ".join(entry.value for operator in model.operators for entry in operator.metadata_props)
    for stage in (1, 2, 3):
        for block in range(7):
            assert f"'layer{stage}.{block}'" in metadata


def test_no_path_of_any_machine_is_in_the_files():
    for path in (graphmod.demo.model_path(), graphmod.demo.data_path()):
        content = path.read_bytes()
        assert not re.search(rb"site-packages|stack_trace|/(root|home|tmp|usr|opt|Users)/|\.py\b", content)
        assert str(ROOT).encode() not in content


def test_example_makes_the_shipped_splits(example, data):
    for name, split in example.splits().items():
        np.testing.assert_array_equal(split.x, data[f"x_{name}"])
        np.testing.assert_array_equal(split.y, data[f"y_{name}"])


def test_example_makes_the_shipped_graph(example, model):
    made = example.export(example.ResNet())
    assert [operator.op_type for operator in made.operators] == [operator.op_type for operator in model.operators]
    assert made.inputs == model.inputs
    assert made.outputs == model.outputs
    shipped = {name: tuple(tensor.dims) for name, tensor in model.initializers.items()}
    # the biases of an untrained network are zero, and the exporter leaves those out
    assert all(shipped[name] == tuple(tensor.dims) for name, tensor in made.initializers.items())


def test_training_repeats_itself_for_a_seed_and_leaves_the_random_state_alone(example):
    before = torch.get_rng_state()
    first, again, other = (example.train(seed, epochs=1).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv.weight"], other["conv.weight"])
    assert torch.equal(torch.get_rng_state(), before)


def test_example_writes_nothing_below_the_accuracy_needed(example, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--epochs", "1", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="below 98%"):
        example.main()
    assert not (tmp_path / "out").exists()
