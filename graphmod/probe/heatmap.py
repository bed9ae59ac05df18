"""A similarity matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from graphmod.model import replace_file

_LABELS = 24
"""Ticks that fit an axis."""

BORDER = "#00b4d8"
"""Seen on all of the colour map, on its bright end too, where modules are."""


def heatmap(
    matrix: NDArray[np.float64],
    names: Sequence[str],
    path: str | PathLike[str] | None = None,
    runs: Sequence[range] = (),
) -> Figure:
    """Draw a matrix of similarities between 0 and 1, and write it to ``path`` if given.

    Parameters
    ----------
    matrix : float64 array, shape (names, names)
    names : sequence of str
    path : path, optional
    runs : sequence of range
        Consecutive rows that belong together: a square is drawn around each.

    Raises
    ------
    NotWritableError
        The path cannot be written.
    """
    figure = Figure(figsize=(7.2, 6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap="magma", interpolation="nearest")
    for run in runs:
        corner = run.start - 0.5
        axes.add_patch(Rectangle((corner, corner), len(run), len(run), fill=False, edgecolor=BORDER, linewidth=1.8))
    step = max(1, -(-len(names) // _LABELS))
    ticks = list(range(0, len(names), step))
    axes.set_xticks(ticks, [names[i] for i in ticks], rotation=90, fontsize=6)
    axes.set_yticks(ticks, [names[i] for i in ticks], fontsize=6)
    axes.set_title("similarity of boundaries (linear CKA)")
    figure.colorbar(image, ax=axes, shrink=0.85)
    if path is not None:
        suffix = Path(path).suffix.lstrip(".") or "png"
        replace_file(path, lambda stream: figure.savefig(stream, format=suffix, dpi=150))
    return figure
