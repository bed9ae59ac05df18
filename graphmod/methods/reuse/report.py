"""What re-engineering gives back: the model, and the report of what it is of, how it came about and what it brought."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from graphmod.methods.result import Measured
from graphmod.methods.reuse.search import Stage
from graphmod.model import Model


@dataclass(frozen=True)
class Rung:
    """A budget that was tried.

    Parameters
    ----------
    left : dict of str to float
        Share of the original's cost, by budget: the time of the network as a whole, or what is counted.
    weights : int
        Scalars that are left.
    searched, recovered : float
        Accuracy on calibration data after the search, and after the training behind it.
    """

    left: dict[str, float]
    weights: int
    searched: float
    recovered: float


@dataclass(frozen=True)
class ReuseReport:
    """Before and after.

    Parameters
    ----------
    members : tuple of tuple of int
        For every label of the target problem the original's classes; empty if it is a new one.
    before : Measured
        The original, its accuracy among the classes of the target problem alone: the fair baseline. That of the
        original with a new last layer, all of it fine-tuned, if the problem is a new one; size and time are the
        original's even then.
    among_all : dict of str to float
        The original's accuracy on "calibration" and "test" data where classes outside of the problem count as wrong:
        the literature's baseline. Empty if the problem is a new one.
    after : Measured
    budgets : tuple of str
        What was cut down, in order: "latency", "weights", "macs".
    rungs : tuple of Rung
        The budgets that were met, the largest first; without one, those that lost too much accuracy are among them.
    stages : tuple of Stage
        Removals, in order.
    samples : dict of str to int
        Samples of the target problem in each part of the data.
    seconds : float
        CPU seconds of all of it, measuring before and after left out.
    settings : dict
        Everything else that decides the result.
    manifest : dict
        What the model's metadata tell of this: the original's digest, the classes, the data's digest, the seed.
    """

    members: tuple[tuple[int, ...], ...]
    before: Measured
    among_all: dict[str, float]
    after: Measured
    budgets: tuple[str, ...]
    rungs: tuple[Rung, ...]
    stages: tuple[Stage, ...]
    samples: dict[str, int]
    seconds: float
    settings: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def speedup(self) -> dict[int, float]:
        """Latency before over latency after, by batch size."""
        return {size: self.before.latency[size] / self.after.latency[size] for size in self.before.latency}

    @property
    def weights_left(self) -> float:
        """Weights that are left, as a share of the original's."""
        return self.after.weights / self.before.weights

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**asdict(self), "speedup": self.speedup, "weights_left": self.weights_left}


@dataclass(frozen=True, eq=False)
class Reengineered:
    """What is left of a network for a target problem, and how it came about.

    Parameters
    ----------
    model : Model
        One output a label of the target problem.
    report : ReuseReport
    original : Model
    """

    model: Model = field(repr=False)
    report: ReuseReport
    original: Model = field(repr=False)
