"""A cutting: a network while units are taken out of it, what is left of every axis, and sizes before and after."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from graphmod.model.initializers import LARGE
from graphmod.pruning.groups import Groups
from graphmod.pruning.labels import Labels
from graphmod.pruning.site import Array
from graphmod.rewrite.draft import Draft
from graphmod.rewrite.sizing import Sizes


class Cutting:
    """A network while units are taken out of it.

    Parameters
    ----------
    found : Groups
    removed : array of bool, shape (n_units,)

    Attributes
    ----------
    draft : Draft
    axes : dict of str to Axes
        The labels of tensors, of new constants too.
    before, after : tuple of Sizes
        At the same sizes of dynamic dimensions; what is left is followed operator by operator.
    shrunk : set of str
        Constants that lost indices, and small values that are computed from them.
    """

    def __init__(self, found: Groups, removed: NDArray[np.bool_]):
        self.found = found
        self.alive = found.left(~removed)
        self.draft = Draft(found.model)
        self.axes = dict(found.analysis.axes)
        self.before = found.analysis.sizes
        self.after = tuple(map(self._start, self.before))
        self.shrunk: set[str] = set()
        self._names = {id(self.draft.operator(name)): name for name in found.model.operator_names}
        self._stored: dict[tuple[str, str, tuple[int, ...], bytes], str] = {}

    def _start(self, before: Sizes) -> Sizes:
        sizes = Sizes(self.found.model)
        sizes.shapes.update({name: before.shapes[name] for name in self.found.model.inputs if name in before.shapes})
        return sizes

    def told(self, operator: NodeProto) -> str:
        """Return an operator in words, as ``Conv 'stem'``."""
        return f"{operator.op_type} '{self._names[id(operator)]}'"

    def count(self, labels: Labels) -> int:
        """Return how many indices of an axis are left."""
        return int(self.alive(labels).sum())

    def is_whole(self, tensor: str) -> bool:
        """Whether a tensor loses no index."""
        return all(self.alive(labels).all() for labels in self.axes.get(tensor, ()))

    def sliced(self, tensor: str, value: Array) -> Array:
        """Return a tensor's value without the indices that are gone; itself if none are."""
        for axis, labels in enumerate(self.axes.get(tensor, ())):
            mask = self.alive(labels)
            if not mask.all():
                value = np.compress(mask, value, axis)
        return value

    def note(self, name: str, value: Array) -> None:
        """Let sizes follow a constant's new value."""
        for sizes in self.after:
            sizes.shapes[name] = value.shape
            sizes.values.pop(name, None)
            if value.size <= LARGE:
                sizes.values[name] = value

    def store(self, name: str, value: Array, like: str) -> str:
        """Add a constant, and return the name that it got; one is added where several are asked for that are the same.

        Parameters
        ----------
        name : str
            What it should be called: the constant whose place it takes, if there is one.
        value : array
        like : str
            A tensor of the model that has its type.
        """
        key = (name, value.dtype.name, value.shape, sha256(np.ascontiguousarray(value).tobytes()).digest())
        if key not in self._stored:
            made = self._stored[key] = self.draft.weight(name, value)
            self.note(made, value)
            for sizes in self.after:
                sizes.like[made] = like
        return self._stored[key]

    def read(self, operator: NodeProto, place: int, tensor: str) -> None:
        """Let an operator read another tensor at one input."""
        inputs = [*operator.input, *([""] * (place + 1 - len(operator.input)))]
        inputs[place] = tensor
        self.draft.set_inputs(operator, inputs)
