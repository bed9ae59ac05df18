"""The data that benchmarks train and measure on, as the same three parts: digits, mnist1d, MNIST, CIFAR and SVHN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy.io import loadmat
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

T = TypeVar("T")

Split = tuple[np.ndarray, np.ndarray]
Parts = dict[str, Split]
"""Samples, float32, and labels, int64, of "train", "calibration" and "test"."""

PATHS: dict[str, Path] = {"mnist": Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "mnist.npz"}
"""Where the data sets lie that no package brings; a benchmark's options change it."""

MNIST_TRAINED_ON = 10_000
MNIST1D_SAMPLES = 12_500
NOISE = 0.1
"""Deviation of what is added to each value of noisy mnist1d; that of mnist1d is 0.02."""

CIFAR10_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
CIFAR100_FILES = ("train.bin", "test.bin")
SVHN_FILES = ("train_32x32.mat", "test_32x32.mat")


LIKE = {"mnist1d_noisy": "mnist1d", "cifar100": "cifar10", "svhn": "cifar10"}
"""Data sets that are trained on as another one is."""


class ByData(dict[str, T]):
    """A setting by data set; one that is like another and has none of its own has that one's."""

    def __missing__(self, data: str) -> T:
        """Return the setting of the data set that this one is like."""
        return self[LIKE[data]]


def digits() -> Parts:
    """Return scikit-learn's digits, float32 [n, 1, 8, 8] in 0..1: 899, 400 and 498, the demo's split."""
    found = load_digits()
    x, y = (found.images / 16)[:, None], found.target
    train, rest = train_test_split(np.arange(len(x)), test_size=898, stratify=y, random_state=0)
    calibration, test = train_test_split(rest, test_size=498, stratify=y[rest], random_state=0)
    return _parts(x, y, train, calibration, test)


def mnist1d() -> Parts:
    """Return mnist1d (Greydanus & Kobak 2024), float32 [n, 1, 40]: 8,000, 2,000 and 2,500, drawn with its own seed."""
    return _mnist1d()


def mnist1d_noisy() -> Parts:
    """Return mnist1d with so much noise that the classes are hard to tell apart."""
    return _mnist1d(iid_noise_scale=NOISE)


def _mnist1d(**more: float) -> Parts:
    from mnist1d.data import get_dataset_args, make_dataset

    arguments = get_dataset_args()
    arguments.num_samples = MNIST1D_SAMPLES
    vars(arguments).update(more)
    drawn = make_dataset(arguments)
    x = np.concatenate([drawn["x"], drawn["x_test"]])[:, None]
    y = np.concatenate([drawn["y"], drawn["y_test"]])
    train, rest = train_test_split(np.arange(len(x)), test_size=4500, stratify=y, random_state=0)
    calibration, test = train_test_split(rest, test_size=2500, stratify=y[rest], random_state=0)
    return _parts(x, y, train, calibration, test)


def mnist() -> Parts:
    """Return MNIST of Keras' ``mnist.npz``, float32 [n, 1, 28, 28] in 0..1: 10,000, 2,000, and its 10,000 of test."""
    with np.load(PATHS["mnist"]) as content:
        arrays = {name: content[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    x = np.concatenate([arrays["x_train"], arrays["x_test"]])[:, None] / np.float32(255)
    y = np.concatenate([arrays["y_train"], arrays["y_test"]])
    n_train = len(arrays["x_train"])
    train, rest = train_test_split(
        np.arange(n_train), train_size=MNIST_TRAINED_ON, stratify=y[:n_train], random_state=0
    )
    calibration = train_test_split(rest, train_size=2000, stratify=y[rest], random_state=0)[0]
    return _parts(x, y, train, calibration, np.arange(n_train, len(x)))


def cifar10() -> Parts:
    """Return CIFAR-10 of its binary version, float32 [n, 3, 32, 32], channels normalised: 45,000, 5,000 and 10,000."""
    return _cifar("cifar10", CIFAR10_FILES, label_bytes=1)


def cifar100() -> Parts:
    """Return CIFAR-100 of its binary version, as CIFAR-10; labels are the 100 fine ones."""
    return _cifar("cifar100", CIFAR100_FILES, label_bytes=2)


def svhn() -> Parts:
    """Return SVHN's cropped digits, float32 [n, 3, 32, 32], channels normalised: 68,257, 5,000 and 26,032."""
    x, y = [], []
    for file in SVHN_FILES:
        content = loadmat(_folder("svhn") / file)
        x.append(content["X"].transpose(3, 2, 0, 1) / np.float32(255))
        y.append(content["y"].ravel() % 10)  # 10 stands for 0
    return _normalised(np.concatenate(x), np.concatenate(y), len(y[-1]))


def find_images(folder: Path) -> str:
    """Make the data set of coloured images in a folder known, and return its name."""
    for name, files in (("cifar10", CIFAR10_FILES), ("cifar100", CIFAR100_FILES), ("svhn", SVHN_FILES)):
        if all((folder / file).is_file() for file in files):
            PATHS[name] = folder
            return name
    raise SystemExit(
        f"{folder} is neither CIFAR-10's folder cifar-10-batches-bin nor CIFAR-100's cifar-100-binary, nor one with "
        f"SVHN's {' and '.join(SVHN_FILES)}"
    )


def _cifar(name: str, files: tuple[str, ...], label_bytes: int) -> Parts:
    """Return the parts of files whose records are bytes of labels, the last of which counts, and of 3 x 32 x 32."""
    rows = [np.fromfile(_folder(name) / file, np.uint8).reshape(-1, label_bytes + 3 * 32 * 32) for file in files]
    x = np.concatenate([own[:, label_bytes:] for own in rows]).reshape(-1, 3, 32, 32) / np.float32(255)
    return _normalised(x, np.concatenate([own[:, label_bytes - 1] for own in rows]), len(rows[-1]))


def _folder(name: str) -> Path:
    if name not in PATHS:
        raise SystemExit(f"{name} comes with no package: give its folder with --data")
    return PATHS[name]


def _normalised(x: np.ndarray, y: np.ndarray, n_test: int) -> Parts:
    """Return the parts of coloured images, the last ones for test, by the channels' mean and deviation of training."""
    train, calibration = train_test_split(
        np.arange(len(x) - n_test), test_size=5000, stratify=y[: len(x) - n_test], random_state=0
    )
    mean = x[train].mean((0, 2, 3), keepdims=True)
    deviation = x[train].std((0, 2, 3), keepdims=True)
    return _parts((x - mean) / deviation, y, train, calibration, np.arange(len(x) - n_test, len(x)))


def _parts(x: np.ndarray, y: np.ndarray, train: np.ndarray, calibration: np.ndarray, test: np.ndarray) -> Parts:
    x, y = x.astype(np.float32), y.astype(np.int64)
    rows = {"train": np.sort(train), "calibration": np.sort(calibration), "test": np.sort(test)}
    return {name: (x[own], y[own]) for name, own in rows.items()}


DATASETS: dict[str, Callable[[], Parts]] = {
    load.__name__: load for load in (digits, mnist1d, mnist, mnist1d_noisy, cifar10, cifar100, svhn)
}
