"""The front of a compression as a picture: what every point takes, does to the output, and scores."""

from __future__ import annotations

import io
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from graphmod.errors import RefusedError
from graphmod.model import replace_file

if TYPE_CHECKING:
    from graphmod.methods.result import CompressionReport

_BEFORE, _AFTER, _CHOSEN = "#868e96", "#1c7ed6", "#e8590c"

_LEAST = 1e-5
"""Damage below which points are drawn there: the scale is logarithmic."""


def draw(report: CompressionReport, path: str | PathLike[str] | None = None) -> Figure:
    """Draw the points of a front, and write them to ``path`` if given.

    Raises
    ------
    RefusedError
        There are no points.
    NotWritableError
        The path cannot be written.
    """
    if not report.front:
        raise RefusedError("the front has no points: nothing could be replaced")
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    _damage(figure.add_subplot(1, 2, 1), report)
    _scores(figure.add_subplot(1, 2, 2), report)
    if path is not None:
        suffix = Path(path).suffix.lstrip(".") or "png"
        replace_file(path, lambda stream: figure.savefig(stream, format=suffix, dpi=150))
    return figure


def as_svg(report: CompressionReport) -> str:
    """Return the picture as an element of a page."""
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "graphmod"}):
        draw(report).savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _damage(axes: Axes, report: CompressionReport) -> None:
    points = report.front
    estimates = sorted((point.estimated_latency, max(point.estimated_damage, _LEAST)) for point in points)
    axes.plot(*zip(*estimates, strict=True), color=_BEFORE, lw=1, marker=".", ms=4, label="sum of its changes")
    latencies, damages = [point.latency for point in points], [max(point.damage, _LEAST) for point in points]
    axes.scatter(latencies, damages, color=_AFTER, s=26, zorder=3, label="built and run")
    for point, damage in zip(points, damages, strict=True):
        if point.is_chosen:
            axes.scatter(point.latency, damage, color=_CHOSEN, s=70, marker="*", zorder=4, label="chosen")
    axes.set(yscale="log", ylabel="damage to the output, not retrained")
    _finish(axes)


def _scores(axes: Axes, report: CompressionReport) -> None:
    points = report.front
    axes.axhspan(report.before.calibration - report.max_drop, 1.5, color=_AFTER, alpha=0.08, lw=0)
    axes.axhline(report.before.calibration, color="#212529", lw=1, ls="--", label="original")
    latencies, before = [point.latency for point in points], [point.before for point in points]
    axes.scatter(latencies, before, facecolors="none", edgecolors=_BEFORE, s=26, label="not retrained")
    tried = [(point, point.after) for point in points if point.after is not None]
    for number, (point, after) in enumerate(tried):
        axes.plot([point.latency, point.latency], [point.before, after], color=_BEFORE, lw=0.7)
        label = None if number else "retrained"
        axes.scatter(point.latency, after, color=_AFTER, s=26, zorder=3, label=label)
        if point.is_chosen:
            axes.scatter(point.latency, after, color=_CHOSEN, s=70, marker="*", zorder=4, label="chosen")
    scores = [report.before.calibration, *before, *(after for _, after in tried)]
    margin = 0.05 * (max(scores) - min(scores)) + 1e-3
    axes.set(ylabel="score on calibration data", ylim=(min(scores) - margin, max(scores) + margin))
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.set(xscale="log", xlabel="latency, of the original's")
    ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0) if axes.get_xlim()[0] <= tick <= 1.1]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.grid(color="#e9ecef", lw=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, frameon=False)
