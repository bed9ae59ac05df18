"""Quotas: a whole number of weights shared out to layers in proportion, none above its limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def quotas(wanted: Sequence[float], limits: Sequence[int], total: int) -> list[int]:
    """Return whole numbers that sum to ``total``, each in proportion to what is wanted or at its limit.

    Whoever would get more than its limit gets that, and the rest is shared out anew among the others. Fractions go to
    the largest remainders.

    Parameters
    ----------
    wanted : sequence of float
        Above 0 wherever a limit is.
    limits : sequence of int
    total : int
        At most the sum of the limits.

    Examples
    --------
    >>> quotas([1, 1, 2], [10, 10, 10], 8)
    [2, 2, 4]
    >>> quotas([1, 1, 2], [10, 10, 3], 8)
    [3, 2, 3]
    """
    assert 0 <= total <= sum(limits), "there is room for all"
    want, most = np.asarray(wanted, np.float64), np.asarray(limits, np.float64)
    full = most == 0
    share = _in_proportion(want, most, full, total)
    while (above := ~full & (share >= most)).any() and not full.all():
        full |= above
        share = _in_proportion(want, most, full, total)
    whole = np.floor(share).astype(np.int64)
    order = np.argsort(np.where(whole < most, whole - share, 1), kind="stable")
    whole[order[: total - int(whole.sum())]] += 1
    return [int(n) for n in whole]


def _in_proportion(
    want: NDArray[np.float64], most: NDArray[np.float64], full: NDArray[np.bool_], total: int
) -> NDArray[np.float64]:
    """Return everyone's share once some are full: what these leave, shared out to the others."""
    rest = np.where(full, 0, want)
    left = total - most[full].sum()
    return np.where(full, most, rest * (left / rest.sum()) if rest.any() else 0)
