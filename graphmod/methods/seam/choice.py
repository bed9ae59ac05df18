"""Which epoch of a search is kept, and when the search may end: the rule of the published code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

State = TypeVar("State")


@dataclass(frozen=True)
class Epoch:
    """One epoch of a search.

    Parameters
    ----------
    epoch : int
        From 0.
    accuracy : float
        On calibration data, behind the epoch.
    kept : float
        Share of the masked values whose mask is above 0.
    loss : float
        Mean over the epoch's batches.
    seconds : float
        CPU seconds since the search began.
    """

    epoch: int
    accuracy: float
    kept: float
    loss: float
    seconds: float


class Choice(Generic[State]):
    """The epoch that is kept: among those as accurate as the original, the one of the smallest share.

    Such an epoch takes the place of the one before if its share is smaller by thousandths, or if it is more accurate
    and its share no larger. Where no epoch is as accurate, accuracy less share decides.

    Parameters
    ----------
    accuracy : float
        The original's.

    Attributes
    ----------
    chosen : (Epoch, State), optional
        The one kept so far, with what was seen of it; None before the first.
    reached : bool
        Whether an epoch was as accurate as the original.
    below : int
        Epochs less accurate than it since the share last fell by thousandths, once one was as accurate.
    """

    def __init__(self, accuracy: float) -> None:
        self.chosen: tuple[Epoch, State] | None = None
        self.reached = False
        self.below = 0
        self._accuracy = accuracy

    def see(self, epoch: Epoch, state: State) -> None:
        """Take an epoch into account."""
        before = self.chosen[0] if self.chosen is not None else None
        if epoch.accuracy < self._accuracy:
            self.below += self.reached
            takes = not self.reached and (before is None or _difference(epoch) > _difference(before))
        elif before is None or not self.reached or _thousandths(epoch) < _thousandths(before):
            self.reached, self.below, takes = True, 0, True
        else:
            takes = epoch.kept <= before.kept and epoch.accuracy > before.accuracy
        if takes:
            self.chosen = epoch, state


def _difference(epoch: Epoch) -> float:
    return epoch.accuracy - epoch.kept


def _thousandths(epoch: Epoch) -> int:
    return int(1000 * epoch.kept)
