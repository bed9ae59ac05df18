"""Training, calibration and test data: fit on the first, choose on the second, report on the third."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graphmod.data.data import Data, as_data, read_archive
from graphmod.data.labels import check_labels
from graphmod.errors import InvalidDataError
from graphmod.model import Model

PARTS = ("train", "calibration", "test")
_ALIASES = {"validation": "calibration", "val": "calibration", "valid": "calibration"}
_SHARES = {"calibration": 0.2, "test": 0.2}


@dataclass(frozen=True, eq=False)
class Splits:
    """Three parts of a data set that share no sample; :func:`as_splits` makes them of what a user holds."""

    train: Data
    calibration: Data
    test: Data


def as_splits(model: Model, data: object, seed: int = 0, *, labels: bool = False, targets: bool = True) -> Splits:
    """Return training, calibration and test data.

    Parameters
    ----------
    model : Model
        The model that the data must fit.
    data : Splits, mapping, path, or anything that :func:`as_data` takes
        A mapping of parts, ``{"train": ..., "calibration": ..., "test": ...}``; an ``.npz`` or a mapping with
        ``x_train, y_train, x_calibration, ...``. A missing calibration part is split off the training part (20 %),
        a missing test part too, so that data without any split becomes 60 / 20 / 20 %, stratified by label. What is
        ``Splits`` already is checked, and not split anew.
    seed : int
        Decides which samples go where.
    labels : bool
        Whether targets must be class labels of the model's first float output.
    targets : bool
        Whether there must be targets at all.

    Raises
    ------
    InvalidDataError
        A part does not fit the model, or there is no training part, or too few samples to split.

    Examples
    --------
    >>> import graphmod as gm
    >>> m, samples = gm.load(gm.demo.model_path()), np.zeros((50, 1, 8, 8), np.float32)
    >>> mine = as_splits(m, (samples, np.arange(50) % 10))  # or a path: as_splits(m, "digits.npz")
    >>> len(mine.train), len(mine.calibration), len(mine.test)
    (30, 10, 10)
    """
    data = _opened(data)
    _warn_of_strays(data)
    parts = _parts(data) or {"train": data}
    if "train" not in parts:
        told = ", ".join(sorted(parts))
        raise InvalidDataError(f"the data has parts {told} but no training part; name it 'x_train', 'y_train'")
    found = {}
    for name, part in parts.items():
        try:
            found[name] = as_data(model, part, targets=targets)
            if labels:
                check_labels(model, found[name])
        except InvalidDataError as error:
            if len(parts) == 1:
                raise
            raise InvalidDataError(f"the {name} part: {error}") from error
    size = len(found["train"])
    for name, share in _SHARES.items():
        if name not in found:
            found["train"], found[name] = _split(found["train"], round(size * share), seed)
    return Splits(**found)


def is_split(data: object) -> bool:
    """Whether data has a calibration part, so that :func:`as_splits` need not split it off the training part."""
    return "calibration" in _parts(_opened(data))


def part_of(data: object, name: str) -> object:
    """Return one part of data that has parts, "train", "calibration" or "test", else the data itself."""
    data = _opened(data)
    return _parts(data).get(name, data)


def _opened(data: object) -> object:
    """Return the arrays of an archive, read once; anything else as it is."""
    return read_archive(Path(data)) if isinstance(data, str | PathLike) and Path(data).is_file() else data


def _parts(data: object) -> dict[str, object]:
    if isinstance(data, Splits):
        return {name: getattr(data, name) for name in PARTS}
    if not isinstance(data, Mapping):
        return {}
    parts: dict[str, object] = {}
    for key in data:
        stem, _, part = str(key).rpartition("_")
        part = _ALIASES.get(part, part)
        if part not in PARTS:
            continue
        if not stem:
            parts[part] = data[key]
        else:
            group = parts.setdefault(part, {})
            if isinstance(group, dict):
                group[stem] = data[key]
    return parts


def _warn_of_strays(data: object) -> None:
    """Warn of arrays that belong to no part of data that has parts, which a name mistyped makes."""
    if not isinstance(data, Mapping) or not _parts(data):
        return
    for key in data:
        part = str(key).rpartition("_")[2]
        if _ALIASES.get(part, part) not in PARTS:
            warnings.warn(
                f"'{key}' belongs to no part of the data and is not used; parts end in _train, _calibration or _test",
                stacklevel=3,
            )


def _split(data: Data, size: int, seed: int) -> tuple[Data, Data]:
    """Split off ``size`` samples, with every label's share kept as well as whole numbers allow."""
    order = np.random.default_rng(seed).permutation(len(data))
    labels = data.targets
    if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iu":
        order = _interleaved(order, labels)
    taken = np.sort(order[:size])
    left = np.sort(order[size:])
    if not size or not len(left):
        raise InvalidDataError(f"{len(data)} samples are too few to split off calibration and test data")
    return data[left], data[taken]


def _interleaved(order: NDArray[np.int64], labels: NDArray[np.generic]) -> NDArray[np.int64]:
    """Reorder samples so that every prefix has the labels in their overall proportions."""
    position = np.empty(len(order))
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(position, kind="stable")]
