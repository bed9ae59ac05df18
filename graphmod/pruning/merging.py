"""Merging: an axis that is a product of factors can lose indices of one of them; which one is chosen here.

Heads times their width, groups times their channels, channels times positions: what is taken out of such an axis must
leave a product. All decisions are made after the other rules have spoken, in the order of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from graphmod.pruning.labels import Couplings, Labels


@dataclass(frozen=True, eq=False)
class Merge:
    """An axis that is a product.

    Parameters
    ----------
    whole : Labels
        Of the axis.
    factors : tuple of Labels
        Slowest first; all longer than 1.
    where : str
        The operator that makes or splits the axis, in words.
    """

    whole: Labels
    factors: tuple[Labels, ...]
    where: str

    def along(self, place: int) -> tuple[Labels, Labels]:
        """Return the axis and one factor, so that they broadcast to pairs."""
        grid = self.whole.reshape([len(factor) for factor in self.factors])
        return grid, self.factors[place].reshape([-1 if i == place else 1 for i in range(grid.ndim)])


def choose_carriers(couplings: Couplings, merges: Sequence[Merge], produced: Sequence[Labels]) -> Couplings:
    """Choose for every merged axis the factor that can lose indices, tie it to the axis, and keep the others.

    One is chosen after another, and no order of preference is best for all networks: two are tried, and the one that
    leaves more channels free is taken. Both prefer a factor that leaves something free to one that does not, and one
    that is contracted between activations only to none. The first then stays with what carries elsewhere, the
    second takes what leaves most units free.

    Returns
    -------
    Couplings
        With all merged axes tied; the given ones stay as they are.
    """
    tried = [_chosen(couplings.copy(), merges, stays) for stays in ((True, False) if merges else (True,))]
    return max(tried, key=lambda one: _n_free_channels(one, produced))


def _chosen(couplings: Couplings, merges: Sequence[Merge], stays: bool) -> Couplings:
    sharing: dict[int, list[tuple[Merge, int]]] = {}
    for merge in merges:
        for place, factor in enumerate(merge.factors):
            sharing.setdefault(id(factor), []).append((merge, place))
    for merge in merges:
        scores = []
        for factor in merge.factors:
            n_free = _free_units(couplings, factor, sharing[id(factor)])
            preference = couplings.preference(factor)
            scores.append((n_free > 0, preference if stays else min(preference, 0), n_free))
        best = max(range(len(scores)), key=lambda place: scores[place])
        if scores[best][0]:
            couplings.tie(*merge.along(best))
            couplings.prefer(merge.factors[best], carries=True)
        else:
            couplings.keep(merge.whole, f"{merge.where} makes one axis of several that are all kept")
        for place, factor in enumerate(merge.factors):
            if place != best or not scores[best][0]:
                couplings.keep(factor, f"{merge.where} makes one axis of it and others, and another of them is pruned")
    return couplings


def _n_free_channels(couplings: Couplings, produced: Sequence[Labels]) -> int:
    """Return how many channels are free, of axes that have more than one unit."""
    total = 0
    for labels in produced:
        classes = couplings.find(labels[~couplings.is_kept(labels)])
        if len(classes) and (classes != classes[0]).any():
            total += len(classes)
    return total


def _free_units(couplings: Couplings, factor: Labels, uses: Sequence[tuple[Merge, int]]) -> int:
    """Return how many units would be free if a factor carried in all axes that it is part of."""
    if couplings.is_kept(factor).all():  # as the samples are, which every block of a network may share
        return 0
    pairs = [np.broadcast_arrays(*merge.along(place)) for merge, place in uses]
    left = couplings.find(np.concatenate([factor, *(whole.ravel() for whole, _ in pairs)]))
    right = couplings.find(np.concatenate([factor, *(part.ravel() for _, part in pairs)]))
    roots, numbers = np.unique(np.concatenate([left, right]), return_inverse=True)
    links = numbers.reshape(2, -1)
    n_classes, of = connected_components(
        coo_array((np.ones(links.shape[1], bool), (links[0], links[1])), shape=(len(roots), len(roots))), directed=False
    )
    kept = np.zeros(n_classes, bool)
    np.logical_or.at(kept, of, couplings.is_kept(roots))
    return int((~kept[np.unique(of[numbers[: len(factor)]])]).sum())
