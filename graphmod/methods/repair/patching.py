"""Activation patching: where the activations of a healthy network no longer survive in a broken one.

Of every unit is asked what it makes of the healthy activations at its entry: where that differs from the healthy ones
at its exit, its weights are at fault, whatever lies before it. How much it matters is told by the outputs, if the
healthy activations are put in behind the unit instead of before it (Vig et al., Investigating gender bias in language
models using causal mediation analysis, NeurIPS 2020, call this an indirect effect).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from graphmod.data import Data, fixed_batch
from graphmod.errors import RefusedError
from graphmod.graph import subgraph
from graphmod.methods.repair.fits import SAME
from graphmod.methods.repair.units import Unit
from graphmod.methods.tuning import Candidate
from graphmod.model import Model
from graphmod.probe import stream

Array = NDArray[np.generic]
Values = Mapping[str, Array]


_SMALL = 0.02
"""Share of the largest error of a unit from which on another one is at fault too: weights of another type differ all
over the network."""

FAR = 1e6
"""The largest gap that counts: so far off is what is no number."""


def values(model: Model, data: Data, tensors: Sequence[str], batch_size: int = 64) -> dict[str, Array]:
    """Return tensors for all samples."""
    names = list(dict.fromkeys(tensors))
    batches = [batch for _, batch in stream(model, data, names, batch_size, threads=1)]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in names}


def between(model: Model, entry: str, exits: Sequence[str], data: Data, at_entry: Array) -> dict[str, Array]:
    """Return tensors for all samples, with other activations put in at a boundary before them."""
    part = subgraph(model, [entry], list(dict.fromkeys(exits)))
    context = {name: data.inputs[name] for name in part.inputs if name != entry}
    dtype = part.inputs[entry].dtype if entry in part.inputs else None
    return values(part, Data({entry: at_entry.astype(dtype or at_entry.dtype, copy=False), **context}), exits)


def _each(model: Model, parts: Sequence[Unit], data: Data, known: Values) -> dict[str, Array]:
    """Return what units make of activations put in at the entry of each."""
    entries, exits = zip(*(unit.place for unit in parts), strict=True)
    part = subgraph(model, entries, exits)
    inputs = {name: data.inputs[name] for name in part.inputs if name not in entries}
    for name in entries:
        kind = part.inputs[name]
        inputs[name] = known[name].astype(kind.dtype or known[name].dtype, copy=False)
    return values(part, Data(inputs), exits)


def first(model: Model, data: Data, n: int) -> Data:
    """Return the first samples, or as many more as a model takes at a time."""
    unit = fixed_batch(model) or 1
    return data[: min(-(-n // unit), len(data) // unit) * unit]


def gap(found: Array, wanted: Array) -> float:
    """Return the root of the squared error over the variance of what is wanted, :data:`FAR` at most.

    >>> gap(np.array([1.0, 3.0]), np.array([1.0, 3.0]))
    0.0
    """
    goal = wanted.astype(np.float64)
    spread = float(((goal - goal.mean(0)) ** 2).sum()) or 1.0
    with np.errstate(invalid="ignore"):  # of infinities
        off = float(np.sqrt(((found.astype(np.float64) - goal) ** 2).sum() / spread))
    return off if off < FAR else FAR  # not a number is not less


def sound_values(healthy: Model, data: Data, parts: Sequence[Unit]) -> dict[str, Array]:
    """Return what a healthy network makes at the boundaries of units.

    Raises
    ------
    RefusedError
        Not all of it is finite.
    """
    known = values(healthy, data, [name for unit in parts for name in unit.place])
    for name, value in known.items():
        if not np.isfinite(value).all():
            raise RefusedError(f"the healthy model is broken too: tensor '{name}' is not finite; give one that works")
    return known


def faults(model: Model, data: Data, parts: Sequence[Unit], known: Values) -> tuple[Candidate, ...]:
    """Rank units by what the outputs lose in them.

    Parameters
    ----------
    model : Model
    data : Data
        Targets are not needed.
    parts : sequence of Unit
        Of the model, in the order of the trunk, the last one ends in the output.
    known : mapping of str to array
        What a healthy network makes of the data at the units' boundaries, see :func:`sound_values`.

    Returns
    -------
    tuple of Candidate
        The units that are at fault, best first: the score is by how much the outputs come closer to the healthy ones if
        healthy activations are put in behind the unit instead of before it; the figures tell the unit's own error.
    """
    output = parts[-1].exit
    errors: dict[Unit, float] = {}
    for some in (parts[::2], parts[1::2]):  # no exit of one of them is another's entry: one session serves them all
        if some:
            made = _each(model, some, data, known)
            errors |= {unit: gap(made[unit.exit], known[unit.exit]) for unit in some}
    least = max(SAME, _SMALL * max((error for error in errors.values() if error < FAR), default=0.0))
    broken = [unit for unit in parts if errors[unit] > least]
    put_in = (between(model, unit.entry, [output], data, known[unit.entry]) for unit in broken)
    ends = [gap(made[output], known[output]) for made in put_in]
    found = []
    for unit, before, behind in zip(broken, ends, [*ends, 0.0][1:], strict=True):  # what lies between two is right
        figures = {"error": errors[unit], "before": before, "behind": behind}
        found.append(Candidate((unit.path,), *unit.place, unit.weights, before - behind, figures))
    return tuple(sorted(found, key=lambda one: -one.score))
