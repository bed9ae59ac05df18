"""The frozen part before the first trained block: computed once by ONNX Runtime and kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from graphmod.data import Data
from graphmod.errors import RefusedError
from graphmod.graph import boundaries, data_flow, primary_input, subgraph
from graphmod.graph.boundaries import dominators
from graphmod.model import Model
from graphmod.probe import stream
from graphmod.rewrite import Region


class Prefix:
    """A model cut in two before the first of some regions.

    Parameters
    ----------
    model : Model
    regions : sequence of Region, optional
        What is to be trained; the whole model if None, and nothing is cut off then.
    output : str
        The tensor that is wanted.

    Attributes
    ----------
    cut : str, optional
        The last boundary that all the regions lie behind; the primary input if there is none, None without regions.
    suffix : Model
        The model from there to the output.
    """

    def __init__(self, model: Model, regions: Sequence[Region] | None, output: str) -> None:
        self._model = model
        self.cut: str | None = None
        if regions is None:
            self.suffix = subgraph(model, list(model.inputs), [output])
            return
        self._source = primary_input(model)
        trunk = [self._source, *boundaries(model)]
        places = [self._last_boundary(trunk, region) for region in regions]
        self.cut = trunk[min(places)]
        self.suffix = subgraph(model, [self.cut], [output])

    def _last_boundary(self, trunk: list[str], region: Region) -> int:
        if region.entry == self._source:
            return 0
        flow = data_flow(self._model, self._source, region.entry)
        passed = {self._source, *dominators(flow, self._source, region.entry)}
        return max(i for i, tensor in enumerate(trunk) if tensor in passed)

    def cached(self, data: Data, folder: Path, name: str) -> Data:
        """Return the suffix's data: activations at the cut, memory-mapped from a file in ``folder``.

        Inputs that the suffix shares with the model (masks, positions) are passed on.
        """
        shared = {key: data.inputs[key] for key in self.suffix.inputs if key in data.inputs}
        if self.cut is None or self.cut == self._source:
            return Data(shared, data.targets)
        path = folder / f"{name}.npy"
        cache: np.memmap[tuple[int, ...], np.dtype[np.generic]] | None = None
        start = 0
        for batch, values in stream(self._model, data, [self.cut]):
            activations = values[self.cut]
            if len(activations) != len(batch):
                raise RefusedError(
                    f"the first axis of '{self.cut}' is not the batch, so its activations cannot be kept by sample; "
                    "begin with an earlier block"
                )
            if cache is None:
                shape = (len(data), *activations.shape[1:])
                cache = np.lib.format.open_memmap(path, mode="w+", dtype=activations.dtype, shape=shape)
            cache[start : start + len(batch)] = activations
            start += len(batch)
        assert cache is not None, "as_data refuses data without samples"
        cache.flush()
        return Data({self.cut: np.load(path, mmap_mode="r"), **shared}, data.targets)
