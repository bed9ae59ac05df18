"""Activations by sample: computed once by ONNX Runtime, in memory while there is room and in files beyond that."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graphmod.data import Data
from graphmod.errors import InvalidDataError, RefusedError
from graphmod.graph import subgraph
from graphmod.model import Model
from graphmod.probe import stream
from graphmod.pytorch.dtypes import has_tensor, to_tensor

Array = NDArray[np.generic]

Kept = Tensor | Array
"""Values by sample: a tensor, or an array that lies in a file."""

ROOM = 2**30
"""Bytes of memory that the activations and data of one training may take; what is more stays in files."""

_HALF = (torch.float16, torch.bfloat16)


class Cache:
    """Where the activations of a training lie.

    Parameters
    ----------
    folder : pathlib.Path
        For those that memory has no room for.
    room : int
        Bytes of memory.
    """

    def __init__(self, folder: Path, room: int = ROOM) -> None:
        self._folder = folder
        self._room = room
        self._numbers = count()

    def activations(self, model: Model, data: Data, tensor: str, batch_size: int = 64) -> Array:
        """Return a tensor's values for all samples, shape (samples, ...); only what it needs of the model runs.

        Raises
        ------
        RefusedError
            The tensor has no axis of samples.
        InvalidDataError
            The data lack an input.
        """
        if tensor in model.inputs:
            return data.inputs[tensor]
        part = subgraph(model, [], [tensor])
        missing = [name for name in part.inputs if name not in data.inputs]
        if missing:
            raise InvalidDataError(f"'{tensor}' is computed from input '{missing[0]}', which the data do not have")
        kept: Array | None = None
        start = 0
        samples = Data({name: data.inputs[name] for name in part.inputs})
        if not samples.inputs:
            raise RefusedError(f"'{tensor}' is the same for all samples; name a tensor that depends on the input")
        threads = torch.get_num_threads()
        for batch, values in stream(part, samples, [tensor], batch_size, threads, reuse=1, by_sample=True):
            found = values.get(tensor)
            if found is None:
                raise RefusedError(
                    f"the first axis of '{tensor}' is not the batch, so its activations cannot be kept by sample; "
                    "begin with an earlier block"
                )
            if kept is None:
                kept = self._empty((len(data), *found.shape[1:]), found.dtype)
            kept[start : start + len(batch)] = found
            start += len(batch)
        assert kept is not None, "as_data refuses data without samples"
        return kept

    def kept(self, array: Array) -> Kept:
        """Return an array in memory as a tensor that shares it; one in a file is read if there is room for it.

        Raises
        ------
        InvalidDataError
            It is of a type that PyTorch does not have.
        """
        array = array if array.dtype.isnative else array.astype(array.dtype.type)
        if not has_tensor(array.dtype):
            raise InvalidDataError(f"PyTorch has no tensors of type {array.dtype}, so the data cannot be learnt from")
        if not isinstance(array, np.memmap):
            return _shared(array)
        if not self._takes(array.nbytes):
            return array
        return to_tensor(array)

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
        if self._takes(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize):
            return np.empty(shape, dtype)
        path = self._folder / f"{next(self._numbers)}.npy"
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)

    def _takes(self, n_bytes: int) -> bool:
        fits = n_bytes <= self._room
        self._room -= n_bytes if fits else 0
        return fits


def taken(kept: Kept, rows: Tensor) -> Tensor:
    """Return some samples of what is kept as a network takes them, half precision as single."""
    found = kept[rows] if isinstance(kept, Tensor) else to_tensor(kept[rows.numpy()])
    return found.float() if found.dtype in _HALF else found


def _shared(array: Array) -> Tensor:
    """Return a tensor in the memory of an array, if that is contiguous and may be written to."""
    array = np.require(array, requirements=["C", "W"])
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
