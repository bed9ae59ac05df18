"""Whatever a user holds becomes the same samples and targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

import graphmod as gm
from graphmod.data import as_data

RNG = np.random.default_rng(0)
SAMPLES = RNG.normal(size=(10, 3, 16, 16)).astype(np.float32)
TARGETS = RNG.integers(0, 10, 10)


class Pairs(Dataset):
    """A data set that has a length and items, and no iterator of its own."""

    def __init__(self, n_parts: int = 2):
        self.columns = (SAMPLES, TARGETS)[:n_parts]

    def __len__(self):
        return len(SAMPLES)

    def __getitem__(self, i):
        return tuple(column[i] for column in self.columns)


@pytest.fixture(scope="module")
def model():
    return zoo.network("branching", "torchscript").model


@pytest.fixture(scope="module")
def two_inputs():
    return zoo.network("two_inputs", "torchscript").model


@pytest.fixture
def archives(tmp_path):
    np.savez(tmp_path / "x.npz", x=SAMPLES, y=TARGETS)
    np.savez_compressed(tmp_path / "named.npz", input=SAMPLES, labels=TARGETS)
    return tmp_path


def loader(**options):
    return DataLoader(TensorDataset(torch.from_numpy(SAMPLES), torch.from_numpy(TARGETS)), **options)


FORMS = {
    "data": lambda: gm.Data({"input": SAMPLES}, TARGETS),
    "pair": lambda: (SAMPLES, TARGETS),
    "list": lambda: [SAMPLES, TARGETS.tolist()],
    "tensors": lambda: (torch.from_numpy(SAMPLES), torch.from_numpy(TARGETS)),
    "mapping": lambda: {"input": SAMPLES, "y": TARGETS},
    "mapping of x": lambda: {"x": torch.from_numpy(SAMPLES).requires_grad_(), "targets": TARGETS},
    "dataset": Pairs,
    "tensor dataset": lambda: TensorDataset(torch.from_numpy(SAMPLES), torch.from_numpy(TARGETS)),
    "loader": lambda: loader(batch_size=4),
    "loader without batches": lambda: loader(batch_size=None),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_data(model, form):
    data = as_data(model, FORMS[form](), targets=True)
    assert list(data.inputs) == ["input"]
    np.testing.assert_array_equal(data.inputs["input"], SAMPLES)
    np.testing.assert_array_equal(data.targets, TARGETS)
    assert len(data) == 10
    assert np.isfinite(model.run(data.inputs)["output"]).all()


@pytest.mark.parametrize("name", ["x.npz", "named.npz"])
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_archives(model, archives, name, kind):
    data = as_data(model, kind(archives / name), targets=True)
    np.testing.assert_array_equal(data.inputs["input"], SAMPLES)
    np.testing.assert_array_equal(data.targets, TARGETS)


@pytest.mark.parametrize("form", ["array", "npy", "mapping", "dataset"])
def test_samples_without_targets(model, tmp_path, form):
    np.save(tmp_path / "x.npy", SAMPLES)
    forms = {"array": SAMPLES, "npy": tmp_path / "x.npy", "mapping": {"input": SAMPLES}, "dataset": Pairs(n_parts=1)}
    data = as_data(model, forms[form])
    np.testing.assert_array_equal(data.inputs["input"], SAMPLES)
    assert data.targets is None
    with pytest.raises(gm.InvalidDataError, match="no targets"):
        as_data(model, forms[form], targets=True)


@pytest.mark.parametrize("form", ["mapping", "dataset", "loader"])
def test_a_model_of_two_inputs(two_inputs, form):
    vectors = RNG.normal(size=(10, 4)).astype(np.float32)
    dataset = TensorDataset(*map(torch.from_numpy, (SAMPLES, vectors, TARGETS)))
    forms = {
        "mapping": {"input": SAMPLES, "input1": vectors, "labels": TARGETS},
        "dataset": dataset,
        "loader": DataLoader(dataset, batch_size=3),
    }
    data = as_data(two_inputs, forms[form], targets=True)
    np.testing.assert_array_equal(data.inputs["input"], SAMPLES)
    np.testing.assert_array_equal(data.inputs["input1"], vectors)
    np.testing.assert_array_equal(data.targets, TARGETS)


def test_a_folder_of_images(model, tmp_path):
    pixels = RNG.integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        folder = tmp_path / ("cat", "ant", "bee")[i % 3]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    data = as_data(model, tmp_path)
    order = [1, 4, 2, 5, 0, 3]  # ant, bee, cat
    assert data.targets.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(data.inputs["input"], pixels[order].transpose(0, 3, 1, 2) / 255, atol=1e-6)
    assert data.inputs["input"].dtype == np.float32


def test_images_are_resized_to_the_input(model, tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (40, 30), (255, 0, 51)).save(tmp_path / "a" / "1.png")
    Image.new("L", (5, 50), 51).save(tmp_path / "a" / "2.jpg")
    samples = as_data(model, str(tmp_path)).inputs["input"]
    assert samples.shape == (2, 3, 16, 16)
    np.testing.assert_allclose(samples[0].mean((1, 2)), [1, 0, 0.2], atol=1e-6)
    np.testing.assert_allclose(samples[1].mean((1, 2)), 0.2, atol=0.02)


@given(n=st.integers(1, 60), size=st.integers(1, 25), unit=st.integers(1, 4))
def test_batches_cover_every_sample_once_in_even_parts(n, size, unit):
    data = gm.Data({"x": np.arange(n)}, np.arange(n) * 2)
    batches = list(data.batches(size, unit))
    seen = [i for batch in batches for i in batch.inputs["x"]]
    assert seen == list(range(n // unit * unit))
    assert all((batch.targets == batch.inputs["x"] * 2).all() for batch in batches)
    lengths = [len(batch) for batch in batches]
    assert all(length % unit == 0 and 0 < length <= max(size, unit) for length in lengths)
    assert not lengths or max(lengths) - min(lengths) <= unit
