"""Data that does not fit: one sentence that names the culprit, never a traceback of numpy's."""

from __future__ import annotations

import pickle
import struct

import numpy as np
import onnx.parser
import pytest
import torch
import zoo
from PIL import Image
from torch.utils.data import TensorDataset

import graphmod as gm
from graphmod.data import as_data, as_splits, check_labels

X = np.zeros((6, 3, 16, 16), np.float32)
Y = np.arange(6)


@pytest.fixture(scope="module")
def model():
    return zoo.network("branching", "torchscript").model


def spoiled(value):
    samples = X.copy()
    samples[3, 1, 2, 2] = value
    return samples


def parts(*arrays):
    return TensorDataset(*map(torch.from_numpy, arrays))


BAD = {
    "shape": ((X[..., :8], Y), ["[6, 3, 16, 8]", "'input'", "float32[batch, 3, 16, 16]"]),
    "rank": ((X[0], Y[:3]), ["[3, 16, 16]", "float32[batch, 3, 16, 16]"]),
    "float64": ((X.astype(np.float64), Y), ["float64", "'input'", "float32[batch, 3, 16, 16]"]),
    "integers": ((X.astype(np.uint8), Y), ["uint8", "float32"]),
    "texts": ((np.full(6, "a"), Y), ["'input'", "float32"]),
    "nan": ((spoiled(np.nan), Y), ["'input'", "NaN"]),
    "inf": ((spoiled(-np.inf), Y), ["'input'", "infinite"]),
    "nan target": ((X, np.array([0, 1, 2, np.nan, 4, 5])), ["targets", "NaN"]),
    "lengths": ((X, Y[:5]), ["input 'input': 6", "the targets: 5"]),
    "empty": ((X[:0], Y[:0]), ["no samples"]),
    "nothing": ({}, ["no samples"]),
    "number": ((np.float32(1), Y), ["'input'", "single number"]),
    "numbers": ((X, 3), ["targets", "single number"]),
    "ragged": (([[1, 2], [3]], Y), ["cannot become an array"]),
    "unknown input": ({"picture": X, "y": Y}, ["'input' has no data"]),
    "spare input": ({"input": X, "spare": X, "y": Y}, ["'spare'", "input"]),
    "no rows": ([], ["empty"]),
    "rows of different shapes": ([(X[0], 0), (X[0, :1], 1), (X[0], 2)], ["differ in shape"]),
    "rows of different lengths": ([(X[0], 0), (X[0],), (X[0], 2)], ["1 parts"]),
    "too many columns": (parts(X, Y, Y), ["3 parts", "input"]),
    "none": (None, ["NoneType"]),
    "object": (object(), ["object"]),
    "missing file": ("there/is/no/such.npz", ["there/is/no/such.npz"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_told_what_is_wrong(model, case):
    data, told = BAD[case]
    with pytest.raises(gm.InvalidDataError) as caught:
        as_data(model, data)
    assert all(part in str(caught.value) for part in told), str(caught.value)


def write_truncated_archive(path):
    np.savez(path, x=X, y=Y)
    path.write_bytes(path.read_bytes()[:-50])


def write_damaged_archive(path):
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=X.shape).astype(np.float32), y=Y)
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)


FILES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("x,y\n1,2\n"),
    "start of an archive": lambda path: path.write_bytes(b"PK\x03\x04"),
    "truncated": write_truncated_archive,
    "damaged": write_damaged_archive,
    "objects": lambda path: np.savez(path, x=np.array([{}, []], object)),
    "pickle": lambda path: path.write_bytes(pickle.dumps({"x": X})),
}


@pytest.mark.parametrize("content", FILES)
def test_unreadable_files_are_named(model, tmp_path, content):
    path = tmp_path / "data.npz"
    FILES[content](path)
    for read in (as_data, as_splits):
        with pytest.raises(gm.InvalidDataError, match=r"data\.npz"):
            read(model, path)


def test_a_pickle_is_never_run(model, tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    np.savez(tmp_path / "data.npz", x=np.array([Trap()], object))
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Trap()))
    for name in ("data.npz", "bare.npz"):
        with pytest.raises(gm.InvalidDataError):
            as_data(model, tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_unreadable_images_are_named(model, tmp_path, content):
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "one.png").write_bytes(content)
    with pytest.raises(gm.InvalidDataError, match=r"one\.png"):
        as_data(model, tmp_path)


def test_an_image_of_billions_of_pixels_is_refused(model, tmp_path):
    (tmp_path / "class").mkdir()
    path = tmp_path / "class" / "one.bmp"
    Image.new("RGB", (4, 4)).save(path)
    content = bytearray(path.read_bytes())
    content[18:26] = struct.pack("<ii", 100_000, 100_000)
    path.write_bytes(content)
    with pytest.raises(gm.InvalidDataError, match=r"one\.bmp"):
        as_data(model, tmp_path)


def test_a_folder_without_classes_or_a_model_without_images(model, tmp_path):
    with pytest.raises(gm.InvalidDataError, match="subfolder"):
        as_data(model, tmp_path)
    (tmp_path / "class").mkdir()
    with pytest.raises(gm.InvalidDataError, match="subfolder"):
        as_data(model, tmp_path)
    with pytest.raises(gm.InvalidDataError, match=r"height, width.*7"):
        as_data(zoo.network("gpt2", "torchscript").model, tmp_path)


LABELS = {
    "too high": (np.array([0, 1, 2, 3, 4, 10]), ["label 10", "0 to 9", "float32[batch, 10]"]),
    "negative": (np.array([0, 1, 2, 3, 4, -1]), ["label -1", "0 to 9"]),
    "float": (Y.astype(np.float32), ["integer targets", "float32"]),
    "one-hot": (np.eye(6, 10, dtype=np.int64), ["[6, 10]"]),
    "booleans": (Y > 2, ["integer targets", "bool"]),
    "none": (None, ["no targets"]),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_do_not_fit_the_output(model, case):
    targets, told = LABELS[case]
    with pytest.raises(gm.InvalidDataError) as caught:
        check_labels(model, gm.Data({"input": X}, targets))
    assert all(part in str(caught.value) for part in told), str(caught.value)


def test_labels_that_fit_become_int64(model):
    labels = check_labels(model, gm.Data({"input": X}, Y.astype(np.uint8)))
    assert labels.dtype == np.int64
    assert labels.tolist() == Y.tolist()


def test_labels_of_an_output_of_unknown_width():
    text = '<ir_version: 8, opset_import: ["" : 17]> agraph (float[n, m] x) => (float[n, m] out) { out = Relu(x) }'
    model = gm.load(onnx.parser.parse_model(text))
    data = gm.Data({"x": np.zeros((2, 3), np.float32)}, np.array([0, -4]))
    with pytest.raises(gm.InvalidDataError, match=r"label -4 .* at least 0"):
        check_labels(model, data)


def test_a_folder_with_other_classes_than_the_model_has(tmp_path):
    from PIL import Image

    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "one.png")
    model = gm.load(gm.demo.model_path())
    assert len(gm.data.as_data(model, tmp_path)) == 3
    with pytest.raises(gm.InvalidDataError, match=r"3 subfolders and output 'logits' 10 classes"):
        gm.data.as_data(model, tmp_path, targets=True)
