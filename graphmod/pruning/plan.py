"""The plan of a compensation: which channels are told by which, layer after layer, in bounded time and memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from graphmod.data import Data, fixed_batch
from graphmod.errors import InvalidDataError
from graphmod.graph.costs import mac_products
from graphmod.pruning.estimates import Place
from graphmod.pruning.frontier import Depths
from graphmod.pruning.groups import Groups
from graphmod.pruning.leftovers import Leftovers

MOST = 256
"""Samples that count, spread over the data."""

WIDEST = 4096
"""Indices of an axis up to which some of them stand for others."""

ROUNDS = 64
"""Times that the network is cut at most; deeper ones take several layers at once."""

CUT_OPERATORS, CUT_WEIGHTS = 1 << 17, 1 << 31
"""Operators and weights of all networks that are cut on the way."""

MACS = 10**12
"""Multiply-accumulates that the samples take in the original."""

HELD = 1 << 28
"""Scalars that are held between rounds, of the original and of what is left of it."""

AT_ONCE = 1 << 25
"""Scalars of activations of a batch."""

SCALARS = 1 << 24
"""Scalars of a tensor, over all samples, that moments are of."""

PRODUCTS = 1 << 39
"""Multiply-accumulates that the moments of all tensors take."""

MOMENTS = 1 << 25
"""Scalars of moments that are summed up at a time."""


@dataclass(frozen=True)
class Round:
    """Channels that are told by what is left of them, at the same time.

    Parameters
    ----------
    held : tuple of str
        Tensors that do not change any more, from which on the network runs.
    parts : tuple of tuple of (str, int)
        Tensors and their axes, as many as are summed up at a time.
    """

    held: tuple[str, ...]
    parts: tuple[tuple[Place, ...], ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """How weights and biases are made to take in what removed channels would hold.

    Parameters
    ----------
    samples : Data
    means : tuple of (str, int)
        Tensors and axes of which means have to do.
    rounds : tuple of Round
        From the inputs on.
    batch_sizes : (int, int)
        Samples that run at a time, for means and in the rounds.
    most : int
        Scalars of a tensor that count, of a batch.
    """

    samples: Data
    means: tuple[Place, ...]
    rounds: tuple[Round, ...]
    batch_sizes: tuple[int, int]
    most: int


def plan(found: Groups, settled: Leftovers, data: Data, batch_size: int, by_weights: bool) -> Plan:
    """Return what is to be told by means, what by weights in which order, and on how much data.

    Raises
    ------
    InvalidDataError
        The number of samples is no multiple of what the model's inputs fix.
    """
    lengths = {(name, axis): len(found.analysis.axes[name][axis]) for name, axis in settled.reads}
    fitted = [place for place in settled.mixable if by_weights and _is_fitted(found, place[0], lengths[place])]
    means = tuple(place for place in settled.reads if place not in set(fitted))
    rounds = tuple(_rounds(found, fitted, lengths))
    sizes = _Scalars(found)
    ran = max((sizes.of({*one.held, *(name for part in one.parts for name, _ in part)}) for one in rounds), default=1)
    held = max((sizes.of(one.held) for one in rounds), default=1)
    n_samples = min(MOST, MACS // max(1, sizes.macs), HELD // max(1, 2 * held))
    samples = _spread(found, data, n_samples)
    fixed = fixed_batch(found.model)
    batch_sizes = [
        fixed or max(1, min(batch_size, AT_ONCE // max(1, scalars)))
        for scalars in (sizes.of(name for name, _ in means), max(ran, sizes.largest))
    ]
    most = min(SCALARS, PRODUCTS // max(1, sum(lengths[place] for place in fitted)))
    n_batches = -(-len(samples) // batch_sizes[1])
    return Plan(samples, means, rounds, (batch_sizes[0], batch_sizes[1]), -(-most // n_batches))


def _is_fitted(found: Groups, tensor: str, length: int) -> bool:
    """Whether some channels of a tensor stand for others; networks are not run up to one of unknown type."""
    kind = found.model.tensors.get(tensor)
    return length <= WIDEST and kind is not None and kind.is_float


def _spread(found: Groups, data: Data, n: int) -> Data:
    """Return so many samples, spread over the data."""
    fixed = fixed_batch(found.model) or 1
    if len(data) % fixed:
        raise InvalidDataError(
            f"the model takes {fixed} samples at a time and the data has {len(data)}; leave {len(data) % fixed} out"
        )
    n = max(1, n // fixed) * fixed
    return data if len(data) <= n else data[np.linspace(0, len(data) - 1, n).astype(np.int64)]


def _rounds(found: Groups, places: Sequence[Place], lengths: dict[Place, int]) -> Iterable[Round]:
    """Yield rounds from the inputs on; places of one depth together, since none follows from what reads another."""
    model, depths = found.model, Depths(found.model, {name for name, _ in places})
    levels: dict[int, list[Place]] = {}
    for place in places:
        levels.setdefault(depths.of(place[0]), []).append(place)
    n_rounds = min(ROUNDS, CUT_OPERATORS // max(1, len(model.operators)), CUT_WEIGHTS // max(1, model.n_weights))
    together = max(1, -(-len(levels) // max(1, n_rounds)))
    order = sorted(levels)
    for start in range(0, len(order), together):
        own = [place for level in order[start : start + together] for place in levels[level]]
        first = [name for name, _ in levels[order[start]]]
        yield Round(tuple(dict.fromkeys([*depths.crossing(order[start]), *first])), tuple(_parts(own, lengths)))


def _parts(places: Sequence[Place], lengths: dict[Place, int]) -> Iterable[tuple[Place, ...]]:
    """Yield places whose moments are held at a time."""
    part: list[Place] = []
    n_held = 0
    for place in places:
        n = lengths[place] ** 2
        if part and n_held + n > MOMENTS:
            yield tuple(part)
            part, n_held = [], 0
        part.append(place)
        n_held += n
    if part:
        yield tuple(part)


class _Scalars:
    """How many scalars tensors have of one sample, at the sizes that the network was analysed at."""

    def __init__(self, found: Groups):
        self._shapes = {name: [size or 1 for size in shape] for name, shape in found.analysis.sizes[0].shapes.items()}
        firsts = (self._shapes.get(name) for name in found.model.inputs)
        self._n_samples = next((shape[0] for shape in firsts if shape), 1)
        made = [name for operator in found.model.operators for name in operator.output]
        self.largest = max((self.of([name]) for name in made), default=1)
        self.macs = sum(
            prod(prod(self._shapes.get(name, [1])[axes]) for name, axes in product)
            for operator in found.model.operators for product in mac_products(operator)
        ) // self._n_samples  # fmt: skip

    def of(self, names: Iterable[str]) -> int:
        """Return the scalars of some tensors."""
        return sum(-(-prod(self._shapes.get(name, [1])) // self._n_samples) for name in names)
