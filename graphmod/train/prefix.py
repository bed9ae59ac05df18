"""The frozen part before the first trained block: computed once, and what is trained runs from there on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from graphmod.data import Data
from graphmod.graph import activations, boundaries, primary_input, subgraph
from graphmod.model import Model
from graphmod.rewrite import Region
from graphmod.train.cache import Cache


class Prefix:
    """A model cut in two before the first of some regions.

    Parameters
    ----------
    model : Model
    regions : sequence of Region, optional
        What is to be trained; the whole model if None, and nothing is cut off then.
    *outputs : str
        The tensors that are wanted; what lies behind them is left out.
    weights : collection of str
        Those that learn. The model is cut before the first operator that reads one, also outside of the regions: what
        that makes changes with the weight.

    Attributes
    ----------
    cut : str, optional
        The last boundary of known type that all the regions lie behind and that no such weight has a part in; the
        primary input if there is none, None without regions.
    suffix : Model
        The model from there to the outputs.
    """

    def __init__(
        self, model: Model, regions: Sequence[Region] | None, *outputs: str, weights: Collection[str] = ()
    ) -> None:
        self._model = model
        self.cut: str | None = None
        if regions is None:
            self.suffix = subgraph(model, list(model.inputs), outputs)
            return
        trunk = [primary_input(model), *filter(partial(_is_known, model), boundaries(model))]
        passed = _passed(model, trunk)
        behind = trunk[: 1 + min(passed.get(region.entry, 0) for region in regions)]
        touched = _touched(model, weights)
        self.cut = next((tensor for tensor in reversed(behind) if tensor not in touched), trunk[0])
        self.suffix = subgraph(model, [self.cut], outputs)

    def cached(self, data: Data, cache: Cache) -> Data:
        """Return the suffix's data: activations at the cut.

        Inputs that the suffix shares with the model (masks, positions) are passed on.
        """
        shared = {key: data.inputs[key] for key in self.suffix.inputs if key in data.inputs}
        if self.cut is None or self.cut in self._model.inputs:
            return Data(shared, data.targets)
        return Data({self.cut: cache.activations(self._model, data, self.cut), **shared}, data.targets)


def _is_known(model: Model, tensor: str) -> bool:
    """Whether shape inference knows enough of a tensor for what lies behind it to be a model of its own."""
    kind = model.tensors.get(tensor)
    return kind is not None and kind.dtype is not None and kind.shape is not None


def _passed(model: Model, trunk: Sequence[str]) -> dict[str, int]:
    """Return, for every tensor of activations, the place of the last tensor of the trunk that all paths to it pass."""
    place = {tensor: i for i, tensor in enumerate(trunk)}
    carrying = activations(model, trunk[0])
    passed = {trunk[0]: 0}
    for operator, reads in zip(model.operators, model.reads, strict=True):
        before = [passed[name] for name in reads if name in passed]
        for tensor in operator.output:
            if tensor and tensor in carrying:
                passed[tensor] = place.get(tensor, min(before))
    return passed


def _touched(model: Model, weights: Collection[str]) -> set[str]:
    """Return some weights and all that is computed from them."""
    touched = set(weights)
    for operator, reads in zip(model.operators, model.reads, strict=True):
        if not touched.isdisjoint(reads):
            touched.update(filter(None, operator.output))
    return touched
