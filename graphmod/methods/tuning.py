"""What fitting or repairing a part of a network gives back: the model, and a report of where and how that was done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from graphmod.model import Model
from graphmod.train import Check


@dataclass(frozen=True)
class Candidate:
    """A region that could have been trained.

    Parameters
    ----------
    blocks : tuple of str
        Paths of the blocks on the trunk that it is made of.
    entry, exit : str
        The tensors around it.
    weights : int
        Scalars that training it may change.
    score : float
        What candidates are ranked by; larger is better.
    figures : dict of str to float
        What the score was made of, such as gain and seconds.
    """

    blocks: tuple[str, ...]
    entry: str
    exit: str
    weights: int
    score: float
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TuningReport:
    """Where a network was trained, and what that cost and brought.

    Parameters
    ----------
    blocks : tuple of str
        Paths of the blocks that were trained; none if nothing was.
    entry, exit : str
        The tensors around them.
    weights_trained : int
        Scalars that may have changed.
    trained_share : float
        The same as a share of the original's weights.
    seconds : dict of str to float
        CPU time of "analysis", "caching" and "training".
    before, after : dict of str to float
        The metric on test data, by the name of the data, such as "clean" and "shifted".
    ranking : tuple of Candidate
        Best first.
    settings : dict
        Everything else that decides the result.
    history : tuple of Check
        Looks at calibration data while it was trained, by CPU seconds since the work began.
    """

    blocks: tuple[str, ...]
    entry: str
    exit: str
    weights_trained: int
    trained_share: float
    seconds: dict[str, float]
    before: dict[str, float]
    after: dict[str, float]
    ranking: tuple[Candidate, ...]
    settings: dict[str, Any]
    history: tuple[Check, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Tuned:
    """A network of which a part was trained or fitted, and how that came about.

    Parameters
    ----------
    model : Model
        The original's graph with other weights.
    report : TuningReport
    original : Model
    """

    model: Model = field(repr=False)
    report: TuningReport
    original: Model = field(repr=False)
