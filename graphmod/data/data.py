"""Samples and targets that fit a model, whatever the user holds them in."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from os import PathLike
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from graphmod.data.folder import read_folder
from graphmod.errors import InvalidDataError
from graphmod.model import Model, TensorType, check_model

Array = NDArray[np.generic]

TARGETS = ("y", "targets", "labels")
"""Names under which a dict or an archive may carry the targets."""

_CHECKED_AT_ONCE = 1 << 24

_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, BadZipFile, TokenError, zlib.error)
"""What numpy and zipfile raise for files that are damaged, encrypted, or pickles."""


@dataclass(frozen=True, eq=False)
class Data:
    """Samples of every input, along axis 0, and targets where there are any.

    Parameters
    ----------
    inputs : mapping of str to array
        One array an input, all of the same length.
    targets : array, optional
        One target a sample; integers for classification.
    """

    inputs: Mapping[str, Array] = field(repr=False)
    targets: Array | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, rows: slice | NDArray[np.integer[Any]]) -> Data:
        """Return the data of some samples."""
        targets = None if self.targets is None else self.targets[rows]
        return Data({name: array[rows] for name, array in self.inputs.items()}, targets)

    def batches(self, size: int, unit: int = 1) -> Iterator[Data]:
        """Yield the samples in order, in as few batches of at most ``size`` as possible, all of almost equal length.

        Equal lengths keep a last batch of one or two samples from being useless to a statistic. Lengths are multiples
        of ``unit``.
        """
        units = len(self) // unit
        edges = np.linspace(0, units, -(-units // max(1, size // unit)) + 1).round().astype(int) * unit
        for start, stop in pairwise(edges):
            yield self[slice(start, stop)]


def as_data(model: Model, data: object, *, targets: bool = False) -> Data:
    """Make sense of what the user holds as data for a model, and check it.

    Parameters
    ----------
    model : Model
        The model that the data must fit.
    data : Data, array, pair of arrays, mapping of arrays, path, Dataset or DataLoader
        An array of samples; a pair (samples, targets); a mapping of arrays by input name, targets under "y";
        an ``.npz`` with the same names (or "x" for a model of one input); a folder of images by class; a torch
        Dataset or DataLoader of (sample, target).
    targets : bool
        Whether targets are needed.

    Raises
    ------
    InvalidDataError
        The data does not fit: names, shapes, dtypes (both sides are named), lengths, NaN, missing targets.

    Examples
    --------
    >>> import graphmod as gm
    >>> m = gm.load(gm.demo.model_path())
    >>> len(as_data(m, (np.zeros((5, 1, 8, 8), np.float32), np.arange(5))))
    5
    """
    check_model(model)
    found = data if isinstance(data, Data) else _read(model, data)
    _check(model, found)
    if targets and found.targets is not None and isinstance(data, str | PathLike) and Path(data).is_dir():
        _check_classes(model, Path(data), int(found.targets.max()) + 1)
    if targets and found.targets is None:
        raise InvalidDataError("the data has no targets; pass a pair (samples, targets) or a mapping with 'y'")
    return found


def _read(model: Model, data: object) -> Data:
    names = list(model.inputs)
    if isinstance(data, str | PathLike):
        return _read_path(model, Path(data))
    if isinstance(data, Mapping):
        return _from_mapping(model, {str(key): _array(value) for key, value in data.items()})
    if isinstance(data, tuple | list) and len(data) == 2:
        return Data({names[0]: _array(data[0])}, _array(data[1]))
    if isinstance(data, np.ndarray):
        return Data({names[0]: data})
    if hasattr(data, "__iter__") or hasattr(data, "__getitem__"):
        return _from_dataset(names, data)
    raise InvalidDataError(
        f"cannot read data from a {type(data).__name__}; pass arrays, a mapping, a path, a Dataset, a DataLoader, or "
        "one part of Splits, such as .test"
    )


def _read_path(model: Model, path: Path) -> Data:
    if path.is_dir():
        name, kind = next(iter(model.inputs.items()))
        samples, targets = read_folder(path, kind.shape)
        if kind.dtype is not None and kind.dtype.kind in "iu":
            samples = np.round(samples * 255)
        return Data({name: samples.astype(kind.dtype or np.float32)}, targets)
    return _from_mapping(model, read_archive(path))


def _check_classes(model: Model, path: Path, n_folders: int) -> None:
    classes = model.n_classes
    if classes is not None and classes != n_folders:
        raise InvalidDataError(
            f"'{path}' has {n_folders} subfolders and output '{model.main_output}' {classes} classes; one subfolder a "
            "class is needed, and their sorted names must be in the model's order of classes"
        )


def read_archive(path: Path) -> dict[str, Array]:
    """Read the arrays of an ``.npz`` file; a single ``.npy`` array counts as the samples "x"."""
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"x": content}
        with content:
            return {name: content[name] for name in content.files}
    except FileNotFoundError as error:
        raise InvalidDataError(f"there is no data file '{path}'") from error
    except _UNREADABLE as error:
        raise InvalidDataError(
            f"cannot read data from '{path}': it is no archive of plain arrays (.npz), no array (.npy) and no folder"
        ) from error


def _from_mapping(model: Model, arrays: Mapping[str, Array]) -> Data:
    names = list(model.inputs)
    target = next((key for key in TARGETS if key in arrays and key not in names), None)
    inputs = {key: array for key, array in arrays.items() if key != target}
    if len(names) == 1 and list(inputs) == ["x"]:
        inputs = {names[0]: inputs["x"]}
    return Data(inputs, None if target is None else arrays[target])


def _from_dataset(names: Sequence[str], data: Any) -> Data:
    """Collect a Dataset (one sample an item) or a DataLoader (one batch an item): the inputs, then the target."""
    batched = hasattr(data, "batch_size") and data.batch_size is not None
    rows = list(data) if hasattr(data, "__iter__") else [data[i] for i in range(len(data))]
    if not rows:
        raise InvalidDataError("the data set is empty")
    pairs = [row if isinstance(row, tuple | list) else (row,) for row in rows]
    wanted = (len(names), len(names) + 1)
    wrong = next((len(pair) for pair in pairs if len(pair) not in wanted or len(pair) != len(pairs[0])), None)
    if wrong is not None:
        raise InvalidDataError(
            f"an item of the data set has {wrong} parts; the inputs {', '.join(names)} are needed, "
            "and a target where there is one"
        )
    columns = [[_array(value) for value in column] for column in zip(*pairs, strict=True)]
    try:
        joined = [np.concatenate(column) if batched else np.stack(column) for column in columns]
    except ValueError as error:
        raise InvalidDataError(f"the items of the data set differ in shape: {error}") from error
    return Data(dict(zip(names, joined, strict=False)), joined[-1] if len(joined) > len(names) else None)


def _array(value: Any) -> Array:
    try:
        return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
    except ValueError as error:
        raise InvalidDataError(f"the data cannot become an array: {error}") from error


def _check(model: Model, data: Data) -> None:
    probe = dict(data.inputs)
    arrays = {f"input '{name}'": array for name, array in data.inputs.items()}
    if data.targets is not None:
        arrays["the targets"] = data.targets
    scalars = [name for name, array in arrays.items() if not array.ndim]
    if scalars:
        raise InvalidDataError(f"data for {scalars[0]} is a single number; the first axis of an array is the sample")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise InvalidDataError(f"inputs and targets differ in their number of samples ({told})")
    if not lengths or min(lengths.values()) == 0:
        raise InvalidDataError("the data has no samples")
    fixed = fixed_batch(model)
    if fixed is not None:
        probe = {name: np.broadcast_to(array[:1], (fixed, *array.shape[1:])) for name, array in probe.items()}
    model.check_feeds(probe)
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not _finite(array):
            raise InvalidDataError(f"data for {name} contains NaN or infinite values; remove those samples")


def _finite(array: Array) -> bool:
    rows = max(1, _CHECKED_AT_ONCE // max(1, int(np.prod(array.shape[1:]))))
    return all(bool(np.isfinite(array[i : i + rows]).all()) for i in range(0, len(array), rows))


def fixed_batch(model: Model) -> int | None:
    """Return the number of samples that the model's inputs fix along axis 0, None if it is free."""
    check_model(model)
    kinds: list[TensorType] = list(model.inputs.values())
    sizes = {kind.shape[0] for kind in kinds if kind.shape}
    fixed = {size for size in sizes if isinstance(size, int)}
    return fixed.pop() if len(fixed) == 1 and len(sizes) == 1 else None
