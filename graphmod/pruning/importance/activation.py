"""Activations: how large a unit's values are, and how much they vary, over calibration samples without labels."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from graphmod.data import fixed_batch
from graphmod.errors import RefusedError
from graphmod.probe import stream
from graphmod.pruning.analysis import BATCH
from graphmod.pruning.groups import Group, Member
from graphmod.pruning.importance.registry import Evidence, Scores, by_unit, importance

_BUDGET = 1 << 28
"""Bytes of activations that are held at a time."""

_FLOATS = ("tensor(float16)", "tensor(float)", "tensor(double)")
"""As ONNX Runtime spells them."""

Axis = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the values at every index of an axis: how many, their mean, and the sum of squared deviations from it."""

    n: int
    mean: Scores
    deviation: Scores

    @staticmethod
    def of(value: NDArray[np.generic], axis: int) -> Moments:
        """Return the moments of an array's values."""
        rows = np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1).astype(np.float64)
        mean = rows.mean(1)
        rows -= mean[:, None]
        return Moments(rows.shape[1], mean, np.einsum("ij,ij->i", rows, rows))

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of both (Chan, Golub & LeVeque 1983)."""
        n, apart = self.n + other.n, other.mean - self.mean
        mean = self.mean + apart * (other.n / n)
        return Moments(n, mean, self.deviation + other.deviation + apart**2 * (self.n * other.n / n))


@importance("activation_norm")
def norm(group: Group, evidence: Evidence) -> Scores:
    """Root mean square of a unit's values, where the unit is used."""
    total = np.zeros(group.n_units)
    for member, found in _measured(group, evidence):
        total += by_unit(member.units, found.mean**2 + found.deviation / found.n, group.n_units)
    return np.sqrt(total)


@importance("activation_variance")
def variance(group: Group, evidence: Evidence) -> Scores:
    """Variance of a unit's values, where the unit is used: one that never changes could be a bias."""
    total = np.zeros(group.n_units)
    for member, found in _measured(group, evidence):
        total += by_unit(member.units, found.deviation / found.n, group.n_units)
    return total


def _measured(group: Group, evidence: Evidence) -> Iterator[tuple[Member, Moments]]:
    moments = evidence.once(_moments)
    for member in used(group, evidence):
        yield member, moments[member.tensor, member.axis]


def _moments(evidence: Evidence) -> dict[Axis, Moments]:
    axes = {(m.tensor, m.axis): None for group in evidence.found for m in used(group, evidence)}
    moments: dict[Axis, Moments] = {}
    for _, values in activations(evidence, {tensor for tensor, _ in axes}):
        for tensor, axis in axes:
            now = Moments.of(values[tensor], axis)
            moments[tensor, axis] = moments[tensor, axis] + now if (tensor, axis) in moments else now
    return moments


def activations(evidence: Evidence, tensors: Collection[str]) -> Iterator[tuple[int, dict[str, NDArray[np.generic]]]]:
    """Yield batch after batch the number of samples and the values of tensors, as many as fit into 256 MB."""
    found = evidence.found
    shapes, n_samples = found.analysis.sizes[0].shapes, fixed_batch(found.model) or BATCH
    scalars = sum(int(np.prod([size or 1 for size in shapes.get(name, ())])) for name in tensors) / n_samples
    size = int(max(1, min(256, _BUDGET // max(1, 8 * scalars))))
    batches = stream(found.model, evidence.samples, sorted(tensors), size)
    total = -(-len(evidence.samples) // size)
    for batch, values in track(batches, "activations", total=total, disable=not evidence.progress, transient=True):
        yield len(batch), values


def used(group: Group, evidence: Evidence) -> tuple[Member, ...]:
    """Return the activations in which a group's units are used up: an operator reads them and does not hand them on.

    That is what the next convolutions read: behind normalisation and nonlinearity. All activations where there are
    none such.

    Raises
    ------
    RefusedError
        The group has no activations of floats.
    """
    model, floats = evidence.found.model, evidence.once(_floats)
    inner = [member for member in group.members if member.tensor in floats]
    own = {member.tensor for member in group.members}
    ends = [
        member
        for member in inner
        if any(own.isdisjoint(model.operators[i].output) for i in model.readers.get(member.tensor, ()))
    ]
    if not inner:
        raise RefusedError(
            f"group '{group.name}' has no activations of floats to measure; take an importance that looks at weights"
        )
    return tuple(ends or inner)


def _floats(evidence: Evidence) -> frozenset[str]:
    """Return the floats of groups that depend on the network's inputs; ONNX Runtime tells what inference does not."""
    model = evidence.found.model
    varying = set(model.inputs)
    for operator, reads in zip(model.operators, model.reads, strict=True):
        if not varying.isdisjoint(reads):
            varying.update(operator.output)
    inner = {member.tensor for group in evidence.found for member in group.members} & varying
    unknown = [name for name in sorted(inner) if (kind := model.tensors.get(name)) is None or kind.dtype is None]
    floats = {name for name in inner.difference(unknown) if model.tensors[name].is_float}
    if unknown:
        made = model.session(1, outputs=unknown).get_outputs()
        floats |= {one.name for one in made if one.type in _FLOATS}
    return frozenset(floats)
