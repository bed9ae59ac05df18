"""Labels: one number for every index of every axis of every tensor, tied where indices must go or stay together."""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
"""The labels of one axis, one an index."""

_FREE = np.iinfo(np.int32).max


class Couplings:
    """A union-find over labels that takes whole axes at once, and knows why a class must be kept.

    Examples
    --------
    >>> couplings = Couplings()
    >>> made, read = couplings.fresh(3), couplings.fresh(3)
    >>> couplings.tie(made, read)
    >>> couplings.keep(read[:1], "a graph output")
    >>> couplings.is_kept(made)
    array([ True, False, False])
    >>> couplings.reason(made)
    'a graph output'
    """

    def __init__(self) -> None:
        self._n = 0
        self._parent = np.arange(1024, dtype=np.int64)
        self._reason = np.full(1024, _FREE, np.int32)
        self._preference = np.zeros((1024, 2), bool)  # to carry, not to carry
        self._reasons: list[str] = []
        self._number: dict[str, int] = {}

    def copy(self) -> Couplings:
        """Return couplings that can be tied further without changing these."""
        return copy.deepcopy(self)

    def __len__(self) -> int:
        """Return the number of labels given out."""
        return self._n

    def fresh(self, size: int) -> Labels:
        """Return new labels, tied to nothing."""
        start, self._n = self._n, self._n + size
        if self._n > len(self._parent):
            longer = max(self._n, 2 * len(self._parent))
            added = longer - len(self._parent)
            self._parent = np.append(self._parent, np.arange(len(self._parent), longer))
            self._reason = np.append(self._reason, np.full(added, _FREE, np.int32))
            self._preference = np.append(self._preference, np.zeros((added, 2), bool), 0)
        return np.arange(start, self._n)

    def find(self, labels: Labels) -> Labels:
        """Return the class of each label: its smallest member."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                self._parent[labels] = roots
                return roots
            roots = above

    def tie(self, left: Labels, right: Labels) -> None:
        """Tie labels pairwise; arrays that broadcast to one shape are taken so."""
        if left is right:
            return
        a, b = np.broadcast_arrays(left, right)
        a, b = a.ravel(), b.ravel()
        hooked = []
        while True:
            a, b = self.find(a), self.find(b)
            apart = a != b
            if not apart.any():
                break
            a, b = a[apart], b[apart]
            high = np.maximum(a, b)
            np.minimum.at(self._parent, high, np.minimum(a, b))
            hooked.append(high)
        for high in hooked:
            roots = self.find(high)
            np.minimum.at(self._reason, roots, self._reason[high])
            np.logical_or.at(self._preference, roots, self._preference[high])

    def keep(self, labels: Labels, reason: str) -> None:
        """Keep the classes of labels; of several reasons a class remembers the first."""
        number = self._number.setdefault(reason, len(self._reasons))
        if number == len(self._reasons):
            self._reasons.append(reason)
        np.minimum.at(self._reason, self.find(labels), np.int32(number))

    def prefer(self, labels: Labels, carries: bool) -> None:
        """Note that an axis should, or rather should not, be the one that loses indices, where there is a choice."""
        self._preference[self.find(labels), 0 if carries else 1] = True

    def preference(self, labels: Labels) -> int:
        """Return 1 for an axis that should lose indices where there is a choice, -1 for one that should not, or 0."""
        found = self._preference[self.find(labels)]
        return 1 if found[:, 0].any() else -1 if found[:, 1].any() else 0

    def is_kept(self, labels: Labels) -> NDArray[np.bool_]:
        """Return which labels are kept."""
        return np.asarray(self._reason[self.find(labels)] != _FREE)

    def reason(self, labels: Labels) -> str:
        """Return why the first kept one of the labels is kept, "" if all are free."""
        found = self._reason[self.find(labels)]
        first = int(found.min(initial=_FREE))
        return "" if first == _FREE else self._reasons[first]
