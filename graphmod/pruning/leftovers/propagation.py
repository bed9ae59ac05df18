"""The propagation: constants that removed channels hold, from operator to operator to the biases that take them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from graphmod.pruning.groups import Groups
from graphmod.pruning.labels import Labels
from graphmod.pruning.leftovers.estimate import Estimate
from graphmod.pruning.leftovers.known import Known
from graphmod.pruning.leftovers.reading import Reading
from graphmod.pruning.leftovers.registry import settles
from graphmod.pruning.site import Axes

Place = tuple[str, int]
"""A tensor and one of its axes."""


@dataclass(frozen=True, eq=False)
class Fold:
    """What a constant input of an operator has to take in.

    Parameters
    ----------
    operator : str
        Its name in the model.
    place : int
        The input, which may be missing so far.
    value : float64 array, shape (channels,)
        To add along the last axis.
    labels : array of int, shape (channels,)
        Of that axis.
    """

    operator: str
    place: int
    value: Known
    labels: Labels


@dataclass(frozen=True, eq=False)
class Mix:
    """What the weights of a contraction take in: channels that are left stand for removed ones, too.

    Parameters
    ----------
    operator : str
        Its name in the model.
    place, axis : int
        The input that the weights are, and their axis that is contracted.
    gone : array of bool, shape (channels,)
        Which indices of that axis are removed.
    slopes : float64 array, shape (channels, left)
        How much of every index that is left each of them is.
    """

    operator: str
    place: int
    axis: int
    gone: NDArray[np.bool_]
    slopes: NDArray[np.float64]

    def applied(self, weight: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the weights as they are to be, at their old size and zero at what is removed."""
        rows = np.moveaxis(weight, self.axis, -1)
        made = np.zeros_like(rows)
        mixed = rows.reshape(-1, rows.shape[-1]).astype(np.float64) @ self.slopes
        made[..., ~self.gone] = mixed.reshape(*rows.shape[:-1], -1).astype(weight.dtype)
        return np.moveaxis(made, -1, self.axis)


@dataclass(frozen=True, eq=False)
class Leftovers:
    """What removed units leave behind.

    Parameters
    ----------
    folds : tuple of Fold
        Only of values other than zero.
    dropped : dict of int to str
        Units whose constant is not wholly taken in (the rest counts as zero), and why, by number among all groups'.
        Of all other units removal is exact: the network computes what it would if their making weights were zero.
    reads : tuple of (str, int)
        Tensors and axes at which removed channels are added up.
    mixes : tuple of Mix
        Only where there are estimates with covariances.
    mixable : tuple of (str, int)
        Those of the reads where there is a contraction whose weights can take in what other channels tell.
    """

    folds: tuple[Fold, ...] = ()
    dropped: Mapping[int, str] = field(default_factory=dict)
    reads: tuple[Place, ...] = ()
    mixes: tuple[Mix, ...] = ()
    mixable: tuple[Place, ...] = ()


def settle(found: Groups, removed: NDArray[np.bool_], estimates: Mapping[Place, Estimate] | None = None) -> Leftovers:
    """Find what removed units leave behind, and which constants can take it in.

    Parameters
    ----------
    found : Groups
    removed : array of bool, shape (n_units,)
    estimates : mapping of (str, int) to Estimate, optional
        By tensor and axis what data tell of its channels; taken in instead of constants.

    Returns
    -------
    Leftovers

    Examples
    --------
    >>> import graphmod as gm
    >>> from graphmod.pruning import groups
    >>> found = groups(gm.load(gm.demo.model_path()))
    >>> settled = settle(found, np.arange(found.n_units) == 0)
    >>> settled.folds, settled.dropped, settled.reads[:2]  # BatchNormalizations are folded: Relu(0) is 0
    ((), {}, (('relu', 1), ('relu_2', 1)))
    """
    return Propagation(found, removed, estimates or {}).settled()


class Propagation:
    """What is known of every tensor so far, and what becomes of removed units."""

    def __init__(self, found: Groups, removed: NDArray[np.bool_], estimates: Mapping[Place, Estimate]):
        self.found, self.estimates = found, estimates
        self.removed = np.append(removed, False)  # so that -1 is never removed
        self.made = {id(one.labels) for one in found.analysis.produced}
        self.known: dict[str, Known] = {}
        self.folds: dict[Place, Fold] = {}
        self.dropped: dict[int, str] = {}
        self.reads: dict[Place, None] = {}
        self.mixes: list[Mix] = []
        self.mixable: dict[Place, None] = {}
        self._touched: dict[str, bool] = {}
        declared = found.model._proto.graph.input if found.model.ir_version >= 4 else ()
        self._overridable = {value.name for value in declared}

    def settled(self) -> Leftovers:
        """Let operator by operator hand on what is known, or take it in."""
        for operator, site in zip(self.found.model.operators, self.found.analysis.sites, strict=True):
            if site is not None and any(map(self.is_touched, (*operator.input, *operator.output))):
                self._apply(operator, Reading(site, self))
        folds, mixes = tuple(self.folds.values()), tuple(self.mixes)
        return Leftovers(folds, self.dropped, tuple(self.reads), mixes, tuple(self.mixable))

    def _apply(self, operator: NodeProto, reading: Reading) -> None:
        rule = settles.of(operator)
        if rule is None:
            reading.drop_all(f"{reading.site} has no rule about constants")
            return
        for name, known in zip(operator.output, rule(reading), strict=False):
            if name and known is not None and not np.isnan(known).all():
                self.known[name] = known

    def axes(self, tensor: str) -> Axes:
        """Return the labels of a tensor."""
        return self.found.analysis.axes.get(tensor, [])

    def gone(self, labels: Labels) -> NDArray[np.bool_]:
        """Return which indices of an axis are removed."""
        return self.removed[self.found.units(labels)]

    def is_touched(self, tensor: str) -> bool:
        """Whether a tensor loses indices."""
        if tensor not in self._touched:
            self._touched[tensor] = any(self.gone(labels).any() for labels in self.axes(tensor))
        return self._touched[tensor]

    def is_fixed(self, tensor: str) -> bool:
        """Whether a tensor is a stored constant that nobody can override."""
        return tensor not in self._overridable and self.found.weight(tensor) is not None

    def constant(self, tensor: str) -> Known | None:
        """Return the value of a constant, zero where it is a weight that makes what is removed; None if not known."""
        if tensor in self.known:
            return self.known[tensor]
        value = self.found.weight(tensor)
        if value is None:
            value = self.found.analysis.sizes[0].values.get(tensor)
        if value is None or value.dtype.kind == "b":
            return None
        known = value.astype(np.float64)
        for axis, labels in enumerate(self.axes(tensor)):
            if id(labels) in self.made:
                known[(slice(None),) * axis + (self.gone(labels),)] = 0
        return known

    def fold(self, operator: NodeProto, place: int, value: Known, labels: Labels) -> None:
        """Note what a constant input has to take in."""
        name = self._name(operator)
        before = self.folds.get((name, place))
        self.folds[name, place] = Fold(name, place, value if before is None else before.value + value, labels)

    def mix(
        self, operator: NodeProto, place: int, axis: int, gone: NDArray[np.bool_], slopes: NDArray[np.float64]
    ) -> None:
        """Note what the weights of a contraction have to take in."""
        self.mixes.append(Mix(self._name(operator), place, axis, gone, slopes))

    def _name(self, operator: NodeProto) -> str:
        """Return an operator's name in the model."""
        model = self.found.model
        return model.operator_names[model.producer[next(filter(None, operator.output))]]
