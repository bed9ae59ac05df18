"""What a compression gives back: the model, and the report of what was done and what it brought."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

from graphmod.model import Model
from graphmod.modules import ModuleMap
from graphmod.probe import Similarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Measured:
    """Figures of one model.

    Parameters
    ----------
    weights : int
        Scalars in float constants.
    bytes : int
        Size of the file.
    macs : int
        Multiply-accumulates for one sample.
    latency : dict of int to float
        Microseconds of CPU time a run, one thread, by batch size; median.
    calibration, test : float
        The metric (accuracy, if none was given) on data that choices were made on, and on data that they were not.
    """

    weights: int
    bytes: int
    macs: int
    latency: dict[int, float]
    calibration: float
    test: float


@dataclass(frozen=True)
class Change:
    """One run of blocks that was replaced.

    Parameters
    ----------
    blocks : tuple of str
        Paths of the first and the last block on the trunk.
    entry, exit : str
        The tensors around it.
    kind : str
        The kind of replacement.
    saving : float
        Share of the original's latency that it saves, from timed blocks.
    error : float
        Root of the squared error at the exit over the variance there, on the data that it was fitted on.
    drop : float
        Metric lost on calibration data with this and all earlier changes, before retraining.
    damage : float
        What the change alone does to the output: the Kullback-Leibler divergence of predictions, in nats a sample; with
        a metric of one's own the squared error of the output over its mean square.
    """

    blocks: tuple[str, str]
    entry: str
    exit: str
    kind: str
    saving: float
    error: float
    drop: float
    damage: float


@dataclass(frozen=True)
class Point:
    """One trade-off of latency and damage, built and run.

    Parameters
    ----------
    latency : float
        Measured end to end, over the original's, averaged over batch sizes.
    damage : float
        To the output, all changes together, before retraining; see :class:`Change`.
    estimated_latency, estimated_damage : float
        The sums over its changes, by which it was chosen.
    weights : int
        Scalars in float constants.
    before : float
        The metric on calibration data before retraining.
    after : float, optional
        The same after retraining; None where that was not tried.
    trained_weights : int, optional
        Scalars that were trained.
    is_chosen : bool
        Whether it became the result.
    """

    latency: float
    damage: float
    estimated_latency: float
    estimated_damage: float
    weights: int
    before: float
    after: float | None
    trained_weights: int | None
    is_chosen: bool


@dataclass(frozen=True)
class CompressionReport:
    """Before and after.

    Parameters
    ----------
    before, after : Measured
    changes : tuple of Change
        From the input to the output.
    trained_weights : int
        Scalars that were ever trained.
    max_drop : float
        What the calibration metric was allowed to lose.
    samples : dict of str to int
        Samples of each part of the data.
    settings : dict
        Everything else that decides the result.
    front : tuple of Point
        Every point of the front that was built and run, the fastest first.
    """

    before: Measured
    after: Measured
    changes: tuple[Change, ...]
    trained_weights: int
    max_drop: float
    samples: dict[str, int]
    settings: dict[str, Any]
    front: tuple[Point, ...] = ()

    @property
    def speedup(self) -> dict[int, float]:
        """Latency before over latency after, by batch size."""
        return {size: self.before.latency[size] / self.after.latency[size] for size in self.before.latency}

    @property
    def trained_share(self) -> float:
        """Weights ever trained over the original's weights."""
        return self.trained_weights / self.before.weights

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**asdict(self), "speedup": self.speedup, "trained_share": self.trained_share}


@dataclass(frozen=True, eq=False)
class Result:
    """A compressed model and how it came about.

    Parameters
    ----------
    model : Model
        The compressed model.
    report : CompressionReport
    original : Model
    similarity : Similarity
        Of the original's boundaries.
    module_map : ModuleMap
        Of the original.
    """

    model: Model = field(repr=False)
    report: CompressionReport
    original: Model = field(repr=False)
    similarity: Similarity = field(repr=False)
    module_map: ModuleMap = field(repr=False)

    @property
    def front(self) -> tuple[Point, ...]:
        """Every point of the front of latency and damage that was built and run, the fastest first."""
        return self.report.front

    def plot_front(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the front; write it to ``path`` (``.png``, ``.svg``, ``.pdf``) if given.

        Raises
        ------
        RefusedError
            Nothing could be replaced, so that there are no points.
        NotWritableError
            The path cannot be written.
        """
        from graphmod.methods.front import draw

        return draw(self.report, path)
