"""The picture of what is composed of one, two, ... modules: its size, and what it loses; see :mod:`modular`.

python benchmarks/modular_picture.py        # of what is recorded; writes docs/modular_composed.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from cells import RESULTS
from datasets import DATASETS
from matplotlib.axes import Axes
from modular_train import SIZES

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "modular_composed.png"
COLOURS = {"resnet44": "tab:blue", "vgg10": "tab:green", "mobile11": "tab:orange", "vit12": "tab:purple"}
TICKS = (-40, -20, -10, -5, -2, -1, 0, 1)
"""Points that are told on the axis."""

Found = dict[str, Any]


def draw(found: list[Found], file: Path) -> None:
    """Draw shares of weights and points over the whole network: means over seeds, and crosses for MwT."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names = [name for name in DATASETS if any(one["data"] == name for one in found)]
    size = (3.6 * len(names) + 0.8, 6.4)
    figure, axes = plt.subplots(2, len(names), figsize=size, squeeze=False, sharex=True, sharey="row")
    for (above, below), name in zip(axes.T, names, strict=True):
        for architecture, colour in COLOURS.items():
            cells = [one for one in found if (one["architecture"], one["data"]) == (architecture, name)]
            if cells:
                _draw(above, cells, "weights", 100, colour, architecture)
                _draw(below, cells, "points", 1, colour, architecture)
        above.set(title=name)
        below.set(xlabel="modules composed")
        below.axhline(0, color="black", linewidth=0.8, zorder=0)
        below.set_yscale("symlog", linthresh=1, linscale=0.6)
        below.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS], minor=False)
        below.set_ylim(-60, 1)
        below.set_xticks(SIZES)
        for axis in (above, below):
            axis.grid(alpha=0.3)
    axes[0][0].set(ylabel="weights, % of the network's", ylim=(0, 105))
    axes[1][0].set(ylabel="test accuracy over the whole network\namong the same classes, points")
    handles, labels = axes[0][0].get_legend_handles_labels()
    handles.append(plt.Line2D([], [], color="grey", marker="x", linestyle=""))
    figure.legend(
        handles, [*labels, "MwT, 3 modules (over standard training)"], loc="lower center", ncols=5, frameon=False
    )
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(file, dpi=110)


def _draw(axis: Axes, cells: list[Found], figure: str, times: float, colour: str, label: str) -> None:
    """Draw one figure of a network on a data set."""
    values = times * np.array([[one["ours"]["sizes"][str(size)][figure] for size in SIZES] for one in cells])
    axis.plot(SIZES, values.mean(0), color=colour, label=label, marker="o", markersize=4, linewidth=2)
    if len(cells) > 1:
        axis.fill_between(SIZES, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    other = [times * one["published"]["sizes"]["3"][figure] for one in cells if "published" in one]
    if other:
        axis.plot(3, np.mean(other), "x", color=colour, markersize=8, markeredgewidth=2)


def main() -> None:
    """Draw what has been found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    file = RESULTS / "modular.json"
    found = json.loads(file.read_text()).get("train", {}).get("found", []) if file.exists() else []
    if not found:
        raise SystemExit(f"{file} has no libraries; make them with python benchmarks/modular.py --only train")
    draw(found, arguments.out)


if __name__ == "__main__":
    main()
