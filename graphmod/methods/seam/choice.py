"""Which epoch of a search is kept, and when the search may end: the rules of the published code."""

from __future__ import annotations

from abc import ABC, abstractmethod
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


class Choice(ABC, Generic[State]):
    """The epoch that is kept.

    Attributes
    ----------
    chosen : (Epoch, State), optional
        The one kept so far, with what was seen of it; None before the first.
    reached : bool
        Whether an epoch was what is asked for.
    waited : int
        Epochs without progress.
    """

    def __init__(self) -> None:
        self.chosen: tuple[Epoch, State] | None = None
        self.reached = False
        self.waited = 0

    def see(self, epoch: Epoch, state: State) -> None:
        """Take an epoch into account."""
        if self._takes(epoch, None if self.chosen is None else self.chosen[0]):
            self.chosen = epoch, state

    def ended(self, patience: int | None) -> bool:
        """Whether there is nothing more to look for, or so many epochs brought no progress."""
        return self.waited == patience

    @abstractmethod
    def _takes(self, epoch: Epoch, before: Epoch | None) -> bool:
        """Say whether an epoch takes the place of the one before; keep ``reached`` and ``waited``."""


class ByAccuracy(Choice[State]):
    """Of the epochs as accurate as the original, the one of the smallest share: direct reuse.

    Such an epoch takes the place of the one before if its share is smaller by thousandths, or if it is more accurate
    and its share no larger. Where no epoch is as accurate, accuracy less share decides. Once one was, those that are
    less accurate bring no progress, counted anew whenever the share falls by thousandths.

    Parameters
    ----------
    accuracy : float
        The original's.
    """

    def __init__(self, accuracy: float) -> None:
        super().__init__()
        self._accuracy = accuracy

    def _takes(self, epoch: Epoch, before: Epoch | None) -> bool:
        if epoch.accuracy < self._accuracy:
            self.waited += self.reached
            return not self.reached and _is_better(epoch, before)
        if before is None or not self.reached or _thousandths(epoch) < _thousandths(before):
            self.reached, self.waited = True, 0
            return True
        return epoch.kept <= before.kept and epoch.accuracy > before.accuracy


class ByShare(Choice[State]):
    """The first epoch that keeps no more than a share, which ends the search: indirect reuse.

    Where none does, accuracy less share decides, and epochs that are no better by that bring no progress.

    Parameters
    ----------
    share : float
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share

    def ended(self, patience: int | None) -> bool:
        """Whether an epoch keeps no more than the share, or so many brought no progress."""
        return self.reached or super().ended(patience)

    def _takes(self, epoch: Epoch, before: Epoch | None) -> bool:
        self.reached = epoch.kept <= self._share
        takes = self.reached or _is_better(epoch, before)
        self.waited = 0 if takes else self.waited + 1
        return takes


def _is_better(epoch: Epoch, before: Epoch | None) -> bool:
    """Whether accuracy less share is larger."""
    return before is None or epoch.accuracy - epoch.kept > before.accuracy - before.kept


def _thousandths(epoch: Epoch) -> int:
    return int(1000 * epoch.kept)
